import hashlib
import io
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from PIL import Image, ImageOps
from test_builders import imagenet_archives

from hsakd_jax.core.errors import UserError
from hsakd_jax.data import datasets, image_tree, sampling, streaming, tfds_reader
from hsakd_jax.data.builders import BUILDERS
from hsakd_jax.data.builders.prepare import prepare
from hsakd_jax.data.image_files import FILTERS
from hsakd_jax.data.streaming import AREA, RATIO, Photos, centre_crops, crop_box, eval_stream, random_crops, stream

SAMPLES = os.environ.get("IMAGENET_SAMPLES", "")  # WNID/*.JPEG, the photographs of golden/imagenet_eval.json


def noise(width, height, seed=0, mode="RGB", grain=16):
    """A photograph of sorts: coloured, and smooth over `grain` pixels."""
    shape = max(2, height // grain), max(2, width // grain), 3
    coarse = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **{"quality": 95, **options} if kind == "JPEG" else options)
    return buffer.getvalue()


def of(*images, **options):
    """Photos of encoded images, labels i % 5."""
    labels = (np.arange(len(images)) % 5).astype(np.int32)
    return Photos(lambda i: (f"{i}.JPEG", images[i]), labels, tuple("abcde"), **options)


def many(n=23):
    return of(*(encoded(noise(40 + 3 * i, 60 - i, i)) for i in range(n)))


def decoding():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


# The part of an image


def theirs(rng, width, height):
    """RandomResizedCrop's rule as torchvision documents it: left, top, width, height; None in place of the middle."""
    for area, ratio in zip(rng.uniform(*AREA, 10), rng.uniform(math.log(3 / 4), math.log(4 / 3), 10), strict=True):
        w = round(math.sqrt(area * width * height * math.exp(ratio)))
        h = round(math.sqrt(area * width * height / math.exp(ratio)))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, width - w + 1), rng.integers(0, height - h + 1), w, h
    return None


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (300, 40), (1, 1), (2, 90)])
def test_parts_follow_the_rule(size):
    found = {}
    for seed in range(400):
        left, top, w, h = box = crop_box(np.random.default_rng(seed), *size)
        expected = theirs(np.random.default_rng(seed), *size)
        assert expected is None or box == expected
        assert 0 <= left <= size[0] - w
        assert 0 <= top <= size[1] - h
        assert w >= 1
        assert h >= 1
        found[box] = expected
    if size == (500, 375):
        shares = np.sort([w * h / (size[0] * size[1]) for _, _, w, h in found])
        assert shares[0] >= 0.079
        assert 0.4 < np.mean(shares) < 0.54  # a little less than the mean of AREA: the largest often do not fit
        assert len({box[:2] for box in found}) > 350


class Never:
    """A generator whose draws never fit."""

    def uniform(self, low, high, n):
        return np.full(n, 9.0)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((100, 10), (43, 0, 13, 10)),
        ((10, 100), (0, 43, 10, 13)),
        ((13, 11), (0, 0, 13, 11)),
        ((101, 75), (0, 0, 100, 75)),
    ],
)
def test_the_middle_where_no_draw_fits(size, box):
    assert crop_box(Never(), *size) == box
    assert RATIO[0] - 0.05 <= box[2] / box[3] <= RATIO[1] + 0.05


