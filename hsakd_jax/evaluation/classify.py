"""Classes of image files by a trained network."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hsakd_jax.core.console import Progress, note, table
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import expand
from hsakd_jax.data.augment import prepare
from hsakd_jax.data.image_files import EXTENSIONS, read_file, unreadable
from hsakd_jax.data.image_tree import find_images, summary
from hsakd_jax.evaluation.accuracy import pixels_of, preprocessing
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import restore

BATCH = 64


class Prediction(NamedTuple):
    """The likeliest classes of one image, the likeliest first.

    Attributes:
      image: its path.
      classes: names of the classes.
      probabilities: 0 to 1, as many.
    """

    image: str
    classes: list[str]
    probabilities: list[float]


def find(words: Sequence[str]) -> list[Path]:
    """The image files among files and folders, which are searched in depth.

    Raises:
      UserError: a folder without images.
    """
    paths = []
    for word in words:
        path = expand(word)
        if not os.path.isdir(path):
            paths.append(path)
            continue
        found = find_images(path)
        left_out = summary(found.left_out)
        if not found.files:
            kinds, why = ", ".join(sorted(EXTENSIONS)), f" ({left_out})" if left_out else ""
            raise UserError(f"no images in {path}{why}: there should be files of {kinds}")
        if left_out:
            note(f"{path}: {left_out}")
        paths += [path / name for name in found.files]
    return paths


def predict(
    workdir: str | Path, paths: Sequence[Path], top: int, checkpoint: str = "last"
) -> tuple[list[Prediction], list[str]]:
    """Predicts the classes of images.

    Args:
      workdir: a run directory.
      paths: image files; each is cropped and scaled as the run's test images are (see `accuracy.pixels_of`).
      top: classes per image.
      checkpoint: 'last' or 'best'.

    Returns:
      A prediction for each image that could be read, and a line for each other one.

    Raises:
      UserError: not a run, its images have a number of channels that no file has, or its outputs are not finite.
    """
    config = RunDirectory(workdir).config()
    network: Any
    network, variables = restore(workdir, checkpoint)
    network = network.clone(branches=False)
    if peers := config.network.peers:
        note(f"{workdir} contains {len(peers)} networks: the first one predicts")
    names = config.classes or [f"class {i}" for i in range(network.num_classes)]
    pixels, preprocess = pixels_of(config), preprocessing(config)
    top = min(top, len(names))

    @jax.jit
    def likeliest(images):
        return jax.lax.top_k(jax.nn.softmax(network.apply(variables, prepare(images, **preprocess)).logits), top)

    def read_image(path: Path) -> np.ndarray | UserError:
        try:
            return pixels(read_file(path))
        except Exception as error:  # a damaged file can fail anywhere in the decoder
            return unreadable(str(path), error)

    predictions, skipped = [], []
    with Progress("Predicting", len(paths)) as progress, ThreadPoolExecutor() as pool:
        for i in range(0, len(paths), BATCH):
            chunk = paths[i : i + BATCH]
            read = list(zip(chunk, pool.map(read_image, chunk), strict=True))
            skipped += [str(image) for _, image in read if isinstance(image, UserError)]
            good = [(path, image) for path, image in read if not isinstance(image, UserError)]
            if good:
                images = np.zeros((BATCH, *config.network.image_shape), np.uint8)  # one shape, compiled once
                images[: len(good)] = [image for _, image in good]
                probabilities, classes = (np.asarray(x)[: len(good)] for x in likeliest(images))
                if not np.isfinite(probabilities).all(1).any():
                    raise UserError(f"the outputs of {workdir} are not finite: choose another checkpoint or run")
                for (path, _), row, numbers in zip(good, classes, probabilities, strict=True):
                    if np.isfinite(numbers).all():
                        predictions.append(Prediction(str(path), [names[c] for c in row], numbers.tolist()))
                    else:
                        skipped.append(f"{path}: the outputs of {workdir} are not finite, choose another checkpoint")
            progress.update(i + len(chunk))
    return predictions, skipped


def _as_table(predictions: list[Prediction]) -> str:
    rows = [
        [p.image if i == 0 else "", name, f"{100 * probability:.2f}"]
        for p in predictions
        for i, (name, probability) in enumerate(zip(p.classes, p.probabilities, strict=True))
    ]
    return table(["image", "class", "probability %"], rows)


def _as_csv(predictions: list[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "probability"])
    for p in predictions:
        for rank, pair in enumerate(zip(p.classes, p.probabilities, strict=True), 1):
            writer.writerow([p.image, rank, *pair])
    return text.getvalue().rstrip("\n")


def _as_json(predictions: list[Prediction]) -> str:
    return json.dumps([p._asdict() for p in predictions], indent=2)


SHOWN_AS: dict[str, Callable[[list[Prediction]], Any]] = {"table": _as_table, "csv": _as_csv, "json": _as_json}
