"""Tiny-ImageNet (Stanford CS231n), which TFDS does not have."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from hsakd_jax.core.console import with_progress
from hsakd_jax.core.errors import UserError
from hsakd_jax.data.builders.download import fetch, folder

_CITATION = """\
@article{le2015tiny,
    author = {Ya Le and Xuan Yang},
    title = {Tiny ImageNet visual recognition challenge},
    journal = {CS 231N},
    year = {2015}
}
"""


class TinyImagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """100,000 training images of 64x64 in 200 classes, named by their WordNet ids in alphabetic order.

    `test` are the 10,000 validation images as published: the test images as published have no labels. The
    JPEGs are stored as they come; some are grey, and read as RGB.
    """

    VERSION = tfds.core.Version("1.0.0")
    URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
    FOLDER = "tiny-imagenet-200"
    CLASSES = 200

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=self.CLASSES),
                    "file_name": tfds.features.Text(),  # such as n01443537_0.JPEG
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager):
        where, names, read = self._source()
        known = set(names)

        def text(name: str) -> str:
            if f"{self.FOLDER}/{name}" not in known:
                raise UserError(f"{where} lacks {name}: delete it and run again")
            return read(f"{self.FOLDER}/{name}").decode()

        classes = sorted(text("wnids.txt").split())
        features: Any = self.info.features
        features["label"].names = classes
        train = []
        for name in names:  # FOLDER/train/WNID/images/WNID_0.JPEG
            parts = name.split("/")
            if len(parts) == 5 and parts[1] == "train" and name.endswith(".JPEG"):
                train.append((name, parts[2]))
        test = []
        for line in text("val/val_annotations.txt").splitlines():  # FILE, WNID, then a box, between tabs
            file, label = line.split("\t")[:2]
            test.append((f"{self.FOLDER}/val/images/{file}", label))
        if missing := set(classes) - {label for _, label in train}:
            raise UserError(f"{where} has no training images of {min(missing)}: delete it and run again")
        if missing := {name for name, _ in test} - known:
            raise UserError(f"{where} lacks {min(missing)}: delete it and run again")
        return {
            split: self._generate_examples(split, pairs, read) for split, pairs in (("train", train), ("test", test))
        }

    def _source(self) -> tuple[Path, list[str], Callable[[str], bytes]]:
        """The path of the source, the names of its files, and a function from a name to the file's bytes."""
        directory = folder(self.URL, self.data_dir_root)
        tree = Path(self.data_dir_root) / self.FOLDER
        if tree.is_dir() and not (directory / self.URL.rsplit("/", 1)[-1]).exists():
            names = [Path(root, file) for root, _, files in os.walk(tree) for file in files]
            root = tree.parent
            return tree, sorted(n.relative_to(root).as_posix() for n in names), lambda name: (root / name).read_bytes()
        path = fetch(self.URL, self.MD5, directory)
        archive = zipfile.ZipFile(path)
        return path, archive.namelist(), archive.read  # read in place: nothing is extracted to the disk

    def _generate_examples(self, split, pairs, read):
        for name, label in with_progress(pairs, f"Preparing {self.name}, {split}", len(pairs)):
            file = name.rsplit("/", 1)[-1]
            yield file, {"image": io.BytesIO(read(name)), "label": label, "file_name": file}
