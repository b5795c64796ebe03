"""Progress moves on a terminal, is a plain line now and then in a log file, and absent where work is short."""

import errno
import io
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from hsakd_jax.core.console import (
    Clock,
    Console,
    Progress,
    duration,
    note,
    one_line,
    printable,
    show,
    table,
    with_progress,
)


def test_durations():
    assert [duration(s) for s in (0, 59.4, 60, 3725, 90_000)] == ["0 s", "59 s", "1 min 0 s", "1 h 2 min", "25 h 0 min"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(monkeypatch, capsys, terminal):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with Progress("Reading", 1000) as progress:
        for second in range(31):
            now[0] = second
            progress.update(10 * second)
    lines = capsys.readouterr().err
    assert "Reading: 3 %, 30 of 1000 images, 10 images/s, 1 min 37 s left" in lines
    if terminal:
        assert lines.count("\r") == 28  # each second after the first three
        assert lines.endswith("\n")
    else:
        assert "\r" not in lines
        assert lines.count("\n") == 3  # at 3, 13 and 23 seconds


@pytest.mark.parametrize("terminal", [True, False])
def test_short_work_is_silent(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert list(with_progress(iter("abc"), "Reading", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("total", "line"),
    [
        (4_000_000, "File: 75 %, 3.0 of 4.0 MB, 0.20 MB/s, 5 s left\n"),
        (None, "File: 3.0 MB, 0.20 MB/s\n"),
    ],
)
def test_a_resumed_download(monkeypatch, capsys, total, line):
    """What was there before does not count for the rate."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("File", total, "MB", start=1_000_000, patience=0) as progress:
        progress.update(1_000_000)
        now[0] = 10.0
        progress.update(3_000_000)
    assert capsys.readouterr().err.splitlines(keepends=True)[1:] == [line]


def test_a_long_line_is_cut_at_the_edge_of_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    narrow = SimpleNamespace(get_terminal_size=lambda: os.terminal_size((10, 5)))
    monkeypatch.setattr("hsakd_jax.core.console.shutil", narrow)  # pytest uses the real one
    console = Console()
    console.progress("123456789 123456789")
    console.end()
    assert capsys.readouterr().out == "\r123456789\n"


def test_a_table_is_aligned():
    assert table(["run", "top-1"], [["a", "9.10"], ["abcd", "10.20"]]) == (
        "run   top-1\n----  -----\na      9.10\nabcd  10.20"
    )


HOSTILE = "tabby\x1b[2J\x9b31m\r\u202egnp.\u2066\x00"
ESCAPED = "tabby\\x1b[2J\\x9b31m\\r\\u202egnp.\\u2066\\x00"


def test_control_characters_are_escaped_wherever_text_is_written(capsys):
    assert printable(HOSTILE) == ESCAPED
    assert printable("Käfer 甲虫 🪲\n") == "Käfer 甲虫 🪲\n"
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    show(HOSTILE)
    note(HOSTILE)
    Console().line(HOSTILE)
    console = Console()
    console.progress(HOSTILE)
    assert capsys.readouterr() == (f"{ESCAPED}\n" * 3, f"{ESCAPED}\n")
    assert table(["class"], [["a\nb"], [HOSTILE]]).splitlines()[2:] == ["a\\nb", ESCAPED]


class Gone(io.StringIO):
    """An output that is gone."""

    def __init__(self, number):
        super().__init__()
        self.number, self.asked = number, 0

    def write(self, text):
        self.asked += 1
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_work_goes_on_when_its_output_is_gone(number, monkeypatch):
    gone = Gone(number)
    console = Console(gone)
    for _ in range(3):
        console.line("epoch 1")
        console.progress("step 2")
    console.end()
    assert gone.asked == 1
    monkeypatch.setattr(sys, "stderr", gone)
    note("warning")


@pytest.mark.parametrize("where", ["/dev/full", "pipe"])
def test_a_process_ends_well_when_its_output_is_gone(where):
    """Python would end with status 120 where it can't write the rest of a buffer at its end."""
    code = "import time; from hsakd_jax.core.console import Console; c = Console(); [c.line('x') for _ in range(3)]"
    read, write = (None, os.open(where, os.O_WRONLY)) if where[0] == "/" else os.pipe()
    if read is not None:
        os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_time_left_is_that_of_steps_and_evaluations(monkeypatch):
    """Ten steps of one second, evaluations of ten seconds after every fourth and the last; the first one compiles."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(batch=8, total=10, eval_steps=4)
    now[0] = 100.0  # of compiling
    clock.start(1)
    assert (clock.left(1), clock.epoch(4)) == ("?", "? per epoch")
    shown = []
    for step in range(2, 11):
        now[0] += 1
        assert clock.rate(step) == 8
        shown.append(clock.left(step))
        assert clock.epoch(4) == ("4 s per epoch without evaluations" if step < 9 else "14 s per epoch")
        if step in (4, 8, 10):
            now[0] += 50 if step == 4 else 10
            clock.skip(step)
            shown.append(clock.left(step))
    before, first, second = ["8 s", "7 s", "6 s"], ["6 s", "5 s", "4 s", "3 s", "2 s"], ["12 s", "11 s", "10 s"]
    assert shown == [*before, *first, *second, "0 s"]
    assert clock.epoch(4) == "14 s per epoch"
