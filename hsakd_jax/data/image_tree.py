"""Folders of image files: the one scan of them, and trees with one folder per class.

Whatever a scan leaves out, except hidden files and folders, is counted and named in a note.
"""

import errno
import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hsakd_jax.core.console import Progress, one_line
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import expand
from hsakd_jax.data.dataset import digest_of
from hsakd_jax.data.image_files import EXTENSIONS, TooLargeError, read_file, unreadable
from hsakd_jax.data.sampling import held_out

# The folders that may contain the test images, in order of preference.
TEST_FOLDERS = ("test", "val", "validation")
# Files that systems and archives leave in a folder, in addition to hidden files.
_PASSED_OVER = {"thumbs.db", "desktop.ini", "__macosx", "lost+found"}
_SHOWN = 3  # names of a reason
# Why something is left out: one, several.
_NO_IMAGE = ("not an image", "not images")
_DANGLING = ("dangling link", "dangling links")
_LOOP = ("link loop", "link loops")
_SPECIAL = ("device, FIFO or socket", "devices, FIFOs or sockets")
_CLOSED = ("closed or unreadable", "closed or unreadable")
_AGAIN = ("folder linked twice", "folders linked twice")
_NO_CLASS = ("image in no class folder", "images in no class folder")
LeftOut = dict[tuple[str, str], list[str]]  # names by reason


class Scan(NamedTuple):
    """The images of a folder, in depth.

    Attributes:
      files: paths relative to the folder, in the order of their bytes.
      left_out: names of the entries that were left out.
    """

    files: list[str]
    left_out: LeftOut


def find_images(folder: str | Path) -> Scan:
    """Finds the images of a folder and of the folders in it, by their suffixes; no file is opened.

    Links are followed, and each folder is read once. Hidden files and folders are passed over, as are those that
    systems and archives leave behind.
    """
    files: list[str] = []
    left_out: LeftOut = {}
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            found = os.stat(os.path.join(folder, inside))
            if (key := (found.st_dev, found.st_ino)) in seen:
                left_out.setdefault(_AGAIN, []).append(inside)
                continue
            seen.add(key)
            entries = _entries(os.path.join(folder, inside))
        except OSError:
            left_out.setdefault(_CLOSED, []).append(inside or ".")
            continue
        for entry in entries:
            name = os.path.join(inside, entry.name)
            if _is_folder(entry):
                waiting.append(name)
            elif reason := _reason(entry):
                left_out.setdefault(reason, []).append(name)
            else:
                files.append(name)
    return Scan(sorted(files, key=os.fsencode), left_out)


def check_classes(directory: str | Path) -> None:
    """Refuses a tree with a single class, such as the folder above a tree.

    Raises:
      UserError: the line has the folder that may be meant.
    """
    tree = ImageTree(directory)
    if len(tree.class_names) == 1:
        only = meant = tree.folder("train") / tree.class_names[0]
        while len(inside := [entry.name for entry in _listing(meant) if _is_folder(entry)]) == 1:
            meant = meant / inside[0]
        hint = f"did you mean {meant}?" if inside else "add one for each other class"
        raise UserError(f"{only.parent} has one class folder, {only.name}: {hint}")


def contains_images(root: Path) -> bool:
    """Whether a folder has folders with images in them, as a tree of images has; hidden ones do not count."""
    if not os.path.isdir(root):
        return False
    inside = [entry for entry in _listing(root) if _is_folder(entry) and entry.name != "downloads"]
    inside += [below for entry in inside for below in _listing(Path(entry.path)) if _is_folder(below)]
    return any(_reason(file) is None for entry in inside for file in _listing(Path(entry.path)) if not _is_folder(file))


def summary(left_out: LeftOut) -> str:
    """The omissions of a scan, as '3 files left out: 2 not images (a.txt, b.txt), 1 dangling link (c.jpg)', or ''."""
    if not left_out:
        return ""
    count = sum(map(len, left_out.values()))
    parts = []
    for (one, several), names in left_out.items():
        parts.append(f"{len(names)} {one if len(names) == 1 else several} ({_first(names)})")
    return f"{count} {'file' if count == 1 else 'files'} left out: {', '.join(parts)}"


