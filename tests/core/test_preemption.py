"""The first stop signal of a kind is recorded, the second one has its usual effect."""

import signal
import threading

import pytest

from hsakd_jax.core.preemption import catch_stop_signals


@pytest.fixture
def usual():
    """The stop signals that had their usual effect, here that of these handlers."""
    numbers = []
    old = {
        n: signal.signal(n, lambda number, _: numbers.append(number))
        for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    yield numbers
    for number, handler in old.items():
        signal.signal(number, handler)


def test_the_second_signal_has_its_usual_effect(usual):
    with catch_stop_signals() as received:
        assert received == []
        signal.raise_signal(signal.SIGTERM)
        assert (received, usual) == ([signal.SIGTERM], [])
        signal.raise_signal(signal.SIGINT)  # another kind
        assert (received, usual) == ([signal.SIGTERM, signal.SIGINT], [])
        signal.raise_signal(signal.SIGTERM)
        assert (received, usual) == ([signal.SIGTERM, signal.SIGINT], [signal.SIGTERM])
    signal.raise_signal(signal.SIGINT)
    assert usual == [signal.SIGTERM, signal.SIGINT]


def test_another_thread_leaves_signals_as_they_are(usual):
    def work():
        with catch_stop_signals() as received:
            started.set()
            ended.wait(10)
        found.extend(received)

    started, ended, found = threading.Event(), threading.Event(), []
    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(10)
    signal.raise_signal(signal.SIGTERM)
    ended.set()
    thread.join()
    assert (found, usual) == ([], [signal.SIGTERM])


def test_a_closed_terminal_stops_a_run_except_under_nohup(usual):
    with catch_stop_signals() as received:
        signal.raise_signal(signal.SIGHUP)
    assert (received, usual) == ([signal.SIGHUP], [])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with catch_stop_signals() as received:
        signal.raise_signal(signal.SIGHUP)
    assert (received, usual) == ([], [])
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
