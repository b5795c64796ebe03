"""Strict JAX, eight virtual devices, and datasets that lie in a temporary folder."""

import os

# Before JAX is imported, here and in every command that a test starts.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import subprocess
import sys
from pathlib import Path

from hsakd_jax.core import runtime

runtime.configure_runtime()  # as every command does
os.environ.pop("JAX_COMPILATION_CACHE_DIR")  # tests leave nothing in the home; commands get a folder below

import jax
import pytest
from xdist.scheduler import LoadScopeScheduling

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


@pytest.fixture(scope="session")
def run_command():
    """Runs `python -m hsakd_jax.COMMAND ARGS` as a person would, by default on one device."""

    def run(command, *args, devices=1, timeout=300, **options):
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        line = [sys.executable, "-m", f"hsakd_jax.{command}", *map(str, args)]
        return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, **options)

    return run
