import contextlib
import hashlib
import http.server
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle

from hsakd_jax.core.errors import UserError
from hsakd_jax.data import datasets
from hsakd_jax.data.builders import BUILDERS, download
from hsakd_jax.data.builders.prepare import prepare


@pytest.fixture(autouse=True)
def default_dir(tmp_path, monkeypatch):
    """TFDS's default folder, away from the user's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
    return tmp_path / "default"


def run(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=Path(datasets.__file__).parents[2], **options
    )


# Preparing


def test_names_are_those_of_the_builders():
    assert {name: builder.name for name, builder in BUILDERS.items()} == {name: name for name in BUILDERS}


def test_digits_are_those_of_scikit_learn(tmp_path):
    from sklearn.datasets import load_digits

    digits = load_digits()
    inks = {np.rint(i / 16 * 255).astype(np.uint8).tobytes(): label for i, label in zip(digits.images, digits.target)}  # noqa: B905
    splits = datasets.load("digits", str(tmp_path))
    assert "tensorflow" not in sys.modules
    assert splits.train.images.shape == (901, 8, 8, 1)
    assert splits.test.images.shape == (896, 8, 8, 1)
    found = [image.tobytes() for part in (splits.train, splits.test) for image in part.images]
    assert sorted(found) == sorted(np.rint(digits.images / 16 * 255).astype(np.uint8).reshape(1797, 64).view("S64"))
    for part in (splits.train, splits.test):
        assert [inks[image.tobytes()] for image in part.images] == part.labels.tolist()
        assert (abs(np.bincount(part.labels) - 89) <= 3).all()


def test_preparing_says_one_line_once(tmp_path, capfd):
    datasets.load("digits", str(tmp_path))
    first = capfd.readouterr()
    assert first.out == ""
    assert first.err == f"Preparing digits in {tmp_path}/digits/1.0.0\n"
    datasets.load("digits", str(tmp_path))
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UserError, match="set data.dir to the folder above it"):
        datasets.load("digits", f"{tmp_path}/digits")


def test_the_default_folder(default_dir):
    datasets.load("digits")
    assert (default_dir / "digits/1.0.0/dataset_info.json").exists()


def test_a_killed_preparation_leaves_nothing_behind(tmp_path):
    code = """
import os, signal, sys
from hsakd_jax.data import datasets
from hsakd_jax.data.builders.digits import Digits
generate = Digits._generate_examples
def dies(self, *args):
    for i, example in enumerate(generate(self, *args)):
        if i == 700:
            os.kill(os.getpid(), signal.SIGKILL)
        yield example
