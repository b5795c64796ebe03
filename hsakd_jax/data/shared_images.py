"""Test images that are copies of training images, so that an accuracy is not that of new images."""

import hashlib
import os
from collections.abc import Callable, Hashable

from hsakd_jax.core.console import one_line, warn, with_progress
from hsakd_jax.data.image_tree import ImageTree

MOST = 200_000  # files of a tree that are compared: on a network's disk, 200,000 take minutes
_BEGINNING = 4096  # bytes, in which most images of one length differ


def shared_images(tree: ImageTree) -> list[tuple[str, str]]:
    """Finds the test images whose files have the same bytes as a training image.

    Lengths are compared first, then the beginnings of files of one length, then whole files. Files that can't be read
    are passed over, since the decoder reports them.

    Returns:
      The path of each such test image, with that of a training image. None of a tree of more than `MOST` files.
    """
    if _count(tree, "train") + _count(tree, "test") > MOST:
        return []
    train, test = (_paths(tree, split) for split in ("train", "test"))
    first: dict[Hashable, str] = {}
    marks: dict[str, Hashable] = {}
    for mark in (_length, _beginning, _content):
        paths = [*train, *test]
        marks = {path: _try(mark, path) for path in with_progress(paths, f"Comparing {tree.root}", len(paths))}
        first = {marks[path]: path for path in reversed(train)}
        common = {marks[path] for path in test} & first.keys()
        train, test = ([path for path in of if marks[path] in common] for of in (train, test))
    return [(path, first[marks[path]]) for path in test]


def report(tree: ImageTree) -> None:
    """Warns of the shared images of a tree, if it has any."""
    if not (found := shared_images(tree)):
        return
    one, other = (one_line(os.path.relpath(path, tree.root)) for path in found[0])
    copies = "is a copy of a training image" if len(found) == 1 else "are copies of training images"
    warn(
        f"{tree.root}: {len(found)} of {_count(tree, 'test')} test images {copies} ({one} of {other}): the accuracy is "
        "not that of new images; keep one file of each image"
    )


def _count(tree: ImageTree, split: str) -> int:
    return sum(map(len, tree.files(split).values()))


def _paths(tree: ImageTree, split: str) -> list[str]:
    return [path for of in tree.paths(split).values() for path in of]


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
        return hashlib.sha256(file.read(_BEGINNING)).digest()  # since a beginning takes 4 KB of memory


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
