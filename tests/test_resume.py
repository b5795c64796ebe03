"""Killed at any moment and started again, a run ends where an uninterrupted one does, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from hsakd_jax.checkpoint import Checkpoints

pytestmark = pytest.mark.xdist_group("resume")
# Long enough to be hit between, in and after its checkpoints.
ARGS = ("--config=configs/cifar100.py:baseline_tiny", "--config.student.epochs=6", "--config.log_every=4")


@pytest.fixture(scope="module")
def uninterrupted(run_command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = run_command("main", *ARGS, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def launch(workdir):
    line = [sys.executable, "-m", "hsakd_jax.main", *ARGS, f"--workdir={workdir}"]
    env = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.Popen(line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(workdir):
    """Final state, records and accuracies, without what tells the time."""
    checkpoints = Checkpoints(workdir / "checkpoints", write=False)
    state = checkpoints.restore(checkpoints.steps()[-1])
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("images_per_s", None)
    results = json.loads((workdir / "results.json").read_text())
    return state, (checkpoints.steps(), records, results["last"], results["best"])


def assert_same(a, b):
    (state_a, rest_a), (state_b, rest_b) = contents(a), contents(b)
    assert rest_a == rest_b

    def compare(x, y):
        if isinstance(x, dict):
            assert set(x) == set(y)
            for key in x:
                compare(x[key], y[key])
        else:
            assert x.dtype == y.dtype
            assert np.array_equal(x, y)

    compare(state_a, state_b)


def wait_for(workdir, text, process, timeout=120):
    """Waits until metrics.jsonl holds `text`."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        if (workdir / "metrics.jsonl").exists() and text in (workdir / "metrics.jsonl").read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"{text} did not appear: {process.communicate()}")


def test_killed_at_random_moments(uninterrupted, tmp_path):
    """Twice after the start of training is certain, then wherever; more moments: `KILLS=10 pytest -k random`."""
    workdir, seed = tmp_path / "run", int(os.environ.get("KILL_SEED", "0"))
    moments = random.Random(seed)
    for kill in range(int(os.environ.get("KILLS", "2"))):
        process = launch(workdir)
        step = moments.choice([4, 8, 11, 12, 16, 20, 22, 24, 28, 33, 36, 44])
        if kill % 3 < 2 and not (workdir / "results.json").exists():
            done = (
                [json.loads(x)["step"] for x in (workdir / "metrics.jsonl").read_text().splitlines()]
                if (workdir / "metrics.jsonl").exists()
                else []
            )
            later = [s for s in (4, 8, 11, 12, 16, 20, 22, 24, 28, 33, 36, 44, 48, 55, 60) if s > max(done, default=0)]
            step = later[min(kill % 2, len(later) - 1)] if later else 66
            wait_for(workdir, f'"step": {step},', process)
            time.sleep(moments.uniform(0, 0.6))
        else:
            time.sleep(moments.uniform(0, 12))
        process.kill()
        process.communicate()
    process = launch(workdir)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same(workdir, uninterrupted)


def test_sigterm_saves_and_the_same_command_continues(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = launch(workdir)
    wait_for(workdir, '"step": 12,', process)
    process.send_signal(signal.SIGTERM)
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    saved = Checkpoints(workdir / "checkpoints", write=False).steps()[-1]
    assert f"saved at step {saved} of 66; the same command continues" in errors
    assert saved >= 12
    process = launch(workdir)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"continuing at step {saved} of 66" in shown
    assert_same(workdir, uninterrupted)


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    (workdir / "results.json").unlink()
    before, newest = Checkpoints(workdir / "checkpoints", write=False).steps()[-2:]
    largest = max((workdir / "checkpoints" / str(newest)).rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    process = launch(workdir)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"checkpoint {newest} is damaged" in shown
    assert f"continuing at step {before} of 66" in shown
    assert_same(workdir, uninterrupted)
