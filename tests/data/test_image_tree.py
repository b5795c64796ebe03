"""The one scan of folders, and trees of classes."""

import os
import socket

import numpy as np
import pytest
from conftest import write_photographs
from PIL import Image

from hsakd_jax.core.errors import UserError
from hsakd_jax.data import datasets, image_tree
from hsakd_jax.data.image_tree import ImageTree, find_images, summary
from hsakd_jax.data.streaming import centre_crops


@pytest.fixture
def tree(tmp_path):
    write_photographs(tmp_path / "tree", {"train": 3, "test": 2}, ("cat", "dog"), "png")
    return tmp_path / "tree"


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_folders_are_searched_in_depth_and_by_every_suffix(tmp_path):
    names = ["a.JFIF", "b.jpe", "deep/d.png", "deep/er/c.TIFF", "e e.webp", "é.Pgm"]
    for name in names:
        image(tmp_path / name)
    hidden = [".DS_Store", "Thumbs.db", "desktop.ini", "._a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg"]
    for name in (*hidden, "__MACOSX/a.jpg", "deep/.cache/x.png", "lost+found/#1.png"):
        image(tmp_path / name)
    assert find_images(tmp_path) == (names, {})


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.with_suffix(".txt").touch(), "1 file left out: 1 not an image (x.txt)"),
        (lambda path: path.symlink_to("gone.jpg"), "1 file left out: 1 dangling link (x.jpg)"),
        (lambda path: path.symlink_to("x.jpg"), "1 file left out: 1 link loop (x.jpg)"),
        (lambda path: path.symlink_to("/dev/zero"), "1 file left out: 1 device, FIFO or socket (x.jpg)"),
        (make_fifo, "1 file left out: 1 device, FIFO or socket (x.jpg)"),
        (make_socket, "1 file left out: 1 device, FIFO or socket (x.jpg)"),
        (lambda path: path.symlink_to(".."), "1 file left out: 1 folder linked twice (x.jpg/b)"),
        (lambda path: image(path.parent / "\x1b[2J\n.gz"), r"1 file left out: 1 not an image (\x1b[2J\n.gz)"),
        (lambda path: image(path.parent / os.fsdecode(b"\xff.gz")), r"1 file left out: 1 not an image (\udcff.gz)"),
        (
            lambda path: [image(path.parent / f"{i}.gz") for i in range(5)],
            "5 files left out: 5 not images (0.gz, 1.gz, 2.gz, ...)",
        ),
    ],
    ids=["text", "dangling", "loop", "device", "fifo", "socket", "circle", "control", "bytes", "several"],
)
def test_what_is_left_out_is_counted_and_named(tmp_path, monkeypatch, make, said):
    folder = tmp_path / "a" / "b"
    image(folder / "a.png")
    monkeypatch.chdir(folder)  # the path of a socket is short
    make(folder / "x.jpg" if make is not make_socket else type(folder)("x.jpg"))
    found = find_images(folder)
    assert [name for name in found.files if name.startswith("a")] == ["a.png"]
    assert summary(found.left_out) == said


def test_a_link_to_a_folder_is_followed(tmp_path):
    image(tmp_path / "elsewhere/1.png")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/link").symlink_to("../elsewhere")
    (tmp_path / "cat/one.png").symlink_to("../elsewhere/1.png")
    assert find_images(tmp_path / "cat") == (["link/1.png", "one.png"], {})


