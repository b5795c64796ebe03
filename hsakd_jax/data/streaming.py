"""Photographs of many sizes, more than the memory holds: decoded and cropped while a network trains.

The counterpart of `Dataset` and `sampling.batches`. Pillow decodes and scales in C without Python's lock,
so that the workers are threads: none outlives its process, and nothing is copied between them.
"""

import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hsakd_jax.core.errors import UserError
from hsakd_jax.data import sampling
from hsakd_jax.data.augment import AREA, DRAWS, RATIO
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.image_files import FILTERS, centre_crop, decode, open_image, rgb, unreadable, upright_size

_PIECE = 8  # images a worker takes at a time


class Photos:
    """One split whose images stay in their files, encoded.

    Attributes:
      labels: int32 [n].
      class_names: of the labels.
      max_pixels: the greatest number of pixels of an image that is read; 0 for `image_files.MAX_PIXELS`.
      interpolation: how crops are scaled, a key of `image_files.FILTERS`.
    """

    def __init__(
        self,
        read: Callable[[int], tuple[str, bytes]],
        labels: np.ndarray,
        class_names: tuple[str, ...],
        indices: np.ndarray | None = None,
        max_pixels: int = 0,
        interpolation: str = "bilinear",
        digest: Callable[[np.ndarray], str] | None = None,
    ):
        """Makes a split.

        Args:
          read: from a position in the source, the image's name, for messages, and its bytes; called by many threads.
          labels: int32 [n].
          class_names: of the labels.
          indices: positions in the source, int64 [n]; by default 0 .. n - 1.
          max_pixels: see the attribute.
          interpolation: see the attribute.
          digest: from positions in the source to the digest of these images; None where it is not known.
        """
        self._read = read
        self._digest = digest
        self._indices = np.arange(len(labels)) if indices is None else indices
        self.labels = labels
        self.class_names = class_names
        self.max_pixels = max_pixels
        self.interpolation = interpolation

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(0, 0, 3): the sizes differ, and all are read as RGB."""
        return 0, 0, 3

    @property
    def digest(self) -> str | None:
        """Identifies the images, in their order; None where it is not known."""
        return None if self._digest is None else self._digest(self._indices)

    def take(self, indices: np.ndarray) -> "Photos":
        """The chosen images only, in this order."""
        return self._with(self.labels[indices], self._indices[indices])

    def with_labels(self, labels: np.ndarray) -> "Photos":
        """The same images with other labels, int32 [n]."""
        return self._with(labels, self._indices)

    def with_interpolation(self, interpolation: str) -> "Photos":
        """The same images, whose crops are scaled by another filter of `image_files.FILTERS`."""
        return self._with(self.labels, self._indices, interpolation)

    def _with(self, labels: np.ndarray, indices: np.ndarray, interpolation: str = "") -> "Photos":
        scaled = interpolation or self.interpolation
        return Photos(self._read, labels, self.class_names, indices, self.max_pixels, scaled, self._digest)

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The name of image `i`, for messages, and its unchanged bytes."""
        return self._read(int(self._indices[i]))


def random_crops(photos: Photos, indices: np.ndarray, seed: int, step: int, size: int) -> np.ndarray:
    """Decodes images and scales a random part of each: uint8 [B, size, size, 3].

    The part has 8 to 100 % of the area and a ratio of sides from 3/4 to 4/3, as `torchvision`'s RandomResizedCrop.
    It is a pure function of the seed, the step and the image's index, whichever process or thread decodes it.
    `image_files` describes how files become pixels.

    Args:
      photos: the training images.
      indices: integers [B].
      seed: a non-negative integer.
      step: counted from 0 over all epochs.
      size: side of the result.

    Raises:
      UserError: a file that can't be read as an image.
    """
    cut = partial(_random_crop, seed=seed, step=step, size=size, **_options(photos))
    return _fill(_empty(len(indices), size), photos, indices, cut)


