"""One split of a dataset in memory."""

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

    def take(self, indices: np.ndarray) -> "Dataset":
        """The chosen images only, in this order."""
        return Dataset(self.images[indices], self.labels[indices])

    def with_labels(self, labels: np.ndarray) -> "Dataset":
        """The same images with other labels, int32 [n]."""
        return self._replace(labels=labels)
