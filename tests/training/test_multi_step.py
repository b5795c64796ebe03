"""When many steps make one call, and that a step is traced once; test_processes.py has the numbers."""

import runpy

import jax
import numpy as np
import pytest
from conftest import ROOT

from hsakd_jax.core.console import Console
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.experiments import pipeline
from hsakd_jax.training import build, multi_step


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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["kd_tiny", "student_online_tiny"])
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
    assert len(traced) == len(results[0]) == 2
    # Counted on networks that are traced already.
    assert all(found.multiply_adds.with_branches for found in results[0].values())
