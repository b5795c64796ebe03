"""Accuracy of a network over every image of a dataset exactly once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hsakd_jax import data, metrics
from hsakd_jax.augment import normalise
from hsakd_jax.devices import Devices
from hsakd_jax.nets.network import Outputs
from hsakd_jax.rotations import rotate


def make_evaluate(
    network: Any, devices: Devices, mean: Sequence[float], std: Sequence[float], batch: int
) -> Callable[[Any, data.Dataset], dict[str, float]]:
    """Makes `evaluate(variables, dataset) -> accuracies in percent`, named as in `metrics.correct`.

    Networks with branches see all four rotations of each image, others the upright one. Those of `Peers` are
    reported with their names before: 'peer1/top1'.

    Args:
      network: Linen module.
      devices: where to compute.
      mean: of normalisation, see `augment.normalise`.
      std: likewise.
      batch: images at a time, rounded up to a multiple of the devices.
    """
    batch = -(-batch // len(devices)) * len(devices)

    def count(totals, variables, images, labels, mask):
        images = normalise(images, mean, std)
        outputs = network.apply(variables, rotate(images) if network.branches else images)
        named = {"": outputs} if isinstance(outputs, Outputs) else {f"peer{i}/": o for i, o in enumerate(outputs, 1)}
        counts = {p + k: n for p, o in named.items() for k, n in metrics.correct(o, labels, mask).items()}
        return counts if totals is None else jax.tree.map(jnp.add, totals, counts)

    count = devices.jit(count, 2)

    def evaluate(variables, dataset):
        totals = None
        for rows in data.eval_batches(dataset, batch):
            rows = devices.shard(rows)
            totals = count(totals, variables, rows["image"], rows["label"], rows["mask"])
        return metrics.accuracies(jax.device_get(totals), len(dataset.labels))

    return evaluate


def best_branch(accuracies: dict[str, float]) -> float:
    """The greatest joint accuracy of any branch, by which the reference chooses a teacher."""
    return max(a for name, a in accuracies.items() if "joint_" in name)


def mean_top1(accuracies: dict[str, float]) -> float:
    """Top-1 accuracy, the mean over peers where there are several networks."""
    top1 = [a for name, a in accuracies.items() if name.rpartition("/")[2] == "top1"]
    return sum(top1) / len(top1)


def describe(accuracies: dict[str, float]) -> str:
    """Accuracies in a line: 'top-1 71.23 %, top-5 92.01 %, best branch joint 60.12 %'."""
    line = f"top-1 {mean_top1(accuracies):.2f} %"
    if any("joint_" in name for name in accuracies):
        line += f", best branch joint {best_branch(accuracies):.2f} %"
    return line
