"""Many steps a call are the steps of many calls, and a step is traced once."""

import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

from hsakd_jax.core.console import Console
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.experiments import pipeline
from hsakd_jax.training import build, multi_step

SCRIPT = """
import jax, numpy as np, sys
from hsakd_jax import create
from hsakd_jax.core import sharding
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.distillation import objectives
from hsakd_jax.training import optim
from hsakd_jax.data.augment import augment, normalise
from hsakd_jax.core.sharding import Devices
from hsakd_jax.training.multi_step import make_multi_step
from hsakd_jax.models.rotations import rotate
from hsakd_jax.training.step import Batch, TrainStep
from hsakd_jax.runs.restore import initialise
import jax.numpy as jnp

network = create("resnet8_quarter", 10)
variables = jax.tree.map(lambda x: np.asarray(x, np.float64), initialise(network, (8, 8, 1), 0))
weights = dict.fromkeys(("task", "joint"), 1.0)
update = TrainStep(network, objectives.teacher, weights, optim.sgd(0.05, 0.9, 5e-4, True))

def step(state, _, images, labels, index):
    images = augment(jax.random.fold_in(jax.random.key(0), state.step), images, crop="pad", pad=1, flip=True, size=8)
    images = rotate(normalise(images, (0.3,), (0.4,), jnp.float64))
    return update(state, None, Batch(images, labels))

sharding._compiler_options = lambda platform: None  # as on accelerators, which make many steps a call
g = np.random.default_rng(0)
dataset = Dataset(g.integers(0, 255, (50, 8, 8, 1), np.uint8), g.integers(0, 10, 50).astype(np.int32))
results = []
for many, count in ((False, 1), (True, 1), (True, 8)):
    devices = Devices(jax.devices()[:count])
    compiled = devices.jit(step, replicated=2, donate=True)
    multi_step = make_multi_step(compiled, dataset, devices, 16, 3, many)
    state, done, calls = devices.replicate(update.init(variables)), 0, 0
    for until in (4, 7):  # two pieces of one program, over the end of an epoch
        while done < until:
            state, done = multi_step(state, None, done, until)
            calls += 1
    assert (done, calls) == (7, 2 if many else 7)
    results.append(jax.device_get(state))
worst = 0
for other in results[1:]:
    assert other.step == 7
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
        worst = max(worst, float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-3))))
print(worst)
"""


def test_many_steps_a_call_in_float64():
    env = {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not found.returncode, found.stderr
    assert float(found.stdout) <= 1e-8


@pytest.mark.parametrize(
    ("backend", "fits", "many"), [("cpu", True, False), ("gpu", True, True), ("tpu", False, False)]
)
def test_accelerators_make_many_steps_a_call_where_the_images_fit(monkeypatch, backend, fits, many):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(multi_step, "RESIDENT", 64 if fits else 63)
    monkeypatch.setattr(multi_step, "_many_steps_per_call", lambda *_: True)
    monkeypatch.setattr(multi_step, "_one_step_per_call", lambda *_: False)
    dataset = Dataset(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int32))
    assert multi_step.make_multi_step(None, dataset, None, 1, 0) is many


@pytest.mark.parametrize("recipe", ["kd_tiny", pytest.param("student_online_tiny", marks=pytest.mark.slow)])
def test_a_step_is_traced_once_for_its_rehearsal_and_its_run(recipe, monkeypatch, tmp_path):
    """Of a run with a teacher too, whose network comes from a config first and from a checkpoint then."""
    command = runpy.run_path(str(ROOT / "configs/cifar100.py"))["get_config"](recipe)
    command.teacher.inference_dtype = "bfloat16"
    for section in (command.teacher, command.student):
        section.epochs, section.milestones = 1, ()
    traced, augment = [], build.augment
    monkeypatch.setattr(build, "augment", lambda key, images, **crop: traced.append(1) or augment(key, images, **crop))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
        results = pipeline.execute(command.to_dict(), str(tmp_path), Console(silent=True))
    assert len(traced) == len(results) == 2
    # Counted on networks that are traced already.
    assert all(found.multiply_adds.with_branches for found in results.values())
