"""A folder for the Hugging Face Hub around a file of weights: config, labels, preprocessing and a model card.

Nothing is uploaded. The card is made from the run alone: its config, its results, and the table of the exported file.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsakd_jax.core.files import write_json, write_text
from hsakd_jax.data.image_files import FILTERS
from hsakd_jax.data.locate import IMAGE_TREE
from hsakd_jax.evaluation.accuracies import describe as describe_accuracies
from hsakd_jax.evaluation.accuracies import mean_top1
from hsakd_jax.evaluation.accuracy import preprocessing
from hsakd_jax.interop import model_files, torch_files
from hsakd_jax.interop.preprocessing import record_of
from hsakd_jax.models import profile
from hsakd_jax.models.network import Network
from hsakd_jax.runs.config import AnyConfig, RunConfig
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.results import Results

LIMITS = """\
- The accuracies hold for the test images of the same dataset. No other images were measured.
- The network chooses one of its classes for every image, also for an image of none of them.
- The probabilities are those of a softmax. They are not calibrated."""

USE = f"""\
`{torch_files.WEIGHTS}` has the names of the PyTorch network. In this folder, with hsakd_jax installed:

```sh
python -m hsakd_jax.convert {torch_files.WEIGHTS} --output=run
python -m hsakd_jax.predict --workdir=run IMAGE
```"""

# Of images that are not square, which `convert` does not make.
OTHER_USE = f"`{torch_files.WEIGHTS}` has the names of the PyTorch network. hsakd_jax does not read it back."


def describe(
    folder: Path,
    network: Network,
    run: str | Path,
    checkpoint: str,
    licence: str,
    measured: Sequence[model_files.Measured],
) -> None:
    """Writes config.json, labels.txt, README.md and, for square images, preprocessor_config.json.

    Args:
      folder: with the weights, under the name `torch_files.WEIGHTS`.
      network: that is exported.
      run: its run directory.
      checkpoint: 'last' or 'best'.
      licence: of the weights; '' leaves the choice to the person who publishes them.
      measured: the measured weights, for the card.

    Raises:
      OSError: a file can't be written.
      UserError: the run can't be read.
    """
    directory = RunDirectory(run)
    config = directory.config()
    names = config.classes or tuple(f"class {i}" for i in range(config.network.num_classes))
    write_json(folder / "config.json", _network_json(config, names))
    height, width, _ = config.network.image_shape
    if height == width:  # the Hub's image processors have no setting for the middle of another ratio of sides
        write_json(folder / "preprocessor_config.json", _preprocessing_json(config))
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in names))
    card = _card(config, directory.results(), network, checkpoint, licence, measured)
    write_text(folder / "README.md", card)


def _network_json(config: AnyConfig, names: Sequence[str]) -> dict[str, Any]:
    height, width, channels = config.network.image_shape
    return {
        "library_name": "hsakd_jax",
        "architecture": config.network.arch,
        "num_labels": config.network.num_classes,
        "num_channels": channels,
        "image_size": [height, width],
        "id2label": {str(i): name for i, name in enumerate(names)},
        # Without it, the Hub's libraries make their own. ImageNet has two classes of the name crane.
        **({"label2id": {name: i for i, name in enumerate(names)}} if len(set(names)) == len(names) else {}),
    }


def _preprocessing_json(config: AnyConfig) -> dict[str, Any]:
    """The run's preprocessing with the keys of the Hub's image processors."""
    settings, channels = preprocessing(config), config.network.image_shape[-1]
    height, width = settings["shape"]
    mean, std = (list(v) * (channels if len(v) == 1 else 1) for v in (settings["mean"], settings["std"]))
    return {
        "do_resize": True,
        "size": {"shortest_edge": settings["resize"]},
        "resample": int(FILTERS[settings["interpolation"]]),  # Pillow's number
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _card(
    config: AnyConfig,
    results: Results | None,
    network: Network,
    checkpoint: str,
    licence: str,
    measured: Sequence[model_files.Measured],
) -> str:
    data = _data(config)
    sections = {
        "Results": _results(results, checkpoint, measured, config.network.num_classes),
        "Training": _training(config, results),
        "Use": USE if record_of(config) else OTHER_USE,
        "Licence": _licence(licence, data),
        "Limits": "\n".join([LIMITS, _preprocessing(config), *_selection(results, checkpoint)]),
    }
    size = profile.totals(network, config.network.image_shape)
    height, width, channels = config.network.image_shape
    head = f"""\
