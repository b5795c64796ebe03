"""Wide ResNets of Zagoruyko and Komodakis 2016 (arXiv 1605.07146), with pre-activation blocks."""

from functools import partial

import flax.linen as nn
import jax

from hsakd_jax.models.layers import HE_ZERO, LayerFactory
from hsakd_jax.models.maps import HeadOutputs, Maps
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.resnet import Stage

Array = jax.Array


class Block(nn.Module):
    """Twice BatchNorm, ReLU and a 3x3 convolution; and a shortcut."""

    layers: LayerFactory
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        layers = self.layers
        entry = layers.norm(x, name="bn1")
        activated = layers.relu(entry)
        y = layers.conv(activated, self.features, 3, self.stride, name="conv1")
        y = layers.conv(layers.relu(layers.norm(y, name="bn2")), self.features, 3, name="conv2")
        if x.shape[-1] != self.features:
            # The reference projects the activated input here, and adds the raw one below.
            x = layers.conv(activated, self.features, 1, self.stride, name="shortcut_conv")
        return Maps(y + x, entry=entry)


class Stem(nn.Module):
    """3x3 convolution to 16 channels, without BatchNorm and ReLU."""

    layers: LayerFactory

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.layers.conv(x, 16, 3, name="conv1")


class Head(nn.Module):
    """BatchNorm, ReLU, global average pool, linear layer."""

    layers: LayerFactory
    num_outputs: int

    @nn.compact
    def __call__(self, x: Array) -> HeadOutputs:
        entry = self.layers.norm(x, name="bn1")
        return self.layers.pool_fc(self.layers.relu(entry), self.num_outputs)._replace(entry=entry)


def wrn(depth: int, width: int) -> Architecture:
    """WRN-depth-width, `depth` = 6n + 4."""
    stages = (
        partial(Stage, block=Block, depth=(depth - 4) // 6, features=features * width, stride=stride)
        for features, stride in ((16, 1), (32, 2), (64, 2))
    )
    return Architecture(Stem, tuple(stages), Head, HE_ZERO, HE_ZERO)


NETWORKS = {f"wrn_{depth}_{width}": partial(wrn, depth, width) for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2))}
