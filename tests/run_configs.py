"""Typed configs for tests, made as a command makes them."""

import runpy

import numpy as np
from conftest import ROOT

from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.datasets import Splits
from hsakd_jax.experiments.resolve import resolve


def run_config(recipe="baseline", file="digits", classes=("a", "b"), shape=(8, 8, 1), tests=None, **keys):
    """The config of one run; `keys` are those that a person types, with '__' for a dot: student__lr=0.1."""
    command = runpy.run_path(str(ROOT / f"configs/{file}.py"))["get_config"](recipe)
    command.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    images = Dataset(np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32))
    (name,) = command.runs
    return resolve(command.to_dict(), name, Splits(images, None, tests or images, tuple(classes)))
