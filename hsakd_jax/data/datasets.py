"""Datasets by name: arrays in memory, or photographs that stay on the disk.

TensorFlow is never imported: TFDS finds and reads array_record without it (see `tfds_reader`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from hsakd_jax.core.console import note
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import is_first_process
from hsakd_jax.data import image_tree, locate, shared_images
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.locate import IMAGE_TREE
from hsakd_jax.data.sampling import held_out, stratified
from hsakd_jax.data.streaming import Photos
from hsakd_jax.data.tfds_reader import Encoded, class_names, encoded, photographs

STREAMED = (IMAGE_TREE, "imagenet2012")  # come as `Photos`


class Source(Protocol):
    """The settings that identify a dataset: the section 'data' of a config (see `runs.config.Data`)."""

    @property
    def name(self) -> str | None: ...
    @property
    def dir(self) -> str | None: ...
    @property
    def image_size(self) -> int | None: ...
    @property
    def max_pixels(self) -> int | None: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def fraction(self) -> float: ...
    @property
    def validation(self) -> float: ...


class Part(NamedTuple):
    """Some images of a split, still encoded."""

    whole: Encoded
    indices: np.ndarray  # int64 [n]

    @property
    def labels(self) -> np.ndarray:
        """int32 [n]."""
        return self.whole.labels[self.indices]

    def take(self, indices: np.ndarray) -> Dataset:
        """The chosen images only, in this order."""
        return self.whole.take(self.indices[indices])


class Splits(NamedTuple):
    """The splits that a run uses; a split that was not requested is empty."""

    train: Dataset | Photos
    validation: Dataset | Photos | None  # held out of the training split; None where none is held out
    test: Dataset | Photos
    class_names: tuple[str, ...]

    @property
    def selection(self) -> tuple[Dataset | Photos, str]:
        """The images that select the best epoch, and the name of their split."""
        return (self.test, "test") if self.validation is None else (self.validation, "validation")


def load(
    name: str,
    data_dir: str = "",
    *,
    image_size: int = 0,
    max_pixels: int = 0,
    interpolation: str = "bilinear",
    fraction: float = 1.0,
    validation: float = 0.0,
    seed: int = 0,
    splits: Sequence[str] = ("train", "test"),
) -> Splits:
    """Loads a dataset, and prepares it first where the package has a builder for it.

    The images come in the order in which they are stored, the same at each load.

    Args:
      name: one of `builders.BUILDERS`, or any dataset prepared as array_record in `data_dir` that has an `image` and a
        `label`. Its newest version is used; 'NAME/CONFIG' selects one of several configs. 'imagenet2012' and
        'image_tree', an `ImageTree` that is read in place, are returned as `Photos`.
      data_dir: where datasets are prepared; '' for TFDS's own default, `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`. For 'image_folder' and 'image_tree' it is the tree of images; the copy of
        an 'image_folder' is in the default.
      image_size: side of the images made of an 'image_folder'; 0 for the others, which come in one size.
      max_pixels: the greatest number of pixels of an image file that is read; 0 for `image_files.MAX_PIXELS`. An
        'image_folder' leaves larger images out, with a line.
      interpolation: how image files are scaled, a key of `image_files.FILTERS`.
      fraction: fraction of the training images to keep, 0 < fraction <= 1, taken by `stratified` after the
        validation images have been held out.
      validation: fraction of the training images to hold out, 0 <= validation < 1, taken by `stratified`.
      seed: fixes which images are kept and held out.
      splits: 'train', 'test' or both. A dataset without 'test' is tested on its 'validation' split, and one without
        either on a fifth of its training images. The training split then omits them. Of a tree with both, a
        warning counts the test images that are also training images.

    Raises:
      UserError: an unknown name, or a dataset that can't be prepared, read or held in memory. Images of several sizes
        or not of 8 bits, labels outside the classes, or a fraction out of range.
    """
    names, open_split, tree = _open(name, data_dir, image_size, max_pixels, interpolation)
    nothing = Dataset(np.zeros((0, 0, 0, 0), np.uint8), np.zeros(0, np.int32))
    train, validation_images, test = nothing, None, nothing
    if "train" in splits:
        whole = open_split("train")
        kept = np.arange(len(whole.labels))
        if validation:
            chosen = stratified(whole.labels, validation, seed)
            validation_images = whole.take(chosen)
            kept = np.setdiff1d(kept, chosen)
            if gone := np.setdiff1d(whole.labels, whole.labels[kept]).tolist():
                raise UserError(
                    f"validation={validation} leaves {name} no training image of class {names[gone[0]]}: hold out less"
                )
        train = whole.take(kept[stratified(whole.labels[kept], fraction, seed)])
    if "test" in splits:
        whole = open_split("test")
        test = whole.take(np.arange(len(whole.labels)))
    if tree and {"train", "test"} <= {*splits} and is_first_process():
        shared_images.report(tree)
    return Splits(train, validation_images, test, names)


def load_source(source: Source, **options: Any) -> Splits:
    """`load` of the dataset that the section 'data' of a run's config describes; `options` are its seed and splits.

    Raises:
      UserError: as `load`, or the config names no dataset, or a folder that does not exist.
    """
    if source.name is None:
        raise UserError("the run does not name its data: convert the checkpoint again with --data=NAME")
    if source.name in ("image_folder", IMAGE_TREE) and source.dir:
        image_tree.check_classes(source.dir)
    elif source.dir and not locate.root_of(source.dir).is_dir():  # a mistyped one would be made and filled
        raise UserError(f"data.dir is {source.dir}, which is no folder: check the path, or make it first")
    return load(
        source.name,
        source.dir or "",
        # For other datasets, the size of an image is that of its crop.
        image_size=source.image_size or 0 if source.name == "image_folder" else 0,
        max_pixels=source.max_pixels or 0,
        interpolation=source.interpolation,
        fraction=source.fraction,
        validation=source.validation,
        **options,
    )


def is_prepared_source(source: Source) -> bool:
    """Whether `load_source` would have nothing to prepare, and so nothing to download either.

    Raises:
      UserError: no such tree of images.
    """
    size, limit = source.image_size or 0, source.max_pixels or 0
    return source.name is None or locate.is_ready(source.name, source.dir or "", size, limit, source.interpolation)


def _open(
    name: str, data_dir: str, image_size: int, max_pixels: int, interpolation: str
) -> tuple[tuple[str, ...], Callable[[str], "Encoded | Part | Photos"], image_tree.ImageTree | None]:
    """The names of the classes, a function from 'train' or 'test' to that split, and the tree that is read, if any."""
    if name == IMAGE_TREE:
        if not data_dir or image_size:
            raise UserError("image_tree needs its tree, and no size: set --config.data.dir=DIR")
        tree = image_tree.ImageTree(data_dir)
        return tree.class_names, lambda split: _of_tree(tree, split, max_pixels, interpolation), tree
    root = locate.root_of(data_dir).absolute()
    if root.name == name and not (root / name).is_dir() and any(root.glob("*/dataset_info.json")):
        raise UserError(f"{root} is the folder of {name} itself: set data.dir to the folder above it, {root.parent}")
    builder, folder = locate.find(name, data_dir, image_size, max_pixels, interpolation)
    names = class_names(builder)
    if name in STREAMED:  # a split `test` of it has no labels
        options = {"max_pixels": max_pixels, "interpolation": interpolation}
        return (
            names,
            lambda split: photographs(builder, "validation" if split == "test" else split, names, **options),
            None,
        )

    if folder:  # has both splits; neither size nor filter of its prepared images changes the digest of their names
        return names, lambda split: encoded(builder, split, len(names), folder.digests[split]), folder.source
    return names, lambda split: _read_split(builder, split, len(names)), None


def _of_tree(tree: image_tree.ImageTree, split: str, max_pixels: int, interpolation: str) -> Photos:
    files = image_tree.ImageFiles(tree, split)
    while tree.notes:
        note(tree.notes.pop(0))
    return Photos(
        files,
        files.labels,
        tree.class_names,
        max_pixels=max_pixels,
        interpolation=interpolation,
        digest=files.digest,  # of names: to read the files would take as long as an evaluation
    )


def _read_split(builder: Any, split: str, classes: int) -> "Encoded | Part":
    """A split; the test images of a dataset without any are a fifth of the training images."""
    if {"test", "validation"} & set(builder.info.splits):
        return encoded(builder, _test_split(builder) if split == "test" else split, classes)
    whole = encoded(builder, "train", classes)
    members = [np.flatnonzero(whole.labels == l) for l in range(classes)]
    tests = np.sort(np.concatenate([of[held_out(len(of))] for of in members]))
    if split == "test":
        note(
            f"{builder.info.name} has a split `train` only: every fifth image of a class is a test image, "
            f"{len(tests):,} of {len(whole.labels):,}"
        )
        return Part(whole, tests)
    return Part(whole, np.setdiff1d(np.arange(len(whole.labels)), tests))


def _test_split(builder: Any) -> str:
    if "test" in builder.info.splits:
        return "test"
    note(f"{builder.info.name} has no split `test`: testing on `validation`")
    return "validation"
