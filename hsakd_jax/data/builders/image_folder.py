"""The user's own images: one folder a class."""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import tensorflow_datasets as tfds

from hsakd_jax.core.console import with_progress
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import expand
from hsakd_jax.data.image_files import square
from hsakd_jax.data.image_tree import (
    TEST_FOLDERS,
    check_classes,
    class_folders,
    has_classes,
    image_entries,
    test_folder,
)

_CHUNK = 256  # images decoded ahead of the writer, which bounds the memory


@dataclasses.dataclass
class Tree(tfds.core.BuilderConfig):
    """A tree as it is now; the name of the config is its fingerprint."""

    size: int = 0
    root: str = ""
    files: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)  # split: class: paths


def scan(directory: str, size: int) -> Tree:
    """Lists `directory/{train,test}/CLASS/*` without opening an image; `val` or `validation` serve as test.

    Of a `directory/CLASS/*` every fifth image of a class, in the order of names, is a test image.

    The fingerprint covers the size and each file's path, length and time of change: a tree that changed
    in any of these gets another name, so that no stale copy is ever read. Copies of earlier states stay
    where they are until the user deletes them.

    Args:
      directory: the tree.
      size: side of the square images to make.

    Raises:
      UserError: no such folder, no or too few images, or a class of the test split that training does not know.
    """
    root = expand(directory)
    if not has_classes(root / "train") and not any((root / name).is_dir() for name in TEST_FOLDERS):
        found = _one_split(root)
    else:
        train, tests = root / "train", test_folder(root)
        found = {"train": _images(train), "test": _images(tests)}
        check_classes(tests, list(found["test"]), train, tuple(found["train"]))
    files = {split: {name: [path for path, _, _ in of] for name, of in part.items()} for split, part in found.items()}
    marks = [
        (os.path.relpath(path, root), length, changed)
        for part in found.values()
        for of in part.values()
        for path, length, changed in of
    ]
    fingerprint = hashlib.sha256(json.dumps([size, marks]).encode()).hexdigest()[:16]
    return Tree(name=fingerprint, description=str(root), size=size, root=str(root), files=files)


File = tuple[str, int, int]  # path, length, time of change


def _one_split(root: Path) -> dict[str, dict[str, list[File]]]:
    """Every fifth image of a class, in the order of names, as a test image."""
    images = _images(root)
    test = {name: of[4::5] for name, of in images.items() if of[4::5]}
    if not test:
        raise UserError(f"too few images in {root}: add images until a class has 5, every fifth is a test image")
    return {"train": {name: [one for i, one in enumerate(of, 1) if i % 5] for name, of in images.items()}, "test": test}


def _images(folder: Path) -> dict[str, list[File]]:
    """The files of each class."""
    return {
        name: [(e.path, e.stat().st_size, e.stat().st_mtime_ns) for e in image_entries(folder / name)]
        for name in class_folders(folder)
    }


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A tree of images, one folder a class, made square and RGB: uint8 [size, size, 3]."""

    VERSION = tfds.core.Version("1.0.0")

    @property
    def _tree(self) -> Tree:
        return cast(Tree, self.builder_config)

    def _info(self):
        tree = self._tree
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(tree.size, tree.size, 3)),
                    "label": tfds.features.ClassLabel(names=sorted(tree.files["train"])),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self._tree.files}

    def _generate_examples(self, split):
        tree = self._tree
        pairs = [(path, name) for name, paths in tree.files[split].items() for path in paths]
        encoded = _encode([path for path, _ in pairs], tree.size)
        for (path, name), png in zip(pairs, with_progress(encoded, f"Preparing {split}", len(pairs)), strict=True):
            yield os.path.relpath(path, tree.root), {"image": io.BytesIO(png), "label": name}


def _encode(paths: list[str], size: int) -> Iterator[bytes]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i in range(0, len(paths), _CHUNK):
            yield from pool.map(lambda path: _png(path, size), paths[i : i + _CHUNK])


def _png(path: str, size: int) -> bytes:
    buffer = io.BytesIO()
    square(path, size).save(buffer, "PNG")
    return buffer.getvalue()
