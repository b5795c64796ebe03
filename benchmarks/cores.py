"""How far two cores of the machine are from each other: whether they share a cache.

    python -m benchmarks.cores

Prints the nanoseconds in which a process on one core sees what a process on another one has written, with those that
Python takes to look: some 100 where they share a cache, 190 and more where they don't. Means something only while
nothing else computes. A virtual machine's host may move its cores, and with them the rate of programs whose threads
read what other threads wrote.
"""

import mmap
import os
import signal
import subprocess
import sys
import time

from benchmarks import Parser

TURNS = 10_000


def _pair() -> list[int]:
    """The first two cores that this process may use, or fewer where there are not so many or they can't be told."""
    return sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []


def exchange_ns() -> float | None:
    """Of the first two cores that this process may use, measured by other processes; None where that can't be told."""
    if len(_pair()) < 2:
        return None
    # A process of its own, since JAX's threads do not survive a fork.
    return float(subprocess.run([sys.executable, "-m", __name__], capture_output=True, check=True).stdout.split()[0])


def _exchange() -> float:
    """Nanoseconds of a turn: two processes wait for each other's byte in memory that they share."""
    byte, (one, other) = mmap.mmap(-1, 1), _pair()

    def play(core: int, ours: int) -> None:
        signal.alarm(10)  # if the other one is ended, this one does not wait for ever
        os.sched_setaffinity(0, {core})
        for _ in range(TURNS):
            while byte[0] != ours:
                pass
            byte[0] = 1 - ours

    child = os.fork()
    if not child:
        play(other, 1)
        os._exit(0)
    began = time.perf_counter()
    play(one, 0)
    seconds = time.perf_counter() - began
    os.waitpid(child, 0)
    return seconds / TURNS / 2 * 1e9


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.parse_args()
    if len(_pair()) < 2:
        parser.error("it needs Linux and two cores")
    print(f"{_exchange():.0f} ns from core to core (some 100 where they share a cache, 190 and more where they don't)")
