"""Speed benchmarks, and PyTorch networks to compare with."""

import argparse
import sys
import time
from pathlib import Path

# Of a machine that computes nothing some processes take a little.
BUSY = 0.1


class Parser(argparse.ArgumentParser):
    """Of a benchmark's options, its docstring as the help; a mistake ends it with one line and status 2."""

    def __init__(self, doc: str | None):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str):
        self.exit(2, f"error: {message}\n")


def file_name(text: str) -> str:
    """An --output, by which argparse refuses folders."""
    if "/" in text or not text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a file in benchmarks/results/: leave out folders")
    return text


def warn_if_busy(stat: Path = Path("/proc/stat")) -> str:
    """What to say where the processors are at work for others, which makes ratios wrong, said; it takes half a second.

    `stat` is Linux's file of their times; other systems have none, and nothing is said.
    """
    if not stat.exists():
        return ""
    used, idle = _times(stat)
    time.sleep(0.5)
    used, idle = (later - before for later, before in zip(_times(stat), (used, idle), strict=True))
    if used <= BUSY * (used + idle):
        return ""
    said = f"other work took {used / (used + idle):.0%} of the processors: what is measured beside it is wrong"
    print(f"warning: {said}", file=sys.stderr)
    return said


def _times(stat: Path) -> tuple[int, int]:
    """Of all processors since the start, in ticks: at work, idle."""
    user, nice, system, idle, waiting, *others = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return user + nice + system + sum(others), idle + waiting
