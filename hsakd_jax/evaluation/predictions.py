"""What several networks say of the same test images."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hsakd_jax.core.console import Progress
from hsakd_jax.core.errors import UserError
from hsakd_jax.data import datasets
from hsakd_jax.data.augment import prepare
from hsakd_jax.data.builders import BUILDERS
from hsakd_jax.data.streaming import evaluation_batches
from hsakd_jax.evaluation.accuracy import options
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import restore

SAME = 3  # or one wrong answer would be all that is seen


class Asked(NamedTuple):
    """A network: a run, its 'last' or 'best' checkpoint, and which network of a mutual run."""

    run: Path
    checkpoint: str = "last"
    peer: int = 1


class Answers(NamedTuple):
    """Of one network, in the order of the images."""

    classes: np.ndarray  # int [n]
    probabilities: np.ndarray  # of these classes, float32 [n]


class Opinions(NamedTuple):
    """What was asked and answered.

    Attributes:
      labels: of the test images, int [n].
      answers: by the key of who was asked.
      mistakes: images that the first one is most certain of and wrong about, of each of its answers at most `SAME`, by
        their position, uint8 [H, W, C].
      silent: why somebody was not asked, by key.
    """

    labels: np.ndarray
    answers: dict[str, Answers]
    mistakes: dict[int, np.ndarray]
    silent: dict[str, str]


def ask(asked: Mapping[str, Asked], most: int, data_dir: str | None = None) -> Opinions:
    """Asks networks for the classes of all test images, each of which is read once.

    Args:
      asked: by key, the first one decides what the images are.
      most: mistakes to keep.
      data_dir: where the data lies now; None for where the first run found it.

    Raises:
      UserError: the first one or its data is not there or damaged.
    """
    first, *_ = asked
    configs, networks, silent = {}, {}, {}
    for key, who in asked.items():
        try:
            configs[key] = RunDirectory(who.run).config()
            if not _alike(configs[key], configs[first]):
                raise UserError(f"{who.run} was trained on other classes or images")
            networks[key] = _answering(who, configs[key])
        except UserError as error:
            if key == first:
                raise
            silent[key] = str(error)
    config = configs[first]
    test = _load(config, data_dir)
    known = options(config)
    batches = evaluation_batches(test, known["batch"], known["size"], known["resize"] or known["size"])
    found: dict[str, list] = {key: [] for key in networks}
    wrong: list[tuple[float, int, int, np.ndarray]] = []
    done = 0
    with Progress(f"Asking {len(networks)} networks", len(test.labels)) as progress:
        for rows in batches:
            real = int(rows["mask"].sum())
            for key, answer in networks.items():
                classes, probabilities = (np.asarray(x)[:real] for x in answer(rows["image"]))
                found[key].append((classes, probabilities))
            classes, probabilities = found[first][-1]
            missed = np.flatnonzero(classes != rows["label"][:real])
            for i in missed:  # a copy, or one image would keep all of its batch
                wrong.append((float(probabilities[i]), done + int(i), int(classes[i]), rows["image"][i].copy()))
            counted: Counter[int] = Counter()
            ordered, wrong = sorted(wrong, key=lambda mistake: (-mistake[0], mistake[1])), []
            for mistake in ordered:
                counted[mistake[2]] += 1
                if counted[mistake[2]] <= SAME and len(wrong) < most:
                    wrong.append(mistake)
            done += real
            progress.update(done)
    answers = {key: Answers(*map(np.concatenate, zip(*parts, strict=True))) for key, parts in found.items()}
    return Opinions(np.asarray(test.labels), answers, {i: image for _, i, _, image in wrong}, silent)


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs answer the same question; a converted checkpoint may not know what its classes are called."""
    names = [config.get("classes") for config in (one, other)]
    asked = [(c["network"]["num_classes"], c["network"]["image_shape"][-1]) for c in (one, other)]
    return asked[0] == asked[1] and (not all(names) or names[0] == names[1])


def _answering(who: Asked, config: dict[str, Any]) -> Any:
    """What gives class and probability of uint8 images."""
    network: Any
    network, variables = restore(who.run, who.checkpoint, peer=who.peer)
    network = network.clone(branches=False)
    known = {name: value for name, value in options(config).items() if name != "batch"}

    @jax.jit
    def answer(variables, images):
        logits = network.apply(variables, prepare(images, **known)).logits
        return logits.argmax(-1), jax.nn.softmax(logits).max(-1)

    return lambda images: answer(variables, images)


def _load(config: dict[str, Any], data_dir: str | None) -> Any:
    """The test images; a dataset that would have to be prepared first is not."""
    source = config["data"]
    name, where = source["name"], source["dir"] if data_dir is None else data_dir
    root = Path(where or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    source = {**source, "dir": where}
    there = bool(name) and root.is_dir() and datasets.is_there(source)
    if name == "image_folder" and root.is_dir() and not there:
        raise UserError(f"the images in {root} are others than before: `python -m hsakd_jax.evaluate` reads them anew")
    if not there:
        hint = ", or prepare it by `python -m hsakd_jax.evaluate`" if name in BUILDERS else ""
        raise UserError(f"its data {name} is not in {root}: give --data_dir=DIR{hint}")
    splits = datasets.load_source(source, splits=("test",))
    if list(splits.class_names) != list(config["classes"]):
        raise UserError(f"{name} in {root} has other classes than the run")
    return splits.test
