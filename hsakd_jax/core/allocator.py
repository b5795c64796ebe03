"""Settings of GNU's C library for runs on CPU: which memory its allocator retains, and how long its free lists are."""

import contextlib
import ctypes
import itertools
import os
import platform
import sys
from functools import cache
from typing import Any

# Options of mallopt(3), by its header. A second arena holds no large blocks; its threads request each from Linux.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# The largest free block, in bytes, that each thread keeps in a list of its own.
TUNABLES = "glibc.malloc.tcache_max=88"
# Sizes of reserved fragments, in bytes. The C library's lists of free blocks are short above the second, and need no
# search below the first.
SMALLEST, LARGEST = 2**10, 2**19
# JAX records this event after each compilation, with its duration in seconds.
COMPILED = "/jax/core/compile/backend_compile_duration"


def retain_memory() -> None:
    """Lets the process retain the memory that it frees, where its C library is GNU's.

    XLA allocates gigabytes at each step and frees them. If they went back to Linux, it would clear them again page by
    page, for up to half a step. A user who sets `MALLOC_TRIM_THRESHOLD_` turns this off.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt and _may_retain_memory():
        for option, value in ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
            mallopt(option, value)


def restart_with_tunables() -> None:
    """Restarts the command with `GLIBC_TUNABLES`, which GNU's C library before 2.39 reads only at the start.

    XLA allocates the memory of its program as one block at each step. Before 2.39, GNU's library cuts 112 bytes off
    behind such a block. A thread may keep them in its own list. Then the block does not fit into its old place at the
    next step, and the process grows by one block after the other
    (https://sourceware.org/bugzilla/show_bug.cgi?id=30723).

    Does nothing if the environment has `GLIBC_TUNABLES` or `MALLOC_TRIM_THRESHOLD_`, or if Python was not started as
    `python -m COMMAND`, which excludes debuggers.
    """
    name = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")
    words = sys.orig_argv[1:]
    options = list(itertools.takewhile(lambda word: word.startswith("-") and word != "-m", words))
    ours = name.startswith(("hsakd_jax.", "benchmarks.")) and words[len(options) :][:2] == ["-m", name]
    version = _glibc_version()
    affected = version is not None and version < (2, 39)
    if ours and affected and "GLIBC_TUNABLES" not in os.environ and _may_retain_memory():
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        with contextlib.suppress(OSError):  # the command then runs without the setting
            os.execv(sys.executable, [sys.executable, *words])


@cache
def reserve_fragments_after_compilations() -> None:
    """Calls `reserve_fragments` after each compilation that takes more than a second, from now on. Imports JAX."""
    from jax import monitoring

    if _may_retain_memory():
        monitoring.register_event_duration_secs_listener(_on_event)


def reserve_fragments() -> None:
    """Allocates small free blocks for good, if the C library is GNU's, and returns all free pages to Linux.

    Compiling a step leaves a hundred thousand of them. The C library would search its lists of them, one thread at a
    time, whenever XLA allocates memory: steps would be a tenth slower.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(libc, "malloc_trim") or _address(libc.malloc) != _address(ctypes.CDLL("libc.so.6").malloc):
        return  # another C library, or another allocator before it
    libc.malloc.argtypes, libc.free.argtypes, libc.sbrk.argtypes = (
        [kind] for kind in (ctypes.c_size_t, ctypes.c_void_p, ctypes.c_ssize_t)
    )
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc_trim(0)
    end, size, large = libc.sbrk(0), LARGEST, []
    while size >= SMALLEST:
        for _ in range(100_000):
            block = libc.malloc(size)
            if not block or block + size >= end:  # no fragment has this size: the block comes from the heap's end
                libc.free(block)
                break
            if size == LARGEST:
                large.append(block)
        size = size * 10 // 11
    for block in large:  # they are few, and XLA has use for them
        libc.free(block)


def _on_event(event: str, duration_secs: float, **_: Any) -> None:
    if event == COMPILED and duration_secs > 1:
        reserve_fragments()


def _may_retain_memory() -> bool:
    return "MALLOC_TRIM_THRESHOLD_" not in os.environ


def _glibc_version() -> tuple[int, ...] | None:
    """The version of GNU's C library; None if the process has another one."""
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else None


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value
