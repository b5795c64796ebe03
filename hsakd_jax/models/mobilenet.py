"""MobileNetV2 of Sandler et al. 2018 (arXiv 1801.04381) as HSAKD and CRD use it: width 0.5, ReLU instead of ReLU6.

Stem, block, stage and head are also those of `mobilenet_imagenet` and `efficientnet`.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from hsakd_jax.models.layers import HE_NORMAL, LayerFactory
from hsakd_jax.models.maps import HeadOutputs, as_maps
from hsakd_jax.models.network import Architecture

Array = jax.Array
Activation = Callable[[Array], Array]
# The paper's table (expansion, half of its width, repeats, stride), split into the stages that the branches need.
STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1; adds the input if the shape is the same.

    [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].

    Attributes:
      layers: makes the layers.
      features: channels of the result.
      expansion: channels of the depthwise convolution, as a multiple of those of the input.
      stride: of the depthwise convolution.
      kernel: side of its kernel.
      activation: after the BatchNorms of the expansion and of the depthwise convolution.
      attention: `attention(layers, inputs, expanded, name=...)` -> module between the depthwise convolution and the
        linear one, for a block of these numbers of channels; None for none.
      always_expands: whether there is a 1x1 expansion also at expansion 1.
    """

    layers: LayerFactory
    features: int
    expansion: float
    stride: int = 1
    kernel: int = 3
    activation: Activation = nn.relu
    attention: Callable[..., nn.Module] | None = None
    always_expands: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layers, inputs = self.layers, x.shape[-1]
        y, hidden = x, round(self.expansion * inputs)
        if self.always_expands or self.expansion != 1:
            y = self.activation(layers.norm(layers.conv(y, hidden, 1, name="conv1"), name="bn1"))
        y = layers.conv(y, hidden, self.kernel, self.stride, groups=hidden, name="conv2")
        y = self.activation(layers.norm(y, name="bn2"))
        if self.attention:
            y = self.attention(layers, inputs, hidden, name="attention")(y)
        y = layers.norm(layers.conv(y, self.features, 1, name="conv3"), name="bn3")
        return x + y if self.stride == 1 and inputs == self.features else y


class Stage(nn.Module):
    """Blocks in a row.

    Attributes:
      layers: makes the layers.
      blocks: each `block(layers, name=...)` -> module, and `block(layers, stride=..., name=...)`.
      stride: replaces the stride of the first block, if it is set.
    """

    layers: LayerFactory
    blocks: tuple[Callable[..., nn.Module], ...]
    stride: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, block in enumerate(self.blocks):
            options = {} if i or self.stride is None else {"stride": self.stride}
            x = block(self.layers, **options, name=f"block{i}")(x)
        return x


class Stem(nn.Module):
    """3x3 convolution, BatchNorm, activation, and blocks: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C'].

    Attributes:
      layers: makes the layers.
      features: channels of the convolution.
      stride: of the convolution.
      activation: after its BatchNorm.
      blocks: `blocks(layers, name=...)` -> module of the blocks that keep the resolution; None for none.
    """

    layers: LayerFactory
    features: int
    stride: int
    activation: Activation = nn.relu
    blocks: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.layers.conv(x, self.features, 3, self.stride, name="conv1")
        x = self.activation(self.layers.norm(x, name="bn1"))
        return as_maps(self.blocks(self.layers, name="stage")(x)).output if self.blocks else x


class Head(nn.Module):
    """1x1 convolution to `features` channels, BatchNorm, activation, global average pool, linear layer."""

    layers: LayerFactory
    num_outputs: int
    features: int
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, x: Array) -> HeadOutputs:
        x = self.activation(self.layers.norm(self.layers.conv(x, self.features, 1, name="conv"), name="bn"))
        return self.layers.pool_fc(x, self.num_outputs)


def inverted_residuals(rows: Iterable[tuple[int, int, int, int]], **options: Any) -> Callable[..., nn.Module]:
    """A stage of inverted residual blocks.

    Args:
      rows: (expansion, features, repeats, stride) of consecutive blocks; the first block of a row has its stride.
      **options: attributes of all blocks.
    """
    blocks = (
        partial(InvertedResidual, features=features, expansion=expansion, stride=1 if i else stride, **options)
        for expansion, features, repeats, stride in rows
        for i in range(repeats)
    )
    return partial(Stage, blocks=tuple(blocks))


def mobilenet(stem_stride: int) -> Architecture:
    """MobileNetV2 (T = 6, width 0.5) after a stem of stride `stem_stride`."""
    stem, head = partial(Stem, features=16, stride=stem_stride), partial(Head, features=1280)
    stages = tuple(inverted_residuals(rows, always_expands=True) for rows in STAGES)
    return Architecture(stem, stages, head, HE_NORMAL, HE_NORMAL)


NETWORKS = {
    "mobilenetV2": partial(mobilenet, 1),
    # The network of this name in CRD, SSKD and mdistiller: a quarter of the pixels, some 8 points less accuracy.
    "mobilenetV2_crd": partial(mobilenet, 2),
}