def _first(names: Sequence[str]) -> str:
    return ", ".join([*map(one_line, names[:_SHOWN]), *["..."] * (len(names) > _SHOWN)])


class ImageTree:
    """A tree of images with one folder per class; no image is opened.

    The tree has `{train,test,val,validation}/CLASS/`, or only `CLASS/`: then every fifth image of a class, in the order
    of names, is a test image.

    Args:
      directory: the tree.

    Attributes:
      root: the tree.
      class_names: names of the class folders of the training images, sorted.
      notes: lines for the user about the scan: which folder is the test split, which files were left out.

    Raises:
      UserError: no such folder, no class folders, or a class folder whose name can't be that of a class.
    """

    def __init__(self, directory: str | Path):
        self.root = expand(directory)
        self.notes: list[str] = []
        self._listed: dict[Path, dict[str, list[str]]] = {}
        self._has_splits = _has_classes(self.root / "train") or any(
            os.path.isdir(self.root / name) for name in TEST_FOLDERS
        )
        self.class_names = tuple(_class_folders(self.folder("train"))[0])

    def folder(self, split: str) -> Path:
        """The folder with the class folders of 'train' or 'test'.

        Raises:
          UserError: there is none.
        """
        if not self._has_splits:
            return self.root
        return self.root / "train" if split == "train" else self._test_folder

    def files(self, split: str) -> dict[str, list[str]]:
        """Of each class, the images of 'train' or 'test': paths relative to the class folder, in the order of names.

        Raises:
          UserError: a class folder without images, a test class without training images, or too few images.
        """
        folder = self.folder(split)
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        found = self._listed[folder]
        if self._has_splits:
            return found
        if split == "train":
            return {name: list(compress(of, ~held_out(len(of)))) for name, of in found.items()}
        test = {name: list(compress(of, held_out(len(of)))) for name, of in found.items()}
        return {name: of for name, of in test.items() if of}

    def paths(self, split: str) -> dict[str, list[str]]:
        """As `files`, with the paths of the images."""
        folder = self.folder(split)
        return {name: [str(folder / name / one) for one in of] for name, of in self.files(split).items()}

    def _list(self, folder: Path) -> dict[str, list[str]]:
        names, left_out = _class_folders(folder)
        if strange := sorted(set(names) - set(self.class_names)):
            raise UserError(
                f"{folder / strange[0]} is a class without training images: add {self.folder('train') / strange[0]}"
            )
        found: dict[str, list[str]] = {}
        with Progress(f"Listing {folder}", len(names), "folders") as progress:
            for done, name in enumerate(names):
                progress.update(done)
                scan = find_images(folder / name)
                if not scan.files:
                    why = f" ({summary(scan.left_out)})" if scan.left_out else ""
                    kinds = ", ".join(sorted(EXTENSIONS))
                    raise UserError(f"no images in {folder / name}{why}: add some ({kinds}) or delete the folder")
                found[name] = scan.files
                for reason, of in scan.left_out.items():
                    left_out.setdefault(reason, []).extend(os.path.join(name, one) for one in of)
        if left_out:
            self.notes.append(f"{folder}: {summary(left_out)}")
        if not self._has_splits:
            self._note_held_out(found)
        elif folder != self.folder("train"):
            self._note_untested(folder, set(found))
        return found

    def _note_held_out(self, found: Mapping[str, Sequence[str]]) -> None:
        total = sum(map(len, found.values()))
        tests = sum(int(held_out(len(of)).sum()) for of in found.values())
        if not tests:
            raise UserError(
                f"too few images in {self.root}: add images until a class has 5, every fifth is a test image"
            )
        self.notes.append(
            f"{self.root} has no folder train: every fifth image of a class is a test image, {tests} of {total}"
        )
        self._note_untested(self.root, {name for name, of in found.items() if held_out(len(of)).any()})

    def _note_untested(self, folder: Path, tested: set[str]) -> None:
        if untested := [name for name in self.class_names if name not in tested]:
            count = f"{len(untested)} of {len(self.class_names)}"
            self.notes.append(f"{folder} has no test image of {count} classes: {_first(untested)}")

    @cached_property
    def _test_folder(self) -> Path:
        """The folder of the test images: the first of `TEST_FOLDERS` with class folders."""
        present = [folder for name in TEST_FOLDERS if os.path.isdir(folder := self.root / name)]
        whole = [folder for folder in present if _has_classes(folder)]
        if not whole:
            raise UserError(
                f"no folder of test images in {self.root}: a tree contains train/CLASS/*.jpg and one of "
                f"{', '.join(f'{name}/CLASS/*.jpg' for name in TEST_FOLDERS)}; to hold out every fifth image, set "
                f"--config.data.dir={self.root / 'train'}"
            )
        for folder in present:
            if folder not in whole:
                self.notes.append(f"{folder} has no class folders: passed over")
            elif folder != whole[0]:
                self.notes.append(f"{folder} is passed over: {whole[0]} contains the test images")
        return whole[0]


