"""DenseNets of Huang et al. 2017 (arXiv 1608.06993) for ImageNet, as torchvision has them."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsakd_jax.models.layers import HE_IN_ZERO, LayerFactory
from hsakd_jax.models.maps import Maps
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.resnet import ImageNetStem
from hsakd_jax.models.wrn import Head

Array = jax.Array


class Layer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution; the result is appended to the input.

    [B, H, W, C] -> [B, H, W, C + growth]; between its convolutions are 4 * growth channels.
    """

    layers: LayerFactory
    growth: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layers = self.layers
        y = layers.conv(layers.relu(layers.norm(x, name="bn1")), 4 * self.growth, 1, name="conv1")
        y = layers.conv(layers.relu(layers.norm(y, name="bn2")), self.growth, 3, name="conv2")
        return jnp.concatenate([x, y], -1)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution to half of the channels, average pool of `stride`; its entry is the BatchNorm.

    [B, H, W, C] -> [B, H / stride, W / stride, C / 2].
    """

    layers: LayerFactory
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        entry = self.layers.norm(x, name="bn1")
        y = self.layers.conv(self.layers.relu(entry), x.shape[-1] // 2, 1, name="conv1")
        return Maps(y if self.stride == 1 else self.layers.avg_pool(y, self.stride, self.stride), entry=entry)


class Stage(nn.Module):
    """A dense block, and before it the transition from the one before, which has the stride.

    Attributes:
      layers: makes the layers.
      depth: layers of the dense block.
      growth: channels that each of them adds.
      transition: whether there is one; without it the stage has no stride.
      stride: of the transition.
    """

    layers: LayerFactory
    depth: int
    growth: int
    transition: bool = True
    stride: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        start = Transition(self.layers, self.stride, name="transition")(x) if self.transition else Maps(x)
        x = start.output
        for i in range(self.depth):
            x = Layer(self.layers, self.growth, name=f"layer{i}")(x)
        return Maps(x, entry=start.entry)


def densenet(*depths: int) -> Architecture:
    """DenseNet of growth 32 with dense blocks of `depths` layers."""
    stages = (partial(Stage, depth=depth, growth=32, transition=l > 0) for l, depth in enumerate(depths))
    return Architecture(ImageNetStem, tuple(stages), Head, HE_IN_ZERO, HE_IN_ZERO, image_size=224)


NETWORKS = {"densenet121": partial(densenet, 6, 12, 24, 16)}
