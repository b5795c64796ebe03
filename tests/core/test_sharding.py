"""Where arrays are placed, and how the processes of a run find one another."""

import subprocess
import sys
import threading

import jax
import pytest
from conftest import ROOT

from hsakd_jax.core import runtime, sharding
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices, initialize_distributed, report_lost_process


def test_programs_on_cpu_have_the_memory_schedulers_order(monkeypatch):
    known = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    assert sharding._compiler_options("cpu") == (known if runtime._has_flag("xla_cpu_scheduler_type") else None)
    assert sharding._compiler_options("gpu") is None

    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("No such compile option")

    monkeypatch.setattr(jax, "jit", refuse)
    assert sharding._compiler_options.__wrapped__("cpu") is None


def test_a_batch_must_fit_the_devices():
    with pytest.raises(
        UserError, match="batch is 30, which can't be split.* over 8 devices.*multiple of 8, such as 32"
    ):
        Devices().check_batch(30)
    with pytest.raises(UserError, match="2 micro-batches: set it to a multiple of 16"):
        Devices().check_batch(24, accumulate=2)
    Devices().check_batch(32, accumulate=2)


def test_a_lost_process_is_told_from_other_failures(monkeypatch):
    lost, full = (
        jax.errors.JaxRuntimeError(text) for text in ("UNKNOWN: Gloo all-reduce failed", "RESOURCE_EXHAUSTED")
    )

    def fail(error):
        with report_lost_process():
            raise error

    for processes, error, kind in ((1, lost, type(lost)), (2, full, type(full)), (2, lost, UserError)):
        monkeypatch.setattr(jax, "process_count", lambda processes=processes: processes)
        with pytest.raises(kind) as told:
            fail(error)
    assert str(told.value).endswith("(UNKNOWN: Gloo all-reduce failed): start the same command again in all of them")


def test_a_process_has_neighbouring_rows(monkeypatch):
    """Whatever the order in which JAX lists the devices."""
    everything = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: everything[::2] + everything[1::2])
    assert list(Devices().mesh.devices) == everything
    assert Devices().local_slice(16) == slice(0, 16)


STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
ALONE: list = []


@pytest.mark.parametrize(
    ("env", "given", "waits"),
    [
        ({}, ALONE, ""),
        ({**STEP, "SLURM_NTASKS": "1"}, ALONE, ""),
        (STEP, ALONE, ""),
        ({**STEP, "SLURM_NTASKS": "many"}, ALONE, ""),
        # In a batch script, outside srun.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, ALONE, ""),
        # A step of one task in an allocation of four, and the other way round.
        ({**STEP, "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, ALONE, ""),
        ({**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "4"}, [(None, 4)], "3 other processes at n[1-2]"),
        ({**STEP, "SLURM_NTASKS": "4"}, [(None, 4)], "3 other processes at n[1-2]"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, [()], "1 other process at OpenMPI's addresses"),
    ],
)
def test_processes_of_a_cluster_find_one_another(env, given, waits, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *words, **_: calls.append(words))
    threads = threading.active_count()
    initialize_distributed(env=env)
    assert calls == given
    assert threading.active_count() == threads
    assert capsys.readouterr().err == (f"waiting for {waits}, for up to 300 s\n" if waits else "")


def test_how_processes_find_one_another(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: calls.append(given))
    initialize_distributed("host:1", 4, 1, env={})
    assert calls == [("host:1", 4, 1)]
    assert capsys.readouterr().err == "waiting for 3 other processes at host:1, for up to 300 s\n"
    monkeypatch.setattr("hsakd_jax.core.sharding._on_tpu", lambda: True)
    initialize_distributed(env={})
    initialize_distributed(env={"COLAB_RELEASE_TAG": "release"})
    assert calls.pop() == ()
    assert len(calls) == 1
    with pytest.raises(UserError, match="set all three or none"):
        initialize_distributed("host:1", env={})
    with pytest.raises(UserError, match="they count from 0 to 1"):
        initialize_distributed("host:1", 2, 2, env={})


@pytest.mark.parametrize("coordinator", ["host", "host:", ":1", "host:x", "host:0", "host:65536", "host:1:"])
def test_an_address_has_a_host_and_a_port(coordinator):
    with pytest.raises(UserError, match=f"--coordinator={coordinator}: set it to HOST:PORT, such as "):
        initialize_distributed(coordinator, 2, 0, env={})


@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_do_not_come_are_one_line(process):
    """XLA would abort."""
    code = f"""
from hsakd_jax.core import sharding
sharding.TIMEOUT = 1
sharding.initialize_distributed("localhost:{27431 + process}", 2, {process}, env={{}})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    waiting, error = done.stderr.splitlines()[-2:]
    assert waiting.startswith("waiting for 1 other process at localhost:")
    assert error.startswith("error: 1 other process at localhost:")
    assert error.endswith("did not answer in 1 s: check that all run this command, and that the port is open")
