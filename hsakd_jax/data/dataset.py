"""One split of a dataset in memory."""

import hashlib
from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """One split, whole in memory."""

    images: np.ndarray  # uint8 [n, H, W, C]
    labels: np.ndarray  # int32 [n]
    digest: str | None = None  # identifies the images, in their order; None where it is not known

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return self.images.shape[1:]

    def take(self, indices: np.ndarray) -> "Dataset":
        """The chosen images only, in this order."""
        return Dataset(self.images[indices], self.labels[indices], digest_of_part(self.digest, indices))

    def with_labels(self, labels: np.ndarray) -> "Dataset":
        """The same images with other labels, int32 [n]."""
        return self._replace(labels=labels)


def digest_of(content: bytes | memoryview) -> str:
    """The first 16 digits of the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def digest_of_part(whole: str | None, indices: np.ndarray) -> str | None:
    """The digest of the chosen images of a split; None where that of the split is not known."""
    return None if whole is None else digest_of(whole.encode() + indices.astype("<i8").tobytes())
