"""A PyTorch checkpoint becomes a run directory like any other."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hsakd_jax.core.console import Console
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import expand, read_names
from hsakd_jax.data.datasets import check_name
from hsakd_jax.data.image_files import DECODING
from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.interop import torch_files, torch_weights
from hsakd_jax.models import architecture, create, profile
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.config import ConvertedConfig, typed
from hsakd_jax.runs.directory import RunDirectory


def convert(
    checkpoint: str | Path,
    output: str | Path,
    console: Console,
    *,
    arch: str = "",
    data: str = "",
    data_dir: str = "",
    image_size: int = 0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    classes: str = "",
    part: str = "",
) -> None:
    """Makes a run directory of a checkpoint, which `evaluate`, `restore` and a student's config accept.

    Args:
      checkpoint: a file, see `torch_weights.load_torch`.
      output: the run directory to make.
      console: where it is said what was found.
      arch: name of the network; '' finds it.
      data: name of its dataset; '' takes the one with that many classes that published networks are trained on.
      data_dir: folder of the data, see `datasets.load`.
      image_size: side of its images; 0 for that of published results, such as 224 of ImageNet.
      mean: of the normalisation, one number a channel; () takes that of `data`, or else of CIFAR-100 or ImageNet.
      std: as `mean`.
      classes: a file with the name of a class in each line; '' leaves them without names.
      part: which weights, where the file contains several, see `torch_weights.load_torch`.

    Raises:
      UserError: see `torch_files.read`, `torch_weights.unwrap`, `torch_weights.recognise` and `runs.config.typed`;
        nothing has been written then. Or `output` holds something else.
    """
    directory = RunDirectory(output)
    if arch:
        create(arch, 2)  # refuses an unknown name before the file is read
    check_name(data, data_dir)
    content = torch_files.read(checkpoint, part)
    tensors, foreign = torch_weights.unwrap(content, str(checkpoint), part)
    found = torch_weights.recognise(tensors, arch, str(checkpoint))
    big = architecture(found.name).for_imagenet
    data = data or (_usual_data(found.num_classes, big) if found.channels == 3 else "")
    _check_classes(data, found.num_classes)
    normal = _normalisation(data, big, mean, std)
    if len(normal["mean"]) not in (1, found.channels):
        raise UserError(
            f"{checkpoint} takes images of {found.channels} channels: set --data, such as --data=digits of 1, or "
            f"--mean and --std with {found.channels} numbers"
        )
    side = image_size or (8 if data == "digits" and not big else architecture(found.name).image_size)
    try:
        sizes = profile.sizes(found.network(), (side, side, found.channels))
    except ValueError as error:
        raise UserError(str(error)) from error
    values = {
        "source": Path(checkpoint).name,
        "sha256": _sha256(checkpoint),
        "part": part or None,
        "network": _network(found, side),
        "classes": read_names(classes, found.num_classes) if classes else (),
        "data": _data(data or None, data_dir or None, side, big, normal),
        "eval_batch": 500,
    }
    config = typed(ConvertedConfig, values, f"{checkpoint} (--data, --mean, --std, --image_size)")
    left_out = f"; {len(foreign)} tensors that are not the network's left out ({foreign[0]}, ...)" if foreign else ""
    console.line(f"{checkpoint}: {_describe(config)}{'' if arch else ' (found from its tensors)'}{left_out}")
    if content.others:
        others = torch_files.listed(content.others)
        console.line(f"the weights are those of {content.section}; the file also contains {others} (--part)")
    console.line(
        f"images of {side}x{side}x{found.channels}, mean {list(normal['mean'])}, std {list(normal['std'])}, "
        f"data {data or 'not known (--data)'}"
    )
    directory.acquire(config)
    checkpoints = Checkpoints(directory.checkpoints, config=config)
    if not checkpoints.steps():
        checkpoints.save(0, torch_weights.to_variables(tensors, found))
    checkpoints.close()
    console.line(f"{directory.path}: {sizes['parameters']['with_branches']:,} parameters")


def _describe(config: ConvertedConfig) -> str:
    network = config.network
    return f"{network.arch}, {'with' if network.branches else 'without'} branches, {network.num_classes} classes"


def _usual_data(num_classes: int, big: bool) -> str:
    """The dataset with that many classes that published networks are trained on; '' for none."""
    return ({1000: "imagenet2012"} if big else {100: "cifar100", 10: "cifar10"}).get(num_classes, "")


def _check_classes(data: str, num_classes: int) -> None:
    expected = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet2012": 1000}.get(data, num_classes)
    if expected != num_classes:
        raise UserError(f"the network has {num_classes} classes and {data} has {expected}: check --data")


def _normalisation(data: str, big: bool, mean: Sequence[float], std: Sequence[float]) -> Mapping[str, Sequence[float]]:
    """The given mean and std, or those of the dataset.

    Raises:
      UserError: one without the other.
    """
    if bool(mean) != bool(std):
        raise UserError("mean and std belong together: give both, --mean and --std, or neither")
    usual = NORMALISATION.get(data, NORMALISATION["imagenet2012" if big else "cifar100"])
    return {"mean": mean, "std": std} if mean else usual


def _sha256(path: str | Path) -> str:
    with expand(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _network(found: torch_weights.Found, side: int) -> dict[str, Any]:
    return {
        "arch": found.name,
        "dtype": "float32",
        "branches": found.branches,
        "peers": (),
        "num_classes": found.num_classes,
        "image_shape": (side, side, found.channels),
        "projector": None,
    }


def _data(
    name: str | None, folder: str | None, side: int, big: bool, normal: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """How images come to the network's size: as they are, or as ImageNet's do for its networks."""
    return {
        "name": name,
        "dir": folder,
        "image_size": side if big or name == "image_folder" else None,
        "resize": round(side * 256 / 224) if big else None,
        "crop": "resized" if big else "pad",
        "pad": 0,
        "flip": False,
        "fraction": 1.0,
        "validation": 0.0,
        "decoding": DECODING,
        "max_pixels": None,
        **normal,
    }
