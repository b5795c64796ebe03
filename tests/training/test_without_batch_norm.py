"""A student without BatchNorm, taught by methods that keep memory or statistics of their own."""

import jax
import numpy as np
import pytest
from run_configs import run_config
from small_families import SMALL

from hsakd_jax import create, models
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import initialise
from hsakd_jax.training.build import build

SHAPE, CLASSES, BATCH = (32, 32, 3), ("a", "b", "c"), 8


@pytest.mark.parametrize("recipe", ["crd", "reviewkd"])
def test_what_a_method_keeps_is_in_the_state(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "deit_tiny_patch16_224", lambda: SMALL["deit"])
    keys = {"teacher__arch": "resnet8_half", "student__arch": "deit_tiny_patch16_224", "student__batch": BATCH}
    keys |= {"objective__crd__crd__negatives": 4} if recipe == "crd" else {}
    directory = RunDirectory(tmp_path / "teacher")
    directory.acquire(run_config("backbone", "cifar100", CLASSES, SHAPE, teacher__arch="resnet8_half"))
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(1, jax.device_get(initialise(create("resnet8_half", 3, branches=False), SHAPE, 0)))
    checkpoints.close()
    config = run_config(recipe, "cifar100", CLASSES, SHAPE, teacher__workdir=str(directory.path), **keys)

    g, devices = np.random.default_rng(0), Devices(jax.devices()[:1])
    train = Dataset(g.integers(0, 256, (BATCH, *SHAPE), np.uint8), g.integers(0, 3, BATCH).astype(np.int32))
    built = build(config, tmp_path / "run", train, devices)
    before = jax.device_get(built.state)
    state, theirs = devices.replicate((built.state, built.teacher_variables))
    batch = devices.shard((train.images, train.labels, np.arange(BATCH, dtype=np.int32)))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
        after = jax.device_get(built.program.step(state, theirs, *batch))
    assert set(before.batch_stats) == {"objective"}
    assert jax.tree.structure(before) == jax.tree.structure(after)
    kept = zip(jax.tree.leaves(before.batch_stats), jax.tree.leaves(after.batch_stats), strict=True)
    assert any((a != b).any() for a, b in kept)
