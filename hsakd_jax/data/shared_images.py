"""Test images that are training images too: copies of the same file, which make an accuracy too high."""

import hashlib
import os
from collections.abc import Callable, Hashable

from hsakd_jax.core.console import with_progress
from hsakd_jax.data.image_tree import ImageTree

MOST = 200_000  # files of a tree that are compared: larger trees are published datasets, and take long to list
_BEGINNING = 4096  # bytes, which differ in most images of one length


def shared_images(tree: ImageTree) -> list[tuple[str, str]]:
    """Finds the test images whose files have the same bytes as a training image.

    Lengths are compared first, then the beginnings of files of one length, then whole files. Files that can't be read
    are passed over, since the decoder reports them.

    Returns:
      The path of each such test image, with that of a training image. None of a tree of more than `MOST` files.
    """
    train, test = (_paths(tree, split) for split in ("train", "test"))
    if len(train) + len(test) > MOST:
        return []
    first: dict[Hashable, str] = {}
    marks: dict[str, Hashable] = {}
    for mark in (_length, _beginning, _content):
        paths = [*train, *test]
        marks = {path: _try(mark, path) for path in with_progress(paths, f"Comparing {tree.root}", len(paths))}
        first = {marks[path]: path for path in reversed(train)}
        common = {marks[path] for path in test} & first.keys()
        train, test = ([path for path in of if marks[path] in common] for of in (train, test))
    return [(path, first[marks[path]]) for path in test]


def warnings(tree: ImageTree) -> list[str]:
    """The line about the shared images of a tree, if it has any."""
    if not (found := shared_images(tree)):
        return []
    total = len(_paths(tree, "test"))
    one, other = (os.path.relpath(path, tree.root) for path in found[0])
    return [
        f"{tree.root}: {len(found)} of {total} test images {'is' if len(found) == 1 else 'are'} also in the training "
        f"images ({one} is {other}): the accuracy will be too high; delete one copy of each"
    ]


def _paths(tree: ImageTree, split: str) -> list[str]:
    folder = tree.folder(split)
    return [str(folder / name / one) for name, of in tree.files(split).items() for one in of]


def _try(mark: Callable[[str], Hashable], path: str) -> Hashable:
    """The mark of a file; of one that can't be read, its path, which no other file has."""
    try:
        return mark(path)
    except OSError:
        return path


def _length(path: str) -> int:
    return os.stat(path).st_size


def _beginning(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_BEGINNING)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
