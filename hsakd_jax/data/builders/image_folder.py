"""The user's own images: one folder per class."""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import cast

import tensorflow_datasets as tfds

from hsakd_jax.core.console import note, with_progress
from hsakd_jax.core.errors import UserError
from hsakd_jax.data.image_files import DECODING, TooLargeError, fit, read_file, unreadable
from hsakd_jax.data.image_tree import ImageFiles, ImageTree

_CHUNK = 256  # images decoded ahead of the writer, which bounds the memory


@dataclasses.dataclass
class Tree(tfds.core.BuilderConfig):
    """A tree as it is now; the name of the config is its fingerprint."""

    size: int = 0
    max_pixels: int = 0
    interpolation: str = "bilinear"
    root: str = ""
    files: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)  # split: class: paths
    notes: tuple[str, ...] = ()  # see `ImageTree`
    digests: dict[str, str] = dataclasses.field(default_factory=dict)  # split: that of the names of its files
    source: ImageTree | None = None  # as it was listed


def scan(directory: str, size: int, max_pixels: int = 0, interpolation: str = "bilinear") -> Tree:
    """Lists the images of an `ImageTree` without opening one.

    The fingerprint covers the rules of decoding and scaling, the size, the limit, and each file's path, length and time
    of change. A tree that changed in any of these gets another name, so that no stale copy is ever read. Copies of
    earlier states stay until the user deletes them.

    Args:
      directory: the tree.
      size: side of the square images to make.
      max_pixels: the greatest number of pixels of an image; larger ones are left out. 0 for `image_files.MAX_PIXELS`.
      interpolation: how images are scaled, a key of `image_files.FILTERS`.

    Raises:
      UserError: no such folder, no or too few images, or a class of the test split that training does not have.
    """
    tree = ImageTree(directory)
    files = {split: tree.paths(split) for split in ("train", "test")}
    marks = []
    for path in (path for part in files.values() for of in part.values() for path in of):
        found = os.stat(path)
        marks.append((os.path.relpath(path, tree.root), found.st_size, found.st_mtime_ns))
    # Without a mark for 'bilinear', so that copies of before there was a choice are still found.
    other = [] if interpolation == "bilinear" else [interpolation]
    fingerprint = hashlib.sha256(json.dumps([DECODING, size, max_pixels, marks, *other]).encode()).hexdigest()[:16]
    root = str(tree.root)
    return Tree(
        name=fingerprint,
        description=root,
        size=size,
        max_pixels=max_pixels,
        interpolation=interpolation,
        root=root,
        files=files,
        notes=tuple(tree.notes),
        digests={split: ImageFiles(tree, split).digest() for split in files},
        source=tree,
    )


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A tree of images, one folder per class, made square and RGB: uint8 [size, size, 3]."""

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
        encoded = _encode([path for path, _ in pairs], tree)
        kept: set[str] = set()
        for (path, name), png in zip(pairs, with_progress(encoded, f"Preparing {split}", len(pairs)), strict=True):
            if isinstance(png, TooLargeError):
                note(f"left out: {path} {png}")
                continue
            kept.add(name)
            # Bytes, since names of files may be of another encoding than UTF-8.
            yield os.fsencode(os.path.relpath(path, tree.root)), {"image": io.BytesIO(png), "label": name}
        lost = sorted(set(tree.files[split]) - kept)
        if lost and (split == "train" or not kept):
            raise UserError(
                f"{tree.root}, {split}: all images of {lost[0]} are too large: scale them down, or set "
                "--config.data.max_pixels=PIXELS"
            )


def _encode(paths: list[str], tree: Tree) -> Iterator[bytes | TooLargeError]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i in range(0, len(paths), _CHUNK):
            yield from pool.map(partial(_png, tree=tree), paths[i : i + _CHUNK])


def _png(path: str, tree: Tree) -> bytes | TooLargeError:
    """The image as a PNG file, or why it is too large.

    Raises:
      UserError: it can't be read as an image.
    """
    buffer = io.BytesIO()
    try:
        image = fit(read_file(path), tree.size, tree.size, tree.max_pixels, interpolation=tree.interpolation)
        image.save(buffer, "PNG")
    except TooLargeError as error:
        return error
    except Exception as error:  # a damaged file can fail anywhere in the decoder
        raise unreadable(path, error) from error
    return buffer.getvalue()
