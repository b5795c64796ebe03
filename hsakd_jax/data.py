"""Datasets by name: arrays in memory, or photographs that stay on the disk.

The only reader of TFDS. TensorFlow is never imported: TFDS reads array_record without it, and Pillow
decodes, always, since another decoder (OpenCV, where it is installed) may give other pixels for a JPEG.
"""

import contextlib
import difflib
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from hsakd_jax.datasets import BUILDERS, image_folder, image_tree
from hsakd_jax.datasets.prepare import prepare
from hsakd_jax.errors import UserError
from hsakd_jax.photos import Photos
from hsakd_jax.progress import Progress
from hsakd_jax.sampling import Dataset, stratified

IMAGE_TREE = "image_tree"  # needs no builder: nothing is prepared
_CHUNK = 1024  # records read at a time
_LARGE = 128 * 128  # pixels from which threads pay: below, they only wait for Python's lock
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Splits(NamedTuple):
    """A dataset as a run sees it; a split that was not asked for is empty."""

    train: Dataset | Photos
    validation: Dataset | Photos | None  # held out of the training split; None where no share was asked for
    test: Dataset | Photos
    class_names: tuple[str, ...]


def load(
    name: str,
    data_dir: str = "",
    *,
    image_size: int = 0,
    fraction: float = 1.0,
    validation: float = 0.0,
    seed: int = 0,
    splits: Sequence[str] = ("train", "test"),
) -> Splits:
    """Loads a dataset, and prepares it first where the package has a builder for it.

    The images come in the order in which they are stored, the same at each load.

    Args:
      name: one of `datasets.BUILDERS`, or any dataset that lies prepared as array_record in `data_dir`
        and has an `image` and a `label` ('NAME/CONFIG' where it has several configs; its newest version
        is taken). 'imagenet2012' and 'image_tree', a tree DIR/{train,val}/CLASS/* that is read where it
        lies, come as `Photos`.
      data_dir: where datasets are prepared; '' for TFDS's own default, `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`. For 'image_folder' and 'image_tree' the tree of images; the copy of
        an 'image_folder' lies in the default.
      image_size: side of the images made of an 'image_folder'; 0 for the others, which come in one size.
      fraction: share of the training images to keep, 0 < fraction <= 1, taken by `stratified` after the
        validation images have been held out.
      validation: share of the training images to hold out, 0 <= validation < 1, taken by `stratified`.
      seed: fixes which images are kept and held out.
      splits: 'train', 'test' or both. A dataset without 'test' is tested on its 'validation' split.

    Raises:
      UserError: an unknown name, a dataset that can't be prepared, read or held in memory, images of
        several sizes or not of 8 bits, labels outside the classes, or a share out of range.
    """
    names, open_split = _open(name, data_dir, image_size)
    nothing = Dataset(np.zeros((0, 0, 0, 0), np.uint8), np.zeros(0, np.int32))
    train, held_out, test = nothing, None, nothing
    if "train" in splits:
        whole = open_split("train")
        kept = np.arange(len(whole.labels))
        if validation:
            chosen = stratified(whole.labels, validation, seed)
            held_out = whole.take(chosen)
            kept = np.setdiff1d(kept, chosen)
            if gone := np.setdiff1d(whole.labels, whole.labels[kept]).tolist():
                raise UserError(
                    f"validation={validation} leaves {name} no training image of class {names[gone[0]]}: hold out less"
                )
        train = whole.take(kept[stratified(whole.labels[kept], fraction, seed)])
    if "test" in splits:
        whole = open_split("test")
        test = whole.take(np.arange(len(whole.labels)))
    return Splits(train, held_out, test, names)


class _Encoded(NamedTuple):
    """One split of a dataset of equal images, still encoded."""

    builder: Any
    split: str
    images: list[bytes]
    labels: np.ndarray

    def take(self, indices: np.ndarray) -> Dataset:
        return _decode(self.builder, self.split, self.images, self.labels, indices)


def _open(name: str, data_dir: str, image_size: int) -> tuple[tuple[str, ...], Callable[[str], "_Encoded | Photos"]]:
    """The names of the classes, and what gives the split 'train' or 'test'."""
    if name == IMAGE_TREE:
        if not data_dir or image_size:
            raise UserError("image_tree needs its tree, and no size: give --config.data.dir=DIR")
        return image_tree.class_names(data_dir), lambda split: _of_tree(data_dir, split)
    builder = _find(name, data_dir, image_size)
    names = _class_names(builder)
    if name == "imagenet2012":  # a split `test` of it has no labels
        return names, lambda split: _of_records(builder, "validation" if split == "test" else split, names)

    def read(split):
        split = _test_split(builder) if split == "test" else split
        return _Encoded(builder, split, *_read(builder, split, len(names)))

    return names, read


