"""All output of commands: results, notes, progress, tables. Control characters never reach the terminal.

Progress of long work is one line that is replaced on a terminal, and plain lines in a log file.
"""

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Self, TextIO, TypeVar

T = TypeVar("T")
# Control characters, which can change a terminal's settings or hide text. Separators of lines, and marks that reverse
# the order of letters. Surrogates, the bytes of a file name that are not UTF-8.
_CONTROLS = re.compile(
    "[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def printable(text: str) -> str:
    """The text with an escape, such as `\\x1b`, for each control character except the line feed.

    Names of classes, tensors and files are other people's.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """`printable`, with an escape for the line feed too."""
    return printable(text).replace("\n", "\\n")


def show(text: str) -> None:
    """Writes a result to stdout.

    Raises:
      OSError: stdout is gone, or its disk is full.
    """
    print(printable(text))


def note(text: str) -> None:
    """Writes a note to stderr at once; nothing where stderr is gone."""
    Console(sys.stderr).line(text)


@cache
def warn(line: str) -> None:
    """Writes a warning to stderr, once."""
    note(f"warning: {line}")


def duration(seconds: float) -> str:
    """A duration in words: '48 s', '5 min 20 s', '2 h 5 min'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds // 60 % 60} min"


class Console:
    """Writes permanent lines and a progress line, which is replaced on a terminal.

    Once the output is gone, as after a terminal was closed or when a log's disk is full, nothing is written: the work
    goes on.

    Args:
      stream: the output, by default stdout.
      patience: seconds before the first progress line.
      silent: whether nothing is written, because another process of the run writes.
    """

    def __init__(self, stream: TextIO | None = None, patience: float = 0.0, silent: bool = False) -> None:
        self._silent = silent
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._width = 0
        self._next = time.monotonic() + patience

    def line(self, text: str) -> None:
        """Writes a permanent line."""
        self._write("\r" + " " * self._width + "\r" if self._width else "")
        self._width = 0
        self._write(printable(text) + "\n")

    def progress(self, text: str) -> None:
        """Writes the progress line; where the stream is no terminal, a plain line at most every ten seconds."""
        now = time.monotonic()
        if now < self._next:
            return
        text = one_line(text)
        if self._terminal:
            self._next = now + 0.2
            text = text[: shutil.get_terminal_size().columns - 1]  # a longer one would wrap and stay
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._next = now + 10
            self._write(text + "\n")

    def end(self) -> None:
        """Makes the progress line permanent."""
        if self._width:
            self._write("\n")
            self._width = 0

    def _write(self, text: str) -> None:
        if self._silent:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._silent = True
            # The rest of its buffer, which Python writes at the end, would fail again.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


# Not tqdm: it takes nine lines of code more to write the same lines. It has no plain lines for log files, and writes
# the first line after an interval instead of a delay.
class Progress:
    """A context that writes amount, rate and time left to stderr; silent for work of less than `patience` seconds.

    Args:
      label: the work, such as 'Reading train'.
      total: the amount of work; None where it is not known.
      unit: plural of the counted things, or 'MB' for work counted in bytes.
      start: the amount done before, which does not count for the rate.
      patience: seconds without output at the beginning.
    """

    def __init__(
        self, label: str, total: int | None, unit: str = "images", start: int = 0, patience: float = 3.0
    ) -> None:
        self._label, self._total, self._unit, self._start = label, total, unit, start
        self._began = time.monotonic()
        self._console = Console(sys.stderr, patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._console.end()

    def update(self, done: int) -> None:
        """Reports that `done` of `total` is done, unless the last report is too recent."""
        self._console.progress(self._line(done, max(time.monotonic() - self._began, 1e-6)))

    def _line(self, done: int, seconds: float) -> str:
        rate = (done - self._start) / seconds
        if self._unit == "MB":
            amount = f"{done / 1e6:.1f} of {self._total / 1e6:.1f} MB" if self._total else f"{done / 1e6:.1f} MB"
            speed = f"{rate / 1e6:.2f} MB/s"
        else:
            amount = f"{done} of {self._total} {self._unit}" if self._total else f"{done} {self._unit}"
            speed = f"{rate:.0f} {self._unit}/s"
        parts = [amount, speed]
        if self._total:
            parts.insert(0, f"{100 * done // self._total} %")
            if rate > 0:
                parts.append(f"{duration((self._total - done) / rate)} left")
        return f"{self._label}: " + ", ".join(parts)


def with_progress(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """The items unchanged, with a `Progress` of their number."""
    with Progress(label, total) as progress:
        for done, item in enumerate(items):
            progress.update(done)
            yield item


class Clock:
    """Measures rate and time left of training, from the end of the first step on, which compiles.

    The time left is that of the steps, and that of the evaluations from the second one on: the first one compiles.

    Args:
      batch: images per step.
      total: the number of steps of the run.
      eval_steps: steps from one evaluation to the next; the last step has one too.

    Attributes:
      started: whether `start` was called.
    """

    def __init__(self, batch: int, total: int, eval_steps: int) -> None:
        self._batch, self._total, self._eval_steps = batch, total, eval_steps
        self._began = self._last = (0, time.monotonic())  # (step, time)
        self._evaluated = 0  # the last step that was evaluated
        self._evaluation = self._skipped = 0.0  # seconds of the last evaluation, and of all
        self.started = False

    def start(self, done: int) -> None:
        """Starts to measure, after step `done`."""
        self._began = self._last = (done, time.monotonic())
        self._evaluated = done - 1  # the step itself may have one
        self.started = True

    def rate(self, done: int) -> float | None:
        """Training images per second since the last call of `rate` or `skip`; None if there was no step."""
        (step, then), self._last = self._last, (done, time.monotonic())
        return (done - step) * self._batch / (self._last[1] - then) if done > step else None

    def left(self, done: int) -> str:
        """The time left, in words; '?' before the second step."""
        if self._last[0] <= self._began[0]:
            return "?"
        evaluations = -(-self._total // self._eval_steps) - self._evaluated // self._eval_steps
        evaluations = 0 if self._evaluated == self._total else evaluations
        return duration((self._total - done) * self._step_seconds() + evaluations * self._evaluation)

    def epoch(self, steps: int) -> str:
        """The time of an epoch of `steps` steps with its evaluations, in words; '?' before the second step.

        The first evaluation compiles, and does not count.
        """
        if self._last[0] <= self._began[0]:
            return "? per epoch"
        seconds = steps * (self._step_seconds() + self._evaluation / self._eval_steps)
        return f"{seconds:.3g} s per epoch" + ("" if self._evaluation else " without evaluations")

    def skip(self, done: int) -> None:
        """Counts the time since the last call of `rate` as an evaluation at step `done`, if there was a step."""
        if not self.started:
            return
        seconds = time.monotonic() - self._last[1]
        self._evaluation = seconds if self._skipped else 0.0
        self._skipped += seconds
        self._evaluated, self._last = done, (done, time.monotonic())

    def _step_seconds(self) -> float:
        (step, then), (last, now) = self._began, self._last
        return (now - then - self._skipped) / (last - step)


def table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table as text; the first `left` columns are aligned to the left, the others to the right."""
    header, *rows = ([one_line(cell) for cell in row] for row in (header, *rows))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row: list[str]) -> str:
        cells = enumerate(zip(row, widths, strict=True))
        return "  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])
