"""Several processes, four virtual devices each, are one run."""

import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, environment
from test_resume import assert_same, records

from hsakd_jax import restore
from hsakd_jax.data import datasets
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory

ARGS = ("--config=configs/cifar100.py:baseline_tiny", "--config.log_every=2")


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(line, devices, **env):
    options = {"cwd": ROOT, "env": environment(devices) | env, "text": True}
    line = [sys.executable, *map(str, line)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def finish(processes, status=0):
    shown = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), shown
    return shown


# Seven student steps with augmentation, one and many a call, in two pieces and over the end of an epoch.
STEPS = """
import sys
sys.path.insert(0, "tests")
import jax, numpy as np
from hsakd_jax.core import sharding
from hsakd_jax.core.sharding import Devices, initialize_distributed, is_first_process
from hsakd_jax.training.multi_step import make_multi_step
from hsakd_jax.data.dataset import Dataset

out, address, count, index = sys.argv[1:]
initialize_distributed(*((address, int(count), int(index)) if address else ()))
from student_step import init, step, teacher_variables, variables  # which touches the devices

sharding._compiler_options = lambda platform: None  # as on accelerators, which make many steps a call
g = np.random.default_rng(0)
dataset = Dataset(g.integers(0, 255, (80, 8, 8, 1), np.uint8), g.integers(0, 10, 80).astype(np.int32))
devices = Devices()
found = []
for many in (False, True):
    compiled = devices.jit(step, replicated=2, donate=True)
    multi_step = make_multi_step(compiled, dataset, devices, 32, 0, many)
    state, taught = devices.replicate((init(variables), teacher_variables))
    done = calls = 0
    for until in (4, 7):
        while done < until:
            state, done = multi_step(state, taught, done, until)
            calls += 1
    assert (done, calls) == (7, 2 if many else 7)
    assert state.step == 7
    found += jax.tree.leaves(jax.device_get((state.params, state.batch_stats, state.metrics.sums)))
assert all(x.dtype == np.float64 for x in found)
if is_first_process():
    np.savez(out, *found)
"""


def test_two_processes_compute_what_one_computes(tmp_path):
    """Losses, parameters and statistics, of 2 processes x 4 devices, 1 x 8 and 1 x 1, in float64; many steps a call."""
    runs = []
    for count, devices in ((1, 1), (1, 8), (2, 4)):
        out, address = tmp_path / f"{count}x{devices}.npz", f"localhost:{free_port()}"
        where = [(address, count, i) for i in range(count)] if count > 1 else [("", 1, 0)]
        finish([start(("-c", STEPS, out, *w), devices, JAX_ENABLE_X64="1") for w in where])
        with np.load(out) as arrays:
            runs.append([arrays[name] for name in arrays.files])
    half = len(runs[0]) // 2
    for other in (runs[0][half:], *(r[part] for r in runs[1:] for part in (slice(half), slice(half, None)))):
        for a, b in zip(runs[0][:half], other, strict=True):
            assert np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-3)) <= 1e-8


def launch(workdir):
    address = f"localhost:{free_port()}"
    flags = [(f"--coordinator={address}", "--processes=2", f"--process={i}") for i in range(2)]
    return [start(("-m", "hsakd_jax.main", *ARGS, f"--workdir={workdir}", *f), 4) for f in flags]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    (shown, _), (silent, _) = finish(launch(workdir))
    assert "epoch 2/2" in shown
    # Gloo's threads greet from C++, a piece at a time and into one another's lines. Nothing else is said.
    pieces = r"\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : |\d+|\n"
    assert not re.sub(pieces, "", silent)
    return workdir


def wait_for_step(workdir, step):
    end = time.monotonic() + 120
    while not any(record["step"] >= step for record in records(workdir)):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_of_two_is_a_run_of_one(uninterrupted, run_command, tmp_path):
    """In float32 to rounding, which the first epoch keeps small."""
    done = run_command("main", *ARGS, f"--workdir={tmp_path}/run", devices=8)
    assert done.returncode == 0, done.stderr
    one, two = (next(r for r in records(w) if "loss" in r) for w in (tmp_path / "run", uninterrupted))
    assert {k: one[k] for k in ("step", "epoch")} == {k: two[k] for k in ("step", "epoch")}
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    # Each process evaluates a part of each batch: the correct images are those of both, in order.
    result, (network, variables) = RunDirectory(uninterrupted).results(), restore(uninterrupted)
    images, labels, _ = datasets.load("digits").test
    data = RunDirectory(uninterrupted).config().data
    logits = network.apply(variables, ((images / 255 - data.mean) / data.std).astype(np.float32)).logits
    correct = result.correct.unpack(len(labels))
    assert 100 * correct.mean() == pytest.approx(result.last["top1"])
    assert (correct == (logits.argmax(-1) == labels)).mean() > 0.995  # rounding decides few
    states = [Checkpoints(w / "checkpoints", write=False).restore(22) for w in (tmp_path / "run", uninterrupted)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize(
    "killed", [pytest.param(0, marks=pytest.mark.thorough), pytest.param(1, marks=pytest.mark.slow)]
)
def test_one_process_killed_and_all_started_again(uninterrupted, tmp_path, killed):
    workdir = tmp_path / "run"
    processes = launch(workdir)
    wait_for_step(workdir, 12)
    processes[killed].kill()
    end = time.monotonic() + 240
    while processes[1 - killed].poll() is None:  # it can't go on alone, and ends by itself
        assert time.monotonic() < end
        time.sleep(0.1)
    told = [process.communicate()[1] for process in processes]
    assert all(process.returncode for process in processes)
    if (
        killed
    ):  # in our words, or where it waits for the other inside of JAX in JAX's; without the first one it has none
        ours = processes[0].returncode == 2 and "error: another process of the run ended (" in told[0]
        assert ours or (processes[0].returncode == -signal.SIGABRT and "another task died" in told[0]), told[0]
        assert "Traceback" not in told[0]
    (shown, _), _ = finish(launch(workdir))
    assert "resuming at step" in shown
    assert_same(workdir, uninterrupted)


@pytest.mark.slow
def test_sigterm_to_one_saves_and_ends_all(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    processes = launch(workdir)
    wait_for_step(workdir, 4)
    processes[1].send_signal(signal.SIGTERM)
    (_, errors), _ = finish(processes, 128 + signal.SIGTERM)
    assert "of 22; run the same command to resume" in errors
    finish(launch(workdir))
    assert_same(workdir, uninterrupted)
