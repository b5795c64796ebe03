"""A PyTorch checkpoint becomes a run directory like any other."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsakd_jax.core.console import Console
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import read_names
from hsakd_jax.experiments.recipes import NORMALISATION
from hsakd_jax.interop import torch_files, torch_weights
from hsakd_jax.models import create, profile
from hsakd_jax.runs import provenance
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory

RECIPE = "converted"


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
) -> dict[str, Any]:
    """Makes a run directory of a checkpoint, which `evaluate`, `restore` and a student's config accept.

    Args:
      checkpoint: a file, see `weights.load_torch`.
      output: the run directory to make.
      console: where it is said what was found.
      arch: name of the network; '' finds it.
      data: name of its dataset; '' takes the one with that many classes that published networks are trained on.
      data_dir: where the data lies, see `data.load`.
      image_size: side of its images; 0 for 224 of ImageNet's networks and 32 of others.
      mean: of the normalisation, one number a channel; () takes that of `data`, or else of CIFAR-100 or ImageNet.
      std: likewise.
      classes: a file with the name of a class in each line; '' leaves them without names.

    Returns:
      What results.json holds.

    Raises:
      UserError: see `state_dicts.read` and `weights.recognise`; nothing has been written then. Or `output` holds
        something else.
    """
    if arch:
        create(arch, 2)  # refuses an unknown name before the file is read
    tensors, foreign = torch_weights.unwrap(torch_files.read(checkpoint))
    found = torch_weights.recognise(tensors, arch, str(checkpoint))
    big = found.name.endswith("_imagenet")
    usual = ({1000: "imagenet2012"} if big else {100: "cifar100", 10: "cifar10"}).get(found.num_classes, "")
    data = data or usual
    normal = NORMALISATION.get(data, NORMALISATION["imagenet2012" if big else "cifar100"])
    if bool(mean) != bool(std):
        raise UserError("mean and std belong together: give both, --mean and --std, or neither")
    normal = {"mean": mean, "std": std} if mean else normal
    for name, numbers in normal.items():
        if len(numbers) != found.channels:
            raise UserError(
                f"{name} has {len(numbers)} numbers, the network's images {found.channels} channels: give --{name}"
            )
    classes_of_data = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet2012": 1000}.get(data, found.num_classes)
    if classes_of_data != found.num_classes:
        raise UserError(f"the network has {found.num_classes} classes and {data} has {classes_of_data}: check --data")
    side = image_size or (224 if big else 8 if data == "digits" else 32)
    shape = [side, side, found.channels]
    if not all(0 < number < float("inf") for number in normal["std"]):
        raise UserError(f"std {list(normal['std'])} can't be divided by: give positive numbers")
    network = found.network()
    try:
        sizes = profile.sizes(network, tuple(shape))
    except ValueError as error:
        raise UserError(str(error)) from error
    with Path(checkpoint).expanduser().open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    names = read_names(classes, found.num_classes) if classes else []
    console.line(
        f"{checkpoint}: {found.name}, {'with' if found.branches else 'without'} branches, {found.num_classes} classes"
        f"{'' if arch else ' (found from its tensors)'}"
        + (f"; {len(foreign)} tensors that are not the network's left out ({foreign[0]}, ...)" if foreign else "")
    )
    console.line(
        f"images of {side}x{side}x{found.channels}, mean {list(normal['mean'])}, std {list(normal['std'])}, "
        f"data {data or 'not known (--data)'}"
    )
    directory = RunDirectory(output)
    directory.claim(
        {
            "recipe": RECIPE,
            "source": {"file": Path(checkpoint).name, "sha256": digest},
            "network": {
                "arch": found.name,
                "dtype": "float32",
                "branches": found.branches,
                "peers": [],
                "num_classes": found.num_classes,
                "image_shape": shape,
            },
            "classes": names,
            "data": {"name": data, "dir": data_dir, **_sides(data, side, big), **normal},
            "eval_batch": 500,
        }
    )
    checkpoints = Checkpoints(directory.checkpoints)
    if not checkpoints.steps():
        checkpoints.save(0, torch_weights.to_variables(tensors, found))
    checkpoints.close()
    results = {"recipe": RECIPE, "arch": found.name, **sizes, **provenance.environment()}
    directory.finish(results)
    console.line(f"{directory.path}: {results['parameters']['with_branches']:,} parameters")
    return results


def _sides(data: str, side: int, big: bool) -> dict[str, Any]:
    """How images come to the network's size: as they are, or as ImageNet's are for its networks."""
    if big:
        return {"crop": "resized", "image_size": side, "resize": round(side * 256 / 224)}
    return {"image_size": side if data == "image_folder" else 0}