Digits._generate_examples = dies
datasets.load("digits", sys.argv[1])
"""
    process = run(code, tmp_path, stderr=subprocess.DEVNULL)
    assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.glob("digits/incomplete.*"))
    assert len(datasets.load("digits", str(tmp_path)).train.labels) == 901
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == [".lock", "1.0.0"]


def test_two_processes_prepare_once(tmp_path):
    code = (
        "import sys; from hsakd_jax.data import datasets; print(len(datasets.load('digits', sys.argv[1]).train.labels))"
    )
    processes = [run(code, tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    results = [process.communicate() for process in processes]
    assert [out for out, _ in results] == ["901\n"] * 2
    assert sum("Preparing" in err for _, err in results) == 1


@contextlib.contextmanager
def full_disk(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(tmp_path):
    with full_disk(50_000), pytest.raises(UserError, match=r"digits can't be prepared in .*File too large.*free some"):
        datasets.load("digits", str(tmp_path))
    assert len(datasets.load("digits", str(tmp_path)).train.labels) == 901


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"digits can't be prepared in .*/file/digits \(Not a directory\)"):
        datasets.load("digits", str(tmp_path / "file"))


def test_a_folder_that_is_no_dataset(tmp_path):
    (tmp_path / "digits/1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"digits/1.0.0 is no whole dataset: delete"):
        datasets.load("digits", str(tmp_path))


# CIFAR


def cifar_archive(name, path):
    """A small archive laid out as the published one, and its images, labels and coarse labels by split."""
    rng = np.random.default_rng(0)
    if name == "cifar10":
        folder, classes, file = "cifar-10-batches-bin", 10, "cifar-10-binary.tar.gz"
        files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
        names = {"batches.meta.txt": "".join(f"fine{i}\n" for i in range(10)) + "\n"}
    else:
        folder, classes, file = "cifar-100-binary", 100, "cifar-100-binary.tar.gz"
        files = {"train": ["train.bin"], "test": ["test.bin"]}
        names = {
            "coarse_label_names.txt": "".join(f"coarse{i}\n" for i in range(20)),
            "fine_label_names.txt": "".join(f"fine{i}\n" for i in range(100)),
        }
    content, truth = {key: text.encode() for key, text in names.items()}, {}
    for split, parts in files.items():
        images, labels, coarse = [], [], []
        for part in parts:
            image = rng.integers(0, 256, (12, 32, 32, 3), np.uint8)
            label, group = rng.integers(0, classes, 12), rng.integers(0, 20, 12)
            head = [label] if name == "cifar10" else [group, label]
            rows = [*(h[:, None] for h in head), image.transpose(0, 3, 1, 2).reshape(12, -1)]
            content[part] = np.concatenate(rows, axis=1).astype(np.uint8).tobytes()
            images, labels, coarse = [*images, *image], [*labels, *label], [*coarse, *group]
        truth[split] = np.array(images), np.array(labels), np.array(coarse)
    path.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path / file, "w:gz") as tar:
        for key, value in content.items():
            member = tarfile.TarInfo(f"{folder}/{key}")
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))
    return path / file, truth


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("folder", ["", "downloads"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_from_an_archive_on_disk(tmp_path, monkeypatch, name, folder):
    archive, truth = cifar_archive(name, tmp_path / folder)
    monkeypatch.setattr(BUILDERS[name], "MD5", md5(archive))
    splits = datasets.load(name, str(tmp_path))
    assert "tensorflow" not in sys.modules
    assert splits.class_names == tuple(f"fine{i}" for i in range(10 if name == "cifar10" else 100))
    builder = tfds.builder_from_directory(tmp_path / name / "3.0.2")
    for split, part in (("train", splits.train), ("test", splits.test)):
        images, labels, coarse = truth[split]
        source = builder.as_data_source(split)
        examples = [source[i] for i in range(len(source))]
        index = [int(example["id"].removeprefix(f"{split}_".encode())) for example in examples]
        assert sorted(index) == list(range(len(images)))
        assert all(len(example["id"]) == len(f"{split}_00000") for example in examples)
        np.testing.assert_array_equal(part.images, images[index])
        np.testing.assert_array_equal(part.labels, labels[index])
        if name == "cifar100":
            assert [example["coarse_label"] for example in examples] == coarse[index].tolist()
    if name == "cifar100":
        assert builder.info.features["coarse_label"].names == [f"coarse{i}" for i in range(20)]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_described_as_in_tfds(tmp_path, name):
    from tensorflow_datasets.image_classification import cifar as theirs

    own = BUILDERS[name](data_dir=tmp_path)
    other = getattr(theirs, type(own).__name__)(data_dir=tmp_path)
    assert own.info.full_name == other.info.full_name
    assert repr(own.info.features) == repr(other.info.features)
    assert own.info.supervised_keys == other.info.supervised_keys
    assert tfds.core.registered.imported_builder_cls(name) is type(other)


@pytest.mark.parametrize("damage", ["other", "cut"])
def test_a_damaged_archive(tmp_path, monkeypatch, damage):
    archive, _ = cifar_archive("cifar10", tmp_path)
    if damage == "cut":
        monkeypatch.setattr(BUILDERS["cifar10"], "MD5", md5(archive))
        archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz is damaged .*: delete it and run again"):
        datasets.load("cifar10", str(tmp_path))
    assert not list(tmp_path.glob("cifar10/incomplete.*"))


def test_cifar_without_a_network(tmp_path, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/cifar-10-binary.tar.gz"
    monkeypatch.setattr(BUILDERS["cifar10"], "URL", url)
    monkeypatch.setattr(download, "PAUSE", 0)
    with pytest.raises(
        UserError, match=r"refused.*check the network.* put the file at .*/cifar-10-binary.tar.gz by hand"
    ):
        datasets.load("cifar10", str(tmp_path))


# STL-10


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def stl_archive(path, without=()):
    """A small archive laid out as the published one, and its images and labels by split."""
    rng = np.random.default_rng(0)
    names = [f"class{i}" for i in range(10)]
    truth = {
        split: (rng.integers(0, 256, (12, 96, 96, 3), np.uint8), np.arange(12) % 10) for split in ("train", "test")
    }
    path.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path / "stl10_binary.tar.gz", "w:gz") as tar:
        folder = tarfile.TarInfo("stl10_binary")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        files = {}
        for split in ("test", "train"):
            images, labels = truth[split]
            # Channel, column, row: the first value is red, and the second the pixel below it.
            values = [image[y, x, c] for image in images for c in range(3) for x in range(96) for y in range(96)]
            files[f"{split}_X.bin"] = bytes(values)
            files[f"{split}_y.bin"] = bytes((labels + 1).tolist())
        files["unlabeled_X.bin"] = bytes(3 * 96 * 96)
        files["class_names.txt"] = "".join(f"{name}\n" for name in names).encode()
        files["fold_indices.txt"] = b"0 1 2\n"
        for name, content in files.items():
            if name not in without:
                add(tar, f"stl10_binary/{name}", content)
    return path / "stl10_binary.tar.gz", truth


@pytest.mark.parametrize("folder", ["", "downloads"])
def test_stl10(tmp_path, monkeypatch, folder):
    archive, truth = stl_archive(tmp_path / folder)
    monkeypatch.setattr(BUILDERS["stl10"], "MD5", md5(archive))
    splits = datasets.load("stl10", str(tmp_path))
    assert "tensorflow" not in sys.modules
    assert splits.class_names == tuple(f"class{i}" for i in range(10))
    assert sorted(path.name for path in tmp_path.glob("stl10/1.0.0/*array_record*")) == [
        f"stl10-{split}.array_record-00000-of-00001" for split in ("test", "train")
    ]
    for split, part in (("train", splits.train), ("test", splits.test)):
        known = {image.tobytes(): label for image, label in zip(*truth[split], strict=True)}
        assert len(known) == len(part.images) == 12
        assert [known[image.tobytes()] for image in part.images] == part.labels.tolist()


def test_stl10_without_a_file(tmp_path, monkeypatch):
    archive, _ = stl_archive(tmp_path, without=["test_y.bin"])
    monkeypatch.setattr(BUILDERS["stl10"], "MD5", md5(archive))
    with pytest.raises(UserError, match=r"stl10_binary.tar.gz lacks test_y.bin: delete it and run again"):
        datasets.load("stl10", str(tmp_path))


def test_stl10_damaged(tmp_path):
    stl_archive(tmp_path)
    with pytest.raises(UserError, match=r"stl10_binary.tar.gz is damaged or another file"):
        datasets.load("stl10", str(tmp_path))


@pytest.mark.parametrize("name", ["stl10", "imagenet2012"])
def test_datasets_are_described_as_in_tfds(tmp_path, name):
    # Theirs can't be made without TensorFlow's files: what it says of itself is read.
    theirs = Path(tfds.core.tfds_path(f"datasets/{name}/{name}_dataset_builder.py")).read_text()
    info = BUILDERS[name](data_dir=tmp_path).info
    assert str(info.version) in theirs
    for key in info.features:
        assert re.search(rf"[\"']{key}[\"']: tfds.features.{type(info.features[key]).__name__}\(", theirs)
    assert info.supervised_keys == ("image", "label")


# Tiny-ImageNet


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


WNIDS = ["n02124075", "n01443537", "n04067472"]  # not in the order of their names, as published


def tiny_files():
    """The files of a small Tiny-ImageNet, laid out as published: class i has colour i, the first image is grey."""
    colours = dict(zip(sorted(WNIDS), ("red", "lime", "blue"), strict=True))
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n02124075\tEgyptian cat\n"}
    for wnid, colour in colours.items():
        for i in range(4):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(
                flat((64, 64), 77, "L") if i == 0 else flat((64, 64), colour)
            )
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t10\t63\t58\n".encode()
    lines = []
    for i, (wnid, colour) in enumerate(2 * list(colours.items())):
        files[f"val/images/val_{i}.JPEG"] = jpeg(flat((64, 64), colour))
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = jpeg(flat((64, 64), "white"))
    return files


def tiny_zip(path, files):
    path.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path / "tiny-imagenet-200.zip", "w") as archive:
        archive.mkdir("tiny-imagenet-200")
        for name, content in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return path / "tiny-imagenet-200.zip"


def tiny_tree(path, files):
    for name, content in files.items():
        file = path / "tiny-imagenet-200" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@pytest.mark.parametrize("kind", ["zip", "downloads", "tree"])
def test_tiny_imagenet(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(BUILDERS["tiny_imagenet"], "CLASSES", 3)
    files = tiny_files()
    if kind == "tree":
        tiny_tree(tmp_path, files)
    else:
        archive = tiny_zip(tmp_path / ("downloads" if kind == "downloads" else ""), files)
        monkeypatch.setattr(BUILDERS["tiny_imagenet"], "MD5", md5(archive))
    splits = datasets.load("tiny_imagenet", str(tmp_path))
    assert "tensorflow" not in sys.modules
    assert splits.class_names == tuple(sorted(WNIDS))
    assert splits.train.images.shape == (12, 64, 64, 3)
    assert splits.test.images.shape == (6, 64, 64, 3)
    grey = 0
    for image, label in zip([*splits.train.images, *splits.test.images], [*splits.train.labels, *splits.test.labels]):  # noqa: B905
        colour = image[30, 30].astype(int)
        if np.ptp(colour) == 0:
            grey += 1
            assert abs(colour - 77).max() <= 1
        else:
            assert colour.argmax() == label
    assert grey == 3
    builder = tfds.builder_from_directory(tmp_path / "tiny_imagenet/1.0.0")
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    for example in source:
        name = example["file_name"].decode()
        assert example["image"] == files[f"train/{name.partition('_')[0]}/images/{name}"]  # as published


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("val/images/val_3.JPEG", r"tiny-imagenet-200 lacks tiny-imagenet-200/val/images/val_3.JPEG: delete it"),
        ("wnids.txt", r"tiny-imagenet-200 lacks wnids.txt: delete it"),
        ("train/n01443537/", r"tiny-imagenet-200 has no training images of n01443537: delete it"),
    ],
)
def test_tiny_imagenet_without_some_files(tmp_path, monkeypatch, gone, message):
    monkeypatch.setattr(BUILDERS["tiny_imagenet"], "CLASSES", 3)
    tiny_tree(tmp_path, {name: content for name, content in tiny_files().items() if not name.startswith(gone)})
    with pytest.raises(UserError, match=message):
        datasets.load("tiny_imagenet", str(tmp_path))


def test_tiny_imagenet_damaged(tmp_path):
    tiny_zip(tmp_path, tiny_files())
    with pytest.raises(UserError, match=r"tiny-imagenet-200.zip is damaged or another file"):
        datasets.load("tiny_imagenet", str(tmp_path))


# ImageNet

VAL_LABELS = ["n01751748", "n09193705", "n02105855"]  # of the first validation images, as published


def imagenet_archives(path, classes=("n01440764", "n15075141"), validation=3):
    """Small archives laid out as the published ones; image i of a class is i + 10 pixels wide."""
    path.mkdir(parents=True, exist_ok=True)
    files = {}
    with tarfile.open(path / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in classes:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for i in (3, 1, 2):
                    files[f"{wnid}_{i}.JPEG"] = jpeg(flat((i + 10, 20), "red"))
                    add(inner, f"{wnid}_{i}.JPEG", files[f"{wnid}_{i}.JPEG"])
            add(outer, f"{wnid}.tar", buffer.getvalue())
    with tarfile.open(path / "ILSVRC2012_img_val.tar", "w") as tar:
        for i in reversed(range(1, validation + 1)):  # not in the order of their names
            files[f"ILSVRC2012_val_{i:08d}.JPEG"] = jpeg(flat((i + 30, 20), "blue"))
            add(tar, f"ILSVRC2012_val_{i:08d}.JPEG", files[f"ILSVRC2012_val_{i:08d}.JPEG"])
    return files


@pytest.fixture
def small_imagenet(monkeypatch):
    monkeypatch.setattr(BUILDERS["imagenet2012"], "IMAGES", {"train": 6, "validation": 3})


@pytest.mark.parametrize("buffer", [2**30, 1])
@pytest.mark.parametrize("folder", ["", "downloads/manual"])
def test_imagenet(tmp_path, monkeypatch, small_imagenet, folder, buffer):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", buffer)  # what is larger is sorted on the disk
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = imagenet_archives(tmp_path / folder)
    prepare(BUILDERS["imagenet2012"], tmp_path)
    assert "tensorflow" not in sys.modules
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limit
    builder = tfds.builder_from_directory(tmp_path / "imagenet2012/5.1.0")
    names = builder.info.features["label"].names
    assert len(names) == 1000
    assert names == sorted(names)
    found = {}
    for split in ("train", "validation"):
        for example in builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}):
            file = example["file_name"].decode()
            found[file] = example["image"]
            wnid = VAL_LABELS[int(file[15:-5]) - 1] if split == "validation" else file.partition("_")[0]
            assert names[example["label"]] == wnid
    assert found == files
    assert not list(tmp_path.rglob("*bucket*"))


def test_imagenet_without_archives(tmp_path):
    with pytest.raises(
        UserError,
        match=r"no ILSVRC2012_img_train.tar: .*/downloads/manual; or .* image_tree, which reads DIR/train/<wnid>",
    ) as error:
        prepare(BUILDERS["imagenet2012"], tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(UserError, match=r"no ILSVRC2012_img_val.tar"):
        prepare(BUILDERS["imagenet2012"], tmp_path)


@pytest.mark.parametrize("file", ["train", "val"])
@pytest.mark.parametrize("left", [0, 700, 3000, 11_000])
def test_a_cut_imagenet_archive(tmp_path, small_imagenet, file, left):
    imagenet_archives(tmp_path)
    path = tmp_path / f"ILSVRC2012_img_{file}.tar"
    content = path.read_bytes()
    end = content.rindex(b"\xff\xd9")  # before the zeros that fill the archive
    path.write_bytes(content[: min(left, end)] if file == "train" else content[: min(left, end) // 4])
    with pytest.raises(UserError, match=rf"img_{file}.tar (is damaged after|has) \d .*: get it again"):
        prepare(BUILDERS["imagenet2012"], tmp_path)
    assert not (tmp_path / "imagenet2012/5.1.0").exists()


def test_an_imagenet_archive_with_other_classes(tmp_path, small_imagenet):
    imagenet_archives(tmp_path, classes=("n01440764", "n00000001"))
    with pytest.raises(UserError, match=r"img_train.tar has a class n00000001, which ImageNet has not"):
        prepare(BUILDERS["imagenet2012"], tmp_path)


def test_an_imagenet_archive_with_more_images(tmp_path, small_imagenet):
    imagenet_archives(tmp_path, validation=4)
    with pytest.raises(UserError, match=r"img_val.tar has 4 images and should have 3"):
        prepare(BUILDERS["imagenet2012"], tmp_path)


# Downloads

CONTENT = np.random.default_rng(1).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; its class attributes say how badly."""

    ranges = True
    breaks = ()  # bytes after which each of the first connections breaks
    status = ()  # what the first requests are answered
    stalls = False

    def do_GET(self):
        cls = type(self)
        self.seen.append(self.headers.get("Range"))
        if cls.status:
            status, cls.status = cls.status[0], cls.status[1:]
            self.send_error(status)
            return
        start = 0
        if cls.ranges and "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        limit, cls.breaks = (cls.breaks[0], cls.breaks[1:]) if cls.breaks else (len(CONTENT), ())
        self.wfile.write(CONTENT[start : start + limit])
        if cls.stalls:
            time.sleep(3)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    servers = []

    def start(**options):
        handler = type("Handler", (Server,), {"seen": [], **options})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/file.bin", handler.seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download(tmp_path, serve, capsys):
    url, seen = serve()
    path = download.fetch(url, MD5, tmp_path / "new")
    assert path == tmp_path / "new/file.bin"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert f"Downloading {url}: 0 %, 0.0 of 3.0 MB" in capsys.readouterr().err
    download.fetch(url, MD5, tmp_path / "new")
    assert seen == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_stopped(tmp_path, serve, ranges):
    url, seen = serve(ranges=ranges)
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1_000_000])
    assert download.fetch(url, MD5, tmp_path).read_bytes() == CONTENT
    assert seen == ["bytes=1000000-"]


