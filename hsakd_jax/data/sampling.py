"""Images of training and evaluation, and their order: a pure function of (seed, step)."""

import functools
from collections.abc import Iterator

import numpy as np

from hsakd_jax.core.errors import UserError
from hsakd_jax.data.dataset import Dataset


def held_out(count: int) -> np.ndarray:
    """The test images of a class, for data without test images: every fifth.

    Args:
      count: the number of images of the class, n.

    Returns:
      bool [n].
    """
    return np.arange(1, count + 1) % 5 == 0


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Chooses a fraction of each class: round(fraction * count) of its images, at least one.

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
        raise UserError(f"a fraction of {fraction} of the training images: set one above 0 and at most 1")
    _check_seed(seed)
    chosen = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng((seed, label)).permutation(len(members))
        chosen.append(members[order[: max(1, round(fraction * len(members)))]])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def order(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The images of one training batch, a pure function of (seed, step): resuming needs no saved generator.

    Each epoch of n // batch_size steps is a permutation of its own. The remaining images at its end are
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
        raise UserError(f"a batch of {batch_size} from {n} training images: set a batch size from 1 to {n}")
    _check_seed(seed)
    epoch, i = divmod(step, n // batch_size)
    return _permutation(n, seed, epoch)[i * batch_size : (i + 1) * batch_size]


def batches(
    dataset: Dataset, batch_size: int, seed: int, start_step: int = 0, local_slice: slice = slice(None)
) -> Iterator[dict[str, np.ndarray]]:
    """Training batches without end, from `start_step` on, in the order of `order`.

    Args:
      dataset: training images.
      batch_size: images in a batch, over all processes.
      seed: see `order`.
      start_step: the first step.
      local_slice: rows of each batch that this process takes.

    Yields:
      {'image': uint8 [B, H, W, C], 'label': int32 [B], 'index': int32 [B]}, B the rows of `local_slice`.

    Raises:
      UserError: as `order`, at the first batch.
    """
    step = start_step
    while True:
        chosen = order(len(dataset.labels), batch_size, seed, step)[local_slice]
        yield {"image": dataset.images[chosen], "label": dataset.labels[chosen], "index": chosen.astype(np.int32)}
        step += 1


def eval_batches(
    dataset: Dataset, batch_size: int, local_slice: slice = slice(None)
) -> Iterator[dict[str, np.ndarray]]:
    """Each image exactly once, in stored order; zeros fill the last batch, and its mask marks them.

    Args:
      dataset: the images.
      batch_size: images in a batch, over all processes.
      local_slice: rows of each batch that this process takes.

    Yields:
      {'image': uint8 [B, H, W, C], 'label': int32 [B], 'mask': bool [B]}, B the rows of `local_slice`; the mask is true
      for real images.

    Raises:
      UserError: an empty batch.
    """
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size} images: set a batch size of at least 1")
    for start in range(0, len(dataset.labels), batch_size):
        images, labels = (array[start : start + batch_size] for array in (dataset.images, dataset.labels))
        missing = batch_size - len(labels)
        rows = {
            "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels, (0, missing)),
            "mask": np.arange(batch_size) < len(labels),
        }
        yield {name: x[local_slice] for name, x in rows.items()}


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    permutation = np.random.default_rng((seed, epoch)).permutation(n)
    permutation.flags.writeable = False  # it is shared through the cache
    return permutation


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UserError(f"seed {seed}: set one of at least 0")