@pytest.mark.parametrize("interpolation", FILTERS)
def test_crops_are_what_pillow_scales(interpolation):
    image = noise(150, 120)
    content = encoded(image)
    photos = of(content, interpolation=interpolation).take(np.array([0]))
    (found,) = random_crops(photos, np.array([0]), seed=3, step=5, size=64)
    left, top, w, h = crop_box(np.random.default_rng((3, 5, 0)), 150, 120)
    assert min(w, h) < 128  # decoded in full
    whole = Image.open(io.BytesIO(content))
    expected = whole.resize((64, 64), FILTERS[interpolation], box=(left, top, left + w, top + h))
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("size", [(1600, 1200), (1601, 1203), (1111, 1999)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_images_are_decoded_in_part(monkeypatch, size, mode):
    """At a half, a quarter or an eighth, with nearly the same result, and never coarser than the crop."""
    content, scales = encoded(noise(*size, mode=mode, grain=100)), []
    resize = Image.Image.resize

    def watched(self, to, resample, box=None):
        scales.append(round(size[0] / self.width))
        if scales[-1] > 1:
            assert min(box[2] - box[0], box[3] - box[1]) >= 100
        assert box[2] <= self.width
        assert box[3] <= self.height
        return resize(self, to, resample, box)

    for step in range(12):
        whole = Image.open(io.BytesIO(content)).convert("RGB")
        left, top, w, h = crop_box(np.random.default_rng((0, step, 0)), *size)
        expected = np.asarray(whole.resize((100, 100), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)))
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "resize", watched)
            (found,) = random_crops(of(content), np.array([0]), 0, step, 100)
        assert abs(found.astype(int) - expected).mean() < 1
    assert len(set(scales) & {2, 4, 8}) >= 2


@pytest.mark.parametrize("size", [(65, 65), (66, 71), (257, 9), (8, 8)])
def test_small_crops_of_jpegs_whose_sides_are_no_multiples_of_eight(size):
    """A part that is decoded at an eighth has sides that were rounded up."""
    content = encoded(noise(*size, grain=64))
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    for step in range(20):
        left, top, w, h = crop_box(np.random.default_rng((0, step, 0)), *size)
        expected = np.asarray(whole.resize((8, 8), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)))
        (found,) = random_crops(of(content), np.array([0]), 0, step, 8)
        assert abs(found.astype(int) - expected).mean() < 2


def test_crops_depend_on_seed_step_and_image_only():
    dataset = many()
    whole = random_crops(dataset, np.arange(23), 1, 2, 16)
    assert whole.shape == (23, 16, 16, 3)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(random_crops(dataset, np.array([20, 3]), 1, 2, 16), whole[[20, 3]])
    for seed, step in ((2, 2), (1, 3)):
        assert (random_crops(dataset, np.arange(23), seed, step, 16) != whole).any((1, 2, 3)).all()


# Evaluation's part


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (60, 60), (33, 100), (40, 41), (300, 20)])
@pytest.mark.parametrize(("crop", "resize"), [(56, 64), (32, 32), (224, 256)])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_centre_crops(size, crop, resize, interpolation):
    content = encoded(noise(*size))
    (found,) = centre_crops(of(content, interpolation=interpolation), np.array([0]), crop, resize)
    short = min(size)
    sides = [resize if side == short else int(resize * side / short) for side in size]
    image = Image.open(io.BytesIO(content)).resize(sides, FILTERS[interpolation])
    left, top = (round((side - crop) / 2) for side in sides)
    np.testing.assert_array_equal(found, np.asarray(image)[top : top + crop, left : left + crop])


def test_a_crop_larger_than_the_image():
    with pytest.raises(UserError, match="a crop of 224 from images of 192"):
        centre_crops(many(1), np.array([0]), 224, 192)
    with pytest.raises(UserError, match="a crop of 224 from images of 192"):
        next(eval_stream(many(1), 2, 224, 192))


@pytest.mark.skipif(not SAMPLES, reason="IMAGENET_SAMPLES does not say where the photographs are")
def test_evaluation_sees_what_the_reference_sees():
    golden = json.loads((ROOT / "tests/golden/imagenet_eval.json").read_text())
    paths = sorted(Path(SAMPLES).glob("*/*.JPEG"))
    assert len(paths) == len(golden["images"]) == 42
    dataset = of(*(path.read_bytes() for path in paths))
    found = centre_crops(dataset, np.arange(42), 224, 256)
    for path, image in zip(paths, found, strict=True):
        expected = golden["images"][path.parent.name]
        np.testing.assert_allclose(image.mean((0, 1)), expected["channel_means"], atol=0.5)
        blocks = image.reshape(7, 32, 7, 32, 3).mean((1, 3))
        np.testing.assert_allclose(blocks, expected["block_means"], atol=1)
        if Image.__version__ == golden["pillow"]:
            assert hashlib.sha256(image.tobytes()).hexdigest() == expected["sha256"]


