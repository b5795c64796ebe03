"""Wide ResNets of Zagoruyko and Komodakis 2016 (arXiv 1605.07146), with pre-activation blocks."""

from functools import partial

import flax.linen as nn

from hsakd_jax.models.layers import HE_ZERO, Parts
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.resnet import Stage


class Block(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice, and a shortcut."""

    parts: Parts
    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        parts = self.parts
        activated = parts.relu(parts.norm(x, name="bn1"))
        y = parts.conv(activated, self.features, 3, self.stride, name="conv1")
        y = parts.conv(parts.relu(parts.norm(y, name="bn2")), self.features, 3, name="conv2")
        if x.shape[-1] != self.features:
            # The reference projects the activated input here, and adds the raw one below.
            x = parts.conv(activated, self.features, 1, self.stride, name="shortcut_conv")
        return y + x


class Stem(nn.Module):
    """Bare 3x3 convolution."""

    parts: Parts

    @nn.compact
    def __call__(self, x):
        return self.parts.conv(x, 16, 3, name="conv1")


class Head(nn.Module):
    """BatchNorm, ReLU, global average pool, linear layer."""

    parts: Parts
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        return self.parts.pool_fc(self.parts.relu(self.parts.norm(x, name="bn1")), self.num_outputs)


def wrn(depth: int, width: int) -> Architecture:
    """WRN-depth-width, `depth` = 6n + 4."""
    stages = (
        partial(Stage, block=Block, depth=(depth - 4) // 6, features=features * width, stride=stride)
        for features, stride in ((16, 1), (32, 2), (64, 2))
    )
    return Architecture(Stem, tuple(stages), Head, HE_ZERO, HE_ZERO)


NETWORKS = {f"wrn_{depth}_{width}": partial(wrn, depth, width) for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2))}
