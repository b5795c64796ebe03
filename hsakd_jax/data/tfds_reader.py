"""A prepared dataset's records -> encoded images, labels, arrays, photographs.

TFDS reads array_record without TensorFlow. Pillow decodes, always, since another decoder (OpenCV, where it is
installed) may decode a JPEG to other pixels.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from hsakd_jax.core.console import Progress
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import read_regular
from hsakd_jax.data.dataset import Dataset, digest_of, digest_of_part
from hsakd_jax.data.image_files import decode, open_image
from hsakd_jax.data.streaming import Photos

_CHUNK = 1024  # records read at a time
_LARGE = 128 * 128  # pixels from which threads pay: below, they only wait for Python's lock
# The names of the class of a feature in features.json, in its present and its former form.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_FEATURE_CLASSES = {
    f"{kind.__module__}.{kind.__name__}" for kind in vars(tfds.features).values() if isinstance(kind, type)
}
_PNG = b"\x89PNG\r\n\x1a\n"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def open_builder(path: Path) -> Any:
    """TFDS's builder of a prepared dataset, by the classes that TFDS itself has.

    A prepared dataset names the Python class of each feature, and TFDS imports the module that a name begins with. The
    folder may be a stranger's, and may also contain a module of that name.

    Args:
      path: folder of one version of a dataset, with its features.json.

    Raises:
      UserError: another class is named, or the folder can't be read.
    """
    try:
        _refuse_classes(path, json.loads(read_regular(path / "features.json")))
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS's banner about TensorFlow, where a file is damaged
            return tfds.builder_from_directory(path)
    except UserError:
        raise
    except Exception as error:  # of any kind, from TFDS and protobuf
        raise unreadable(path, error) from error


def _refuse_classes(path: Path, value: Any) -> None:
    """Refuses features.json where it names a class that TFDS does not have, however deep."""
    for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
        if key in _CLASS_KEYS and isinstance(inside, str) and inside not in _FEATURE_CLASSES:
            raise UserError(
                f"{path}/features.json names the class {inside!r}, which is not a feature of TFDS's own: "
                "prepare the dataset with those of `tfds.features`"
            )
        if isinstance(inside, dict | list):
            _refuse_classes(path, inside)


def class_names(builder: Any) -> tuple[str, ...]:
    """The names of the classes.

    Raises:
      UserError: images or labels that can't be trained on.
    """
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
        raise UserError(f"{where} does not record its number of classes: prepare it with ClassLabel(num_classes=...)")
    return tuple(label.names)


class Encoded(NamedTuple):
    """One split of a dataset of equal images, still encoded."""

    builder: Any
    split: str
    images: list[bytes]
    labels: np.ndarray
    digest: str | None  # of the names of the files; None where the images identify themselves

    def take(self, indices: np.ndarray) -> Dataset:
        images = _decode(self.builder, self.split, self.images, indices)
        digest = digest_of_part(self.digest, indices) or _digest([self.images[i] for i in indices], images)
        return Dataset(images, self.labels[indices], digest)


def encoded(builder: Any, split: str, classes: int, digest: str | None = None) -> Encoded:
    """A split in memory, as it is stored.

    Args:
      builder: of the dataset.
      split: its name.
      classes: how many.
      digest: see `Encoded`.

    Raises:
      UserError: no such split, damaged records, or labels outside the classes.
    """
    return Encoded(builder, split, *_read(builder, split, classes), digest)


def _digest(encoded: list[bytes], images: np.ndarray) -> str:
    """The digest of the pixels of PNG files, and of the bytes of others.

    Encoders write PNG in different bytes for the same pixels, and decoders read JPEG to different pixels.
    """
    if all(image.startswith(_PNG) for image in encoded):
        return digest_of(images.data)
    return digest_of(b"".join(hashlib.sha256(image).digest() for image in encoded))


def photographs(builder: Any, split: str, names: tuple[str, ...], **options: Any) -> Photos:
    """A split that stays on the disk; `options` are those of `Photos`.

    Raises:
      UserError: as `encoded`.
    """
    source = _source(builder, split)

    def read(i: int) -> tuple[str, bytes]:
        where = f"{builder.info.name}, split {split}, example {i}"
        return where, next(_examples(source, range(i, i + 1)))[0]

    return Photos(read, _labels(builder, split, len(names)), names, **options)


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
        raise unreadable(builder.data_path, error) from error


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
        raise unreadable(builder.data_path, ValueError("records are missing")) from error
    except Exception as error:  # array_record and protobuf raise kinds of their own
        raise unreadable(builder.data_path, error) from error


def _read(builder: Any, split: str, classes: int) -> tuple[list[bytes], np.ndarray]:
    """The images of a split as they are stored, and its labels, int32 [n]."""
    images, labels = [], []
    for image, label in _all_examples(builder, split):
        images.append(image)
        labels.append(label)
    return images, _checked(builder, split, labels, classes)


def _labels(builder: Any, split: str, classes: int) -> np.ndarray:
    """The labels of a split, int32 [n], read once and then kept next to the dataset where it can be written.

    The records contain them: reading them means reading the 140 GB of ImageNet.
    """
    folder = Path(builder.data_path)
    files = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in sorted(folder.iterdir())]
    state = hashlib.sha256(repr([split, *files]).encode()).hexdigest()[:16]
    kept = folder.parent / f".labels-{folder.name}-{split}-{state}.npy"  # of another state, another name
    with contextlib.suppress(OSError, ValueError, EOFError, MemoryError, UserError):  # damaged, it is read again
        labels = np.load(kept, allow_pickle=False)
        if labels.dtype == np.int32 and labels.shape == (builder.info.splits[split].num_examples,):
            return _checked(builder, split, labels, classes)
    labels = _checked(builder, split, [label for _, label in _all_examples(builder, split)], classes)
    with contextlib.suppress(OSError):  # such as the folder of another user
        part = kept.with_name(f"{kept.name}.{os.getpid()}.npy")
        np.save(part, labels)
        part.replace(kept)
    return labels


def _checked(builder: Any, split: str, labels: Any, classes: int) -> np.ndarray:
    found = np.array(labels, np.int64)
    if len(wrong := np.flatnonzero((found < 0) | (found >= classes))):
        raise UserError(
            f"{builder.info.name}, split {split}, example {wrong[0]} has the label {found[wrong[0]]}, "
            f"outside its {classes} classes: prepare the dataset again"
        )
    return found.astype(np.int32)


def _decode(builder: Any, split: str, encoded: list[bytes], chosen: np.ndarray) -> np.ndarray:
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
            f"{memory / 2**30:.1f}: use smaller images or fewer"
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
    return images


def _pixels(encoded: bytes, mode: str) -> np.ndarray:
    with open_image(encoded) as image:
        if mode != "RGBA":  # four channels are the dataset's own, not colours on a page
            image = decode(image)
        if image.mode != mode:
            image = image.convert(mode)
        # numpy could read the image itself, a third slower
        return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


def unreadable(path, error: Exception) -> UserError:
    """The error for a prepared dataset that can't be read."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{path} can't be read ({reason}): delete it and prepare it again")
