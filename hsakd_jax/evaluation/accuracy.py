"""Accuracy of a network over every image of a dataset exactly once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import structs

from hsakd_jax.core.console import Progress, note, table, warn
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import expand
from hsakd_jax.core.sharding import Devices, is_first_process
from hsakd_jax.data import datasets
from hsakd_jax.data.augment import prepare
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.image_files import centre_crop, fit, size_of
from hsakd_jax.data.locate import IMAGE_TREE
from hsakd_jax.data.streaming import Photos, evaluation_batches
from hsakd_jax.evaluation import metrics
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.rotations import rotate
from hsakd_jax.runs.compare import match_classes
from hsakd_jax.runs.config import Config, ConvertedConfig
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build_network, network_variables
from hsakd_jax.runs.results import Accuracies

PATIENCE = 10.0  # seconds of an evaluation before its first line of progress


class Interrupted(Exception):
    """An evaluation ended before its last image, since `stop` returned True."""


class Measured(NamedTuple):
    """Accuracies of a network on a dataset.

    Attributes:
      accuracies: in percent, with the names of `metrics.correct`.
      correct: whether the class of each image is correct, bool [n], in their order; None of several networks.
    """

    accuracies: Accuracies
    correct: np.ndarray | None


def make_evaluate(
    network: Any, devices: Devices, config: Config, batch: int
) -> Callable[[Any, Dataset | Photos], Accuracies]:
    """Makes `evaluate(variables, dataset) -> accuracies`, those of `make_measure`."""
    measure = make_measure(network, devices, config, batch)
    return lambda variables, dataset: measure(variables, dataset).accuracies


def make_measure(network: Any, devices: Devices, config: Config, batch: int) -> Callable[..., Measured]:
    """Makes `measure(variables, dataset, stop)`, which shows its progress where it takes more than `PATIENCE` seconds.

    Before each batch it calls `stop`, and raises `Interrupted` if that returns True. Networks with branches see all
    four rotations of each image, others the upright one. Accuracies of `Peers` have the network's name in front:
    'peer1/top1'.

    Args:
      network: Linen module.
      devices: where to compute.
      config: of the run, for its preprocessing.
      batch: images per step, rounded up to a multiple of the devices.
    """
    batch = -(-batch // len(devices)) * len(devices)
    local_slice = devices.local_slice(batch)
    preprocess = preprocessing(config)

    def count(variables, images, labels, mask):
        images = prepare(images, **preprocess)
        outputs = network.apply(variables, rotate(images) if network.branches else images)
        named = {"": outputs} if isinstance(outputs, Outputs) else {f"peer{i}/": o for i, o in enumerate(outputs, 1)}
        right = {p + k: found for p, o in named.items() for k, found in metrics.correct(o, labels, mask).items()}
        return {name: found.sum(dtype=jnp.int32) for name, found in right.items()}, right.get("top1")

    count = devices.jit(count, 1)

    def measure(variables, dataset, stop: Callable[[], bool] = lambda: False):
        totals, right = None, []
        with Progress("Evaluating", len(dataset.labels), patience=PATIENCE) as progress:
            for done, rows in enumerate(batches_of(config, dataset, batch, local_slice)):
                if stop():
                    raise Interrupted
                rows = devices.shard(rows)
                counts, top1 = count(variables, rows["image"], rows["label"], rows["mask"])
                right.append(top1)
                if done and is_first_process():
                    jax.block_until_ready(totals)  # while the device computes this batch
                    progress.update(done * batch)
                totals = counts if totals is None else jax.tree.map(jnp.add, totals, counts)
        accuracies = metrics.percentages(jax.device_get(totals), len(dataset.labels))
        # Only the last batch is padded, at its end.
        correct = None if None in right else np.concatenate(jax.device_get(right))[: len(dataset.labels)]
        return Measured(accuracies, correct)

    return measure


def preprocessing(config: Config) -> dict[str, Any]:
    """The arguments of `augment.prepare` for the test images of a run."""
    height, width, _ = config.network.image_shape
    return {
        "mean": config.data.mean,
        "std": config.data.std,
        "shape": (height, width),
        "resize": config.data.resize or height,
        "interpolation": config.data.interpolation,
    }


def pixels_of(config: Config) -> Callable[[bytes], np.ndarray]:
    """The function from an image file to the pixels that the run's evaluation uses.

    Where evaluation crops the middle of scaled images, so does this function. For images in memory it agrees to a grey
    level, since a device crops those. Otherwise, the greatest part in the middle with the network's ratio of sides is
    scaled to its shape; an image of that shape stays unchanged.

    Returns:
      A function from the content of a file to uint8 [H, W, C]; it raises the errors of `image_files.fit`.

    Raises:
      UserError: images of a number of channels that no image file has.
    """
    height, width, channels = config.network.image_shape
    data, resize = config.data, config.data.resize or height
    limit, interpolation = data.max_pixels or 0, data.interpolation
    streamed = data.crop == "resized" and data.name in (None, *datasets.STREAMED)
    in_memory = data.crop == "resized" and not streamed and data.name != "image_folder"
    if channels not in (1, 3):
        raise UserError(f"the network takes images of {channels} channels, which image files do not have: use evaluate")

    def pixels(encoded: bytes) -> np.ndarray:
        if streamed:
            image = centre_crop(encoded, height, resize, limit, interpolation)
        elif in_memory and size_of(encoded, limit) != (width, height):
            image = fit(encoded, width, height, limit, (1 - height / resize) / 2, interpolation)
        else:
            image = fit(encoded, width, height, limit, interpolation=interpolation)
        return np.asarray(image if channels == 3 else image.convert("L")).reshape(height, width, channels)

    return pixels


def batches_of(
    config: Config, dataset: Dataset | Photos, batch: int, local_slice: slice = slice(None)
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the test images of a run, see `streaming.evaluation_batches`."""
    size = config.network.image_shape[0]
    return evaluation_batches(dataset, batch, size, config.data.resize or size, local_slice)