def centre_crops(photos: Photos, indices: np.ndarray, size: int, resize: int) -> np.ndarray:
    """Decodes images, scales the shorter side to `resize` and cuts the middle out: uint8 [B, size, size, 3].

    Args:
      photos: the images.
      indices: integers [B].
      size: side of the result.
      resize: at least `size`.

    Raises:
      UserError: a file that can't be read as an image, or `resize` below `size`.
    """
    if not 1 <= size <= resize:
        raise UserError(f"a crop of {size} from images of {resize}: set a `resize` of at least the size")
    cut = partial(_centre_crop, size=size, resize=resize, **_options(photos))
    return _fill(_empty(len(indices), size), photos, indices, cut)


def stream(
    photos: Photos,
    batch: int,
    seed: int,
    start_step: int,
    size: int,
    local_slice: slice = slice(None),
    workers: int = 0,
    ahead: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Training batches without end, from `start_step` on, in the order of `sampling.order`.

    Nothing is kept from step to step: a stream that starts at a later step goes on as this one does. Closing it ends
    its workers.

    Args:
      photos: training images.
      batch: images in a batch, over all processes.
      seed: of the order and the crops.
      start_step: the first step.
      size: side of the crops, see `random_crops`.
      local_slice: rows of each batch that this process takes.
      workers: threads; 0 for one per core.
      ahead: batches decoded in advance.

    Yields:
      {'image': uint8 [B, size, size, 3], 'label': int32 [B], 'index': int32 [B]}, B the rows of `local_slice`.

    Raises:
      UserError: as `sampling.order` and `random_crops`.
    """

    def jobs():
        for step in itertools.count(start_step):
            rows = sampling.order(len(photos), batch, seed, step)[local_slice]
            yield rows, len(rows), partial(_random_crop, seed=seed, step=step, size=size, **_options(photos))

    for rows, images in _decoded(photos, jobs(), size, workers, ahead):
        yield {"image": images, "label": photos.labels[rows], "index": rows.astype(np.int32)}


def eval_stream(
    photos: Photos,
    batch: int,
    size: int,
    resize: int,
    local_slice: slice = slice(None),
    workers: int = 0,
    ahead: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Each image exactly once, in stored order; zeros fill the last batch, and its mask marks them.

    Args:
      photos: the images.
      batch: images in a batch, over all processes.
      size: side of the crops, see `centre_crops`.
      resize: see `centre_crops`.
      local_slice: rows of each batch that this process takes.
      workers: threads; 0 for one per core.
      ahead: batches decoded in advance.

    Yields:
      {'image': uint8 [B, size, size, 3], 'label': int32 [B], 'mask': bool [B]}, B the rows of `local_slice`.

    Raises:
      UserError: an empty batch, or as `centre_crops`.
    """
    if batch < 1:
        raise UserError(f"a batch of {batch} images: set a batch size of at least 1")
    centre_crops(photos, np.zeros(0, np.int64), size, resize)  # refuses sizes that do not fit

    cut = partial(_centre_crop, size=size, resize=resize, **_options(photos))

    def jobs():
        for start in range(0, len(photos), batch):
            rows = np.arange(start, start + batch)[local_slice]
            yield rows[rows < len(photos)], len(rows), cut

    for rows, images in _decoded(photos, jobs(), size, workers, ahead):
        mask = np.arange(len(images)) < len(rows)
        yield {"image": images, "label": np.pad(photos.labels[rows], (0, len(images) - len(rows))), "mask": mask}


def training_batches(
    images: Dataset | Photos, batch: int, seed: int, start_step: int, local_slice: slice, size: int
) -> Iterator[dict[str, np.ndarray]]:
    """`sampling.batches` of images in memory, `stream` of photographs, whose crops have the side `size`."""
    if isinstance(images, Photos):
        return stream(images, batch, seed, start_step, size, local_slice)
    return sampling.batches(images, batch, seed, start_step, local_slice)


def evaluation_batches(
    images: Dataset | Photos, batch: int, size: int, resize: int, local_slice: slice = slice(None)
) -> Iterator[dict[str, np.ndarray]]:
    """`sampling.eval_batches` of images in memory, as they are; `eval_stream` of photographs."""
    if isinstance(images, Photos):
        return eval_stream(images, batch, size, resize, local_slice)
    return sampling.eval_batches(images, batch, local_slice)


# From the bytes of an image and its index, a crop of it.
Cut = Callable[[bytes, int], Image.Image]


def _decoded(
    photos: Photos, jobs: Iterable[tuple[np.ndarray, int, Cut]], size: int, workers: int, ahead: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The jobs' rows and their crops, zeros where a job needs more images than rows."""
    pool = ThreadPoolExecutor(workers or _cores(), thread_name_prefix="decode")

    def begin(rows, count, cut):
        images = _empty(count, size)
        images[len(rows) :] = 0
        pieces = [slice(i, min(i + _PIECE, len(rows))) for i in range(0, len(rows), _PIECE)]
        return rows, images, [pool.submit(_fill, images[piece], photos, rows[piece], cut) for piece in pieces]

    try:
        waiting = deque()
        for job in jobs:
            waiting.append(begin(*job))
            if len(waiting) > ahead:
                yield _end(*waiting.popleft())
        while waiting:
            yield _end(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _end(rows, images, tasks):
    for task in tasks:
        task.result()
    return rows, images


def _cores() -> int:
    """The cores that this process may use, where the system reports them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _empty(count: int, size: int) -> np.ndarray:
    return np.empty((count, size, size, 3), np.uint8)


def _fill(images: np.ndarray, photos: Photos, indices: np.ndarray, cut: Cut) -> np.ndarray:
    for i, index in enumerate(np.asarray(indices).tolist()):
        name = f"image {index}"
        try:
            name, encoded = photos.encoded(index)
            images[i] = np.frombuffer(cut(encoded, index).tobytes(), np.uint8).reshape(images[i].shape)
        except UserError:
            raise
        except Exception as error:  # a damaged file can fail anywhere in the decoder
            raise unreadable(name, error) from error
    return images


def _options(photos: Photos) -> dict[str, Any]:
    """How each of the images is read and scaled."""
    return {"max_pixels": photos.max_pixels, "interpolation": photos.interpolation}


def _random_crop(
    encoded: bytes, index: int, *, seed: int, step: int, size: int, max_pixels: int, interpolation: str
) -> Image.Image:
    with open_image(encoded, max_pixels) as image:
        full = upright_size(image)
        left, top, width, height = crop_box(np.random.default_rng((seed, step, index)), *full)
        # A JPEG that is larger than needed is decoded at a half, a quarter or an eighth, never coarser than the crop.
        # This needs a fraction of the time: on photographs the crop differs by 1.4 grey levels of 255 in the mean.
        part = min(width, height) / size
        image = decode(image, (math.ceil(full[0] / part), math.ceil(full[1] / part)))
    # A draft's sides are rounded up, so that one of 9 pixels may be an eighth of 65.
    scale = next(s for s in (1, 2, 4, 8) if [-(-side // s) for side in full] == [image.width, image.height])
    box = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
    return rgb(image.resize((size, size), FILTERS[interpolation], box=box))


def _centre_crop(encoded: bytes, index: int, *, size: int, resize: int, **options: Any) -> Image.Image:
    del index
    return centre_crop(encoded, size, resize, **options)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def crop_box(rng: np.random.Generator, width: int, height: int) -> Box:
    """Draws a part of an image of that size (see `random_crops`)."""
    areas = rng.uniform(AREA[0], AREA[1], DRAWS).tolist()
    ratios = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), DRAWS)).tolist()
    for area, ratio in zip(areas, ratios, strict=True):
        area *= width * height
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
    # The greatest part in the middle with a ratio within the limits.
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return Box((width - w) // 2, (height - h) // 2, w, h)
