"""metrics.jsonl: the log of a run, one record per line."""

import zlib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from hsakd_jax.core.console import warn
from hsakd_jax.core.files import NOT_VALID, read_regular, sync_file, write_text
from hsakd_jax.runs.writing import write_or_explain

SEAL = b',"crc32":'  # in front of the checksum of a line
MOST_BYTES = 2**30  # of the file, with some five million records


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
        """The line: step, epoch, all values, and the CRC-32 of these."""
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


class MetricsLog:
    """The file; lines that were damaged are moved to metrics.damaged.jsonl when a run resumes.

    Args:
      path: of metrics.jsonl; it need not exist.
      write: False where another process of the run writes it.
    """

    def __init__(self, path: Path, write: bool = True):
        self._path, self._writes = path, write
        self._damaged = path.with_name("metrics.damaged.jsonl")

    def append(self, record: Record) -> None:
        """Writes a line; that of an evaluation is on the disk before the checkpoint that it belongs to.

        Raises:
          UserError: see `write_or_explain`.
        """
        if self._writes:
            line = record.to_json().encode() + b"\n"
            write_or_explain(_append if record.split is None else _append_now, self._path, line)

    def read(self) -> list[Record]:
        """All records. A line that a kill cut off is left out, and a damaged one with a warning."""
        records, damaged = self._read()
        if damaged and self._writes:
            warn(f"{self._path} has {_lines(damaged)}, which {'is' if len(damaged) == 1 else 'are'} left out")
        return records

    def rewind(self, step: int, evaluated: bool = True) -> None:
        """Drops the records that a resumed run writes again, and moves damaged lines away.

        Args:
          step: of the checkpoint from which it resumes.
          evaluated: False if the run repeats the evaluation after this step.

        Raises:
          UserError: see `write_or_explain`.
        """
        if not self._writes:
            return
        records, damaged = self._read()
        if damaged:
            write_or_explain(_append, self._damaged, b"".join(damaged))
            warn(f"{self._path} has {_lines(damaged)}, moved to {self._damaged.name}")
        last = (step, evaluated)  # an evaluation comes after the means of its step
        kept = (record.to_json() + "\n" for record in records if (record.step, record.split is not None) <= last)
        write_or_explain(write_text, self._path, "".join(kept))

    def delete(self) -> None:
        """Deletes the file and the damaged lines."""
        for path in (self._path, self._damaged):
            path.unlink(missing_ok=True)

    def _read(self) -> tuple[list[Record], list[bytes]]:
        """The records, and the damaged lines. A last line that a kill cut off is neither."""
        records: list[Record] = []
        damaged: list[bytes] = []
        lines = read_regular(self._path, MOST_BYTES).split(b"\n") if self._path.exists() else []
        for i, line in enumerate(lines):
            try:
                records += [Record.from_json(line)] if line else []
            except NOT_VALID:
                if i < len(lines) - 1:
                    damaged.append(line + b"\n")
        return records, damaged


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def _append_now(path: Path, content: bytes) -> None:
    """Appends, and waits until the file is on the disk."""
    _append(path, content)
    sync_file(path)


def _lines(damaged: list[bytes]) -> str:
    return "1 damaged line" if len(damaged) == 1 else f"{len(damaged)} damaged lines"