def test_a_closed_folder_is_left_out(tmp_path, monkeypatch):
    image(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    entries = image_tree._entries

    def closed(folder):
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return entries(folder)

    monkeypatch.setattr(image_tree, "_entries", closed)
    found = find_images(tmp_path)
    assert found.files == ["a.png"]
    assert summary(found.left_out) == "1 file left out: 1 closed or unreadable (closed)"


def test_one_line_for_a_split(tree, capsys):
    (tree / "train/README.md").touch()
    image(tree / "train/stray.png")
    (tree / "train/cat/notes.txt").touch()
    (tree / "train/dog/deep").mkdir()
    (tree / "train/dog/deep/gone.jpg").symlink_to("nowhere")
    splits = datasets.load("image_tree", str(tree))
    assert (len(splits.train), len(splits.test)) == (6, 4)
    assert lines(capsys) == [
        f"{tree}/train: 4 files left out: 2 not images (README.md, cat/notes.txt), "
        "1 image in no class folder (stray.png), 1 dangling link (dog/deep/gone.jpg)"
    ]


def test_classes_without_a_test_image_are_named(tree, capsys):
    for name in "abcd":
        image(tree / "train" / name / "0.png")
    datasets.load("image_tree", str(tree))
    assert lines(capsys) == [f"{tree}/test has no test image of 4 of 6 classes: a, b, c, ..."]


def test_nothing_is_said_of_a_clean_tree(tree, capsys):
    (tree / "train/.DS_Store").touch()
    datasets.load("image_tree", str(tree))
    assert lines(capsys) == []


def test_names_that_are_not_utf8(tree, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    name = os.fsdecode(b"\xff\xe9.png")
    image(tree / "train/cat" / name)
    streamed = datasets.load("image_tree", str(tree)).train
    assert name in [streamed.encoded(i)[0].rpartition("/")[2] for i in range(len(streamed))]
    assert len(datasets.load("image_folder", str(tree), image_size=8).train.labels) == 7


@pytest.mark.parametrize("name", ["a\nb", " a", "a ", "a\tb", "a\x85b", "a\u2028b", os.fsdecode(b"a\xff")])
@pytest.mark.parametrize("data", ["image_tree", "image_folder"])
def test_names_that_no_class_can_have(tree, name, data):
    image(tree / "train" / name / "0.png")
    with pytest.raises(UserError, match="has a class folder") as error:
        datasets.load(data, str(tree), image_size=8 if data == "image_folder" else 0)
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_scripts_name_classes(tree):
    for name in ("猫", "a\u200cb", "two words", "naïve"):
        image(tree / "train" / name / "0.png")
    assert len(ImageTree(tree).class_names) == 6


@pytest.mark.parametrize("data", ["image_tree", "image_folder"])
def test_a_tree_without_splits_holds_out_every_fifth(tmp_path, monkeypatch, capsys, data):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    write_photographs(tmp_path, {"flat": 11}, ("cat", "dog"), "png")
    write_photographs(tmp_path, {"flat/bird": 3}, (".",), "png")
    splits = datasets.load(data, f"{tmp_path}/flat", image_size=8 if data == "image_folder" else 0)
    assert splits.class_names == ("bird", "cat", "dog")
    assert np.bincount(splits.train.labels).tolist() == [3, 9, 9]
    assert np.bincount(splits.test.labels).tolist() == [0, 2, 2]
    assert lines(capsys)[:2] == [
        f"{tmp_path}/flat has no folder train: every fifth image of a class is a test image, 4 of 25",
        f"{tmp_path}/flat has no test image of 1 of 3 classes: bird",
    ]
    held_out = ImageTree(tmp_path / "flat").files("test")
    assert held_out["cat"] == sorted(f"{i}.png" for i in range(11))[4::5]


@pytest.mark.parametrize("data", ["image_tree", "image_folder"])
def test_one_order_of_test_folders(tree, tmp_path, monkeypatch, capsys, data):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    write_photographs(tree, {"val": 1}, ("cat", "dog"), "png")
    (tree / "validation").mkdir()
    assert len(datasets.load(data, str(tree), image_size=8 if data == "image_folder" else 0).test.labels) == 4
    assert lines(capsys)[:2] == [
        f"{tree}/val is passed over: {tree}/test contains the test images",
        f"{tree}/validation has no class folders: passed over",
    ]


def test_a_class_without_an_image_says_what_it_has(tree):
    os.mkfifo(tree / "train/cat/x.png")
    for path in (tree / "train/cat").glob("[0-9].png"):
        path.rename(path.with_suffix(".avif"))
    left_out = r"4 files left out: 3 not images \(0.avif, 1.avif, 2.avif\), 1 device, FIFO or socket \(x.png\)"
    with pytest.raises(UserError, match=rf"no images in .*cat \({left_out}\): add some"):
        ImageTree(tree).files("train")


def test_a_closed_tree(tree, monkeypatch):
    def closed(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(image_tree.os, "scandir", closed)
    with pytest.raises(UserError, match=r"tree/train can't be entered \(Permission denied\): change its permissions"):
        ImageTree(tree)


def test_too_large_an_image_is_left_out_of_the_copy(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    Image.new("RGB", (100, 100)).save(tree / "train/cat/large.png")
    options = {"image_size": 8, "splits": ["train"]}
    assert len(datasets.load("image_folder", str(tree), max_pixels=9999, **options).train.labels) == 6
    _, named, counted = lines(capsys)
    assert named.startswith(f"left out: {tree}/train/cat/large.png has more than 9,999 pixels: scale")
    assert counted == f"{tree}, train: without 1 that are too large (more than 9,999 pixels, or 2,147,483,648 bytes)"
    datasets.load("image_folder", str(tree), max_pixels=9999, **options)
    assert lines(capsys) == [counted]
    assert len(datasets.load("image_folder", str(tree), max_pixels=10000, **options).train.labels) == 7
    with pytest.raises(UserError, match=r"tree, train: all images of cat are too large: .*--config.data.max_pixels"):
        datasets.load("image_folder", str(tree), max_pixels=3, **options)
    streamed = datasets.load("image_tree", str(tree), max_pixels=9999).train
    with pytest.raises(UserError, match=r"cat/large.png has more than 9,999 pixels: .*--config.data.max_pixels=PIXELS"):
        centre_crops(streamed, np.arange(7), 8, 8)


def test_the_folder_above_a_tree(tmp_path):
    write_photographs(tmp_path, {"photos": 1}, ("red", "green"), "png")
    with pytest.raises(UserError, match=f"{tmp_path} has one class folder, photos: did you mean {tmp_path}/photos?"):
        image_tree.check_classes(tmp_path)
    image_tree.check_classes(tmp_path / "photos")
    write_photographs(tmp_path / "deep" / "er" / "tree", {"train": 1, "test": 1}, ("red", "green"), "png")
    with pytest.raises(UserError, match=f"has one class folder, er: did you mean {tmp_path}/deep/er/tree?"):
        image_tree.check_classes(tmp_path / "deep")
    write_photographs(tmp_path / "one", {"train": 1}, ("red",), "png")
    with pytest.raises(UserError, match="train has one class folder, red: add one for each other class"):
        image_tree.check_classes(tmp_path / "one")


def test_nothing_is_prepared_in_a_tree(tmp_path):
    write_photographs(tmp_path, {"photos": 1}, ("red", "green"), "png")
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path, tmp_path / "photos"):
        with pytest.raises(
            UserError,
            match="is a tree of images, to which nothing is written: set --config.data.name=.*--data=.*train on digits",
        ):
            datasets.load("digits", str(folder))
    assert sorted(tmp_path.rglob("*")) == before
    assert not image_tree.contains_images(tmp_path / "absent")
