"""A polite end: what asks a run to stop is noted, and the run saves before it ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGTERM or Ctrl-C came; the second one ends the process as usual."""
    asked: list[int] = []

    def note(number, frame):
        asked.append(number)
        signal.signal(number, old[number])

    # Python lets only the main thread handle signals.
    caught = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    old = {number: signal.signal(number, note) for number in caught}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
