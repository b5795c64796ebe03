import io
import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from hsakd_jax.core.errors import UserError
from hsakd_jax.data import datasets, locate, tfds_reader

CLASSES = 5


class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset that somebody else prepared: 60 JPEGs and 20 more under `validation`, labels i % 5."""

    VERSION = tfds.core.Version("1.9.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="one"), tfds.core.BuilderConfig(name="two")]  # noqa: RUF012

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                    "remark": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(60), "validation": self._generate_examples(20)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, {"image": toy_image(i), "label": i % CLASSES, "remark": "none"}


def toy_image(i):
    """Grey 4i, which a JPEG keeps exactly."""
    return Image.fromarray(np.full((12, 16, 3), 4 * i, np.uint8))


def quietly(builder):
    tfds.display_progress_bar(False)
    builder.download_and_prepare(file_format="array_record")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data folder with toy/one/1.9.0."""
    root = tmp_path_factory.mktemp("prepared")
    quietly(Toy(data_dir=root, config="one"))
    return root


@pytest.fixture
def copy(prepared, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(prepared, tmp_path / "copy")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def edit(root, file, old, new):
    path = root / "toy/one/1.9.0" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# Loading


def test_a_prepared_dataset_is_read_by_name(prepared, capsys):
    splits = datasets.load("toy", str(prepared))
    assert "tensorflow" not in sys.modules
    assert splits.train.images.shape == (60, 12, 16, 3)
    assert splits.test.images.shape == (20, 12, 16, 3)
    assert splits.train.images.dtype == np.uint8
    assert splits.train.labels.dtype == np.int32
    assert splits.validation is None
    assert splits.class_names == ("0", "1", "2", "3", "4")
    for part, n in ((splits.train, 60), (splits.test, 20)):
        i = part.images[:, 5, 5, 0] // 4
        np.testing.assert_array_equal(np.sort(i), np.arange(n))
        np.testing.assert_array_equal(part.labels, i % CLASSES)
        np.testing.assert_array_equal(part.images, np.broadcast_to(4 * i[:, None, None, None], part.images.shape))
    assert capsys.readouterr().err.count("`validation`") == 1


def test_loading_is_deterministic(prepared):
    first, second = (datasets.load("toy", str(prepared), fraction=0.5, validation=0.2, seed=3) for _ in range(2))
    for a, b in zip(first[:3], second[:3], strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert a.digest == b.digest
    digests = {part.digest for part in first[:3]}
    assert len(digests) == 3
    n = len(first.train.labels)
    assert first.train.take(np.arange(n)[::-1]).digest not in digests
    assert first.train.take(np.arange(n)).digest == second.train.take(np.arange(n)).digest
    assert first.train.with_labels(first.train.labels[::-1]).digest in digests


def test_another_image_has_another_digest(prepared, tmp_path, monkeypatch):
    original = datasets.load("toy", str(prepared))
    monkeypatch.setattr(sys.modules[__name__], "toy_image", lambda i, image=toy_image: image(58 if i == 59 else i))
    quietly(Toy(data_dir=tmp_path, config="one"))
    changed = datasets.load("toy", str(tmp_path))
    np.testing.assert_array_equal(original.train.labels, changed.train.labels)
    assert changed.train.digest != original.train.digest
    assert changed.test.digest == original.test.digest is not None


def test_the_digest_does_not_depend_on_encoder_or_decoder():
    """Pixels of PNG files, which programs compress in different ways, and bytes of others, which they decode so."""
    pixels = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)

    def stored(**options):
        buffer = io.BytesIO()
        Image.fromarray(pixels[0]).save(buffer, **options)
        return [buffer.getvalue()]

    fast, small, photo = (stored(format=f, **o) for f, o in (("PNG", {"compress_level": 0}), ("PNG", {}), ("JPEG", {})))
    assert fast != small
    assert tfds_reader._digest(fast, pixels) == tfds_reader._digest(small, pixels)
    assert tfds_reader._digest(fast, pixels) != tfds_reader._digest(fast, pixels + 1)
    assert tfds_reader._digest(photo, pixels) == tfds_reader._digest(photo, pixels + 1)
    assert tfds_reader._digest(photo, pixels) != tfds_reader._digest(stored(format="JPEG", quality=50), pixels)


def test_threads_decode_the_same(prepared, monkeypatch):
    serial = datasets.load("toy", str(prepared)).train
    monkeypatch.setattr(tfds_reader, "_LARGE", 1)
    np.testing.assert_array_equal(datasets.load("toy", str(prepared)).train.images, serial.images)


def test_the_default_folder_is_that_of_tfds(prepared, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(datasets.load("toy").train.labels) == 60
    monkeypatch.delenv("TFDS_DATA_DIR")
    shutil.copytree(prepared, tmp_path / "home/tensorflow_datasets")
    assert len(datasets.load("toy").train.labels) == 60


def test_a_split_not_asked_for_is_empty(prepared):
    splits = datasets.load("toy", str(prepared), splits=["test"])
    assert len(splits.train.labels) == len(splits.train.images) == 0
    assert len(splits.test.labels) == 20


def test_held_out_and_kept_images_are_disjoint_and_stratified(prepared):
    splits = datasets.load("toy", str(prepared), validation=0.25, fraction=0.5, seed=1)
    np.testing.assert_array_equal(np.bincount(splits.validation.labels), [3] * 5)
    np.testing.assert_array_equal(np.bincount(splits.train.labels), [round(0.5 * 9)] * 5)
    values = [set(part.images[:, 5, 5, 0].tolist()) for part in splits[:2]]
    assert not values[0] & values[1]
    whole = datasets.load("toy", str(prepared), validation=0.25, seed=1)
    assert len(whole.train.labels) == 45
    assert values[0] < set(whole.train.images[:, 5, 5, 0].tolist())
    np.testing.assert_array_equal(whole.validation.images, splits.validation.images)


def test_the_newest_version_is_taken(copy):
    newer = shutil.copytree(copy / "toy/one/1.9.0", copy / "toy/one/1.10.0")
    for file, old, new in (("dataset_info.json", "1.9.0", "1.10.0"), ("features.json", '"5"', '"6"')):
        (newer / file).write_text((newer / file).read_text().replace(old, new))
    for other in ("incomplete.ABCDEF_1.11.0", "1.11.x"):
        shutil.copytree(newer, copy / "toy/one" / other)
    assert len(datasets.load("toy/one", str(copy)).class_names) == 6


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A package of a stranger's on Python's path, which leaves a mark where it is imported."""
    (tmp_path / "path/stranger").mkdir(parents=True)
    for name in ("__init__", "feature"):
        (tmp_path / f"path/stranger/{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path / "path")
    return tmp_path / "mark"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tensorflow_datasets.core.features.class_label_feature.ClassLabel", "stranger.feature.ClassLabel"),
        ("tensorflow_datasets.core.features.features_dict.FeaturesDict", "stranger.feature.FeaturesDict"),
        (
            '"pythonClassName": "tensorflow_datasets.core.features.image_feature',
            '"python_class_name": "stranger.feature',
        ),
        ('{\n    "featuresDict"', '{"type": "stranger.feature.Image", "content": {}, "featuresDict"'),
    ],
)
def test_the_code_that_a_dataset_names_is_not_run(copy, trap, old, new):
    edit(copy, "features.json", old, new)
    with pytest.raises(UserError, match=r"features\.json names the class 'stranger\.feature\.\w+', which is not"):
        datasets.load("toy", str(copy))
    assert not trap.exists()


def test_the_module_that_made_a_dataset_is_not_run(copy, trap):
    edit(copy, "dataset_info.json", '"moduleName": "test_datasets"', '"moduleName": "stranger.feature"')
    assert len(datasets.load("toy", str(copy)).test.labels) == 20
    assert not trap.exists()


def test_several_configs_must_be_told_apart(copy):
    shutil.copytree(copy / "toy/one", copy / "toy/two")
    with pytest.raises(UserError, match=r"several configs: name one of toy/one, toy/two"):
        datasets.load("toy", str(copy))
    assert len(datasets.load("toy/one", str(copy)).train.labels) == 60


# Bad input


@pytest.mark.parametrize(
    ("name", "guess"), [("cifar", "cifar10"), ("imagefolder", "image_folder"), ("toy/on", "toy/one"), ("qqq", None)]
)
def test_an_unknown_name_lists_what_there_is(prepared, name, guess):
    with pytest.raises(UserError, match=r"digits, .*cifar10, .*imagenet2012, image_folder.*; .*toy/one") as error:
        datasets.load(name, str(prepared))
    assert (f"did you mean {guess!r}" in str(error.value)) if guess else ("did you mean" not in str(error.value))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere contains no others"):
        datasets.load("toy", str(tmp_path / "nowhere"))


def test_tfrecord_needs_a_conversion(copy):
    edit(copy, "dataset_info.json", '"array_record"', '"tfrecord"')
    with pytest.raises(
        UserError, match=r"tfds convert_format --dataset_version_dir=\S+/toy/one/1.9.0 --out_file_format"
    ):
        datasets.load("toy", str(copy))


def test_a_name_that_resembles_another(tmp_path):
    for name in ("cifar10", "image_tree", "galaxies"):
        locate.check_name(name, str(tmp_path))
    with pytest.raises(UserError, match=f"no dataset 'cifar10_1' in {tmp_path}: did you mean 'cifar10'?"):
        locate.check_name("cifar10_1", str(tmp_path))
    (tmp_path / "cifar10_1").mkdir()
    locate.check_name("cifar10_1", str(tmp_path))


def test_tfrecord_of_our_own_may_be_prepared_anew(tmp_path):
    datasets.load("digits", str(tmp_path))
    path = tmp_path / "digits/1.0.0/dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"tfds convert_format .* or set another data.dir"):
        datasets.load("digits", str(tmp_path))


def test_an_image_size_where_it_means_nothing(prepared):
    with pytest.raises(UserError, match="image_size is for image_folder"):
        datasets.load("toy", str(prepared), image_size=8)


def test_labels_outside_the_classes(copy):
    edit(copy, "features.json", '"numClasses": "5"', '"numClasses": "4"')
    with pytest.raises(UserError, match=r"toy, split train, example \d+ has the label 4, outside its 4 classes"):
        datasets.load("toy", str(copy))


def test_images_of_16_bits(copy):
    edit(copy, "features.json", '"uint8"', '"uint16"')
    edit(copy, "features.json", '"jpeg"', '"png"')
    with pytest.raises(UserError, match=r"uint16 .* 8 bits"):
        datasets.load("toy", str(copy))


def test_no_label(copy):
    edit(copy, "features.json", '"label"', '"genus"')
    with pytest.raises(UserError, match=r"`image` and `label` \(a class\) .* genus \(ClassLabel\)"):
        datasets.load("toy", str(copy))


def test_a_fifth_of_a_dataset_with_one_split_is_held_out(copy, capsys):
    path = copy / "toy/one/1.9.0/dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] == "train"]
    path.write_text(json.dumps(info))
    found = datasets.load("toy", str(copy))
    assert (len(found.train.labels), len(found.test.labels)) == (50, 10)
    both = [*found.train.images[:, 0, 0, 0].tolist(), *found.test.images[:, 0, 0, 0].tolist()]
    assert sorted(both) == [4 * i for i in range(60)]
    assert set(found.test.labels) == set(range(CLASSES))
    assert capsys.readouterr().err == (
        "toy has a split `train` only: every fifth image of a class is a test image, 10 of 60\n"
    )
    assert len(datasets.load("toy", str(copy), splits=("test",)).test.labels) == 10


def test_no_training_split(copy):
    path = copy / "toy/one/1.9.0/dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] != "train"]
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match="has no split `train`, only validation"):
        datasets.load("toy", str(copy))


def test_images_of_several_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "toy_image", lambda i: Image.new("RGB", (8, 8 + i // 50)))
    quietly(Toy(data_dir=tmp_path, config="two"))
    with pytest.raises(UserError, match=r"several sizes, .*\((8|9), 8, 3\).*\((8|9), 8, 3\)"):
        datasets.load("toy", str(tmp_path))


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "info"])
def test_damaged_files_are_never_read(copy, damage):
    (path,) = (copy / "toy/one/1.9.0").glob("*train*")
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-65536])
    elif damage == "flip":
        content[content.index(b"JFIF") + 100] ^= 1
        path.write_bytes(content)
    elif damage == "delete":
        path.unlink()
    else:
        (path.parent / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"toy/one/1.9.0 can't be read .*: delete it and prepare it again"):
        datasets.load("toy", str(copy))


@pytest.mark.parametrize("number", [1, 60])
def test_an_undecodable_image_is_named(tmp_path, monkeypatch, number):
    class Broken(Image.Image):
        def save(self, fp, format=None, **_):
            fp.write(b"no image")

    def broken(i):
        image = Image.new("RGB", (8, 8))
        image.__class__ = Broken if i < number else Image.Image
        return image

    monkeypatch.setattr(sys.modules[__name__], "toy_image", broken)
    quietly(Toy(data_dir=tmp_path, config="two"))
    with pytest.raises(UserError, match=r"toy, split train, example \d+ is no readable image"):
        datasets.load("toy", str(tmp_path))


def test_more_than_the_memory(prepared, monkeypatch):
    monkeypatch.setattr(tfds_reader.os, "sysconf", lambda name: 100)
    with pytest.raises(UserError, match=r"takes 0.0 GiB"):
        datasets.load("toy", str(prepared))


@pytest.mark.parametrize("options", [{"fraction": 0}, {"fraction": 1.1}, {"validation": -0.1}, {"validation": 1.5}])
def test_a_fraction_out_of_range(prepared, options):
    with pytest.raises(UserError, match="fraction of"):
        datasets.load("toy", str(prepared), **options)


def test_holding_out_all_of_a_class(prepared):
    with pytest.raises(UserError, match="no training image of class 0"):
        datasets.load("toy", str(prepared), validation=0.99)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"null", b"3", b"\xff\xfe", b"[" * 10**5, b"\0" * 10], ids=lambda c: c[:9]
)
def test_a_damaged_file_beside_the_records_is_one_line(copy, name, content, capsys):
    (copy / "toy/one/1.9.0" / name).write_bytes(content)
    with pytest.raises(UserError, match=r"toy.* can't be read|toy.* can't be trained on|no dataset") as refused:
        datasets.load("toy", str(copy))
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""
