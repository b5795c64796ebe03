"""MobileNetV2 of Sandler et al. 2018 (arXiv 1801.04381) as HSAKD and CRD use it: width 0.5, ReLU instead of ReLU6."""

from functools import partial

import flax.linen as nn
import jax

from hsakd_jax.models.layers import HE_NORMAL, LayerFactory
from hsakd_jax.models.maps import HeadOutputs
from hsakd_jax.models.network import Architecture

Array = jax.Array

# The paper's table (expansion, half of its width, repeats, stride), split into the stages that the branches need.
STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


class InvertedResidual(nn.Module):
    """1x1 expansion (also at expansion 1), 3x3 depthwise, linear 1x1; adds the input if the shape is the same."""

    layers: LayerFactory
    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layers, hidden = self.layers, self.expansion * x.shape[-1]
        y = nn.relu(layers.norm(layers.conv(x, hidden, 1, name="conv1"), name="bn1"))
        y = nn.relu(layers.norm(layers.conv(y, hidden, 3, self.stride, groups=hidden, name="conv2"), name="bn2"))
        y = layers.norm(layers.conv(y, self.features, 1, name="conv3"), name="bn3")
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class Stage(nn.Module):
    """Inverted residual blocks.

    Attributes:
      layers: makes the layers.
      rows: (expansion, width, repeats, stride) of consecutive blocks; the first block of a row has its stride.
      stride: replaces the stride of the first row, if it is set.
    """

    layers: LayerFactory
    rows: tuple[tuple[int, int, int, int], ...]
    stride: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        blocks = [(e, c, s if i == 0 else 1) for e, c, n, s in self.rows for i in range(n)]
        for i, (expansion, features, stride) in enumerate(blocks):
            if i == 0 and self.stride is not None:
                stride = self.stride
            x = InvertedResidual(self.layers, expansion, features, stride, name=f"block{i}")(x)
        return x


class Stem(nn.Module):
    """3x3 convolution, BatchNorm, ReLU."""

    layers: LayerFactory
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.relu(self.layers.norm(self.layers.conv(x, 16, 3, self.stride, name="conv1"), name="bn1"))


class Head(nn.Module):
    """1x1 convolution to `features` channels, BatchNorm, ReLU, global average pool, linear layer."""

    layers: LayerFactory
    num_outputs: int
    features: int

    @nn.compact
    def __call__(self, x: Array) -> HeadOutputs:
        x = nn.relu(self.layers.norm(self.layers.conv(x, self.features, 1, name="conv"), name="bn"))
        return self.layers.pool_fc(x, self.num_outputs)


def mobilenet(stem_stride: int) -> Architecture:
    """MobileNetV2 (T = 6, width 0.5) after a stem of the given stride."""
    stages = tuple(partial(Stage, rows=rows) for rows in STAGES)
    return Architecture(partial(Stem, stride=stem_stride), stages, partial(Head, features=1280), HE_NORMAL, HE_NORMAL)


NETWORKS = {
    "mobilenetV2": partial(mobilenet, 1),
    # The network of this name in CRD, SSKD and mdistiller: a quarter of the pixels, some 8 points less accuracy.
    "mobilenetV2_crd": partial(mobilenet, 2),
}
