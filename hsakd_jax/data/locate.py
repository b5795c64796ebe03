"""Where the prepared dataset of a name is: ours are prepared first, others are found in the folder."""

import os
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from hsakd_jax.core.console import note
from hsakd_jax.core.errors import UserError, did_you_mean
from hsakd_jax.core.files import expand
from hsakd_jax.data import image_tree
from hsakd_jax.data.builders import BUILDERS, image_folder
from hsakd_jax.data.builders.prepare import is_prepared, place, prepare
from hsakd_jax.data.image_files import MAX_BYTES, MAX_PIXELS
from hsakd_jax.data.tfds_reader import open_builder

IMAGE_TREE = "image_tree"  # needs no builder: nothing is prepared


def check_name(name: str, data_dir: str = "") -> None:
    """Refuses a name that is probably a mistyped one: it is similar to a known name, and no such data is there.

    Args:
      name: of a dataset.
      data_dir: see `load`.

    Raises:
      UserError: with the similar name; or the name is that of a tree of images.
    """
    known = [*BUILDERS, IMAGE_TREE]
    if name and name not in known and image_tree.contains_images(expand(name)):
        raise UserError(
            f"{name} is a tree of images: set --data=image_folder --data_dir={name}, or --data=image_tree for a "
            "network of ImageNet"
        )
    hint = did_you_mean(name, known)
    if hint and name not in known and not (root_of(data_dir) / name).is_dir():
        raise UserError(
            f"no dataset {name!r} in {root_of(data_dir)}: {hint} If the name is right, set the folder that contains it"
        )


def root_of(data_dir: str) -> Path:
    """The folder of prepared datasets; '' is TFDS's default."""
    return expand(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def find(
    name: str, data_dir: str, image_size: int, max_pixels: int, interpolation: str
) -> tuple[Any, image_folder.Tree | None]:
    """The TFDS builder of a dataset, which is prepared first if it is one of ours.

    Args:
      name: see `datasets.load`, as the others.
      data_dir: where datasets are prepared.
      image_size: of an 'image_folder'.
      max_pixels: of its files.
      interpolation: by which they are scaled.

    Returns:
      The builder; Any, since TFDS's types lack methods that its objects have. And the tree of an 'image_folder'.

    Raises:
      UserError: an unknown name, or a dataset that can't be prepared or read.
    """
    if image_size and name != "image_folder":
        raise UserError(f"image_size is for image_folder, {name} comes in one size: leave it 0")
    if name in BUILDERS:
        kind, folder, tree = _builder(name, data_dir, image_size, max_pixels, interpolation)
        if not tree and data_dir and not is_prepared(place(kind, folder)) and image_tree.contains_images(folder):
            tiny = " (recipes that end in _tiny train on digits)" if name == "digits" else ""
            raise UserError(
                f"{folder} is a tree of images, to which nothing is written: set --config.data.name=image_folder, in "
                f"convert --data=image_folder, to use them, or another folder for {name}{tiny}"
            )
        for line in tree.notes if tree else ():
            note(line)
        builder = open_builder(path := prepare(kind, folder, tree))
        if tree:
            _note_too_large(tree, builder)
    else:
        tree, builder = None, open_builder(path := _prepared(name, root_of(data_dir)))
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise UserError(
            f"{path} is prepared as {builder.info.file_format.value}, which only TensorFlow reads: where that is "
            f"installed, run `tfds convert_format --dataset_version_dir={path} --out_file_format=array_record` once"
            + (", or set another data.dir to prepare it again" if name in BUILDERS else "")
        )
    return builder, tree


def is_ready(name: str, data_dir: str, image_size: int, max_pixels: int, interpolation: str) -> bool:
    """Whether `find` would have nothing to prepare, and so nothing to download either.

    Raises:
      UserError: no such tree of images.
    """
    return name not in BUILDERS or is_prepared(place(*_builder(name, data_dir, image_size, max_pixels, interpolation)))


def _note_too_large(tree: image_folder.Tree, builder: Any) -> None:
    for split, images in tree.files.items():
        if missing := sum(map(len, images.values())) - builder.info.splits[split].num_examples:
            limit = tree.max_pixels or MAX_PIXELS
            sizes = f"more than {limit:,} pixels, or {MAX_BYTES:,} bytes"
            note(f"{tree.root}, {split}: without {missing} that are too large ({sizes})")


def _builder(
    name: str, data_dir: str, image_size: int, max_pixels: int, interpolation: str
) -> tuple[Any, Path, image_folder.Tree | None]:
    """The arguments of `prepare` for one of our datasets."""
    if name != "image_folder":
        return BUILDERS[name], root_of(data_dir), None
    missing = ["--config.data.dir=DIR"] * (not data_dir) + ["--config.data.image_size=PIXELS"] * (image_size < 1)
    if missing:
        raise UserError(f"image_folder needs its tree and a size: set {' and '.join(missing)}")
    return BUILDERS[name], root_of(""), image_folder.scan(data_dir, image_size, max_pixels, interpolation)


def _prepared(name: str, root: Path) -> Path:
    """The newest version of a dataset that another program prepared."""
    found = {}
    for info in [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]:
        version = info.parent.name.split(".")
        if len(version) == 3 and all(part.isdigit() for part in version):  # not the folder of an unfinished one
            key = info.parent.parent.relative_to(root).as_posix()
            found.setdefault(key, []).append((tuple(map(int, version)), info.parent))
    if name in found:
        return max(found[name])[1]
    configs = [key for key in sorted(found) if key.startswith(f"{name}/")]
    if len(configs) == 1:
        return max(found[configs[0]])[1]
    if configs:
        raise UserError(f"{root / name} has several configs: name one of {', '.join(configs)}")
    others = sorted(key for key in found if key.partition("/")[0] not in BUILDERS)
    hint = did_you_mean(name, [*BUILDERS, IMAGE_TREE, *others])
    raise UserError(
        f"no dataset {name!r}"
        + (f" ({hint})" if hint else "")
        + f": hsakd_jax prepares {', '.join(BUILDERS)} and reads {IMAGE_TREE}; "
        f"{root} contains {', '.join(others) or 'no others'}"
    )
