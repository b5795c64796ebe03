"""What a person sees of a run: one line that moves on a terminal, plain lines now and then elsewhere."""

import sys
import time
from typing import TextIO


class Console:
    """Shows lines and progress.

    Args:
      stream: where to; stdout by default.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._moves = self._stream.isatty()
        self._width = 0
        self._shown = 0.0

    def line(self, text: str) -> None:
        """A line that stays."""
        self._write("\r" + " " * self._width + "\r" if self._width else "")
        self._width = 0
        self._write(text + "\n")

    def progress(self, text: str) -> None:
        """A line that the next one replaces; where lines can't be replaced, one every ten seconds."""
        if self._moves:
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif time.monotonic() - self._shown > 10:
            self._shown = time.monotonic()
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def table(header: list[str], rows: list[list[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def show(row):
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([show(header), "  ".join("-" * w for w in widths), *map(show, rows)])
