"""What the environment says is kept, and no flag is given that this jaxlib does not know."""

import ctypes
import importlib.util
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from hsakd_jax.core import runtime, sharding


def test_a_known_flag_joins_those_that_are_set(monkeypatch):
    monkeypatch.setattr(runtime, "_knows", lambda flag: flag == b"xla_cpu_experimental_ynn_fusion_type")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    for _ in range(2):  # a command that starts another one
        runtime.prepare()
        assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=2 {runtime.WITHOUT_YNNPACK}"


def test_what_the_user_chose_stays(monkeypatch):
    monkeypatch.setattr(runtime, "_knows", lambda flag: True)
    monkeypatch.setenv("XLA_FLAGS", f"{runtime.WITHOUT_YNNPACK}individual_dot")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "2")
    runtime.prepare()
    assert os.environ["XLA_FLAGS"] == f"{runtime.WITHOUT_YNNPACK}individual_dot"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "2"


def test_compiled_programs_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime.prepare()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "hsakd_jax")
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"


def test_only_what_the_library_holds_is_known(monkeypatch, tmp_path):
    (tmp_path / "libjax_common.so").write_bytes(b"...xla_some_flag...")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    assert runtime._knows(b"xla_some_flag")
    assert not runtime._knows(b"xla_another")
    (tmp_path / "libjax_common.so").unlink()
    assert not runtime._knows(b"xla_some_flag")


def test_jax_starts_with_what_was_prepared():
    """XLA ends a process whose flags it does not know."""
    script = "from hsakd_jax import xla; xla.prepare(); import jax; print(jax.numpy.ones(3).sum())"
    env = {**os.environ, "XLA_FLAGS": ""}
    found = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "3.0\n"), found.stderr


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
    monkeypatch.setattr(runtime, "accelerators", lambda: "")
    monkeypatch.setattr(platform, "libc_ver", lambda: tuple(library.split()))
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name=name)))
    started = []
    monkeypatch.setattr(os, "execv", lambda path, argv: started.append((path, argv, os.environ["GLIBC_TUNABLES"])))
    runtime.restart()
    assert started == [(sys.executable, [sys.executable, *words], runtime.TUNABLES)] * restarted


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs the GNU C library")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_stays_the_process_s(environment, kept):
    """Counted in pages that Linux has to clear when 64 MiB, freed before, are taken again."""
    script = """
import resource
import numpy as np
from hsakd_jax.core import runtime
xla.prepare()
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
    assert (int(done.stdout) < 16) == kept, done.stdout


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs the GNU C library")
def test_pieces_of_free_memory_are_taken_and_their_pages_given_back():
    """What is asked for afterwards comes from the heap's end, and the process holds no more of Linux's memory."""
    script = """
import ctypes
from hsakd_jax.core import runtime
xla.prepare()
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.free.argtypes, libc.memset.argtypes = (
    [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
)
libc.malloc.restype = ctypes.c_void_p
SIZES = 2_000, 9_000, 40_000, 150_000, 400_000
xla.take_pieces()  # of what Python freed, or blocks would lie there
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
libc.free(hole)  # no piece
xla.take_pieces()
print(libc.malloc(2**26 - 2**20) < blocks[-1])
print(not any(hole + 2**26 < libc.malloc(size) < blocks[-1] for size in SIZES for _ in range(10)))
print(before - resident() > sum(SIZES[::2]) * 100 // 2)
"""
    env = {**os.environ, "GLIBC_TUNABLES": ""}  # by which it depends where Python's own memory lies
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * 4), done.stderr


@pytest.mark.parametrize(("seconds", "times"), [(0.5, 0), (2.0, 1)])
def test_pieces_are_taken_after_long_compilations(monkeypatch, seconds, times):
    """JAX's own event, with other seconds: it is JAX that calls."""
    calls, listening, compiled = [], [True], sharding._compiled
    sharding.Devices().jit(lambda x: x + seconds, replicated=1)(1.0)  # what is compiled once a process

    def listener(event, _, **options):
        if listening:
            compiled(event, seconds, **options)

    monkeypatch.setattr(runtime, "keeps_memory", lambda: True)
    monkeypatch.setattr(runtime, "take_pieces", lambda: calls.append(1))
    monkeypatch.setattr(sharding, "_compiled", listener)
    monkeypatch.setattr(sharding, "_listen", sharding._listen.__wrapped__)
    assert float(sharding.Devices().jit(lambda x: x * seconds, replicated=1)(1.0)) == seconds  # == compiles too
    listening.clear()  # old versions of JAX forget no listener
    assert len(calls) == times


def test_programs_on_cpu_have_the_memory_schedulers_order(monkeypatch):
    known = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    assert sharding._compiler_options("cpu") == (known if runtime._knows(b"xla_cpu_scheduler_type") else None)
    assert sharding._compiler_options("gpu") is None

    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("No such compile option")

    monkeypatch.setattr(jax, "jit", refuse)
    assert sharding._compiler_options.__wrapped__("cpu") is None
