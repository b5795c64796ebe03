"""Trees of image files, one folder per class: their layout, and the split of one that is read where it is."""

import os
from pathlib import Path

import numpy as np

from hsakd_jax.core.console import Progress, note
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import expand
from hsakd_jax.data.image_files import EXTENSIONS

# The folders that may contain the test images, in order of preference.
TEST_FOLDERS = ("test", "val", "validation")


class ImageTree:
    """One split of a tree, by class and name in alphabetic order; `tree(i)` returns path and bytes of one image.

    Args:
      directory: the tree, with images in `{train,test,val,validation}/CLASS/`; no image is opened.
      split: 'train' or 'test'.

    Attributes:
      labels: int32 [n].
      class_names: names of the folders in `train`.

    Raises:
      UserError: no such folder, no images, or a test class that has no training images.
    """

    def __init__(self, directory: str, split: str):
        root = expand(directory)
        self._folder = root / "train" if split == "train" else test_folder(root)
        self.class_names = class_names(directory)
        folders = class_folders(self._folder)
        check_classes(self._folder, folders, root / "train", self.class_names)
        names: list[bytes] = []
        labels: list[int] = []
        with Progress(f"Listing {self._folder}", len(folders), "folders") as progress:
            for done, folder in enumerate(folders):
                progress.update(done)
                found = [os.fsencode(entry.name) for entry in image_entries(self._folder / folder)]
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
    return tuple(class_folders(expand(directory) / "train"))


def test_folder(root: Path) -> Path:
    """The folder of the test images; one without class folders is passed over, with a line.

    Raises:
      UserError: there is none.
    """
    for folder in (root / name for name in TEST_FOLDERS):
        if has_classes(folder):
            return folder
        if folder.is_dir():
            note(f"{folder} has no class folders: passed over")
    raise UserError(
        f"no folder of test images in {root}: a tree contains train/CLASS/*.jpg and one of "
        f"{', '.join(f'{name}/CLASS/*.jpg' for name in TEST_FOLDERS)}"
    )


def has_classes(folder: Path) -> bool:
    """Whether a folder contains folders that are not hidden."""
    return folder.is_dir() and any([_is_class(entry) for entry in os.scandir(folder)])


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders, sorted, without hidden ones.

    Raises:
      UserError: there are none.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: a tree contains {folder.name}/CLASS/*.jpg")
    found = sorted(entry.name for entry in os.scandir(folder) if _is_class(entry))
    if not found:
        raise UserError(f"no class folders in {folder}: sort its images into {folder}/CLASS/*.jpg")
    return found


def image_entries(folder: Path) -> list[os.DirEntry[str]]:
    """The image files of a class, sorted by name, without hidden ones.

    Raises:
      UserError: there are none.
    """
    found = [e for e in os.scandir(folder) if Path(e.name).suffix.lower() in EXTENSIONS and e.name[0] != "."]
    if not found:
        kinds = ", ".join(sorted(EXTENSIONS))
        raise UserError(f"no images in {folder}: add some ({kinds}) or delete the folder")
    return sorted(found, key=lambda entry: os.fsencode(entry.name))


def check_classes(tests: Path, found: list[str], train: Path, known: tuple[str, ...]) -> None:
    """Refuses test classes without training images.

    Raises:
      UserError: there is one.
    """
    if strange := sorted(set(found) - set(known)):
        raise UserError(f"{tests / strange[0]} is a class without training images: add {train / strange[0]}")


def _is_class(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and entry.name[0] != "."
