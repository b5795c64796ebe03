"""Killed at any moment and started again, a run ends where an uninterrupted one does, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, environment
from PIL import Image

from hsakd_jax.runs.checkpoint import Checkpoints

# Long enough to be hit between, in and after its checkpoints.
# `RECIPE=hsakd KILLS=10 pytest tests/training/test_resume.py -k random` kills a whole pipeline.
RECIPE = os.environ.get("RECIPE", "baseline")
ARGS = (
    f"--config=configs/cifar100.py:{RECIPE}_tiny",
    *(f"--config.{key}.epochs=6" for key in (("teacher", "student") if RECIPE == "hsakd" else ("student",))),
    "--config.log_every=4",
)


@pytest.fixture(scope="module")
def uninterrupted(run_command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = run_command("main", *ARGS, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def launch(workdir, args=ARGS):
    line = [sys.executable, "-m", "hsakd_jax.main", *args, f"--workdir={workdir}"]
    return subprocess.Popen(
        line, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def within(workdir, name):
    """The files of this name of a run, or of the runs of a pipeline."""
    return sorted([*workdir.glob(name), *workdir.glob(f"*/{name}")])


def records(workdir):
    """Every record written in full."""
    lines = [line for file in within(workdir, "metrics.jsonl") for line in file.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def contents(workdir):
    """Final states, records and accuracies, without what tells the time."""
    timeless = [{k: v for k, v in r.items() if k not in ("images_per_s", "crc32")} for r in records(workdir)]
    states, rest = {}, [timeless]
    for folder in within(workdir, "checkpoints"):
        name = str(folder.relative_to(workdir))
        checkpoints = Checkpoints(folder, write=False)
        states[name] = checkpoints.restore(checkpoints.steps()[-1])
        results = json.loads((folder.parent / "results.json").read_text())
        rest.append((name, checkpoints.steps(), results["last"], results["best"]))
    return states, rest


def assert_same(a, b):
    (states_a, rest_a), (states_b, rest_b) = contents(a), contents(b)
    assert rest_a == rest_b
    assert jax.tree.structure(states_a) == jax.tree.structure(states_b)
    for x, y in zip(jax.tree.leaves(states_a), jax.tree.leaves(states_b), strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(x, y)


def wait_for(seen, process, timeout=120):
    """Waits until `seen()` or the end of the process."""
    end = time.monotonic() + timeout
    while not seen() and process.poll() is None:
        assert time.monotonic() < end, process.communicate()
        time.sleep(0.01)


def test_killed_at_random_moments(uninterrupted, tmp_path):
    """One after the other through the whole run, at its records or between them."""
    workdir, moments = tmp_path / "run", random.Random(int(os.environ.get("KILL_SEED", "0")))
    killed = 0
    kills = int(os.environ.get("KILLS", "2"))
    total = len(records(uninterrupted))
    for i in range(kills):
        process = launch(workdir)
        enough = int(moments.uniform(i, i + 1) * total / (kills + 1))
        wait_for(lambda enough=enough: len(records(workdir)) >= enough, process)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        process.communicate()
    assert killed > 1
    process = launch(workdir)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same(workdir, uninterrupted)


@pytest.mark.parametrize("seconds", [0.0, 0.7, 1.4])
def test_ctrl_c_while_it_starts(seconds, tmp_path):
    """Before there is anything to save; an exception would be lost in a callback of JAX's, now and then."""
    # A job in a shell's background ignores Ctrl-C, and so do all that it starts.
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = launch(tmp_path / "run")
    signal.signal(signal.SIGINT, old)
    wait_for(lambda: "jaxlib" in Path(f"/proc/{process.pid}/maps").read_text(), process)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT  # for which a shell says 130
    assert "Traceback" not in errors
    assert "Exception" not in errors


def test_sigterm_saves_and_the_same_command_continues(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = launch(workdir)
    wait_for(lambda: any(record["step"] == 12 for record in records(workdir)), process)
    process.send_signal(signal.SIGTERM)
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    saved = Checkpoints(workdir / "checkpoints", write=False).steps()[-1]
    assert f"saved at step {saved} of 66; run the same command to resume" in errors
    assert saved >= 12
    process = launch(workdir)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"resuming at step {saved} of 66" in shown
    assert_same(workdir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["crd", "photographs"])
def test_what_else_a_run_remembers(what, run_command, tmp_path):
    """CRD's memory between micro-batches, and the decoding of photographs: stopped and continued, bit for bit."""
    if what == "crd":
        args = ["--config=configs/cifar100.py:crd_tiny", "--config.student.accumulate=2"]
    else:
        for split in ("train", "val"):
            for name in "ab":
                (tmp_path / "tree" / split / name).mkdir(parents=True)
                for i in range(40):
                    pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)
                    Image.fromarray(pixels).save(tmp_path / "tree" / split / name / f"{i}.JPEG")
        args = [
            "--config=configs/cifar100.py:baseline_tiny", f"--config.data.dir={tmp_path}/tree",
            "--config.data.name=image_tree", "--config.data.crop=resized", "--config.data.image_size=32",
            "--config.data.mean=(0.5,)", "--config.data.std=(0.5,)", "--config.data.fraction=1.0",
        ]  # fmt: skip
    args += ["--config.student.epochs=4", "--config.log_every=1"]
    whole = run_command("main", *args, f"--workdir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    workdir = tmp_path / "run"
    process = launch(workdir, args)
    run = workdir / "crd" if what == "crd" else workdir
    wait_for(lambda: len(records(run)) >= 5, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    done = run_command("main", *args, f"--workdir={workdir}")
    assert "resuming at step" in done.stdout, done.stderr
    assert_same(workdir, tmp_path / "whole")


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
    assert f"resuming at step {before} of 66" in shown
    assert_same(workdir, uninterrupted)
