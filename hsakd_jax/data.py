"""Datasets as arrays in memory, and the order in which training sees them.

The only reader of TFDS. TensorFlow is never imported: TFDS reads array_record without it, and Pillow
decodes, always, since another decoder (OpenCV, where it is installed) may give other pixels for a JPEG.
"""

import difflib
import functools
import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from hsakd_jax.datasets import BUILDERS, image_folder
from hsakd_jax.datasets.prepare import prepare
from hsakd_jax.errors import UserError
from hsakd_jax.progress import Progress

_CHUNK = 1024  # records read at a time
_LARGE = 128 * 128  # pixels from which threads pay: below, they only wait for Python's lock
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Dataset(NamedTuple):
    """One split, whole in memory."""

    images: np.ndarray  # uint8 [n, H, W, C]
    labels: np.ndarray  # int32 [n]


class Splits(NamedTuple):
    """A dataset as a run sees it; a split that was not asked for is empty."""

    train: Dataset
    validation: Dataset | None  # held out of the training split; None where no share was asked for
    test: Dataset
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
      name: 'digits', 'cifar10', 'cifar100', 'image_folder', or any dataset that lies prepared as
        array_record in `data_dir` and has an `image` and a `label` ('NAME/CONFIG' where it has several
        configs; its newest version is taken).
      data_dir: where datasets are prepared; '' for TFDS's own default, `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`. For 'image_folder' the tree of images; its copy lies in the default.
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
    builder = _find(name, data_dir, image_size)
    names = _class_names(builder)
    shape = [side or 0 for side in builder.info.features["image"].shape]
    nothing = Dataset(np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32))
    train, held_out, test = nothing, None, nothing
    if "train" in splits:
        encoded, labels = _read(builder, "train", len(names))
        kept = np.arange(len(labels))
        if validation:
            chosen = stratified(labels, validation, seed)
            held_out = _decode(builder, "train", encoded, labels, chosen)
            kept = np.setdiff1d(kept, chosen)
            if gone := np.setdiff1d(labels, labels[kept]).tolist():
                raise UserError(
                    f"validation={validation} leaves {name} no training image of class {names[gone[0]]}: hold out less"
                )
        kept = kept[stratified(labels[kept], fraction, seed)]
        train = _decode(builder, "train", encoded, labels, kept)
    if "test" in splits:
        split = _test_split(builder)
        encoded, labels = _read(builder, split, len(names))
        test = _decode(builder, split, encoded, labels, np.arange(len(labels)))
    return Splits(train, held_out, test, names)


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Chooses a share of each class: round(fraction * count) of its images, at least one.

    Of the same labels and seed, a smaller fraction is a subset of a larger one.

    Args:
      labels: integers [n].
      fraction: 0 < fraction <= 1.
      seed: a non-negative integer.

    Returns:
      Indices into `labels`, int64, ascending.

    Raises:
      UserError: a fraction or a seed out of range.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"a share of {fraction} of the training images: give one above 0 and at most 1")
    _check_seed(seed)
    chosen = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng((seed, label)).permutation(len(members))
        chosen.append(members[order[: max(1, round(fraction * len(members)))]])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def order(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The images of one training batch, a pure function of (seed, step): resuming needs no saved generator.

    Each epoch of n // batch_size steps is a permutation of its own. What is left over at its end is
    dropped, since a smaller last batch would make `jax.jit` compile the step a second time.

    Args:
      n: images in the training set.
      batch_size: images in a batch.
      seed: a non-negative integer.
      step: counted from 0 over all epochs.

    Returns:
      Indices, int64 [batch_size].

    Raises:
      UserError: a batch larger than the training set or empty, or a negative seed.
    """
    if not 1 <= batch_size <= n:
        raise UserError(f"a batch of {batch_size} from {n} training images: give a batch size from 1 to {n}")
    _check_seed(seed)
    epoch, i = divmod(step, n // batch_size)
    return _permutation(n, seed, epoch)[i * batch_size : (i + 1) * batch_size]


def batches(dataset: Dataset, batch_size: int, seed: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Training batches without end, from `start_step` on, in the order of `order`.

    Yields:
      {'image': uint8 [batch_size, H, W, C], 'label': int32 [batch_size]}.

    Raises:
      UserError: as `order`, at the first batch.
    """
    step = start_step
    while True:
        chosen = order(len(dataset.labels), batch_size, seed, step)
        yield {"image": dataset.images[chosen], "label": dataset.labels[chosen]}
        step += 1


def eval_batches(dataset: Dataset, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Each image exactly once, in stored order; zeros fill the last batch and its mask says which.

    Yields:
      {'image': uint8 [batch_size, H, W, C], 'label': int32 [batch_size], 'mask': bool [batch_size]},
      the mask true for real images.

    Raises:
      UserError: an empty batch.
    """
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size} images: give a batch size of at least 1")
    for start in range(0, len(dataset.labels), batch_size):
        images, labels = (array[start : start + batch_size] for array in dataset)
        missing = batch_size - len(labels)
        yield {
            "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels, (0, missing)),
            "mask": np.arange(batch_size) < len(labels),
        }


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    permutation = np.random.default_rng((seed, epoch)).permutation(n)
    permutation.flags.writeable = False  # it is shared through the cache
    return permutation


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"seed {seed}: give one of at least 0")


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
    close = difflib.get_close_matches(name, [*BUILDERS, *found], 1)
    raise UserError(
        f"no dataset {name!r}"
        + (f" (did you mean {close[0]!r}?)" if close else "")
        + f": hsakd_jax prepares {', '.join(BUILDERS)}; in {root} lie {', '.join(sorted(found)) or 'no others'}"
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


def _read(builder: Any, split: str, classes: int) -> tuple[list[bytes], np.ndarray]:
    """The images of a split as they are stored, and its labels, int32 [n]."""
    if split not in builder.info.splits:
        raise UserError(f"{builder.data_path} has no split `{split}`, only {', '.join(builder.info.splits)}")
    images, labels = [], []
    proto: Any = tf_example_pb2  # protobuf makes its classes at run time
    try:
        # Parsed here, since TFDS would decode every feature, and takes four times as long.
        source = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES, file_format="array_record"
        )
        for start in range(0, len(source), _CHUNK):
            for record in source.__getitems__(range(start, min(start + _CHUNK, len(source)))):
                feature = proto.Example.FromString(record).features.feature
                images.append(feature["image"].bytes_list.value[0])
                labels.append(feature["label"].int64_list.value[0])
    except IndexError as error:  # array_record returns empty records for the rest of a file that was cut short
        raise _unreadable(builder.data_path, ValueError("records are missing")) from error
    except Exception as error:  # array_record and protobuf raise kinds of their own
        raise _unreadable(builder.data_path, error) from error
    labels = np.array(labels, np.int64)
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= classes))):
        raise UserError(
            f"{builder.info.name}, split {split}, example {wrong[0]} has the label {labels[wrong[0]]}, "
            f"outside its {classes} classes: prepare the dataset again"
        )
    return images, labels.astype(np.int32)


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
