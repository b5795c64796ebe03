"""A network is a stem, stages and a head; branch l is a fresh copy of what is left after stage l."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from hsakd_jax.models.layers import Init, Parts, Train
from hsakd_jax.models.rotations import ROTATIONS

Array = jax.Array
# Key of an objective's own variables, beside those of the network that it trains.
OBJECTIVE = "objective"


class Outputs(NamedTuple):
    """What a network gives for B images.

    Attributes:
      logits: [B, N], at least float32.
      aux_logits: L arrays [B, 4N], at least float32, joint logits of class and rotation; empty without branches.
      features: L arrays [B, H, W, C], the map after each stage, in the compute dtype.
      embedding: [B, D], at least float32, what the last linear layer takes: the pooled map.
    """

    logits: Array
    aux_logits: tuple[Array, ...] = ()
    features: tuple[Array, ...] = ()
    embedding: Array | None = None


class Architecture(NamedTuple):
    """A network's recipes; each call of a recipe makes fresh layers, so branches share nothing.

    Attributes:
      stem: `stem(parts, name=...)` -> module, or None where the first stage takes the image.
      stages: each `stage(parts, name=...)` -> module; `stage(parts, stride=1, name=...)` is its copy at stride 1.
      head: `head(parts, num_outputs, name=...)` -> module that gives logits and what its linear layer took.
      init: initialisers of the backbone.
      branch_init: initialisers of the branches.
    """

    stem: Callable[..., nn.Module] | None
    stages: tuple[Callable[..., nn.Module], ...]
    head: Callable[..., nn.Module]
    init: Init
    branch_init: Init


class Network(nn.Module):
    """Backbone with an optional auxiliary classifier after every stage (in the paper c_l, l = 1..L).

    Parameter paths are 'stem/..', 'stage{l}/..', 'head/..' and, in branch l, 'branch{l}/stage{m}/..' and
    'branch{l}/head/..'.

    Attributes:
      architecture: stem, stages and head.
      num_classes: N, how many classes.
      branches: whether auxiliary classifiers exist.
      dtype: compute dtype of convolutions; None computes in the parameters' dtype.
      portable: whether layers are computed as `jax.lax` has them, for a program that other backends run, and not in the
        form that suits this one.
      remat: whether a stage's inside is computed again for its backward pass instead of kept (Chen et al. 2016, arXiv
        1604.06174), which takes less memory and more time.
      batch_norm_groups: parts of the batch with statistics of their own (see `parts.BatchNorm`).
    """

    architecture: Architecture
    num_classes: int
    branches: bool = True
    dtype: Any = None
    portable: bool = False
    remat: bool = False
    batch_norm_groups: int = 1

    @nn.compact
    def __call__(self, images: Array, train: Train = False) -> Outputs:
        """Runs the network.

        Args:
          images: [B, H, W, C], floating point.
          train: BatchNorm mode: True (batch statistics), False (running ones), or a pattern over parameter paths
            that picks the layers in training mode.

        Raises:
          ValueError: H or W is too small for the strides.
        """
        stem, stages, head, init, branch_init = self.architecture
        stages = tuple(map(_rematerialised, stages)) if self.remat else stages
        # Flax traces one image to make the variables.
        groups = 1 if self.is_initializing() else self.batch_norm_groups
        backbone, branch = (Parts(i, self.dtype, train, self.portable, groups) for i in (init, branch_init))
        x = stem(backbone, name="stem")(images) if stem else images
        features = []
        for l, stage in enumerate(stages, 1):
            x = stage(backbone, name=f"stage{l}")(x)
            features.append(x)
        logits, embedding = head(backbone, self.num_classes, name="head")(x)
        aux_logits = []
        if self.branches:
            for l, x in enumerate(features, 1):
                tail = {f"stage{m}": stage for m, stage in enumerate(stages, 1) if m > l}
                classifier = Branch(tail, stages[-1], head, ROTATIONS * self.num_classes, branch, name=f"branch{l}")
                aux_logits.append(classifier(x))
        return Outputs(logits, tuple(aux_logits), tuple(features), embedding)


def _rematerialised(stage: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    recipe = partial(stage)
    return partial(nn.remat(recipe.func), *recipe.args, **recipe.keywords)


class Branch(nn.Module):
    """Auxiliary classifier: the stages left after stage l, or the last one once more at stride 1, and the head."""

    tail: dict[str, Callable[..., nn.Module]]
    last: Callable[..., nn.Module]
    head: Callable[..., nn.Module]
    num_outputs: int
    parts: Parts

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for name, stage in self.tail.items():
            x = stage(self.parts, name=name)(x)
        if not self.tail:
            x = self.last(self.parts, stride=1, name="stage")(x)
        return self.head(self.parts, self.num_outputs, name="head")(x)[0]


class Peers(nn.Module):
    """Networks that learn together; parameter paths begin with 'peer1', 'peer2', ...

    Attributes:
      networks: recipes, each `network(branches=..., name=...)` -> Network.
      branches: whether they have auxiliary classifiers.
    """

    networks: tuple[Callable[..., Network], ...]
    branches: bool = True

    @nn.compact
    def __call__(self, images: Array, train: Train = False) -> tuple[Outputs, ...]:
        peers = (network(branches=self.branches, name=f"peer{i}") for i, network in enumerate(self.networks, 1))
        return tuple(peer(images, train) for peer in peers)
