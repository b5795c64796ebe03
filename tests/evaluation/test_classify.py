"""Prediction sees of a file what training's evaluation sees of it."""

import io
import itertools
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_photographs
from PIL import Image
from run_configs import run_config

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data import datasets
from hsakd_jax.data.augment import prepare
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.image_files import FILTERS, TooLargeError, centre_crop
from hsakd_jax.data.streaming import centre_crops
from hsakd_jax.evaluation.accuracy import batches_of, load_test, make_evaluate, pixels_of, preprocessing
from hsakd_jax.evaluation.classify import find, predict
from hsakd_jax.evaluation.predictions import Checkpoint, _class_order, predict_all
from hsakd_jax.models.network import Outputs
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build_network, initialise, restore

CROPPED = {"data__crop": "resized", "data__image_size": 32, "data__resize": 36, "shape": (0, 0, 3)}
COLOUR = {"data__mean": (0.5,), "data__std": (0.25,)}


def photograph(width=90, height=60, mode="RGB"):
    coarse = np.random.default_rng(0).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def phone(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(1200, 900).save(path, "JPEG", exif=exif, quality=95)


def cut_out(path):
    image = photograph(mode="RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path, "PNG")


def x_ray(path):
    Image.fromarray(np.arange(60 * 90, dtype=np.uint16).reshape(60, 90) * 12).save(path, "PNG")


FILES = {
    "phone.jpg": phone,
    "cut-out.png": cut_out,
    "x-ray.png": x_ray,
    "cmyk.jpg": lambda path: photograph(mode="CMYK").save(path, "JPEG"),
    "palette.gif": lambda path: photograph(mode="P").save(path, "GIF"),
    "grey.jpg": lambda path: photograph(mode="L").save(path, "JPEG"),
    "upright.webp": lambda path: photograph(60, 90).save(path, "WEBP"),
}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    for split in ("train", "test"):
        (tmp_path / "tree" / split / "all").mkdir(parents=True)
        for name, save in FILES.items():
            save(tmp_path / "tree" / split / "all" / name)
    return tmp_path / "tree"


@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_streamed_tree_and_prediction_see_the_same_pixels(tree, interpolation):
    config = run_config(data__name="image_tree", data__interpolation=interpolation, **CROPPED, **COLOUR)
    splits = datasets.load("image_tree", str(tree), interpolation=interpolation)
    (batch,) = batches_of(config, splits.test, len(FILES))
    files = [tree / "test/all" / name for name in sorted(FILES)]
    predicted = np.stack([pixels_of(config)(path.read_bytes()) for path in files])
    assert predicted.shape == (len(FILES), 32, 32, 3)
    np.testing.assert_array_equal(batch["image"], predicted)
    np.testing.assert_array_equal(centre_crops(splits.train, np.arange(len(FILES)), 32, 36), predicted)
    assert len({image.tobytes() for image in predicted}) == len(FILES)


def test_a_prepared_folder_and_prediction_see_the_same_pixels(tree):
    sizes = {"data__image_size": 16, "shape": (16, 16, 3)}
    found = set()
    for crop, interpolation in itertools.product(("pad", "resized"), FILTERS):
        options = {"data__crop": crop, "data__interpolation": interpolation}
        config = run_config(data__name="image_folder", **options, **sizes, **COLOUR)
        prepared = datasets.load("image_folder", str(tree), image_size=16, interpolation=interpolation)
        (batch,) = batches_of(config, prepared.test, len(FILES))
        images = np.asarray(prepare(batch["image"], **preprocessing(config)))
        pixels = np.stack([pixels_of(config)(path.read_bytes()) for path in (tree / "test/all").iterdir()])
        predicted = np.asarray(prepare(pixels, **preprocessing(config)))
        assert {image.tobytes() for image in images} == {image.tobytes() for image in predicted}
        found.add(images.tobytes())
    assert len(found) == 2  # one for each filter, whose copies are two


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_of_the_networks_shape_stays_as_it_is():
    image = photograph(32, 32)
    for keys in ({"shape": (32, 32, 3)}, {**CROPPED, "shape": (32, 32, 3)}):
        found = pixels_of(run_config(data__name="toy", **keys, **COLOUR))(png(image))
        np.testing.assert_array_equal(found, np.asarray(image))


def test_arrays_that_are_cropped_are_predicted_alike():
    """The device crops arrays, Pillow files: they agree to a grey level."""
    config, image = run_config(data__name="toy", **CROPPED, **COLOUR), photograph(60, 48)
    sized = {**preprocessing(config), "mean": (0,), "std": (1 / 255,)}
    expected = np.asarray(prepare(np.asarray(image)[None], **sized))[0]
    assert abs(expected - pixels_of(config)(png(image))).max() <= 1.01


def test_images_that_are_not_square_are_seen_whole():
    config = run_config(shape=(8, 12, 1))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 1), np.uint8)
    seen = []

    class Network:
        branches = False

        def apply(self, variables, images):
            seen.append(images.shape)
            # The class is whether the last column is brighter than the first: the middle square has neither.
            difference = images[:, :, -1].sum((1, 2)) - images[:, :, 0].sum((1, 2))
            return Outputs(jnp.stack([-difference, difference], 1) + variables)

    labels = (images[:, :, -1].sum((1, 2)) > images[:, :, 0].sum((1, 2))).astype(np.int32)
    devices = Devices()
    evaluate = make_evaluate(Network(), devices, config, 8)
    assert evaluate(devices.replicate(jnp.zeros(())), Dataset(images, labels))["top1"] == 100
    assert seen[0][1:] == (8, 12, 1)
    np.testing.assert_array_equal(pixels_of(config)(png(Image.fromarray(images[0, ..., 0]))), images[0])
    assert pixels_of(config)(png(photograph(24, 16))).shape == (8, 12, 1)
    with pytest.raises(ValueError, match=r"images of \(12, 12\), where 8 x 12 are expected"):
        prepare(np.zeros((1, 12, 12, 1), np.uint8), **preprocessing(config))