# Odd files


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (encoded(Image.new("CMYK", (40, 30), (0, 255, 255, 0))), (255, 0, 0)),
        (encoded(Image.new("L", (40, 30), 77)), (77, 77, 77)),
        (encoded(Image.new("RGB", (40, 30), (10, 200, 30)), "PNG"), (10, 200, 30)),
        (encoded(Image.new("RGBA", (40, 30), (10, 200, 30, 255)), "PNG"), (10, 200, 30)),
        (encoded(Image.new("RGB", (40, 30), (10, 200, 30)).convert("P"), "PNG"), (10, 200, 30)),
        (encoded(Image.new("RGB", (1, 1), (10, 200, 30))), (10, 200, 30)),
        (encoded(Image.new("RGB", (900, 2), (10, 200, 30))), (10, 200, 30)),
    ],
    ids=["cmyk", "grey", "png", "alpha", "palette", "one pixel", "line"],
)
def test_odd_files_become_rgb(content, colour):
    for found in (random_crops(of(content), np.zeros(4, int), 0, 1, 8), centre_crops(of(content), [0], 8, 8)):
        tolerance = 26 if content[:4] == b"\x89PNG" and Image.open(io.BytesIO(content)).mode == "P" else 3
        assert abs(found.astype(int) - colour).max() <= tolerance


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # as streaming.py sets; pytest begins anew
@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05"]
)
def test_broken_exif_does_no_harm(exif):
    image = noise(40, 30)
    content = encoded(image, exif=exif)
    assert exif in content
    np.testing.assert_array_equal(centre_crops(of(content), [0], 16, 16), centre_crops(of(encoded(image)), [0], 16, 16))