def _of_tree(data_dir: str, split: str) -> Photos:
    tree = image_tree.Tree(data_dir, split)
    return Photos(tree, tree.labels, tree.class_names)


def _of_records(builder: Any, split: str, names: tuple[str, ...]) -> Photos:
    source = _source(builder, split)

    def read(i: int) -> tuple[str, bytes]:
        where = f"{builder.info.name}, split {split}, example {i}"
        return where, next(_examples(source, range(i, i + 1)))[0]

    return Photos(read, _labels(builder, split, len(names)), names)


def _find(name: str, data_dir: str, image_size: int) -> Any:
    """The TFDS builder of the prepared dataset; Any, since TFDS's types know less than its objects do."""
    default = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    root = Path(data_dir).expanduser() if data_dir else default
    if image_size and name != "image_folder":
        raise UserError(f"image_size is for image_folder, {name} comes in one size: leave it 0")
    if name == "image_folder":
        if not data_dir or image_size < 1:
            raise UserError(
                "image_folder needs its tree and a size: give --config.data.dir=DIR and --config.data.image_size=PIXELS"
            )
        path = prepare(BUILDERS[name], default, image_folder.scan(data_dir, image_size))
    elif name in BUILDERS:
        path = prepare(BUILDERS[name], root)
    else:
        path = _prepared(name, root)
    try:
        builder: Any = tfds.builder_from_directory(path)
    except Exception as error:
        raise _unreadable(path, error) from error
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise UserError(
            f"{path} is prepared as {builder.info.file_format.value}, which only TensorFlow reads: where that is "
            f"installed, run `tfds convert_format --dataset_version_dir={path} --out_file_format=array_record` once"
            + (", or give another data_dir to prepare it anew" if name in BUILDERS else "")
        )
    return builder


def _prepared(name: str, root: Path) -> Path:
    """The newest version of a dataset that somebody else prepared."""
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
    close = difflib.get_close_matches(name, [*BUILDERS, IMAGE_TREE, *found], 1)
    raise UserError(
        f"no dataset {name!r}"
        + (f" (did you mean {close[0]!r}?)" if close else "")
        + f": hsakd_jax prepares {', '.join(BUILDERS)} and reads {IMAGE_TREE}; "
        f"in {root} lie {', '.join(sorted(found)) or 'no others'}"
    )


def _class_names(builder: Any) -> tuple[str, ...]:
    features: dict[str, Any] = dict(builder.info.features)
    where = builder.data_path
    image, label = (features.get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f"{where} can't be trained on: it needs the features `image` and `label` (a class) and has "
            f"{', '.join(f'{key} ({type(features[key]).__name__})' for key in features)}"
        )
    shape: Any = image.shape
    if image.np_dtype != np.uint8 or shape[-1] not in _MODES:
        raise UserError(
            f"{where} has images of {image.np_dtype} {shape}: they must be of 8 bits and 1, 3 or 4 channels"
        )
    if label.num_classes is None:
        raise UserError(f"{where} does not say how many classes it has: prepare it with ClassLabel(num_classes=...)")
    return tuple(label.names)


def _test_split(builder: Any) -> str:
    if "test" in builder.info.splits:
        return "test"
    print(f"{builder.info.name} has no split `test`: testing on `validation`", file=sys.stderr)
    return "validation"


def _source(builder: Any, split: str) -> Any:
    """The records of a split as they are stored."""
    if split not in builder.info.splits:
        raise UserError(f"{builder.data_path} has no split `{split}`, only {', '.join(builder.info.splits)}")
    try:
        # Parsed here, since TFDS would decode every feature, and takes four times as long.
        return builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES, file_format="array_record"
        )
    except Exception as error:  # array_record raises kinds of its own
        raise _unreadable(builder.data_path, error) from error


def _examples(source: Any, indices: range) -> Iterator[tuple[bytes, int]]:
    """Image and label of the chosen records."""
    proto: Any = tf_example_pb2  # protobuf makes its classes at run time
    for record in source.__getitems__(indices):
        feature = proto.Example.FromString(record).features.feature
        yield feature["image"].bytes_list.value[0], feature["label"].int64_list.value[0]