@pytest.mark.parametrize(("shape", "fits"), [((8, 8, 1), True), ((8, 12, 1), True), ((8, 13, 1), False)])
def test_predictions_of_networks_of_other_shapes(shape, fits):
    configs = run_config(shape=shape), run_config(shape=(8, 12, 1))
    if fits:
        _class_order(Path("run"), configs[0], Path("first"), configs[1])
        return
    with pytest.raises(UserError, match=r"run takes images of \[8, 13, 1\], not \[8, 12, 1\]"):
        _class_order(Path("run"), configs[0], Path("first"), configs[1])


def test_test_images_of_another_size():
    images = [Dataset(np.zeros((1, *shape, 3), np.uint8), np.zeros(1, np.int32)) for shape in ((8, 8), (8, 9))]
    with pytest.raises(UserError, match=r"training images of \[8, 8, 3\] and test images of \[8, 9, 3\]"):
        run_config(shape=images[0].image_shape, tests=images[1], **COLOUR)


def make(path, change=lambda variables: variables, **keys):
    """A run of random weights."""
    directory, config = RunDirectory(path), run_config(student__arch="resnet8_quarter", **keys)
    directory.acquire(config)
    checkpoints = Checkpoints(directory.checkpoints)
    variables = initialise(build_network(config.network), config.network.image_shape, 0)
    checkpoints.save(1, change(jax.device_get(variables)))
    checkpoints.close()
    return path


def test_photographs_are_cropped_for_each_network_as_in_its_own_evaluation(tmp_path):
    write_photographs(tmp_path / "tree", {"train": 1, "test": 6}, "ab", "png")
    networks = {}
    for key, size, resize, interpolation in (("student", 16, 32, "bilinear"), ("teacher", 24, 28, "bicubic")):
        sizes = {"data__image_size": size, "data__resize": resize, "data__interpolation": interpolation}
        keys = {"data__name": "image_tree", "data__dir": str(tmp_path / "tree"), "data__crop": "resized"}
        networks[key] = make(tmp_path / key, **keys, **sizes, **COLOUR, shape=(0, 0, 3))
    found = predict_all({key: Checkpoint(run) for key, run in networks.items()}, 3)
    for key, run in networks.items():
        config = RunDirectory(run).config()
        (rows,) = batches_of(config, load_test(run, config), 12)
        network, variables = restore(run)
        logits = network.apply(variables, prepare(rows["image"], **preprocessing(config))).logits
        np.testing.assert_allclose(found.by_network[key].probabilities, jax.nn.softmax(logits).max(-1), rtol=1e-5)
        if key == "student":
            wrong = np.flatnonzero(logits.argmax(-1) != rows["label"])
            assert set(found.misclassified) <= set(wrong.tolist())
            for i, image in found.misclassified.items():
                np.testing.assert_array_equal(image, rows["image"][i])
    assert found.misclassified


def test_outputs_that_are_not_finite_predict_nothing(tmp_path):
    spoil = partial(jax.tree.map, lambda x: np.full_like(x, np.nan))
    run = make(tmp_path / "run", spoil, classes="ab")
    photograph(8, 8).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="the outputs of .*run are not finite: choose another checkpoint or run"):
        predict(run, [tmp_path / "x.png"], 1)
    datasets.load("digits")
    whole = make(tmp_path / "whole", classes="0123456789")
    run = make(tmp_path / "other", spoil, classes="0123456789")
    found = predict_all({"student": Checkpoint(whole), "teacher": Checkpoint(run)}, 3)
    assert (list(found.by_network), found.left_out) == (
        ["student"],
        {"teacher": f"the outputs of {run} are not finite"},
    )
    with pytest.raises(UserError, match="other are not finite"):
        predict_all({"student": Checkpoint(run)}, 3)


def test_an_image_whose_scaled_form_fills_the_memory_is_refused():
    with pytest.raises(TooLargeError, match="has 1,638,400,000 pixels when its shorter side is scaled to 256: cut off"):
        centre_crop(png(Image.new("L", (200_000, 8))), 224, 256)
    assert centre_crop(png(Image.new("L", (2000, 8))), 224, 256).size == (224, 224)


def test_a_network_of_four_channels_predicts_no_files():
    config = run_config(shape=(8, 8, 4), **COLOUR)
    with pytest.raises(UserError, match="takes images of 4 channels, which image files do not have: use evaluate"):
        pixels_of(config)


def test_find_says_what_it_leaves_out(tmp_path, capsys):
    for name in ("a/1.jfif", "a/deep/2.png", "a/.ipynb_checkpoints/3.png", "a/notes.txt", "b/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "a/fifo.png")
    found = find([str(tmp_path / "a"), str(tmp_path / "b/.hidden.png")])
    assert found == [tmp_path / name for name in ("a/1.jfif", "a/deep/2.png", "b/.hidden.png")]
    assert capsys.readouterr().err == (
        f"{tmp_path}/a: 2 files left out: 1 device, FIFO or socket (fifo.png), 1 not an image (notes.txt)\n"
    )
    (tmp_path / "b/x.avif").touch()
    with pytest.raises(
        UserError,
        match=r"no images in .*/b \(1 file left out: 1 not an image \(x.avif\)\): there should be files of .apng, .bmp",
    ):
        find([str(tmp_path / "b")])
