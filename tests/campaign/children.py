"""Commands in forked children: quick to start, since the parent has imported everything, and free to die."""

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Events of `sys.addaudithook` that change files; `open` is one where it may write.
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.move"}
HUNG = -1


class Result(NamedTuple):
    """How a child ended.

    Attributes:
      status: its exit status, minus a signal's number, or `HUNG`.
      out: what it wrote to stdout.
      err: what it wrote to stderr.
    """

    status: int
    out: str
    err: str

    @property
    def is_refusal(self) -> bool:
        """Whether a command refused its input as it should: status 2 and one line, after warnings at most."""
        lines = self.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return self.status == 2 and len(errors) == 1 and lines[-1] == errors[0]

    @property
    def has_traceback(self) -> bool:
        """Whether Python's or the C library's last words are there."""
        words = ("Traceback (most recent call last)", "Fatal Python error", "terminate called", "Check failed")
        return any(word in self.err or word in self.out for word in words)


def run(work: Callable[[], int], timeout: float = 120, memory: int | None = None) -> Result:
    """Runs a function in a forked child.

    Args:
      work: what to do; its result is the exit status.
      timeout: seconds until the child is killed.
      memory: bytes of address space that the child may use beyond its parent's; None for no limit.
    """
    with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
        child = os.fork()
        if not child:
            _become(work, out.fileno(), err.fileno(), memory)
        status = _wait(child, timeout)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="backslashreplace"))
    return Result(status, *texts)


def _become(work: Callable[[], int], out: int, err: int, memory: int | None) -> None:
    """The child's life; it never returns."""
    status = 1
    try:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        if memory:
            limit = memory + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        status = work()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)


def _wait(child: int, timeout: float) -> int:
    end = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return HUNG
        time.sleep(0.005)


class Operations:
    """Counts the operations on files below a folder, and lets something happen at one of them.

    Python's own operations are seen; what TensorStore writes from C++ is not.

    Args:
      folder: the folder.
      at: the operation, from 1; 0 for none.
      happen: what happens before it. An error that it raises is the operation's.
      lasting: whether it happens at all later operations too.
    """

    def __init__(self, folder: Path, at: int = 0, happen: Callable[[], None] = lambda: None, lasting: bool = False):
        self.count = 0
        self._folder, self._at, self._happen, self._lasting = str(folder), at, happen, lasting
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if event == "open":
            path, mode, flags = args
            changes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else "r" not in mode
        else:
            path, changes = args[0] if args else "", event in CHANGES
        if not changes or not _text(path).startswith(self._folder):
            return
        self.count += 1
        if self.count == self._at or (self._lasting and self._at and self.count > self._at):
            self._happen()


def _text(path: object) -> str:
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
