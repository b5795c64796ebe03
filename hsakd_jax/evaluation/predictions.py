"""Predictions of several networks for the same test images."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from msgspec import structs

from hsakd_jax.core.console import Progress, note, warn
from hsakd_jax.core.errors import UserError
from hsakd_jax.data import datasets, locate
from hsakd_jax.data.augment import prepare
from hsakd_jax.data.builders import BUILDERS
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.streaming import Photos
from hsakd_jax.evaluation.accuracy import batches_of, other_test_images, preprocessing, relabel
from hsakd_jax.runs.compare import match_classes
from hsakd_jax.runs.config import Config
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import reorder_classes, restore

SAME = 3  # or one frequent confusion would fill the figure


class Checkpoint(NamedTuple):
    """A trained network: a run, its 'last' or 'best' checkpoint, and which network of an online run."""

    run: Path
    checkpoint: str = "last"
    peer: int = 1


class Prediction(NamedTuple):
    """Of one network, in the order of the images."""

    classes: np.ndarray  # int [n]
    probabilities: np.ndarray  # of these classes, float32 [n]


class Predictions(NamedTuple):
    """The predictions of several networks.

    Attributes:
      labels: of the test images, int [n].
      by_network: by the key of the network.
      misclassified: images that the first network misclassifies with the greatest probability, at most `SAME` of each
        predicted class, by position: uint8 [H, W, C].
      left_out: by key, why a network made no predictions.
    """

    labels: np.ndarray
    by_network: dict[str, Prediction]
    misclassified: dict[int, np.ndarray]
    left_out: dict[str, str]


def predict_all(networks: Mapping[str, Checkpoint], most: int, data_dir: str | None = None) -> Predictions:
    """Predicts the classes of all test images by several networks.

    Each image is read once, or of photographs once for each crop that the networks were tested with.

    Args:
      networks: by key; the first one decides on the images.
      most: misclassified images to keep.
      data_dir: folder of the data, if it has moved; None for the first run's.

    Raises:
      UserError: the first run or its data is not there or damaged, or its outputs are not finite.
    """
    first, *_ = networks
    configs, predictors, left_out = {}, {}, {}
    for key, chosen in networks.items():
        try:
            configs[key] = RunDirectory(chosen.run).config()
            order = _class_order(chosen.run, configs[key], networks[first].run, configs[first])
            predictors[key] = _predictor(chosen, configs[key], order)
        except UserError as error:
            if key == first:
                raise
            left_out[key] = str(error)
    config = configs[first]
    test = _load(networks[first].run, config, data_dir)
    for key in predictors.keys() - {first}:
        if line := other_test_images(RunDirectory(networks[key].run), config, test):
            warn(line)
    passes = _passes(test, {key: configs[key] for key in predictors})
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {key: [] for key in predictors}
    wrong: list[_Mistake] = []
    done = 0
    with Progress(f"Predicting by {len(predictors)} networks", len(passes) * len(test.labels)) as progress:
        for keys in passes:
            for rows in _batches(configs[keys[0]], test, config.eval_batch):
                real = int(rows["mask"].sum())
                for key in keys:
                    classes, probabilities = (np.asarray(x)[:real] for x in predictors[key](rows["image"]))
                    found[key].append((classes, probabilities))
                if first in keys:
                    wrong = _worst([*wrong, *_mistakes(rows, *found[first][-1], done)], most)
                done += real
                progress.update(done)
    by_network = {key: Prediction(*map(np.concatenate, zip(*parts, strict=True))) for key, parts in found.items()}
    for key in [key for key, one in by_network.items() if not np.isfinite(one.probabilities).all()]:
        left_out[key] = f"the outputs of {networks[key].run} are not finite"
        if key == first:
            raise UserError(left_out[key])
        del by_network[key]
    return Predictions(np.asarray(test.labels), by_network, {one.position: one.image for one in wrong}, left_out)


def _passes(test: Dataset | Photos, configs: Mapping[str, Config]) -> list[list[str]]:
    """The networks by the pixels that they share, the first network's first.

    Images in memory are cropped on the device. Photographs are cropped as they are read, for each network as in its own
    evaluation.
    """
    by_crop: dict[Any, list[str]] = {}
    for key, config in configs.items():
        settings = preprocessing(config)
        crop = tuple(settings[name] for name in ("shape", "resize", "interpolation"))
        by_crop.setdefault(crop if isinstance(test, Photos) else None, []).append(key)
    return list(by_crop.values())


def _batches(config: Config, test: Dataset | Photos, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the test images for a network."""
    own = test.with_interpolation(config.data.interpolation) if isinstance(test, Photos) else test
    return batches_of(config, own, batch)


