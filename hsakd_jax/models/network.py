"""A network is a stem, stages and a head; branch l is a fresh copy of the stages after stage l."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from hsakd_jax.models.layers import Init, LayerFactory, Train
from hsakd_jax.models.maps import HeadOutputs, Maps, as_maps, hints, with_preactivations
from hsakd_jax.models.reused_head import ReusedHead
from hsakd_jax.models.rotations import ROTATIONS

Array = jax.Array
# Key of an objective's own variables, next to those of the network that it trains.
OBJECTIVE = "objective"


class Outputs(NamedTuple):
    """The outputs of a network for B images.

    Attributes:
      logits: [B, N], at least float32.
      aux_logits: L arrays [B, 4N], at least float32, joint logits of class and rotation; empty without branches.
      features: L arrays [B, H, W, C], the map after each stage, in the compute dtype.
      embedding: [B, D], at least float32, the input of the last linear layer. It is the pooled map; for
        `vgg16_bn_imagenet` and MobileNetV3 the hidden layer after it, for DeiT the class token.
      last_map: [B, H, W, D], in the compute dtype, the input of the global average pool. It is after the head's own
        layers: BatchNorm and ReLU of WRNs and DenseNets, the last convolution of MobileNetV2 and ShuffleNetV2. The
        last linear layers of `vgg16_bn_imagenet`, MobileNetV3, ConvNeXt and DeiT have no pooled map as input. For
        them this is that input as a map of 1x1, in at least float32.
      hints: K arrays [B, H, W, C], in the compute dtype, the maps that CRD's benchmark (arXiv 1910.10699) compares.
        They are `features`, except for VGGs for 32x32 images: there, the maps after the blocks 2 to 5 (4 stages have 5
        blocks).
      preactivations: K arrays, each `hints` before its last ReLU, as in ReviewKD's code (arXiv 2104.09044). For WRNs
        and DenseNets, the hint after the BatchNorm that begins the next stage or the head. The hint itself, where it
        comes from no ReLU (MobileNetV2, MobileNetV3, EfficientNet) or from a stage that returns its output alone.
        Channels of ShuffleNetV2 have the order of the hint, not that before the shuffle.
    """

    logits: Array
    aux_logits: tuple[Array, ...] = ()
    features: tuple[Array, ...] = ()
    embedding: Array | None = None
    last_map: Array | None = None
    hints: tuple[Array, ...] = ()
    preactivations: tuple[Array, ...] = ()


class Architecture(NamedTuple):
    """The modules of a network, as functions that make them; each call makes fresh layers, so branches share none.

    Attributes:
      stem: `stem(layers, name=...)` -> module, or None if the first stage takes the image.
      stages: each `stage(layers, name=...)` -> module; `stage(layers, stride=1, name=...)` is its copy at stride 1. It
        returns its output, [B, H, W, C], or `maps.Maps` with the maps inside that methods compare. It takes the output
        of the module before, with the class token where there is one (`maps.Maps.next_input`).
      head: `head(layers, num_outputs, name=...)` -> module that returns the result of `layers.pool_fc`, or a tuple of
        logits and the input of its linear layer.
      init: initialisers of the backbone.
      branch_init: initialisers of the branches.
      image_size: side of the images that the network was published for; 224 or more for ImageNet.
      batch_norm_eps: see `layers.BatchNorm.eps`.
      batch_norm_momentum: see `layers.BatchNorm.momentum`.
    """

    stem: Callable[..., nn.Module] | None
    stages: tuple[Callable[..., nn.Module], ...]
    head: Callable[..., nn.Module]
    init: Init
    branch_init: Init
    image_size: int = 32
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.1

    @property
    def for_imagenet(self) -> bool:
        """Whether the network was published for ImageNet, of 1000 classes."""
        return self.image_size >= 224


class Network(nn.Module):
    """Backbone with an optional auxiliary classifier after every stage (in the paper c_l, l = 1..L).

    Parameter paths are 'stem/..', 'stage{l}/..', 'head/..' and, in branch l, 'branch{l}/stage{m}/..' and
    'branch{l}/head/..'.

    Attributes:
      architecture: stem, stages and head.
      num_classes: N, the number of classes.
      branches: whether auxiliary classifiers exist.
      dtype: compute dtype of convolutions; None computes in the dtype of the parameters.
      for_export: see `layers.LayerFactory`.
      remat: whether the activations inside a stage are recomputed in its backward pass instead of stored (Chen et al.
        2016, arXiv 1604.06174), which takes less memory and more time.
      batch_norm_groups: groups of the batch with statistics of their own, see `layers.BatchNorm`.
      projector: [H, W, C] of a teacher's last map, to which SimKD's head projects; None for the backbone's own head.
        See `reused_head.ReusedHead`.
    """

    architecture: Architecture
    num_classes: int
    branches: bool = True
    dtype: Any = None
    for_export: bool = False
    remat: bool = False
    batch_norm_groups: int = 1
    projector: tuple[int, int, int] | None = None

    @nn.compact
    def __call__(self, images: Array, train: Train = False) -> Outputs:
        """Runs the network.

        Args:
          images: [B, H, W, C], floating point.
          train: BatchNorm mode: True (batch statistics), False (running ones), or a pattern. The layers whose parameter
            paths match it are in training mode, see `layers.is_trainable`.

        Raises:
          ValueError: H or W is too small for the strides, or a BatchNorm in training mode gets one value per channel.
        """
        stem, stages, head, init, branch_init, _, *options = self.architecture
        stages = tuple(map(_rematerialised, stages)) if self.remat else stages
        # Flax traces one image to make the variables.
        groups = 1 if self.is_initializing() else self.batch_norm_groups
        backbone, branch = (
            LayerFactory(i, self.dtype, train, self.for_export, groups, *options) for i in (init, branch_init)
        )
        x = stem(backbone, name="stem")(images) if stem else images
        maps: list[Maps] = []
        for l, stage in enumerate(stages, 1):
            maps.append(as_maps(stage(backbone, name=f"stage{l}")(x)))
            x = maps[-1].next_input
        # SimKD's projector takes the map alone.
        last = maps[-1].output if self.projector else x
        classified = HeadOutputs(*_backbone_head(head, self.projector)(backbone, self.num_classes, name="head")(last))
        aux_logits: list[Array] = []
        if self.branches:
            for l, after in enumerate(maps, 1):
                tail = {f"stage{m}": stage for m, stage in enumerate(stages, 1) if m > l}
                classifier = Branch(tail, stages[-1], head, ROTATIONS * self.num_classes, branch, name=f"branch{l}")
                aux_logits.append(classifier(after.next_input))
        return _outputs(classified, aux_logits, maps)


def _backbone_head(own: Callable[..., nn.Module], projector: tuple[int, int, int] | None) -> Callable[..., nn.Module]:
    return partial(ReusedHead, size=projector) if projector else own


def _outputs(head: HeadOutputs, aux_logits: list[Array], stages: list[Maps]) -> Outputs:
    compared = hints(with_preactivations(stages, head))
    return Outputs(
        logits=head.logits,
        aux_logits=tuple(aux_logits),
        features=tuple(stage.output for stage in stages),
        embedding=head.embedding,
        last_map=head.last_map,
        hints=tuple(hint.output for hint in compared),
        preactivations=tuple(hint.output if hint.preactivation is None else hint.preactivation for hint in compared),
    )


def _rematerialised(stage: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    bound = partial(stage)
    return partial(nn.remat(bound.func), *bound.args, **bound.keywords)


class Branch(nn.Module):
    """Auxiliary classifier: the stages after stage l, or the last one once more at stride 1, and the head.

    Attributes:
      tail: name -> the stages after stage l, as in `Architecture`.
      last: the last stage, which the branch after it uses at stride 1.
      head: as in `Architecture`.
      num_outputs: 4N.
      layers: of all branches.
    """

    tail: dict[str, Callable[..., nn.Module]]
    last: Callable[..., nn.Module]
    head: Callable[..., nn.Module]
    num_outputs: int
    layers: LayerFactory

    @nn.compact
    def __call__(self, x: Array | tuple[Array, Array]) -> Array:
        """`next_input` of stage l, the map [B, H, W, C] -> joint logits, [B, 4N], in at least float32."""
        for name, stage in self.tail.items():
            x = as_maps(stage(self.layers, name=name)(x)).next_input
        if not self.tail:
            x = as_maps(self.last(self.layers, stride=1, name="stage")(x)).next_input
        return self.head(self.layers, self.num_outputs, name="head")(x)[0]


class Peers(nn.Module):
    """Networks that learn together; parameter paths begin with 'peer1', 'peer2', ...

    Attributes:
      networks: functions that make them, each `network(branches=..., name=...)` -> Network.
      branches: whether they have auxiliary classifiers.
    """

    networks: tuple[Callable[..., Network], ...]
    branches: bool = True

    @nn.compact
    def __call__(self, images: Array, train: Train = False) -> tuple[Outputs, ...]:
        """The outputs of each network; arguments and errors are those of `Network`."""
        peers = (network(branches=self.branches, name=f"peer{i}") for i, network in enumerate(self.networks, 1))
        return tuple(peer(images, train) for peer in peers)