def test_broken_exif_is_not_mentioned():
    code = """
import io, numpy as np
from PIL import Image
from hsakd_jax.data.streaming import Photos, centre_crops
b = io.BytesIO()
Image.new("RGB", (40, 30)).save(b, "JPEG", exif=b"Exif\\0\\0MM\\0*\\0\\0\\0\\x08\\0\\x05")
centre_crops(Photos(lambda i: ("a", b.getvalue()), np.zeros(1, np.int32), ("a",)), [0], 8, 8)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr == ""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_are_of_the_upright_image(orientation, monkeypatch):
    """Also where a JPEG is decoded in part: the crop is that of a file whose pixels were turned."""
    exif, scales = Image.Exif(), set()
    exif[0x0112] = orientation
    turned = encoded(noise(1600, 1200, grain=100), exif=exif)
    upright = encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))), "PNG")
    np.testing.assert_array_equal(*(centre_crops(of(content), [0], 56, 64) for content in (turned, upright)))
    transpose = Image.Image.transpose
    monkeypatch.setattr(
        Image.Image, "transpose", lambda self, method: scales.add(self.width) or transpose(self, method)
    )
    for step in range(6):
        found, expected = (random_crops(of(content), [0], 0, step, 64) for content in (turned, upright))
        assert abs(found.astype(int) - expected).mean() < 1
    assert orientation == 1 or max(scales) < 1600  # what is turned was decoded in part


@pytest.mark.parametrize("content", [b"", b"no image", encoded(noise(200, 200))[:3000]], ids=["empty", "other", "cut"])
def test_an_unreadable_file_is_named(content):
    dataset = of(encoded(noise(20, 20)), content)
    calls = [
        lambda: random_crops(dataset, np.array([0, 1]), 0, 0, 8),
        lambda: centre_crops(dataset, np.array([1]), 8, 8),
        lambda: list(itertools.islice(stream(dataset, 2, 0, 0, 8, workers=2), 3)),
        lambda: list(eval_stream(dataset, 2, 8, 8)),
    ]
    for call in calls:
        with pytest.raises(
            UserError, match=r"1.JPEG can't be read as an image \(.+\): fix, replace or delete it"
        ) as error:
            call()
        assert "\n" not in str(error.value)
    assert not decoding()


# Streams


@pytest.mark.parametrize(("workers", "ahead"), [(1, 0), (2, 2), (5, 1)])
def test_a_stream_is_the_same_for_any_workers_and_resumes_anywhere(workers, ahead):
    dataset = many()
    for start in (0, 1, 4):
        rows = stream(dataset, 5, 7, start, 12, workers=workers, ahead=ahead)
        for step, batch in zip(range(start, start + 6), rows, strict=False):
            index = sampling.order(23, 5, 7, step)
            np.testing.assert_array_equal(batch["image"], random_crops(dataset, index, 7, step, 12))
            np.testing.assert_array_equal(batch["label"], index % 5)
            assert batch["image"].dtype == np.uint8
            assert batch["label"].dtype == np.int32
        rows.close()


def test_shares_of_a_stream_make_the_whole():
    dataset = many()
    whole = stream(dataset, 6, 0, 0, 12)
    parts = [stream(dataset, 6, 0, 0, 12, share) for share in (slice(0, 2), slice(2, 6))]
    for batch, *shares in itertools.islice(zip(whole, *parts, strict=True), 5):
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), batch[key])


def test_no_batch_is_written_again():
    first, *others = itertools.islice(stream(many(), 4, 0, 0, 12), 6)
    assert all(not np.shares_memory(first["image"], other["image"]) for other in others)


@pytest.mark.parametrize("share", [slice(None), slice(0, 4), slice(4, 8)])
@pytest.mark.parametrize("n", [1, 8, 20, 0])
def test_each_image_is_evaluated_once(n, share):
    dataset = many(n)
    found = list(eval_stream(dataset, 8, 12, 14, share))
    assert len(found) == -(-n // 8)
    for start, batch in zip(range(0, n, 8), found, strict=True):
        rows = np.arange(start, start + 8)[share]
        real = rows[rows < n]
        np.testing.assert_array_equal(batch["mask"], rows < n)
        np.testing.assert_array_equal(batch["image"][: len(real)], centre_crops(dataset, real, 12, 14))
        np.testing.assert_array_equal(batch["label"], np.where(rows < n, rows % 5, 0))
        assert batch["image"].shape == (len(rows), 12, 12, 3)
        assert batch["label"].dtype == np.int32
        assert not batch["image"][len(real) :].any()


def test_an_empty_evaluation_batch():
    with pytest.raises(UserError, match="at least 1"):
        next(eval_stream(many(1), 0, 8, 8))


def test_a_batch_must_fit_the_training_set():
    with pytest.raises(UserError, match="batch size from 1 to 23"):
        next(stream(many(), 24, 0, 0, 8))


def test_closing_a_stream_ends_its_workers():
    assert not decoding()
    rows = stream(many(), 4, 0, 0, 12, workers=3)
    next(rows)
    assert 1 <= len(decoding()) <= 3
    rows.close()
    assert not decoding()
    rows = stream(many(), 4, 0, 0, 12, workers=3)
    next(rows)
    del rows
    assert not decoding()


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(3)", "os.kill(os.getpid(), 9)"])
def test_workers_end_with_their_process(end):
    code = f"""
import io, os, numpy as np
from PIL import Image
from hsakd_jax.data.streaming import Photos, stream
b = io.BytesIO()
Image.effect_noise((900, 900), 90).save(b, "JPEG")
rows = stream(Photos(lambda i: ("a", b.getvalue()), np.zeros(64, np.int32), ("a",)), 8, 0, 0, 64, workers=4)
next(rows)
print("began", flush=True)
{end}
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "began\n"
    assert process.wait(timeout=60) == {"p": 0, "r": 3, "o": -signal.SIGKILL}[end[0]]
    process.stdout.close()


