"""Typed configs and results of runs for tests."""

import runpy

import numpy as np
from conftest import ROOT

from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.datasets import Splits
from hsakd_jax.experiments.resolve import resolve
from hsakd_jax.runs.results import Results, Sizes


def run_config(recipe="baseline", file="digits", classes=("a", "b"), shape=(8, 8, 1), tests=None, **keys):
    """The config of a run, as a command makes it; `keys` are those of a person, '__' for a dot: student__lr=0.1."""
    command = runpy.run_path(str(ROOT / f"configs/{file}.py"))["get_config"](recipe)
    command.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    images = Dataset(np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32))
    (name,) = command.runs
    return resolve(command.to_dict(), name, Splits(images, None, tests or images, tuple(classes)))


def run_results(recipe, top1, **changes):
    """The results of a run of one epoch, with its top-1 in % and other fields."""
    accuracies = {"epoch": 1.0, "top1": float(top1)}
    fields = {
        "arch": "resnet20",
        "seed": 0,
        "last": accuracies,
        "best": accuracies,
        "selected_by": "top-1 on test",
        "teacher": None,
        "train_images": 1,
        "test_images": 1,
        "parameters": Sizes(1, 1),
        "multiply_adds": Sizes(1, 1),
        "images_per_s": None,
        "versions": {},
        "device": "",
        "git": None,
    }
    return Results(recipe=recipe, **{**fields, **changes})
