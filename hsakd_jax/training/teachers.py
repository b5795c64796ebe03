"""The network that teaches: restored from its run, in the form that the student's objective needs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsakd_jax.core.errors import UserError
from hsakd_jax.data.augment import METHODS
from hsakd_jax.models.folding import Folded
from hsakd_jax.runs.compare import ClassMatch, match_classes
from hsakd_jax.runs.config import Config, RunConfig, Teacher
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build_network, peer_config, reorder_classes, restore, without_branches

# Terms that read the teacher's branches.
READ_BRANCHES = ("kl_aux", "dist_aux")


class Taught(NamedTuple):
    """A teacher.

    Attributes:
      network: Linen module, `models.folding.Folded` or `Preprocessed`.
      variables: of the network.
      notes: lines for the user.
    """

    network: Any
    variables: Any
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Preprocessed:
    """A teacher whose images are preprocessed as in its own run, from the images of the student's.

    Attributes:
      network: Linen module or `models.folding.Folded`.
      size: (H, W) of its images.
      scale: per channel, which the student's normalised pixels are multiplied by.
      shift: per channel, which is then added.
      interpolation: how images are scaled to `size`, a key of `data.augment.METHODS`.
    """

    network: Any
    size: tuple[int, int]
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    interpolation: str

    @property
    def branches(self) -> bool:
        """Whether the network has auxiliary classifiers."""
        return self.network.branches

    def clone(self, **changes: Any) -> "Preprocessed":
        """A copy whose network has other attributes, as `clone` of Linen modules."""
        return replace(self, network=self.network.clone(**changes))

    def init(self, key: Any, images: Any) -> Any:
        """Variables of the untrained network, for the student's images [B, H, W, C]."""
        return self.network.init(key, self._preprocess(images))

    def apply(self, variables: Any, images: Any) -> Any:
        """The outputs of the network for the student's normalised images [B, H, W, C]."""
        return self.network.apply(variables, self._preprocess(images))

    def _preprocess(self, images: Any) -> Any:
        if images.shape[1:3] != self.size:
            shape = (len(images), *self.size, images.shape[-1])
            images = jax.image.resize(images, shape, METHODS[self.interpolation], antialias=True)
        # The crop's padding is black for both, since it comes before the student's normalisation.
        scale, shift = (jnp.asarray(v, images.dtype).reshape(1, 1, 1, -1) for v in (self.scale, self.shift))
        return images * scale + shift


def load(config: RunConfig, settings: Teacher, directory: RunDirectory) -> Taught:
    """The teacher of a run.

    Args:
      config: of the student's run.
      settings: its section 'teacher'.
      directory: the teacher's run.

    Raises:
      UserError: it can't be restored, or has other classes or channels than the student's dataset. Or its images can't
        be made from the student's, or it has no branches where a term needs them.
    """
    theirs = directory.config()
    match = _match(config, theirs, directory.path)
    network, variables = restore(directory.path, settings.checkpoint, settings.dtype, settings.peer)
    network = _fit(config, network, directory.path)
    variables = variables if network.branches else without_branches(variables)
    variables = variables if match.order is None else reorder_classes(variables, match.order)
    network, variables = to_inference(network, variables, theirs.network.image_shape)
    notes = (match.note, _other_images(config, theirs, directory.path))
    return Taught(preprocessed(config, network, theirs), variables, tuple(filter(None, notes)))


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
    _match(config, theirs, path)
    network = build_network(peer_config(theirs.network, path, settings.dtype, settings.peer))
    return preprocessed(config, inference_form(_fit(config, network, path)), theirs)


def preprocessed(config: RunConfig, network: Any, theirs: Config) -> Any:
    """A teacher that takes the student's images; itself where both runs preprocess alike.

    Args:
      config: of the student's run.
      network: of the teacher.
      theirs: config of the teacher's run.
    """
    height, width, channels = theirs.network.image_shape
    # In float64, since a difference of two means can be small.
    mean, std, own_mean, own_std = (
        np.broadcast_to(np.asarray(numbers, np.float64), channels)
        for numbers in (theirs.data.mean, theirs.data.std, config.data.mean, config.data.std)
    )
    scale, shift = own_std / std, (own_mean - mean) / std
    if config.network.image_shape == theirs.network.image_shape and (scale == 1).all() and (shift == 0).all():
        return network
    return Preprocessed(
        network, (height, width), tuple(scale.tolist()), tuple(shift.tolist()), theirs.data.interpolation
    )


def _other_images(config: Config, theirs: Config, path: Path) -> str:
    """The line about a teacher whose images were scaled in another way than the student's files; '' for none."""
    own, other = config.data.interpolation, theirs.data.interpolation
    if own == other or "resized" not in (config.data.crop, theirs.data.crop):
        return ""
    return (
        f"the teacher {path} was trained on {other} images, and sees the {own} ones of this run: "
        f"--config.data.interpolation={other} scales as its own run"
    )


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


def _match(config: RunConfig, theirs: Config, path: Path) -> ClassMatch:
    """The match of the teacher's classes with the student's, or the errors of `load` about images and classes."""
    (*side, channels), (*own_side, own) = theirs.network.image_shape, config.network.image_shape
    if channels != own:
        raise UserError(
            f"the teacher {path} takes images of {channels} channels and the dataset has {own}: choose a teacher of "
            "the same dataset (teacher.workdir)"
        )
    if side[0] * own_side[1] != side[1] * own_side[0]:
        raise UserError(
            f"the teacher {path} takes images of {side[0]}x{side[1]}, and those of {own_side[0]}x{own_side[1]} have "
            "another ratio of sides: set data.image_size, or another teacher.workdir"
        )
    match = match_classes(theirs, path, config.network.num_classes, config.classes, str(config.data.name))
    if match.difference:
        raise UserError(f"the teacher {path} {match.difference}: choose a teacher of the same dataset")
    return match


def _fit(config: RunConfig, teacher: Any, path: Path) -> Any:
    """The teacher with the branches that the run needs, or the error of `load`."""
    readers = [name for name in READ_BRANCHES if (term := config.objective.terms.get(name)) and term.weight > 0]
    if readers and not teacher.branches:
        raise UserError(
            f"the teacher {path} has no branches, which {readers[0]} needs: train it with the recipe 'teacher'"
        )
    # Branches that no term reads are not computed.
    return teacher.clone(branches=bool(readers))