def _all_examples(builder: Any, split: str) -> Iterator[tuple[bytes, int]]:
    source = _source(builder, split)
    try:
        with Progress(f"Reading {split}", len(source)) as progress:
            for start in range(0, len(source), _CHUNK):
                progress.update(start)
                yield from _examples(source, range(start, min(start + _CHUNK, len(source))))
    except IndexError as error:  # array_record returns empty records for the rest of a file that was cut short
        raise _unreadable(builder.data_path, ValueError("records are missing")) from error
    except Exception as error:  # array_record and protobuf raise kinds of their own
        raise _unreadable(builder.data_path, error) from error


def _read(builder: Any, split: str, classes: int) -> tuple[list[bytes], np.ndarray]:
    """The images of a split as they are stored, and its labels, int32 [n]."""
    images, labels = [], []
    for image, label in _all_examples(builder, split):
        images.append(image)
        labels.append(label)
    return images, _checked(builder, split, labels, classes)


def _labels(builder: Any, split: str, classes: int) -> np.ndarray:
    """The labels of a split, int32 [n], read once and then kept beside the dataset where it can be written.

    They lie inside the records: to have them, 140 GB of ImageNet must be read.
    """
    folder = Path(builder.data_path)
    files = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in sorted(folder.iterdir())]
    state = hashlib.sha256(repr([split, *files]).encode()).hexdigest()[:16]
    kept = folder.parent / f".labels-{folder.name}-{split}-{state}.npy"  # of another state, another name
    with contextlib.suppress(OSError, ValueError, EOFError):
        return np.load(kept, allow_pickle=False)
    labels = _checked(builder, split, [label for _, label in _all_examples(builder, split)], classes)
    with contextlib.suppress(OSError):  # such as the folder of another user
        part = kept.with_name(f"{kept.name}.{os.getpid()}.npy")
        np.save(part, labels)
        part.replace(kept)
    return labels


def _checked(builder: Any, split: str, labels: list[int], classes: int) -> np.ndarray:
    found = np.array(labels, np.int64)
    if len(wrong := np.flatnonzero((found < 0) | (found >= classes))):
        raise UserError(
            f"{builder.info.name}, split {split}, example {wrong[0]} has the label {found[wrong[0]]}, "
            f"outside its {classes} classes: prepare the dataset again"
        )
    return found.astype(np.int32)


def _decode(builder: Any, split: str, encoded: list[bytes], labels: np.ndarray, chosen: np.ndarray) -> Dataset:
    """Decodes the chosen images."""
    if not len(chosen):
        raise UserError(f"{builder.data_path} has no images in its split `{split}`: prepare it again")
    mode = _MODES[builder.info.features["image"].shape[-1]]

    def pixels(i: int) -> np.ndarray:
        try:
            return _pixels(encoded[chosen[i]], mode)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{builder.info.name}, split {split}, example {chosen[i]} is no readable image: delete "
                f"{builder.data_path} and prepare it again"
            ) from error

    first = pixels(0)
    needed, memory = first.nbytes * len(chosen), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"{builder.info.name}, split {split}, takes {needed / 2**30:.1f} GiB as arrays and this machine has "
            f"{memory / 2**30:.1f}: take smaller images or fewer"
        )
    images = np.empty((len(chosen), *first.shape), np.uint8)

    def decode(i: int) -> None:
        image = pixels(i)
        if image.shape != first.shape:
            raise UserError(
                f"{builder.info.name} has images of several sizes, {first.shape} and {image.shape} (split {split}, "
                f"example {chosen[i]}): make an image_folder of it, which brings them to one"
            )
        images[i] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(f"Reading {split}", len(chosen)) as progress:
        run = pool.map if first.shape[0] * first.shape[1] >= _LARGE else map
        for start in range(0, len(chosen), _CHUNK):
            progress.update(start)
            for _ in run(decode, range(start, min(start + _CHUNK, len(chosen)))):
                pass
    return Dataset(images, labels[chosen])


def _pixels(encoded: bytes, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode != mode:
            image = image.convert(mode)
        # numpy could read the image itself, a third slower
        return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


def _unreadable(path, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{path} can't be read ({reason}): delete it and prepare it again")
