"""Strict JAX, eight virtual devices, and datasets that lie in a temporary folder."""

import contextlib
import importlib
import io
import os

# Before JAX is imported, here and in every command that a test starts.
os.environ["JAX_PLATFORMS"] = "cpu"
# `configure_runtime` is for the commands that tests start: its flag makes convolutions in float64 ten times slower.
# LLVM's optimisations take a third to a half of the time that XLA compiles, and change no result.
QUICK = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK}"

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from xdist.scheduler import LoadScopeScheduling

from hsakd_jax import cli

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent


class Scheduling(LoadScopeScheduling):
    """Spreads single tests over the workers, but keeps a file together whose tests start from the same long run.

    `--dist loadgroup` is for that, but pytest 9.2 with pytest-xdist 3.8 drops its groups in silence.
    """

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        return file if file.endswith(("test_commands.py", "test_resume.py")) else nodeid


def environment(devices=1):
    """The environment of a process that a test starts, with that many virtual devices.

    The same for all, since results that are compared bit for bit need programs that are compiled alike.
    """
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}"}


def pytest_xdist_make_scheduler(config, log):
    """Called by pytest-xdist."""
    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def shared_folders(tmp_path_factory, worker_id):
    """Where every test, and every command a test starts, prepares datasets and keeps compiled programs."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    os.environ["TFDS_DATA_DIR"] = str(base / "tensorflow_datasets")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(base / "compiled")
    jax.config.update("jax_compilation_cache_dir", str(base / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def run_command():
    """Runs `python -m hsakd_jax.COMMAND ARGS` as a person would, by default on one device."""

    def run(command, *args, devices=1, timeout=300, **options):
        line = [sys.executable, "-m", f"hsakd_jax.{command}", *map(str, args)]
        options |= {"cwd": ROOT, "env": environment(devices), "capture_output": True, "text": True}
        return subprocess.run(line, timeout=timeout, **options)

    return run


@pytest.fixture(scope="session")
def call_command():
    """Runs a command like `run_command`, but in this process and on its eight devices, which takes less time."""

    def call(command, *args):
        out, err, args = io.StringIO(), io.StringIO(), [str(arg) for arg in args]
        with (
            contextlib.chdir(ROOT),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            jax.numpy_dtype_promotion("standard"),  # as a process of its own has it
            jax.numpy_rank_promotion("allow"),
        ):
            status = cli.run(importlib.import_module(f"hsakd_jax.{command}").COMMAND, args)
        return subprocess.CompletedProcess([command, *args], status, out.getvalue(), err.getvalue())

    return call


def assert_refused(done, *words):
    """A command printed one line that names thing and remedy, no traceback, and ended with status 2."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def write_photographs(folder, splits, classes, suffix):
    """Writes an image tree FOLDER/SPLIT/CLASS/I.SUFFIX of noise in several sizes; `splits` has images per class."""
    g = np.random.default_rng(0)
    for split, count in splits.items():
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = g.integers(0, 255, (4, 5, 3), np.uint8)
                Image.fromarray(pixels).resize((48 + i % 7, 40)).save(folder / split / name / f"{i}.{suffix}")