---
license: {licence or "other"}
library_name: hsakd_jax
pipeline_tag: image-classification
tags:
- knowledge-distillation
- jax
metrics:
- accuracy
---

# {config.network.arch}, {config.network.num_classes} classes of {data}

An image classifier with {size["parameters"]:,} parameters and {size["multiply_adds"]:,} multiply-adds for an image of
{height}x{width}x{channels}, trained by hsakd_jax. The auxiliary classifiers of its training are left out. The names of
the classes are in `labels.txt`.
"""
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())


def _data(config: AnyConfig) -> str:
    if config.data.name in ("image_folder", IMAGE_TREE):
        return "a folder of images of the person who trained it"
    return config.data.name or "data that the run does not name"


def _results(results: Results | None, checkpoint: str, measured: Sequence[model_files.Measured], classes: int) -> str:
    parts = []
    if results:
        found = results.last if checkpoint == "last" else results.best
        epoch = f"Epoch {found['epoch']:g} ({checkpoint}): " if "epoch" in found else ""
        # Of networks that teach one another, the first one is exported.
        top1 = found.get("peer1/top1", mean_top1(found))
        parts.append(f"{epoch}top-1 {top1:.2f} % on {results.test_images:,} test images.")
    if measured:
        parts.append(
            f"This file, measured after its export:\n\n```text\n{model_files.as_table([*measured], classes)}\n```"
        )
    return "\n\n".join(parts) or "The run has not ended, and the file was not measured."


def _training(config: AnyConfig, results: Results | None) -> str:
    if not isinstance(config, RunConfig):
        return f"Converted from the PyTorch checkpoint {config.source} (SHA-256 {config.sha256})."
    training, terms = config.training, config.objective.terms
    used = ", ".join(f"{name} ({term.weight:g})" for name, term in terms.items() if term.weight)
    lines = {
        "data": _data(config) + (f", {results.train_images:,} training images" if results else ""),
        "recipe": config.recipe,
        "terms of the loss (weight)": used,
        "epochs, images per step, learning rate": f"{training.epochs}, {training.batch}, {training.lr:g}",
        "teacher": _teacher(config, results),
        "seed": str(config.seed),
        "computed in": config.network.dtype,
    }
    if results:
        versions = ", ".join(f"{name} {version}" for name, version in results.versions.items() if version)
        lines |= {"device": results.device, "versions": versions, "commit": results.git or "not recorded"}
    table = "\n".join(f"| {key} | {value} |" for key, value in lines.items())
    command = shlex.join(["python", "-m", "hsakd_jax.main", *config.command]) if config.command else ""
    return f"| | |\n|---|---|\n{table}" + (f"\n\nThe command:\n\n```sh\n{command}\n```" if command else "")


def _teacher(config: RunConfig, results: Results | None) -> str:
    if config.teacher is None:
        return "none"
    if results is None or results.teacher is None:
        return f"{config.teacher.checkpoint} checkpoint of another run"
    teacher = results.teacher
    reached = f", {describe_accuracies(teacher.last)}" if teacher.last else ""
    return f"{teacher.arch}, recipe {teacher.recipe}{reached}"


def _licence(licence: str, data: str) -> str:
    own = f"The weights: {licence}." if licence else "The weights: to be chosen by the person who publishes them."
    return f"{own} The terms of the training data ({data}) hold too. The code of hsakd_jax: Apache-2.0."


def _preprocessing(config: AnyConfig) -> str:
    height, width, _ = config.network.image_shape
    if height == width:
        return "- Other preprocessing than that of `preprocessor_config.json` costs accuracy."
    mean, std = list(config.data.mean), list(config.data.std)
    return f"- Images have {height}x{width} pixels, divided by 255 and normalised by mean {mean} and std {std}."


def _selection(results: Results | None, checkpoint: str) -> list[str]:
    if results is None or checkpoint == "last":
        return []
    return [f"- The epoch was selected by {results.selected_by}."]