class ImageFiles:
    """One split of a tree, by class and name; `files(i)` returns path and content of one image.

    Args:
      tree: the tree.
      split: 'train' or 'test'.

    Attributes:
      labels: int32 [n], positions in the tree's `class_names`.

    Raises:
      UserError: as `ImageTree.files`; calling it, a file that can't be read.
    """

    def __init__(self, tree: ImageTree, split: str):
        found = tree.files(split)
        self._folder = tree.folder(split)
        self._class_names = tree.class_names
        # A million paths as Python's strings would take ten times the memory.
        self._names = np.array([os.fsencode(name) for of in found.values() for name in of])
        counts = [len(of) for of in found.values()]
        self.labels = np.repeat(np.array([tree.class_names.index(name) for name in found], np.int32), counts)

    def digest(self, indices: np.ndarray | slice = slice(None)) -> str:
        """The digest of CLASS/NAME of the chosen images, in their order."""
        folders = [os.fsencode(name) for name in self._class_names]
        pairs = zip(self.labels[indices].tolist(), self._names[indices].tolist(), strict=True)
        return digest_of(b"\0".join(b"%b/%b" % (folders[label], name) for label, name in pairs))

    def __call__(self, i: int) -> tuple[str, bytes]:
        path = str(self._folder / self._class_names[self.labels[i]] / os.fsdecode(bytes(self._names[i])))
        try:
            return path, read_file(path)
        except (OSError, TooLargeError) as error:
            raise unreadable(path, error) from error


def _has_classes(folder: Path) -> bool:
    """Whether a folder contains folders that are not passed over."""
    return os.path.isdir(folder) and any(_is_folder(entry) for entry in _listing(folder))


def _class_folders(folder: Path) -> tuple[list[str], LeftOut]:
    """The names of the class folders, sorted, and the other entries."""
    if not os.path.isdir(folder):
        raise UserError(f"no folder {folder}: a tree contains {folder.name}/CLASS/*.jpg")
    names: list[str] = []
    left_out: LeftOut = {}
    for entry in _listing(folder):
        if _is_folder(entry):
            names.append(entry.name)
        else:
            left_out.setdefault(_reason(entry) or _NO_CLASS, []).append(entry.name)
    if not names:
        raise UserError(f"no class folders in {folder}: sort its images into {folder}/CLASS/*.jpg")
    for name in names:
        # Such names would be cut or changed where class names are stored, one per line.
        if name != name.strip() or any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
            raise UserError(
                f"{folder} has a class folder {name!r}: rename it, without line breaks, control characters, outer "
                "spaces or letters that are not UTF-8"
            )
    return sorted(names), left_out


def _listing(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return _entries(folder)
    except OSError as error:
        raise UserError(f"{folder} can't be entered ({error.strerror}): change its permissions or move it") from error


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, by name, except hidden ones and those of systems."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if e.name[0] != "." and e.name.lower() not in _PASSED_OVER]
    return sorted(found, key=lambda entry: os.fsencode(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link loop, or a link into a closed folder
        return False


def _reason(entry: os.DirEntry[str]) -> tuple[str, str] | None:
    """Why a file is left out; None for an image."""
    try:
        if entry.is_file():
            return None if os.path.splitext(entry.name)[1].lower() in EXTENSIONS else _NO_IMAGE
        return _SPECIAL if os.path.exists(entry.path) else _DANGLING
    except OSError as error:
        return _LOOP if error.errno == errno.ELOOP else _CLOSED