def test_only_some_batches_are_decoded_ahead():
    read = []

    def count(i):
        read.append(i)
        return "a", content

    content = encoded(noise(20, 20))
    rows = stream(Photos(count, np.zeros(100, np.int32), ("a",)), 10, 0, 0, 8, workers=2, ahead=2)
    next(rows)
    time.sleep(0.3)
    assert len(read) == 30
    next(rows)
    time.sleep(0.3)
    assert len(read) == 40


def test_taking_images():
    dataset = many()
    chosen = dataset.take(np.array([4, 20, 7])).take(np.array([2, 1]))
    assert len(chosen) == 2
    assert chosen.labels.tolist() == [2, 0]
    assert [chosen.encoded(i)[0] for i in range(2)] == ["7.JPEG", "20.JPEG"]
    assert chosen.class_names == tuple("abcde")
    assert chosen.image_shape == (0, 0, 3)
    np.testing.assert_array_equal(centre_crops(chosen, [0, 1], 8, 8), centre_crops(dataset, [7, 20], 8, 8))


def test_photographs_without_names_have_no_digest():
    assert many().digest is None


# A tree


@pytest.fixture
def tree(tmp_path):
    """Two classes with 10 training images and 2 validation images each; the width says which."""
    root = tmp_path / "tree"
    for split, n in (("train", 10), ("val", 2)):
        for c, wnid in enumerate(("n01440764", "n01443537")):
            (root / split / wnid).mkdir(parents=True)
            for i in range(n):
                (root / split / wnid / f"{wnid}_{i}.JPEG").write_bytes(encoded(noise(40 + 20 * c + i, 30)))
    return root


def width(dataset, i):
    return Image.open(io.BytesIO(dataset.encoded(i)[1])).width


def test_a_tree_is_read_where_it_lies(tree):
    (tree / "train/n01440764/.hidden.JPEG").touch()
    (tree / "train/n01440764/notes.txt").touch()
    (tree / "train/file").touch()
    before = sorted(tree.rglob("*"))
    splits = datasets.load("image_tree", str(tree))
    assert sorted(tree.rglob("*")) == before
    assert splits.class_names == ("n01440764", "n01443537")
    assert splits.validation is None
    for part, n in ((splits.train, 10), (splits.test, 2)):
        assert isinstance(part, Photos)
        assert part.labels.dtype == np.int32
        assert part.labels.tolist() == [0] * n + [1] * n
        assert [width(part, i) for i in range(2 * n)] == [40 + 20 * c + i for c in range(2) for i in range(n)]
    assert splits.train.encoded(3)[0] == f"{tree}/train/n01440764/n01440764_3.JPEG"


@pytest.mark.parametrize("name", ["validation", "test"])
def test_other_names_of_the_validation_folder(tree, name):
    (tree / "val").rename(tree / name)
    assert len(datasets.load("image_tree", str(tree)).test) == 4


def test_shares_of_a_tree(tree):
    splits = datasets.load("image_tree", str(tree), validation=0.2, fraction=0.5, seed=1)
    assert np.bincount(splits.validation.labels).tolist() == [2, 2]
    assert np.bincount(splits.train.labels).tolist() == [4, 4]
    widths = [{width(part, i) for i in range(len(part))} for part in splits[:2]]
    assert not widths[0] & widths[1]
    only = datasets.load("image_tree", str(tree), splits=["test"])
    assert len(only.train.labels) == 0
    assert len(only.test) == 4


