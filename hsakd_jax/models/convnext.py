"""ConvNeXt of Liu et al. 2022 (arXiv 2201.03545), as in torchvision, without stochastic depth."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
from jax.nn.initializers import constant, normal

from hsakd_jax.models.layers import Init, LayerFactory, zero_bias
from hsakd_jax.models.maps import HeadOutputs
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array

# torchvision truncates at -2 and 2, which is a hundred standard deviations.
INIT = Init(normal(0.02), zero_bias, normal(0.02), zero_bias)


class Block(nn.Module):
    """7x7 depthwise convolution, LayerNorm, MLP with GELU, layer scale, shortcut: [B, H, W, C] -> [B, H, W, C]."""

    layers: LayerFactory

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layers, features = self.layers, x.shape[-1]
        y = layers.conv(x, features, 7, groups=features, bias=True, name="conv")
        y = layers.dense(layers.layer_norm(y, name="norm"), 4 * features, name="fc1")
        y = layers.dense(nn.gelu(y, approximate=False), features, name="fc2")
        # torchvision's shape, so that the state dict has it.
        scale = self.param("layer_scale", constant(1e-6), (features, 1, 1))
        return x + y * scale.reshape(1, 1, 1, features).astype(y.dtype)


class Stage(nn.Module):
    """LayerNorm and convolution that divide the size by `stride`, if that is not 1, then `depth` blocks.

    [B, H, W, C] -> [B, floor(H / stride), floor(W / stride), features].
    """

    layers: LayerFactory
    depth: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.stride > 1:
            x = self.layers.layer_norm(x, name="norm")
            x = self.layers.conv(x, self.features, self.stride, self.stride, bias=True, padding=0, name="conv")
        for i in range(self.depth):
            x = Block(self.layers, name=f"block{i}")(x)
        return x


class Stem(nn.Module):
    """4x4/4 convolution, LayerNorm."""

    layers: LayerFactory
    features: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = self.layers.conv(images, self.features, 4, 4, bias=True, padding=0, name="conv1")
        return self.layers.layer_norm(x, name="norm")


class Head(nn.Module):
    """Global average pool, LayerNorm and linear layer."""

    layers: LayerFactory
    num_outputs: int

    @nn.compact
    def __call__(self, x: Array) -> HeadOutputs:
        pooled = at_least_float32(x).mean((1, 2), keepdims=True)
        return self.layers.pool_fc(self.layers.layer_norm(pooled, name="norm"), self.num_outputs)


def convnext(depths: Sequence[int], widths: Sequence[int]) -> Architecture:
    """A ConvNeXt with blocks and channels per stage; every stage except the first has stride 2."""
    stages = (
        partial(Stage, depth=depth, features=width, stride=1 if l == 0 else 2)
        for l, (depth, width) in enumerate(zip(depths, widths, strict=True))
    )
    return Architecture(partial(Stem, features=widths[0]), tuple(stages), Head, INIT, INIT, 224)


NETWORKS = {"convnext_tiny": partial(convnext, (3, 3, 9, 3), (96, 192, 384, 768))}
