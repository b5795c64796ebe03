"""How XLA computes on CPU, its memory there, and where it keeps programs: what JAX is not needed for."""

import contextlib
import ctypes
import importlib.util
import itertools
import mmap
import os
import platform
import sys
from pathlib import Path
from typing import Any

# YNNPACK, which XLA gives convolutions and sums to since about jax 0.10, is slower at them than XLA's own code.
WITHOUT_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type="
# Options of mallopt(3), by its header. A second arena would hold no large blocks, and its threads go to Linux for each.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# Of free memory, in bytes: the C library keeps lists sorted by size above the first, short ones above the second.
SMALLEST, LARGEST = 2**10, 2**19
# Of the lists of free pieces that each thread has for itself, those of up to this many bytes.
TUNABLES = "glibc.malloc.tcache_max=88"


def restart() -> None:
    """Starts a command of ours anew where its C library has to be told something that it reads only at the start.

    XLA takes its program's memory as one block at each step. Before 2.39, GNU's library cuts 112 bytes off behind such
    a block, and where a thread keeps them for itself the block does not fit into its old place at the next step: the
    process grows by a block again and again (https://sourceware.org/bugzilla/show_bug.cgi?id=30723).

    Does nothing where the environment has `GLIBC_TUNABLES`, or where Python was not started as `python -m COMMAND`, as
    debuggers don't.
    """
    name = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")
    words = sys.orig_argv[1:]
    options = list(itertools.takewhile(lambda word: word.startswith("-") and word != "-m", words))
    ours = name.startswith(("hsakd_jax.", "benchmarks.")) and words[len(options) :][:2] == ["-m", name]
    if ours and "GLIBC_TUNABLES" not in os.environ and keeps_memory() and _c_library() < (2, 39):
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        with contextlib.suppress(OSError):  # then it goes on as it is
            os.execv(sys.executable, [sys.executable, *words])


def prepare() -> None:
    """Sets `XLA_FLAGS`, the compilation cache's variables and, without accelerators, how the process takes memory.

    What the environment says already is kept, of memory where it has `MALLOC_TRIM_THRESHOLD_`.

    Has an effect only before JAX starts. A flag that this jaxlib does not know is left out, since XLA ends a process
    that gives it one.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # On a TPU, libtpu may read the same flags, and knows others.
    if not _installed("libtpu") and WITHOUT_YNNPACK not in flags and _knows(WITHOUT_YNNPACK.strip("-=").encode()):
        os.environ["XLA_FLAGS"] = f"{flags} {WITHOUT_YNNPACK}".strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hsakd_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    # Small programs too, of which a start has dozens.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if keeps_memory():
        _keep_memory()


def accelerators() -> str:
    """'tpu' or 'gpu' where JAX's plug-in for it is installed, '' without one; JAX is not started."""
    return "tpu" if _installed("libtpu") else "gpu" if _installed("jax_plugins") else ""


def keeps_memory() -> bool:
    """Whether the process keeps the memory that it frees: without accelerators, unless the environment says more."""
    return not accelerators() and "MALLOC_TRIM_THRESHOLD_" not in os.environ


def take_pieces() -> None:
    """Takes small pieces of free memory for good, where the C library is GNU's, and gives Linux all free pages.

    Compiling a step leaves a hundred thousand of them. The C library would go through its lists of them, one thread at
    a time, whenever XLA takes memory: steps would be a tenth slower.
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
            piece = libc.malloc(size)
            if not piece or piece + size >= end:  # what does not fit into a piece comes from the heap's end
                libc.free(piece)
                break
            if size == LARGEST:
                large.append(piece)
        size = size * 10 // 11
    for piece in large:  # they are few, and XLA has use for them
        libc.free(piece)


def _c_library() -> tuple[int, ...]:
    """The version of GNU's, (3,) for another one."""
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else (3,)


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _keep_memory() -> None:
    """Has freed memory stay the process's, where its C library is GNU's.

    XLA takes gigabytes at each step and frees them. Linux would clear them again page by page, for up to half a step.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None:
        for option, value in ((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
            mallopt(option, value)


def _knows(flag: bytes) -> bool:
    """Whether jaxlib has the flag's name in its library: there is no other way to ask without starting it."""
    found = importlib.util.find_spec("jaxlib")
    library = Path(found.origin).parent / "libjax_common.so" if found and found.origin else Path()
    if not library.is_file():
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(flag) >= 0
