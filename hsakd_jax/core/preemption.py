"""Stop signals: SIGTERM, SIGHUP and Ctrl-C are recorded, so that a run can save its state before it ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


# Not JAX's `reached_preemption_sync_point`: it does nothing for Ctrl-C, and with it a second SIGTERM does not end the
# process. Several processes exchange the signals they received by `sharding.all_reduce_max` instead.
@contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
    """Records the numbers of the stop signals that the process receives, in the list it yields.

    SIGHUP, which comes when a terminal is closed, stays ignored where it is, as under nohup. A second signal of a kind
    has its usual effect: it ends the process at once. Outside of the main thread nothing is recorded, since Python lets
    only that thread set signal handlers.
    """
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        signal.signal(number, usual[number])

    caught = [signal.SIGTERM, signal.SIGINT] if threading.current_thread() is threading.main_thread() else []
    if caught and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    usual: dict[int, Any] = {number: signal.signal(number, record) for number in caught}
    try:
        yield received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
