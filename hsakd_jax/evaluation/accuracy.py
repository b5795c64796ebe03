"""Accuracy of a network over every image of a dataset exactly once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from hsakd_jax.core.console import table
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data import datasets
from hsakd_jax.data.augment import prepare
from hsakd_jax.data.sampling import Dataset
from hsakd_jax.data.streaming import Photos, evaluation_batches
from hsakd_jax.evaluation import metrics
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.rotations import rotate
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build, read_variables


def make_evaluate(
    network: Any, devices: Devices, mean: Sequence[float], std: Sequence[float], batch: int, size: int, resize: int = 0
) -> Callable[[Any, Dataset | Photos], dict[str, float]]:
    """Makes `evaluate(variables, dataset) -> accuracies in percent`, named as in `metrics.correct`.

    Networks with branches see all four rotations of each image, others the upright one. Those of `Peers` are
    reported with their names before: 'peer1/top1'.

    Args:
      network: Linen module.
      devices: where to compute.
      mean: of normalisation, see `augment.normalise`.
      std: likewise.
      batch: images at a time, rounded up to a multiple of the devices.
      size: side of the images that the network takes; others are scaled and their middle is taken.
      resize: what the shorter side of those is scaled to; 0 for `size`.
    """
    batch = -(-batch // len(devices)) * len(devices)
    share = devices.local_slice(batch)

    def count(variables, images, labels, mask):
        images = prepare(images, mean=mean, std=std, size=size, resize=resize)
        outputs = network.apply(variables, rotate(images) if network.branches else images)
        named = {"": outputs} if isinstance(outputs, Outputs) else {f"peer{i}/": o for i, o in enumerate(outputs, 1)}
        return {p + k: n for p, o in named.items() for k, n in metrics.correct(o, labels, mask).items()}

    count = devices.jit(count, 1)

    def evaluate(variables, dataset):
        totals = None
        for rows in evaluation_batches(dataset, batch, size, resize or size, share):
            rows = devices.shard(rows)
            counts = count(variables, rows["image"], rows["label"], rows["mask"])
            totals = counts if totals is None else jax.tree.map(jnp.add, totals, counts)
        return metrics.accuracies(jax.device_get(totals), len(dataset.labels))

    return evaluate


def options(config: dict[str, Any]) -> dict[str, Any]:
    """What `make_evaluate` must know of a run, from its config."""
    source = config["data"]
    return {
        "mean": source["mean"],
        "std": source["std"],
        "batch": config["eval_batch"],
        "size": config["network"]["image_shape"][0],
        "resize": source.get("resize", 0),  # which converted checkpoints may lack
    }


def evaluate_run(run_dir: str | Path, checkpoint: str = "last", data_dir: str | None = None) -> dict[str, Any]:
    """Measures a run on its test images.

    Args:
      run_dir: a run directory.
      checkpoint: 'last' or 'best'.
      data_dir: where the data lies now; None for where the run found it.

    Returns:
      'arch', 'checkpoint', the numbers of 'classes' and of 'test_images', and the accuracies in percent.

    Raises:
      UserError: not a run with a checkpoint, or data that is not there or has other classes.
    """
    directory = RunDirectory(run_dir)
    config = directory.config()
    source = config["data"]
    if not source["name"]:
        raise UserError(f"{directory.path} does not know its data: convert the checkpoint again with --data=NAME")
    where = source["dir"] if data_dir is None else data_dir
    if where and "://" not in where and not Path(where).expanduser().is_dir():
        raise UserError(f"the data of {directory.path} should be in {where}, which is no folder: give --data_dir=DIR")
    splits = datasets.load_source({**source, "dir": where}, splits=("test",))
    # A converted checkpoint knows how many classes there are, but not what they are called.
    known = config["classes"] or splits.class_names
    if list(splits.class_names) != list(known) or len(known) != config["network"]["num_classes"]:
        raise UserError(
            f"{directory.path} was trained on other classes than {source['name']} in {where or '(default)'} has"
        )
    shape = config["network"]["image_shape"]
    scaled = source.get("crop") == "resized"
    if splits.test.image_shape[scaled * 2 :] != tuple(shape[scaled * 2 :]):
        raise UserError(
            f"{directory.path} takes images of {shape}, those of {source['name']} are "
            f"{list(splits.test.image_shape)}: give --data_dir of the right ones"
        )
    devices = Devices()
    evaluate = make_evaluate(build(config["network"]), devices, **options(config))
    return {
        "arch": config["network"]["arch"],
        "checkpoint": checkpoint,
        "classes": len(known),
        "test_images": len(splits.test.labels),
        **evaluate(devices.replicate(read_variables(directory, checkpoint)), splits.test),
    }


def report(run: str, result: dict[str, Any]) -> str:
    """The result of `evaluate_run` as text."""
    lines = [f"{run}: {result['arch']}, {result['checkpoint']} checkpoint, {result['test_images']} test images"]
    for prefix in sorted({name[: -len("top1")] for name in result if name.endswith("top1")}):
        top5 = f", top-5 {result[prefix + 'top5']:.2f} %" if result["classes"] > 5 else ""  # all of five
        lines.append(f"{prefix.replace('/', ': ')}top-1 {result[prefix + 'top1']:.2f} %{top5}")
        branches = [l for l in range(1, 10) if f"{prefix}joint_{l}" in result]
        rows = [
            [f"branch {l}", *(f"{result[f'{prefix}{kind}_{l}']:.2f}" for kind in ("joint", "class"))] for l in branches
        ]
        if rows:
            lines.append(table(["", "joint %", "class %"], rows))
    return "\n".join(lines)