def test_a_whole_part_is_recognised(tmp_path, serve):
    url, _ = serve()
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert download.fetch(url, MD5, tmp_path).read_bytes() == CONTENT


def test_broken_connections_are_taken_up_again(tmp_path, serve):
    # More breaks in a row than attempts: each brought something, so that each counts as a new start.
    url, seen = serve(breaks=[400_000] * (download.ATTEMPTS + 1))
    assert download.fetch(url, MD5, tmp_path).read_bytes() == CONTENT
    assert seen == [None, *(f"bytes={400_000 * i}-" for i in range(1, download.ATTEMPTS + 2))]


def test_a_stalled_connection_counts_as_broken(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    url, seen = serve(breaks=[1000], stalls=True)
    began = time.monotonic()
    assert download.fetch(url, MD5, tmp_path).read_bytes() == CONTENT
    assert seen == [None, "bytes=1000-"]
    assert time.monotonic() - began < 2


def test_a_server_in_trouble_is_asked_again(tmp_path, serve):
    url, seen = serve(status=[503, 500])
    assert download.fetch(url, MD5, tmp_path).read_bytes() == CONTENT
    assert len(seen) == 3


def test_what_arrived_is_kept_for_the_next_run(tmp_path, serve):
    url, seen = serve(breaks=[500_000, *[0] * download.ATTEMPTS])
    with pytest.raises(UserError, match=r"broke after 500000 of 3000000 bytes\): .*run again to continue, or put"):
        download.fetch(url, MD5, tmp_path)
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:500_000]
    download.fetch(url, MD5, tmp_path)
    assert seen[-1] == "bytes=500000-"


