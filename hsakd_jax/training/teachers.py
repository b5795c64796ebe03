"""The network that teaches: restored from its run, in the form that the student's objective needs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from hsakd_jax.core.errors import UserError
from hsakd_jax.models.folding import Folded
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build, chosen, restore, without_branches


def load(config: dict[str, Any], directory: RunDirectory) -> tuple[Any, Any]:
    """(network, variables) of the teacher.

    Args:
      config: of the student's run, resolved.
      directory: the teacher's run.

    Raises:
      UserError: it can't be restored, has other classes or channels than the student's dataset, or no branches where a
        term needs them.
    """
    network, variables = restore(directory.path, config["teacher"]["checkpoint"], **_options(config))
    network = _fit(config, network, directory.config(), directory.path)
    variables = variables if network.branches else without_branches(variables)
    return prepare(network, variables, config["network"]["image_shape"])


def foresee(config: dict[str, Any], described: dict[str, Any], path: Path) -> Any:
    """The network that `load` will give, while its run need not have begun.

    Args:
      config: of the student's run, resolved.
      described: config of the teacher's run, resolved.
      path: of the teacher's run, for errors.

    Raises:
      UserError: as `load`.
    """
    return answering(_fit(config, build(chosen(described["network"], path, **_options(config))), described, path))


def prepare(network: Any, variables: Any, image_shape: Sequence[int]) -> tuple[Any, Any]:
    """A teacher and its variables in the form in which this backend answers fastest.

    Args:
      network: Linen module.
      variables: its.
      image_shape: [H, W, C].
    """
    form = answering(network)
    if form is network:
        return network, variables
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return form, jax.jit(partial(form.fold, images=image))(variables)


def answering(network: Any) -> Any:
    """The network in the form in which this backend answers fastest; `prepare` has its variables."""
    # On CPU, XLA makes BatchNorm part of the pass that follows a convolution, and folding gains nothing.
    return network if jax.default_backend() == "cpu" else Folded(network)


def _options(config):
    """What a student's config says of its teacher's network."""
    return {name: config["teacher"][name] for name in ("dtype", "peer") if name in config["teacher"]}


def _fit(config, teacher, described, path):
    """The teacher as a run needs it, or the errors of `load`."""
    ours = config["network"]
    for what, theirs, own in (
        ("classes", teacher.num_classes, ours["num_classes"]),
        ("channels", described["network"]["image_shape"][-1], ours["image_shape"][-1]),
    ):
        if theirs != own:
            raise UserError(
                f"the teacher {path} knows {theirs} {what} and the dataset has {own}: choose a teacher of the same "
                "dataset"
            )
    # A converted checkpoint may not know what its classes are called.
    if described["classes"] and list(described["classes"]) != list(config["classes"]):
        theirs, own = next((a, b) for a, b in zip(described["classes"], config["classes"], strict=True) if a != b)
        raise UserError(
            f"the teacher {path} knows other classes than the dataset has, {theirs} for {own}: choose a teacher of the "
            "same dataset"
        )
    reads_branches = bool(config["objective"].get("kl_aux", {}).get("weight"))
    if reads_branches and not teacher.branches:
        raise UserError(f"the teacher {path} has no branches, which kl_aux needs: train it with the recipe 'teacher'")
    # Branches that no term reads are not computed.
    return teacher.clone(branches=reads_branches)
