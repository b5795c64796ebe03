"""ShuffleNetV1 (Zhang et al. 2018, arXiv 1707.01083) and V2 (Ma et al. 2018, arXiv 1807.11164) for 32x32 images."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsakd_jax.models.layers import HE_ZERO, TORCH, LayerFactory
from hsakd_jax.models.maps import Maps
from hsakd_jax.models.mobilenet import Head as ConvHead
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.resnet import Head, Stage

Array = jax.Array


def shuffle(x: Array, groups: int) -> Array:
    """Channel shuffle, [..., C] -> [..., C]: reshapes to [..., groups, C / groups] and transposes these two axes."""
    *outer, channels = x.shape
    return x.reshape(*outer, groups, channels // groups).swapaxes(-1, -2).reshape(x.shape)


class Stem(nn.Module):
    """1x1 convolution to 24 channels, BatchNorm, ReLU."""

    layers: LayerFactory

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.relu(self.layers.norm(self.layers.conv(x, 24, 1, name="conv1"), name="bn1"))


class BlockV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; adds the input, or at stride 2 appends the pooled input."""

    layers: LayerFactory
    features: int
    stride: int
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        layers = self.layers
        out = self.features - (x.shape[-1] if self.stride == 2 else 0)
        hidden, groups_in = out // 4, 1 if x.shape[-1] == 24 else self.groups
        y = nn.relu(layers.norm(layers.conv(x, hidden, 1, groups=groups_in, name="conv1"), name="bn1"))
        y = layers.conv(shuffle(y, groups_in), hidden, 3, self.stride, groups=hidden, name="conv2")
        y = layers.conv(nn.relu(layers.norm(y, name="bn2")), out, 1, groups=self.groups, name="conv3")
        y = layers.norm(y, name="bn3")
        y = jnp.concatenate([y, layers.avg_pool(x, 3, 2)], -1) if self.stride == 2 else y + x
        return Maps(nn.relu(y), y)


class BlockV2(nn.Module):
    """Half of the channels unchanged, the other half through 1x1, depthwise 3x3 and 1x1; then a shuffle."""

    layers: LayerFactory

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        layers, half = self.layers, x.shape[-1] // 2
        y = nn.relu(layers.norm(layers.conv(x[..., half:], half, 1, name="conv1"), name="bn1"))
        y = layers.norm(layers.conv(y, half, 3, groups=half, name="conv2"), name="bn2")
        y = layers.norm(layers.conv(y, half, 1, name="conv3"), name="bn3")
        # The first half is the result of an earlier ReLU.
        output, preactivation = (shuffle(jnp.concatenate([x[..., :half], z], -1), 2) for z in (nn.relu(y), y))
        return Maps(output, preactivation)


class DownBlockV2(nn.Module):
    """Two convolutional paths from the input, each to half of the channels of the output; then a shuffle."""

    layers: LayerFactory
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layers, half, channels = self.layers, self.features // 2, x.shape[-1]
        a = layers.norm(layers.conv(x, channels, 3, self.stride, groups=channels, name="conv1"), name="bn1")
        a = nn.relu(layers.norm(layers.conv(a, half, 1, name="conv2"), name="bn2"))
        b = nn.relu(layers.norm(layers.conv(x, half, 1, name="conv3"), name="bn3"))
        b = layers.norm(layers.conv(b, half, 3, self.stride, groups=half, name="conv4"), name="bn4")
        b = nn.relu(layers.norm(layers.conv(b, half, 1, name="conv5"), name="bn5"))
        return shuffle(jnp.concatenate([a, b], -1), 2)


class StageV2(nn.Module):
    """A `DownBlockV2`, at any stride, and `repeats` times `BlockV2`."""

    layers: LayerFactory
    features: int
    repeats: int
    stride: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        maps = Maps(DownBlockV2(self.layers, self.features, self.stride, name="block0")(x))
        for i in range(1, self.repeats + 1):
            maps = BlockV2(self.layers, name=f"block{i}")(maps.output)
        return maps


def shuffle_v1() -> Architecture:
    """ShuffleNetV1 with 3 groups."""
    block = partial(BlockV1, groups=3)
    stages = (partial(Stage, block=block, depth=n, features=c, stride=2) for c, n in ((240, 4), (480, 8), (960, 4)))
    return Architecture(Stem, tuple(stages), Head, TORCH, HE_ZERO)


def shuffle_v2(*widths: int) -> Architecture:
    """ShuffleNetV2 with stages of these widths."""
    stages = (partial(StageV2, features=c, repeats=n) for c, n in zip(widths, (3, 7, 3), strict=True))
    return Architecture(Stem, tuple(stages), partial(ConvHead, features=1024), TORCH, TORCH)


NETWORKS = {
    "ShuffleV1": shuffle_v1,
    "ShuffleV2": partial(shuffle_v2, 116, 232, 464),
    "ShuffleV2_0_5": partial(shuffle_v2, 48, 96, 192),
    "ShuffleV2_1_5": partial(shuffle_v2, 176, 352, 704),
}