def test_a_missing_file_is_not_asked_for_again(tmp_path, serve):
    url, seen = serve(status=[404] * 9)
    with pytest.raises(UserError, match=r"HTTP 404 Not Found.*put the file at \S*/file.bin by hand"):
        download.fetch(url, MD5, tmp_path)
    assert len(seen) == 1


@pytest.mark.parametrize("part", [b"", b"something else", 2 * CONTENT])
def test_a_damaged_download_is_thrown_away(tmp_path, serve, part):
    url, _ = serve()
    (tmp_path / "file.bin.part").write_bytes(part)
    with pytest.raises(UserError, match="arrived damaged"):
        download.fetch(url, MD5 if part else "0" * 32, tmp_path)
    assert not list(tmp_path.iterdir())
    assert download.fetch(url, MD5, tmp_path).read_bytes() == CONTENT


def test_a_download_to_a_full_disk(tmp_path, serve):
    url, _ = serve()
    with full_disk(1_000_000), pytest.raises(UserError, match=r"file.bin.part can't be written \(File too large\)"):
        download.fetch(url, MD5, tmp_path)
    assert download.fetch(url, MD5, tmp_path).read_bytes() == CONTENT


# Image folders


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def flat(size, colour, mode="RGB"):
    return Image.new(mode, size, colour)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for split, n in (("train", 3), ("test", 2)):
        for name, colour in (("cat", "red"), ("dog", "blue")):
            for i in range(n):
                save(root / split / name / f"{i}.png", flat((40 + i, 30), colour))
    return root


