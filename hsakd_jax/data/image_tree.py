"""A tree of images that stays where it is and is read file by file, such as ImageNet's."""

import os
from pathlib import Path

import numpy as np

from hsakd_jax.core.console import Progress
from hsakd_jax.core.errors import UserError
from hsakd_jax.data.image_files import EXTENSIONS

FOLDERS = {"train": ("train",), "test": ("val", "validation", "test")}


class Tree:
    """The images of one split, by class and name in alphabetic order. `tree(i)` is the path and the bytes of one.

    Attributes:
      labels: int32 [n].
      class_names: names of the folders.
    """

    def __init__(self, directory: str, split: str):
        """Lists the files of `directory/{train,val}/CLASS/*`, and opens none; `validation` and `test` serve as val.

        Args:
          directory: the tree.
          split: 'train' or 'test'.

        Raises:
          UserError: no such folder, no images, or a class of the test split that training does not know.
        """
        root = Path(directory).expanduser()
        self._folder = _folder(root, split)
        folders = _classes(self._folder)
        self.class_names = class_names(directory)
        if strange := sorted(set(folders) - set(self.class_names)):
            raise UserError(
                f"{self._folder / strange[0]} is a class without training images: add {root / 'train' / strange[0]}"
            )
        names, labels = [], []
        with Progress(f"Looking into {self._folder}", len(folders), "folders") as progress:
            for done, folder in enumerate(folders):
                progress.update(done)
                found = sorted(
                    os.fsencode(entry.name)
                    for entry in os.scandir(self._folder / folder)
                    if Path(entry.name).suffix.lower() in EXTENSIONS and entry.name[0] != "."
                )
                if not found:
                    raise UserError(f"no images in {self._folder / folder}: add some or delete the folder")
                names += found
                labels += [self.class_names.index(folder)] * len(found)
        # A million paths as Python's strings would take ten times the memory.
        self._names = np.array(names)
        self.labels = np.array(labels, np.int32)

    def __call__(self, i: int) -> tuple[str, bytes]:
        path = self._folder / self.class_names[self.labels[i]] / os.fsdecode(bytes(self._names[i]))
        return str(path), path.read_bytes()


def class_names(directory: str) -> tuple[str, ...]:
    """The classes of a tree: the folders in its `train`.

    Raises:
      UserError: there are none.
    """
    return tuple(_classes(_folder(Path(directory).expanduser(), "train")))


def _folder(root: Path, split: str) -> Path:
    for name in FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise UserError(
        f"no folder {root / FOLDERS[split][0]}: an image tree holds train/CLASS/*.JPEG and val/CLASS/*.JPEG"
    )


def _classes(folder: Path) -> list[str]:
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if not found:
        raise UserError(f"no class folders in {folder}: sort its images into {folder}/CLASS/*.JPEG")
    return found