def evaluate_run(run_dir: str | Path, checkpoint: str = "last", data_dir: str | None = None) -> dict[str, Any]:
    """Measures a run on its test images.

    Args:
      run_dir: a run directory.
      checkpoint: 'last' or 'best'.
      data_dir: folder of the data, if it has moved; None for the run's.

    Returns:
      'arch', 'checkpoint', the numbers of 'classes' and of 'test_images', and the accuracies in percent.

    Raises:
      UserError: not a run with a checkpoint, or data that is not there or has other classes.
    """
    directory = RunDirectory(run_dir)
    config = directory.config()
    test = load_test(directory.path, config, data_dir)
    devices = Devices()
    evaluate = make_evaluate(build_network(config.network), devices, config, config.eval_batch)
    return {
        "arch": config.network.arch,
        "checkpoint": checkpoint,
        "classes": config.network.num_classes,
        "test_images": len(test.labels),
        **evaluate(devices.replicate(network_variables(directory, checkpoint)), test),
    }


def data_folder(config: Config, data_dir: str | None, label: str) -> str | None:
    """The folder of a run's data; None for the default one of TFDS.

    Args:
      config: of the run.
      data_dir: folder of the data, if it has moved; None for the run's.
      label: name of the data in errors.

    Raises:
      UserError: there is no such folder.
    """
    where = config.data.dir if data_dir is None else data_dir
    if where and not expand(where).is_dir():
        raise UserError(f"{label} should be in {where}, which is no folder: set --data_dir=DIR")
    return where


def check_named(run: Path, config: Config, data_dir: str | None) -> None:
    """Refuses images in folders whose place is not known, as of a checkpoint that was converted.

    Args:
      run: the run directory, for the error.
      config: of the run.
      data_dir: folder of the data, if it has moved; None for the run's.

    Raises:
      UserError: there is no folder.
    """
    if config.data.name in ("image_folder", IMAGE_TREE) and not (data_dir or config.data.dir):
        raise UserError(f"{run} does not name the folder of its images: set --data_dir=DIR")


def load_test(run: Path, config: Config, data_dir: str | None = None) -> Dataset | Photos:
    """The test images of a run, with the labels that its outputs have.

    Args:
      run: the run directory.
      config: of the run.
      data_dir: folder of the data, if it has moved; None for the run's.

    Raises:
      UserError: data that is not named, not there, or has other classes or images of another shape.
    """
    if config.data.name is None:
        raise UserError(f"{run} does not name its data: convert the checkpoint again with --data=NAME")
    check_named(run, config, data_dir)
    where = data_folder(config, data_dir, f"the data of {run}")
    splits = datasets.load_source(structs.replace(config.data, dir=where), splits=("test",))
    test = relabel(splits, run, config, f"{config.data.name} in {where or '(default)'}")
    shape, found = config.network.image_shape, test.image_shape
    if found[-1] != shape[-1] or (config.data.crop == "pad" and tuple(found) != tuple(shape)):
        scalable = isinstance(config, ConvertedConfig) and found[-1] == shape[-1]
        again = ", or convert the checkpoint again with their --image_size, or with --resize to scale them" * scalable
        raise UserError(
            f"{run} takes images of {list(shape)}, those of {config.data.name} are {list(found)}: set --data_dir to "
            f"the right ones{again}"
        )
    return test


def relabel(splits: datasets.Splits, path: Path, config: Config, source: str) -> Dataset | Photos:
    """The test images with the labels that the outputs of a run have, and a line on stderr where these differ.

    Of a finished run that was tested on others it prints a warning: a new file can make a training image a test image.

    Args:
      splits: with the test split.
      path: of the run.
      config: of the run.
      source: name of the data in errors.

    Raises:
      UserError: the run has other classes.
    """
    names = splits.class_names
    match = match_classes(config, path, len(names), names, str(config.data.name))
    if match.difference:
        raise UserError(f"{path} {match.difference} in {source}")
    if match.note:
        note(match.note)
    if line := other_test_images(RunDirectory(path), config, splits.test):
        warn(line)
    if match.order is None:
        return splits.test
    return splits.test.with_labels(np.asarray(match.order, np.int32)[splits.test.labels])


def other_test_images(run: RunDirectory, config: Config, test: Dataset | Photos) -> str:
    """A line for the user where a finished run of the same data was tested on other images; '' elsewhere.

    Args:
      run: may have been tested on others.
      config: of a run that has the test images. A run of other data or classes does not matter.
      test: the images.
    """
    results, theirs = run.results(), run.config()
    if results is None or theirs.data.name != config.data.name or {*theirs.classes} != {*config.classes}:
        return ""
    if results.same_test_images(len(test.labels), test.digest):
        return ""
    return f"{run.path} was tested on other images when its training ended: it may have been trained on some of these"


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
