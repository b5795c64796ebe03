"""What a person sees of long work: one line that moves on a terminal, a plain line now and then elsewhere."""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")


def duration(seconds: float) -> str:
    """Seconds in words: '48 s', '5 min 20 s', '2 h 5 min'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds // 60 % 60} min"


class Console:
    """Lines that stay, and one that moves.

    Args:
      stream: where to; stdout by default.
      patience: seconds before the first moving line, where lines can't be replaced.
      silent: whether nothing is written, since another process of the run speaks.
    """

    def __init__(self, stream: TextIO | None = None, patience: float = 0.0, silent: bool = False):
        self._silent = silent
        self._stream = stream or sys.stdout
        self._moves = self._stream.isatty()
        self._width = 0
        self._next = time.monotonic() + patience

    def line(self, text: str) -> None:
        """A line that stays."""
        self._write("\r" + " " * self._width + "\r" if self._width else "")
        self._width = 0
        self._write(text + "\n")

    def progress(self, text: str) -> None:
        """A line that the next one replaces; where lines can't be replaced, one every ten seconds."""
        now = time.monotonic()
        if now < self._next:
            return
        if self._moves:
            self._next = now + 0.2
            text = text[: shutil.get_terminal_size().columns - 1]  # a longer one would wrap and stay
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._next = now + 10
            self._write(text + "\n")

    def wait(self, text: str) -> None:
        """A moving line at once, of work that can't say how far it is; nothing where lines can't be replaced."""
        if self._moves:
            self._next = 0.0
            self.progress(text)

    def end(self) -> None:
        """Leaves the moving line where it is."""
        if self._width:
            self._write("\n")
            self._width = 0

    def _write(self, text: str) -> None:
        if self._silent:
            return
        self._stream.write(text)
        self._stream.flush()


class Progress:
    """A context that reports `update(done)` on stderr; silent for work that ends within `patience` seconds.

    Args:
      label: what is being done.
      total: the amount of work; 0 where it is not known.
      unit: 'images', or 'MB' for work counted in bytes.
      start: the amount done before, which does not count for the rate.
      patience: seconds of silence at the beginning.
    """

    def __init__(self, label: str, total: int, unit: str = "images", start: int = 0, patience: float = 3.0):
        self.label, self.total, self.unit, self.start = label, total, unit, start
        self.began = time.monotonic()
        self.console = Console(sys.stderr, patience)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.console.end()

    def update(self, done: int) -> None:
        """Reports that `done` of `total` is done, if a report is due."""
        self.console.progress(self._line(done, max(time.monotonic() - self.began, 1e-6)))

    def _line(self, done: int, seconds: float) -> str:
        rate = (done - self.start) / seconds
        if self.unit == "MB":
            amount = f"{done / 1e6:.1f} of {self.total / 1e6:.1f} MB" if self.total else f"{done / 1e6:.1f} MB"
            speed = f"{rate / 1e6:.2f} MB/s"
        else:
            amount = f"{done} of {self.total} {self.unit}" if self.total else f"{done} {self.unit}"
            speed = f"{rate:.0f} {self.unit}/s"
        parts = [amount, speed]
        if self.total:
            parts.insert(0, f"{100 * done // self.total} %")
            if rate > 0:
                parts.append(f"{duration((self.total - done) / rate)} left")
        return f"{self.label}: " + ", ".join(parts)


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """The items unchanged, with their progress reported."""
    with Progress(label, total) as progress:
        for done, item in enumerate(items):
            progress.update(done)
            yield item


class Clock:
    """Rate and time left of training, from the end of its first step on, which compiles.

    Args:
      batch: images a step.
      total: steps in all.
    """

    def __init__(self, batch: int, total: int):
        self._batch, self._total = batch, total
        self._began = self._last = (0, time.monotonic())  # (step, time)
        self.started = False

    def start(self, done: int) -> None:
        """Starts at step `done`."""
        self._began = self._last = (done, time.monotonic())
        self.started = True

    def rate(self, done: int) -> float | None:
        """Training images a second since the last reading; None where no step was timed."""
        (step, then), self._last = self._last, (done, time.monotonic())
        return (done - step) * self._batch / (self._last[1] - then) if done > step else None

    def left(self, done: int) -> str:
        """Time left, evaluations included."""
        step, then = self._began
        return duration((self._total - done) * (time.monotonic() - then) / (done - step)) if done > step else "?"

    def epoch(self, done: int, steps: int) -> str:
        """Time of an epoch of `steps`, evaluations included."""
        step, then = self._began
        return f"{steps * (time.monotonic() - then) / (done - step):.3g} s" if done > step else "?"

    def skip(self, done: int) -> None:
        """What happened since the last reading was not training."""
        self._last = (done, time.monotonic())


def table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Aligned columns, the first `left` to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def show(row):
        cells = enumerate(zip(row, widths, strict=True))
        return "  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in cells).rstrip()

    return "\n".join([show(header), "  ".join("-" * w for w in widths), *map(show, rows)])