def test_the_digest_of_a_tree_is_of_its_names_in_order(tree):
    whole = datasets.load("image_tree", str(tree)).train
    digests = {whole.digest, whole.take(np.arange(1, 20)).digest, whole.take(np.arange(20)[::-1]).digest}
    (tree / "train/n01440764/n01440764_3.JPEG").rename(tree / "train/n01440764/n01440764_33.JPEG")
    digests.add(datasets.load("image_tree", str(tree)).train.digest)
    assert len(digests) == 4
    (tree / "train/n01440764/n01440764_33.JPEG").rename(tree / "train/n01440764/n01440764_3.JPEG")
    tree = tree.rename(tree.with_name("moved"))
    again = datasets.load("image_tree", str(tree)).train
    assert again.with_labels(1 - again.labels).take(np.arange(20)).digest == whole.digest


def test_a_tree_with_names_of_any_kind(tree):
    path = tree / "train/n01440764/é ü.jpeg"
    path.write_bytes(encoded(noise(99, 30)))
    train = datasets.load("image_tree", str(tree)).train
    assert 99 in {width(train, i) for i in range(len(train))}


def test_a_file_that_is_gone(tree):
    train = datasets.load("image_tree", str(tree)).train
    (tree / "train/n01440764/n01440764_3.JPEG").unlink()
    with pytest.raises(UserError, match=r"n01440764_3.JPEG is no file: check the path"):
        random_crops(train, np.array([3]), 0, 0, 8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: (t / "train").rename(t / "training"), r"no folder .*/tree/train: a tree contains train/CLASS"),
        (
            lambda t: (t / "val").rename(t / "eval"),
            r"no folder of test images in .*/tree: a tree contains train/CLASS/.* and one of test/CLASS/",
        ),
        (lambda t: (t / "train/n2").mkdir(), r"no images in .*/train/n2: add some \(.*\) or delete the folder"),
        (lambda t: (t / "val/n2").mkdir(), r"val/n2 is a class without training images: add .*/train/n2"),
        (
            lambda t: (shutil.rmtree(t / "val"), (t / "val").mkdir(), (t / "val/1.JPEG").touch()),
            r"no folder of test images in .*/tree: a tree contains",
        ),
    ],
    ids=["train", "val", "empty", "strange", "flat"],
)
def test_a_tree_that_is_none(tree, damage, message):
    damage(tree)
    with pytest.raises(UserError, match=message):
        datasets.load("image_tree", str(tree))


@pytest.mark.parametrize(("directory", "size"), [("", 0), ("tree", 32)])
def test_a_tree_needs_a_folder_only(directory, size):
    with pytest.raises(UserError, match=r"image_tree needs its tree.*set --config.data.dir=DIR"):
        datasets.load("image_tree", directory, image_size=size)


def test_a_tree_is_small_in_memory(tree):
    found = image_tree.ImageFiles(image_tree.ImageTree(tree), "train")
    assert found._names.nbytes <= 20 * 20


# ImageNet


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BUILDERS["imagenet2012"], "IMAGES", {"train": 6, "validation": 3})
        imagenet_archives(root)
        prepare(BUILDERS["imagenet2012"], root)
    return root


def test_imagenet_is_read_from_its_records(prepared, capsys):
    splits = datasets.load("imagenet2012", str(prepared))
    assert "tensorflow" not in sys.modules
    assert len(splits.class_names) == 1000
    assert len(splits.train) == 6
    assert len(splits.test) == 3
    files = tfds.builder_from_directory(prepared / "imagenet2012/5.1.0").as_data_source("train")
    for i, example in enumerate(files):
        assert width(splits.train, i) == example["image"].shape[1]
        assert splits.train.labels[i] == example["label"]
    assert splits.train.encoded(2)[0] == "imagenet2012, split train, example 2"
    assert {width(splits.test, i) for i in range(3)} == {31, 32, 33}
    assert centre_crops(splits.test, np.arange(3), 224, 256).shape == (3, 224, 224, 3)
    batch = next(stream(splits.train, 6, 0, 0, 32, workers=3))
    assert (abs(batch["image"].astype(int) - (254, 0, 0)) < 3).all()
    assert capsys.readouterr().err == ""