def test_an_image_folder(tree, default_dir, capfd, caplog):
    (tree / "train/cat/notes.txt").write_text("no image")
    (tree / "train/.hidden").mkdir()
    (tree / "train/cat/._0.png").write_bytes(b"as a Macintosh leaves them")
    splits = datasets.load("image_folder", str(tree), image_size=16)
    assert "tensorflow" not in sys.modules
    assert splits.class_names == ("cat", "dog")
    for part, n in ((splits.train, 6), (splits.test, 4)):
        assert part.images.shape == (n, 16, 16, 3)
        colours = np.array([(255, 0, 0), (0, 0, 255)], np.uint8)[part.labels]
        np.testing.assert_array_equal(part.images, np.broadcast_to(colours[:, None, None], part.images.shape))
        np.testing.assert_array_equal(np.bincount(part.labels), [n // 2] * 2)
    out, err = capfd.readouterr()
    assert out == ""
    left_out, preparing, copies = err.splitlines()
    assert left_out == f"{tree}/train: 1 file left out: 1 not an image (cat/notes.txt)"
    assert copies.startswith(f"warning: {tree}: 4 of 4 test images are copies of training images (test/cat/")
    assert preparing.startswith(f"Preparing image_folder in {default_dir}/image_folder/")
    assert not caplog.records


def test_an_unchanged_tree_is_prepared_once_and_a_changed_one_again(tree, default_dir, capfd):
    def load(size=8):
        splits = datasets.load("image_folder", str(tree), image_size=size)
        return splits, "Preparing" in capfd.readouterr().err

    assert load()[1]
    assert not load()[1]
    assert load(size=9)[1]
    assert load()[0].train.images.shape[1] == 8
    os.utime(tree / "train/cat/0.png", ns=(0, 0))
    assert load()[1]
    save(tree / "train/bird/0.png", flat((9, 9), "green"))
    splits, again = load()
    assert again
    assert splits.class_names == ("bird", "cat", "dog")
    (tree / "train/bird/0.png").rename(tree / "train/bird/1.png")
    assert load()[1]
    (tree / "test/dog/1.png").unlink()
    splits, again = load()
    assert again
    assert len(splits.test.labels) == 3


@pytest.mark.parametrize("name", ["val", "validation"])
def test_other_names_of_the_test_folder(tree, name):
    (tree / "test").rename(tree / name)
    assert len(datasets.load("image_folder", str(tree), image_size=8).test.labels) == 4


def only(tmp_path, image, name="0.png", size=8, **options):
    """The one training image as the loader gives it, int [size, size, 3]."""
    root = tmp_path / "one"
    save(root / "train/a" / name, image, **options)
    save(root / "test/a/0.png", flat((8, 8), 0))
    return datasets.load("image_folder", str(root), image_size=size).train.images[0].astype(int)


@pytest.mark.parametrize(
    ("size", "resized", "box"), [((64, 16), (32, 8), (12, 0, 20, 8)), ((16, 48), (8, 24), (0, 8, 8, 16))]
)
def test_the_middle_of_the_resized_image_is_kept(tmp_path, size, resized, box):
    image = Image.effect_noise(size, 80).convert("RGB")
    expected = np.asarray(image.resize(resized, Image.Resampling.BILINEAR).crop(box))
    assert abs(only(tmp_path, image) - expected).max() <= 1


def test_resizing_is_antialiased_and_bilinear(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert (abs(only(tmp_path, Image.fromarray(stripes)) - 127.5) < 20).all()


def test_the_right_half_stays_right(tmp_path):
    image = flat((16, 16), "black")
    image.paste("red", (8, 0, 16, 8))
    small = only(tmp_path, image)
    assert small[0, 7].tolist() == [255, 0, 0]
    assert small[7, 7].tolist() == small[0, 0].tolist() == [0, 0, 0]


def test_orientation_is_applied(tmp_path):
    image = flat((32, 32), "black")
    image.paste("white", (0, 0, 32, 16))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise: up becomes right
    small = only(tmp_path, image, "0.jpg", exif=exif, quality=95)
    assert small[:, 7].min() > 240
    assert small[:, 0].max() < 15


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("grey.png", flat((9, 9), 77, "L"), (77, 77, 77)),
        ("grey16.png", Image.fromarray(np.full((9, 9), 200 * 257, np.uint16)), (200, 200, 200)),
        ("bit.png", flat((9, 9), 1, "1"), (255, 255, 255)),
        ("palette.png", flat((9, 9), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE), (10, 200, 30)),
        ("palette.gif", flat((9, 9), (10, 200, 30)), (10, 200, 30)),
        ("alpha.png", flat((9, 9), (10, 20, 30, 0), "RGBA"), (255, 255, 255)),
        ("half.png", flat((9, 9), (0, 0, 0, 128), "RGBA"), (127, 127, 127)),
        ("greyalpha.png", flat((9, 9), (77, 255), "LA"), (77, 77, 77)),
        ("cmyk.jpg", flat((16, 16), (0, 255, 255, 0), "CMYK"), (255, 0, 0)),
        ("luma.jpg", flat((16, 16), 77, "L"), (77, 77, 77)),
        ("colour.webp", flat((16, 16), (10, 200, 30)), (10, 200, 30)),
        ("colour.bmp", flat((9, 9), (10, 200, 30)), (10, 200, 30)),
        ("colour.tiff", flat((9, 9), (10, 200, 30)), (10, 200, 30)),
        ("UPPER.JPEG", flat((16, 16), "red"), (255, 0, 0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_image_becomes_rgb(tmp_path, name, image, expected):
    small = only(tmp_path, image, name)
    assert small.shape == (8, 8, 3)
    assert abs(small - expected).max() <= (3 if name.endswith(("jpg", "webp", "JPEG")) else 0)


def test_a_large_photograph_is_not_decoded_too_coarsely(tmp_path):
    photograph = Image.effect_noise((150, 100), 100).resize((1500, 1000), Image.Resampling.BICUBIC).convert("RGB")
    expected = np.asarray(photograph.resize((48, 32), Image.Resampling.BILINEAR).crop((8, 0, 40, 32)))
    assert abs(only(tmp_path, photograph, "0.jpg", size=32, quality=95) - expected).mean() < 0.5


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_an_unreadable_image_is_named(tree, default_dir, content):
    path = tree / "train/dog/broken.jpg"
    save(path, Image.effect_noise((64, 64), 50), quality=95)
    path.write_bytes(path.read_bytes()[:500] if content == "cut" else content)
    with pytest.raises(
        UserError, match=r"train/dog/broken.jpg can't be read as an image .*: fix, replace or delete it"
    ) as error:
        datasets.load("image_folder", str(tree), image_size=8)
    assert "\n" not in str(error.value)
    assert not list(default_dir.glob("image_folder/*/*.*.*"))
    path.unlink()
    assert len(datasets.load("image_folder", str(tree), image_size=8).train.labels) == 6


def test_classes_without_splits(tree):
    """Every fifth image is a test image."""
    for name in ("cat", "dog"):
        for i in range(11 if name == "cat" else 4):
            save(tree / "both" / name / f"{i:02d}.png", flat((8, 8), (20 * i, 0, 0)))
    splits = datasets.load("image_folder", str(tree / "both"), image_size=8)
    assert splits.class_names == ("cat", "dog")
    assert splits.test.images[:, 0, 0, 0].tolist() == [80, 180]
    assert splits.test.labels.tolist() == [0, 0]
    assert sorted(splits.train.images[splits.train.labels == 0, 0, 0, 0]) == [0, 20, 40, 60, 100, 120, 140, 160, 200]
    shutil.rmtree(tree / "both/cat")
    with pytest.raises(UserError, match=r"too few images in .*/both: add images until a class has 5"):
        datasets.load("image_folder", str(tree / "both"), image_size=8)


def test_a_folder_without_training_images(tree):
    (tree / "train").rename(tree / "training")
    with pytest.raises(UserError, match=r"no folder .*/tree/train: a tree contains train/CLASS/"):
        datasets.load("image_folder", str(tree), image_size=8)


def test_a_folder_without_test_images(tree):
    (tree / "test").rename(tree / "tests")
    with pytest.raises(
        UserError, match=r"no folder of test images in .*/tree: a tree contains train/CLASS/.* and one of test/CLASS/"
    ):
        datasets.load("image_folder", str(tree), image_size=8)


def test_an_empty_class(tree):
    (tree / "train/bird").mkdir()
    with pytest.raises(UserError, match=r"no images in .*/train/bird: add some"):
        datasets.load("image_folder", str(tree), image_size=8)


def test_no_classes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "empty" / split).mkdir(parents=True)
    with pytest.raises(UserError, match=r"no class folders in .*/empty/train: sort its images"):
        datasets.load("image_folder", str(tmp_path / "empty"), image_size=8)


def test_a_class_that_training_does_not_know(tree):
    save(tree / "test/bird/0.png", flat((9, 9), "green"))
    with pytest.raises(UserError, match=r"test/bird is a class without training images: add .*/train/bird"):
        datasets.load("image_folder", str(tree), image_size=8)


@pytest.mark.parametrize(
    ("directory", "size", "missing"),
    [("", 8, "dir=DIR$"), ("tree", 0, "image_size=PIXELS$"), ("tree", -1, "image_size=PIXELS$")],
)
def test_an_image_folder_needs_a_tree_and_a_size(directory, size, missing):
    with pytest.raises(UserError, match=f"needs its tree and a size: set --config.data.{missing}"):
        datasets.load("image_folder", directory, image_size=size)


def test_no_room_for_the_copy(tree, default_dir):
    Path(default_dir).touch()
    with pytest.raises(UserError, match=r"image_folder can't be prepared .*TFDS_DATA_DIR"):
        datasets.load("image_folder", str(tree), image_size=8)