class _Mistake(NamedTuple):
    probability: float
    position: int
    predicted: int
    image: np.ndarray


def _mistakes(
    rows: Mapping[str, np.ndarray], classes: np.ndarray, probabilities: np.ndarray, first: int
) -> Iterator[_Mistake]:
    """The misclassified images of a batch, whose first image has the position `first`."""
    for i in np.flatnonzero(classes != rows["label"][: len(classes)]).tolist():
        # A copy, or one image would keep all of its batch.
        yield _Mistake(float(probabilities[i]), first + i, int(classes[i]), rows["image"][i].copy())


def _worst(wrong: list[_Mistake], most: int) -> list[_Mistake]:
    """The misclassified images with the greatest probabilities, at most `SAME` of a predicted class."""
    counted: Counter[int] = Counter()
    kept: list[_Mistake] = []
    for one in sorted(wrong, key=lambda one: (-one.probability, one.position)):
        counted[one.predicted] += 1
        if counted[one.predicted] <= SAME and len(kept) < most:
            kept.append(one)
    return kept


def _class_order(run: Path, config: Config, first_run: Path, first: Config) -> tuple[int, ...] | None:
    """The order of a run's classes in which they are those of the first run; None where it is the same.

    Raises:
      UserError: a run of other images or classes.
    """
    shape, expected = config.network.image_shape, first.network.image_shape
    if shape[-1] != expected[-1]:
        raise UserError(f"{run} takes images of {shape[-1]} channels, not {expected[-1]}")
    if shape != expected and shape[0] != shape[1]:  # others are cropped, to a square
        raise UserError(f"{run} takes images of {list(shape)}, not {list(expected)}")
    match = match_classes(config, run, first.network.num_classes, first.classes, str(first_run))
    if match.difference:
        raise UserError(f"{run} {match.difference}")
    if match.note:
        note(match.note)
    return match.order


def _predictor(chosen: Checkpoint, config: Config, order: tuple[int, ...] | None) -> Any:
    """A function from uint8 images to their class, in that order of the run's classes, and its probability."""
    network: Any
    network, variables = restore(chosen.run, chosen.checkpoint, peer=chosen.peer)
    network = network.clone(branches=False)
    variables = variables if order is None else reorder_classes(variables, order)
    preprocess = preprocessing(config)

    @jax.jit
    def predict(variables, images):
        logits = network.apply(variables, prepare(images, **preprocess)).logits
        return logits.argmax(-1), jax.nn.softmax(logits).max(-1)

    return lambda images: predict(variables, images)


def _load(run: Path, config: Config, data_dir: str | None) -> Any:
    """The test images with the labels of the run; a dataset that would have to be prepared first is refused."""
    name, where = config.data.name, config.data.dir if data_dir is None else data_dir
    root = locate.root_of(where or "")
    source = structs.replace(config.data, dir=where)
    there = name is not None and root.is_dir() and datasets.is_prepared_source(source)
    if name == "image_folder" and root.is_dir() and not there:
        raise UserError(
            f"the images in {root} have changed: `python -m hsakd_jax.evaluate --workdir={run}` reads them again"
        )
    if not there:
        hint = ", or prepare it by `python -m hsakd_jax.evaluate`" if name in BUILDERS else ""
        raise UserError(f"its data {name} is not in {root}: set --data_dir=DIR{hint}")
    return relabel(datasets.load_source(source, splits=("test",)), run, config, f"{name} in {root}")