def _npy(array):
    """The content of a file of NumPy's."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_labels_are_read_once(prepared, tmp_path, monkeypatch):
    root = Path(shutil.copytree(prepared, tmp_path / "copy"))
    for kept in (root / "imagenet2012").glob(".labels*"):
        kept.unlink()
    first = datasets.load("imagenet2012", str(root)).train.labels
    kept = sorted((root / "imagenet2012").glob(".labels-5.1.0-*.npy"))
    assert len(kept) == 2
    with monkeypatch.context() as patch:
        patch.setattr(tfds_reader, "_all_examples", None)
        np.testing.assert_array_equal(datasets.load("imagenet2012", str(root)).train.labels, first)
    header = kept[0].read_bytes().partition(b"}")
    for content in (
        kept[0].read_bytes()[:20],
        b"",
        _npy(np.zeros(3)),
        _npy(first[1:]),
        _npy(first + 1000),
        header[0].replace(b"(", b"(99999999999999") + header[1],
    ):  # damaged, they are read anew
        for path in kept:
            path.write_bytes(content)
        np.testing.assert_array_equal(datasets.load("imagenet2012", str(root)).train.labels, first)
    (file,) = (root / "imagenet2012/5.1.0").glob("*-train.*")
    shutil.copy(file, tmp_path / "other")
    (tmp_path / "other").rename(file)  # another file: what was kept of the old one does not count
    read = []
    examples = tfds_reader._all_examples
    monkeypatch.setattr(tfds_reader, "_all_examples", lambda *args: read.append(args) or examples(*args))
    datasets.load("imagenet2012", str(root))
    assert read


def test_labels_where_nothing_can_be_written(prepared, tmp_path, monkeypatch):
    root = Path(shutil.copytree(prepared, tmp_path / "copy", ignore=shutil.ignore_patterns(".labels*")))

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(tfds_reader.np, "save", refuse)
    assert len(datasets.load("imagenet2012", str(root)).train) == 6
    assert not list((root / "imagenet2012").glob(".labels*"))


def test_imagenet_shares(prepared):
    splits = datasets.load("imagenet2012", str(prepared), validation=0.34, splits=["train"])
    assert np.bincount(splits.train.labels)[splits.train.labels].tolist() == [2] * 4
    assert len(splits.validation) == 2
    assert len(splits.test.labels) == 0


def test_a_cut_record_file_is_named(prepared, tmp_path):
    root = Path(shutil.copytree(prepared, tmp_path / "copy", ignore=shutil.ignore_patterns(".labels*")))
    train = datasets.load("imagenet2012", str(root)).train
    (file,) = (root / "imagenet2012/5.1.0").glob("*-train.*")
    content = bytearray(file.read_bytes())
    content[content.index(b"JFIF") + 100] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"imagenet2012"):
        datasets.load("imagenet2012", str(root))
    del train


def test_loading_decodes_nothing(tree, monkeypatch):
    monkeypatch.setattr(streaming.Image, "open", None)
    datasets.load("image_tree", str(tree))


def test_a_split_folder_without_classes_is_passed_over(tree, capsys):
    (tree / "test").mkdir()
    (tree / "test/1.JPEG").touch()
    assert len(datasets.load("image_tree", str(tree)).test) == 4
    assert f"{tree}/test has no class folders: passed over" in capsys.readouterr().err


def test_other_decoders_see_no_file(tree):
    """An EPS file by any name would start Ghostscript."""
    content = io.BytesIO()
    noise(40, 30).save(content, "EPS")
    (tree / "train/n01440764/n01440764_0.JPEG").write_bytes(content.getvalue())
    with pytest.raises(UserError, match=r"n01440764_0.JPEG can't be read as an image"):
        random_crops(datasets.load("image_tree", str(tree)).train, np.array([0]), 0, 0, 8)
