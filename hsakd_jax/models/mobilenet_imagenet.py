"""MobileNets for ImageNet: timm's V1 (arXiv 1704.04861), torchvision's V2 (arXiv 1801.04381), V3 (arXiv 1905.02244).

Stages are cut where the resolution halves: at 224x224 their maps are 56, 28, 14 and 7 pixels wide. The blocks at 112
pixels belong to the stem. torchvision's dropout in front of the last layer is omitted: networks here compute the same
in each call. mdistiller's MobileNetV1 has ReLU in the place of timm's ReLU6.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from hsakd_jax.models.layers import HE_FAN_OUT, HE_NORMAL, LayerFactory, SqueezeExcitation, he_grouped
from hsakd_jax.models.maps import HeadOutputs, Maps
from hsakd_jax.models.mobilenet import Head, InvertedResidual, Stage, Stem, inverted_residuals
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.numerics import at_least_float32
from hsakd_jax.models.resnet import Head as LinearHead
from hsakd_jax.models.resnet import Stage as EqualBlocks

Array = jax.Array


def round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is at least 90 % of `channels`, as in the authors' code."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class DepthwiseSeparable(nn.Module):
    """MobileNetV1's block, 3x3 depthwise and 1x1: [B, H, W, C] -> [B, H / stride, W / stride, features]."""

    layers: LayerFactory
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        layers, inputs = self.layers, x.shape[-1]
        y = layers.conv(x, inputs, 3, self.stride, groups=inputs, name="conv1")
        y = nn.relu6(layers.norm(y, name="bn1"))
        y = layers.norm(layers.conv(y, self.features, 1, name="conv2"), name="bn2")
        return Maps(nn.relu6(y), y)


def v1() -> Architecture:
    """MobileNetV1 of width 1."""
    blocks = partial(EqualBlocks, block=DepthwiseSeparable)
    first = partial(blocks, depth=1, features=64, stride=1)
    stem = partial(Stem, features=32, stride=2, activation=nn.relu6, blocks=first)
    rows = (2, 128), (2, 256), (6, 512), (2, 1024)
    stages = tuple(partial(blocks, depth=depth, features=features, stride=2) for depth, features in rows)
    init = HE_FAN_OUT._replace(grouped_conv=he_grouped)
    return Architecture(stem, stages, LinearHead, init, init, 224)


# (expansion, features, repeats, stride) by resolution, of which the first is the stem's.
V2 = (
    ((1, 16, 1, 1),),
    ((6, 24, 2, 2),),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


def v2() -> Architecture:
    """MobileNetV2 of width 1."""
    first, *stages = (inverted_residuals(rows, activation=nn.relu6) for rows in V2)
    stem = partial(Stem, features=32, stride=2, activation=nn.relu6, blocks=first)
    head = partial(Head, features=1280, activation=nn.relu6)
    return Architecture(stem, tuple(stages), head, HE_NORMAL, HE_NORMAL, 224)


class Row(NamedTuple):
    """A block of MobileNetV3: kernel, channels of its depthwise convolution and result, attention, h-swish, stride."""

    kernel: int
    expanded: int
    features: int
    attention: bool
    hard_swish: bool
    stride: int


# By resolution, of which the first is the stem's.
V3_SMALL = (
    (),
    (Row(3, 16, 16, True, False, 2),),
    (Row(3, 72, 24, False, False, 2), Row(3, 88, 24, False, False, 1)),
    (
        Row(5, 96, 40, True, True, 2),
        Row(5, 240, 40, True, True, 1),
        Row(5, 240, 40, True, True, 1),
        Row(5, 120, 48, True, True, 1),
        Row(5, 144, 48, True, True, 1),
    ),
    (Row(5, 288, 96, True, True, 2), Row(5, 576, 96, True, True, 1), Row(5, 576, 96, True, True, 1)),
)
V3_LARGE = (
    (Row(3, 16, 16, False, False, 1),),
    (Row(3, 64, 24, False, False, 2), Row(3, 72, 24, False, False, 1)),
    (Row(5, 72, 40, True, False, 2), Row(5, 120, 40, True, False, 1), Row(5, 120, 40, True, False, 1)),
    (
        Row(3, 240, 80, False, True, 2),
        Row(3, 200, 80, False, True, 1),
        Row(3, 184, 80, False, True, 1),
        Row(3, 184, 80, False, True, 1),
        Row(3, 480, 112, True, True, 1),
        Row(3, 672, 112, True, True, 1),
    ),
    (Row(5, 672, 160, True, True, 2), Row(5, 960, 160, True, True, 1), Row(5, 960, 160, True, True, 1)),
)


def attention(layers: LayerFactory, inputs: int, expanded: int, *, name: str) -> nn.Module:
    """MobileNetV3's squeeze-and-excitation, to a quarter of the expanded channels."""
    del inputs
    return SqueezeExcitation(layers, round_channels(expanded // 4), gate=nn.hard_sigmoid, name=name)


class HeadV3(nn.Module):
    """1x1 convolution to `features` channels, BatchNorm, h-swish, global average pool, two linear layers.

    The input of the second one, of `embedded` channels, is the embedding and, as a map of 1x1, the last map.
    """

    layers: LayerFactory
    num_outputs: int
    features: int
    embedded: int

    @nn.compact
    def __call__(self, x: Array) -> HeadOutputs:
        layers = self.layers
        x = nn.hard_swish(layers.norm(layers.conv(x, self.features, 1, name="conv"), name="bn"))
        pooled = at_least_float32(x).mean((1, 2))
        embedding = nn.hard_swish(layers.linear(pooled, self.embedded, name="fc1"))
        return HeadOutputs(layers.linear(embedding, self.num_outputs, name="fc"), embedding, embedding[:, None, None])


def _blocks(rows: Iterable[Row], inputs: int) -> Iterator[partial[InvertedResidual]]:
    for row in rows:
        yield partial(
            InvertedResidual,
            features=row.features,
            expansion=row.expanded / inputs,
            stride=row.stride,
            kernel=row.kernel,
            activation=nn.hard_swish if row.hard_swish else nn.relu,
            attention=attention if row.attention else None,
        )
        inputs = row.features


def v3(resolutions: tuple[tuple[Row, ...], ...], embedded: int) -> Architecture:
    """MobileNetV3 of width 1.

    Args:
      resolutions: `V3_SMALL` or `V3_LARGE`.
      embedded: channels of its embedding.
    """
    channels, stages = 16, []
    for rows in resolutions:
        stages.append(partial(Stage, blocks=tuple(_blocks(rows, channels))))
        channels = rows[-1].features if rows else channels
    first, *stages = stages
    stem = partial(Stem, features=16, stride=2, activation=nn.hard_swish, blocks=first if resolutions[0] else None)
    head = partial(HeadV3, features=6 * channels, embedded=embedded)
    return Architecture(stem, tuple(stages), head, HE_NORMAL, HE_NORMAL, 224, 1e-3, 0.01)


NETWORKS = {
    "mobilenetv1_100": v1,
    "mobilenet_v2": v2,
    "mobilenet_v3_small": partial(v3, V3_SMALL, 1024),
    "mobilenet_v3_large": partial(v3, V3_LARGE, 1280),
}
