"""How far a long piece of work is: one line that moves on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def duration(seconds: float) -> str:
    """Seconds in words: '48 s', '5 min 20 s', '2 h 5 min'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds // 60 % 60} min"


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
        self.moves = sys.stderr.isatty()
        self.began = time.monotonic()
        self.next_line = self.began + patience
        self.width = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.width:
            print(file=sys.stderr)

    def update(self, done: int) -> None:
        """Reports that `done` of `total` is done, if a report is due."""
        now = time.monotonic()
        if now < self.next_line:
            return
        line = self._line(done, max(now - self.began, 1e-6))
        if self.moves:
            self.next_line = now + 0.2
            print("\r" + line.ljust(self.width), end="", file=sys.stderr, flush=True)
            self.width = len(line)
        else:
            self.next_line = now + 10
            print(line, file=sys.stderr, flush=True)

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
