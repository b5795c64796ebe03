"""On CPU the process retains freed memory, and small free blocks do not slow it down."""

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from hsakd_jax.core import allocator


@pytest.mark.parametrize(
    ("words", "name", "library", "environment", "restarted"),
    [
        (["-m", "hsakd_jax.main", "--config=x"], "hsakd_jax.main", "glibc 2.36", {}, True),
        (["-u", "-m", "hsakd_jax.main"], "hsakd_jax.main", "glibc 2.36", {}, True),
        (["-m", "hsakd_jax.main"], "hsakd_jax.main", "glibc 2.39", {}, False),
        (["-m", "hsakd_jax.main"], "hsakd_jax.main", "musl 1.2", {}, False),
        (["-m", "hsakd_jax.main"], "hsakd_jax.main", "glibc 2.36", {"GLIBC_TUNABLES": ""}, False),
        (["-m", "hsakd_jax.main"], "hsakd_jax.main", "glibc 2.36", {"MALLOC_TRIM_THRESHOLD_": "1"}, False),
        (["-m", "pdb", "-m", "hsakd_jax.main"], "hsakd_jax.main", "glibc 2.36", {}, False),
        (["debugpy", "-m", "hsakd_jax.main"], "hsakd_jax.main", "glibc 2.36", {}, False),
        (["-m", "pytest"], "pytest", "glibc 2.36", {}, False),
        (["script.py"], "", "glibc 2.36", {}, False),
    ],
)
def test_only_a_plain_command_is_started_anew(monkeypatch, words, name, library, environment, restarted):
    monkeypatch.setattr(os, "environ", dict(environment))
    monkeypatch.setattr(platform, "libc_ver", lambda: tuple(library.split()))
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name=name)))
    started = []
    monkeypatch.setattr(os, "execv", lambda path, argv: started.append((path, argv, os.environ["GLIBC_TUNABLES"])))
    allocator.restart_with_tunables()
    assert started == [(sys.executable, [sys.executable, *words], allocator.TUNABLES)] * restarted


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs the GNU C library")
@pytest.mark.parametrize(("environment", "retained"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_the_process_retains_freed_memory(environment, retained):
    """Counted in pages that Linux clears when 64 MiB, freed before, are allocated again."""
    script = """
import resource
import numpy as np
from hsakd_jax.core import runtime
runtime.configure_runtime()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
size = 2**26
np.full(size, 1, np.uint8)
before = faults()
np.full(size, 1, np.uint8)
print(faults() - before)
"""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC")}
    done = subprocess.run([sys.executable, "-c", script], env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Linux may give large pages, 32 to these 64 MiB.
    assert (int(done.stdout) < 16) == retained, done.stdout


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs the GNU C library")
def test_fragments_are_reserved_and_their_pages_returned():
    """Later blocks come from the heap's end, and the free pages go back to Linux."""
    script = """
import ctypes
from hsakd_jax.core import allocator, runtime
runtime.configure_runtime()
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.free.argtypes, libc.memset.argtypes = (
    [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
)
libc.malloc.restype = ctypes.c_void_p
SIZES = 2_000, 9_000, 40_000, 150_000, 400_000
allocator.reserve_fragments()  # of what Python freed, or blocks would lie there
hole = libc.malloc(2**26)
blocks = [libc.malloc(size) for _ in range(100) for size in SIZES]
for block, size in zip(blocks, SIZES * 100):
    libc.memset(block, 1, size)
for block in blocks[::2]:  # the rest keep them apart
    libc.free(block)
reused = [libc.malloc(size) for size in SIZES]
print(all(block < blocks[-1] for block in reused))
for block in reused:
    libc.free(block)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
libc.free(hole)  # no fragment
allocator.reserve_fragments()
print(libc.malloc(2**26 - 2**20) < blocks[-1])
print(not any(hole + 2**26 < libc.malloc(size) < blocks[-1] for size in SIZES for _ in range(10)))
print(before - resident() > sum(SIZES[::2]) * 100 // 2)
"""
    env = {**os.environ, "GLIBC_TUNABLES": ""}  # by which it depends where Python's own memory lies
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * 4), done.stderr


@pytest.mark.parametrize(("seconds", "times"), [(0.5, 0), (2.0, 1)])
def test_fragments_are_reserved_after_long_compilations(monkeypatch, seconds, times):
    """JAX's own event, with other seconds: it is JAX that calls."""
    calls, listening, on_event = [], [True], allocator._on_event
    jax.jit(lambda x: x + seconds)(1.0)  # compiles what JAX compiles once a process

    def listener(event, _, **options):
        if listening:
            on_event(event, seconds, **options)

    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setattr(allocator, "reserve_fragments", lambda: calls.append(1))
    monkeypatch.setattr(allocator, "_on_event", listener)
    allocator.reserve_fragments_after_compilations.__wrapped__()
    assert float(jax.jit(lambda x: x * seconds)(1.0)) == seconds  # == compiles too
    listening.clear()  # old versions of JAX forget no listener
    assert len(calls) == times


def test_a_user_can_turn_it_off(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    registered = []
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", registered.append)
    allocator.reserve_fragments_after_compilations.__wrapped__()
    assert not registered
