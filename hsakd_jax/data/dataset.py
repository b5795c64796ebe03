"""One split of a dataset in memory."""

import hashlib
from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """One split, whole in memory."""

    images: np.ndarray  # uint8 [n, H, W, C]
    labels: np.ndarray  # int32 [n]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return self.images.shape[1:]

    def digest(self) -> str:
        """The first 16 digits of the SHA-256 of the images, in their order; labels do not count."""
        return hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()[:16]

    def take(self, indices: np.ndarray) -> "Dataset":
        """The chosen images only, in this order."""
        return Dataset(self.images[indices], self.labels[indices])

    def with_labels(self, labels: np.ndarray) -> "Dataset":
        """The same images with other labels, int32 [n]."""
        return self._replace(labels=labels)
