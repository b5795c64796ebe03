"""Test images that are training images too."""

import os
import shutil

import pytest
from conftest import write_photographs

from hsakd_jax.data import datasets, shared_images
from hsakd_jax.data.image_tree import ImageTree


@pytest.fixture
def tree(tmp_path):
    write_photographs(tmp_path / "tree", {"train": 3, "test": 2}, ("cat", "dog"), "png")
    return tmp_path / "tree"


def test_copies_are_found_whatever_their_name_and_class(tree):
    assert shared_images.shared_images(ImageTree(tree)) == []
    shutil.copy(tree / "train/dog/1.png", tree / "test/cat/copy.png")
    (tree / "test/dog/link.png").symlink_to("../../train/cat/0.png")
    assert shared_images.shared_images(ImageTree(tree)) == [
        (f"{tree}/test/cat/copy.png", f"{tree}/train/dog/1.png"),
        (f"{tree}/test/dog/link.png", f"{tree}/train/cat/0.png"),
    ]


def test_equal_lengths_and_beginnings_are_not_copies(tree):
    content = bytes(10_000)
    for path, last in (("train/cat/a.png", b"1"), ("test/cat/a.png", b"2")):
        (tree / path).write_bytes(content + last)
    assert shared_images.shared_images(ImageTree(tree)) == []


def test_a_file_that_cannot_be_read_is_passed_over(tree, monkeypatch):
    for path in ("train/cat/a.png", "test/cat/a.png"):
        (tree / path).write_bytes(b"1")

    def stat(path, **options):
        raise PermissionError(13, "Permission denied")

    found = ImageTree(tree)
    assert [found.files(split) for split in ("train", "test")]
    monkeypatch.setattr(os, "stat", stat)
    assert shared_images.shared_images(found) == []


def test_a_tree_of_very_many_files_is_not_compared(tree, monkeypatch):
    shutil.copy(tree / "train/dog/1.png", tree / "test/cat/copy.png")
    monkeypatch.setattr(shared_images, "MOST", 10)
    assert shared_images.shared_images(ImageTree(tree)) == []


@pytest.mark.parametrize("data", ["image_tree", "image_folder"])
def test_a_line_counts_them(tree, tmp_path, monkeypatch, capsys, data):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    shutil.copy(tree / "train/dog/1.png", tree / "test/cat/copy.png")
    options = {"image_size": 8} if data == "image_folder" else {}
    datasets.load(data, str(tree), splits=("test",), **options)
    assert "warning" not in capsys.readouterr().err
    datasets.load(data, str(tree), **options)
    line = (
        f"warning: {tree}: 1 of 5 test images is a copy of a training image (test/cat/copy.png of train/dog/1.png): "
        "the accuracy is not that of new images; keep one file of each image"
    )
    assert line in capsys.readouterr().err.splitlines()
