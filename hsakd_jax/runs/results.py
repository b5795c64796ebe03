"""The typed results and log records of a run, as results.json and metrics.jsonl store them."""

import zlib
from typing import Any

import msgspec
from msgspec import Struct

SEAL = b',"crc32":'  # in front of the checksum of a line of metrics.jsonl

# By name, in percent: 'top1', 'top5', per branch l 'joint_l' and 'class_l', of an online run 'peer1/top1'; and 'epoch'.
Accuracies = dict[str, float]


class Sizes(Struct, frozen=True, forbid_unknown_fields=True):
    """A number for the network as it is trained, and for its backbone alone, which is deployed."""

    with_branches: int
    backbone: int


class TaughtBy(Struct, frozen=True, forbid_unknown_fields=True):
    """The teacher of a run: its network, recipe, and accuracies after its last epoch, None where it has not ended."""

    arch: str
    recipe: str
    last: Accuracies | None


class Results(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a finished run reached.

    Attributes:
      recipe: of its config.
      arch: its network; of an online run, the names of its networks joined by '+'.
      seed: of its config.
      last: accuracies on the test images after the last epoch.
      best: the same after the best epoch.
      selected_by: what selected the best epoch, such as 'top-1 on test'.
      teacher: None without one.
      train_images: how many.
      test_images: how many.
      parameters: trainable numbers.
      multiply_adds: for one image.
      images_per_s: training images per second, the median of the log; None where no step was timed.
      versions: of the packages that decide a result, by name.
      device: number and kind of the devices.
      git: commit of the code; None where git does not know it.
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


class Record(Struct, frozen=True, kw_only=True):
    """One line of metrics.jsonl: means over the steps since the record before, or an evaluation.

    Attributes:
      step: after which it was made.
      epoch: the same in epochs.
      values: 'loss', its terms, 'top1' (0 to 1), 'grad_norm', 'lr' and 'images_per_s'; or accuracies in percent.
      split: 'validation' or 'test' of an evaluation; None of training.
      score: of an evaluation, the accuracy that selects the best epoch; None of training.
    """

    step: int
    epoch: float
    values: dict[str, float | None]
    split: str | None = None
    score: float | None = None

    def to_json(self) -> str:
        """The line: all values beside step and epoch, and the CRC-32 of what stands in front of it."""
        kind = {} if self.split is None else {"split": self.split}
        score = {} if self.score is None else {"score": self.score}
        line = msgspec.json.encode({"step": self.step, "epoch": self.epoch, **kind, **self.values, **score})[:-1]
        return f"{line.decode()}{SEAL.decode()}{zlib.crc32(line)}}}"

    @classmethod
    def from_json(cls, line: bytes) -> "Record":
        """Reads a line.

        Raises:
          msgspec.MsgspecError: it is no record, or not the one that was written.
        """
        content, _, checksum = line.rpartition(SEAL)
        if checksum != b"%d}" % zlib.crc32(content):
            raise msgspec.DecodeError("the line is not the one that was written")
        values: dict[str, Any] = msgspec.json.decode(content + b"}", type=dict[str, int | float | str | None])
        head = {key: values.pop(key, None) for key in ("step", "epoch", "split", "score")}
        return msgspec.convert({**head, "values": values}, cls)
