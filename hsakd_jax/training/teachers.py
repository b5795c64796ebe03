"""The network that teaches: restored from its run, in the form that the student's objective needs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from hsakd_jax.core.errors import UserError
from hsakd_jax.models.folding import Folded
from hsakd_jax.runs.compare import class_difference
from hsakd_jax.runs.config import Config, RunConfig, Teacher
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build_network, peer_config, restore, without_branches


def load(config: RunConfig, settings: Teacher, directory: RunDirectory) -> tuple[Any, Any]:
    """(network, variables) of the teacher.

    Args:
      config: of the student's run.
      settings: its section 'teacher'.
      directory: the teacher's run.

    Raises:
      UserError: it can't be restored, has other classes or channels than the student's dataset, or no branches where a
        term needs them.
    """
    network, variables = restore(directory.path, settings.checkpoint, settings.dtype, settings.peer)
    network = _fit(config, network, directory.config(), directory.path)
    variables = variables if network.branches else without_branches(variables)
    return to_inference(network, variables, config.network.image_shape)


def abstract_teacher(config: RunConfig, settings: Teacher, theirs: Config, path: Path) -> Any:
    """The network that `load` returns, without its variables; its run need not have begun.

    Args:
      config: of the student's run.
      settings: its section 'teacher'.
      theirs: config of the teacher's run.
      path: of the teacher's run, for errors.

    Raises:
      UserError: as `load`.
    """
    network = build_network(peer_config(theirs.network, path, settings.dtype, settings.peer))
    return inference_form(_fit(config, network, theirs, path))


def to_inference(network: Any, variables: Any, image_shape: Sequence[int]) -> tuple[Any, Any]:
    """A teacher and its variables in the form that is fastest on this backend.

    Args:
      network: Linen module.
      variables: of the network.
      image_shape: [H, W, C].
    """
    form = inference_form(network)
    if form is network:
        return network, variables
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return form, jax.jit(partial(form.fold, images=image))(variables)


def inference_form(network: Any) -> Any:
    """The network in the form that is fastest on this backend; `to_inference` converts its variables."""
    # On CPU, XLA makes BatchNorm part of the pass that follows a convolution, and folding gains nothing.
    return network if jax.default_backend() == "cpu" else Folded(network)


def _fit(config: RunConfig, teacher: Any, theirs: Config, path: Path) -> Any:
    """The teacher with the branches that the run needs, or the errors of `load`."""
    channels, own = theirs.network.image_shape[-1], config.network.image_shape[-1]
    if channels != own:
        raise UserError(
            f"the teacher {path} takes images of {channels} channels and the dataset has {own}: choose a teacher of "
            "the same dataset"
        )
    if difference := class_difference(theirs, config.network.num_classes, config.classes):
        raise UserError(f"the teacher {path} {difference}: choose a teacher of the same dataset")
    term = config.objective.terms.get("kl_aux")
    reads_branches = term is not None and term.weight > 0
    if reads_branches and not teacher.branches:
        raise UserError(f"the teacher {path} has no branches, which kl_aux needs: train it with the recipe 'teacher'")
    # Branches that no term reads are not computed.
    return teacher.clone(branches=reads_branches)
