"""The typed results of a run, as results.json stores them."""

import hashlib

import numpy as np
from msgspec import Struct

# By name, in percent: 'top1', 'top5', per branch l 'joint_l' and 'class_l', of an online run 'peer1/top1'; and 'epoch'.
Accuracies = dict[str, float]


class Sizes(Struct, frozen=True, forbid_unknown_fields=True):
    """A number for the network as it is trained, and for its backbone alone, which is deployed."""

    with_branches: int
    backbone: int


class TaughtBy(Struct, frozen=True, forbid_unknown_fields=True):
    """The teacher of a run.

    Attributes:
      arch: its network.
      recipe: of its run.
      last: accuracies of its own results, after its last epoch; None where it has not ended or was converted.
      measured: accuracies that this run measured before its first step, on the images that select its best epoch; None
        in results of before this was stored.
    """

    arch: str
    recipe: str
    last: Accuracies | None
    measured: Accuracies | None = None


class Correct(Struct, frozen=True, forbid_unknown_fields=True):
    """Which test images a network classifies correctly after its last epoch.

    Attributes:
      labels: the first 16 digits of the SHA-256 of their labels, by which two runs have the same images.
      packed: a bit for each, as `np.packbits` packs them.
    """

    labels: str
    packed: bytes

    @classmethod
    def pack(cls, correct: np.ndarray, labels: np.ndarray) -> "Correct":
        """Of bool [n], and integers [n]."""
        digest = hashlib.sha256(labels.astype("<i4").tobytes()).hexdigest()[:16]
        return cls(digest, np.packbits(correct).tobytes())

    def unpack(self, images: int) -> np.ndarray:
        """bool [images]."""
        return np.unpackbits(np.frombuffer(self.packed, np.uint8), count=images).astype(bool)


class Results(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The results of a finished run.

    Attributes:
      recipe: of its config.
      arch: its network; of an online run, the names of its networks joined by '+'.
      seed: of its config.
      last: accuracies on the test images after the last epoch.
      best: the same after the best epoch.
      selected_by: metric that selected the best epoch, such as 'top-1 on test'.
      teacher: None without one.
      train_images: how many.
      test_images: how many.
      parameters: trainable numbers.
      multiply_adds: for one image.
      images_per_s: training images per second, the median of the log; None where no step was timed.
      versions: of the packages that decide a result, by name.
      device: number and kind of the devices.
      git: commit of the code; None where git has none.
      correct: None of several networks, and of a run of an earlier version.
      test_digest: identifies the test images, without their labels, see `Dataset.digest` and `Photos.digest`. None
        where it is not known, and of a run of an earlier version.
    """

    recipe: str
    arch: str
    seed: int
    last: Accuracies
    best: Accuracies
    selected_by: str
    teacher: TaughtBy | None
    train_images: int
    test_images: int
    parameters: Sizes
    multiply_adds: Sizes
    images_per_s: float | None
    versions: dict[str, str]
    device: str
    git: str | None
    correct: Correct | None = None
    test_digest: str | None = None

    @property
    def selected_on(self) -> str:
        """The images that selected the best epoch: 'test' or 'validation'."""
        return self.selected_by.rpartition(" on ")[2]

    def same_test_images(self, images: int, digest: str | None) -> bool:
        """Whether these are the test images of the run, as far as their number and their digest show."""
        return self.test_images == images and (None in (self.test_digest, digest) or self.test_digest == digest)

    def __post_init__(self) -> None:
        if self.correct is not None and len(self.correct.packed) != -(-self.test_images // 8):
            raise ValueError(f"`correct` has {len(self.correct.packed)} bytes for {self.test_images} test images")
