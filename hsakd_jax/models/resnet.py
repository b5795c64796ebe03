"""ResNets of He et al. 2016 (arXiv 1512.03385) for CIFAR and ImageNet."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax

from hsakd_jax.models.layers import HE_TORCH, HE_ZERO, Init, LayerFactory, max_pool
from hsakd_jax.models.maps import HeadOutputs, Maps, as_maps
from hsakd_jax.models.network import Architecture

Array = jax.Array


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, H, W, C] -> [B, H / stride, W / stride, features]."""

    layers: LayerFactory
    features: int
    stride: int

    expansion = 1

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        layers, out = self.layers, self.features
        y = layers.relu(layers.norm(layers.conv(x, out, 3, self.stride, name="conv1"), name="bn1"))
        y = layers.norm(layers.conv(y, out, 3, name="conv2"), name="bn2")
        y = y + shortcut(layers, x, out, self.stride)
        return Maps(layers.relu(y), y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the 3x3 has the stride, as in torchvision.

    The result has four times as many channels as the convolutions inside, `features`.
    """

    layers: LayerFactory
    features: int
    stride: int

    expansion = 4

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        layers, out = self.layers, self.expansion * self.features
        y = layers.relu(layers.norm(layers.conv(x, self.features, 1, name="conv1"), name="bn1"))
        y = layers.relu(layers.norm(layers.conv(y, self.features, 3, self.stride, name="conv2"), name="bn2"))
        y = layers.norm(layers.conv(y, out, 1, name="conv3"), name="bn3")
        y = y + shortcut(layers, x, out, self.stride)
        return Maps(layers.relu(y), y)


def shortcut(layers: LayerFactory, x: Array, features: int, stride: int) -> Array:
    """The identity, or a 1x1 convolution and BatchNorm if the shape changes."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return layers.norm(layers.conv(x, features, 1, stride, name="shortcut_conv"), name="shortcut_bn")


class Stage(nn.Module):
    """`depth` blocks `block(layers, features, stride, name=...)`, of which the first one has the stride."""

    layers: LayerFactory
    block: Callable[..., nn.Module]
    depth: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        maps = Maps(x)
        for i in range(self.depth):
            stride = self.stride if i == 0 else 1
            found = as_maps(self.block(self.layers, self.features, stride, name=f"block{i}")(maps.output))
            maps = found if i == 0 else found._replace(entry=maps.entry)
        return maps


class Stem(nn.Module):
    """3x3 convolution, BatchNorm, ReLU."""

    layers: LayerFactory
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.layers.relu(self.layers.norm(self.layers.conv(x, self.features, 3, name="conv1"), name="bn1"))


class ImageNetStem(nn.Module):
    """7x7/2 convolution, BatchNorm, ReLU, 3x3/2 max-pool."""

    layers: LayerFactory

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.layers.relu(self.layers.norm(self.layers.conv(x, 64, 7, 2, name="conv1"), name="bn1"))
        return max_pool(x, 3, 2)


class Head(nn.Module):
    """Global average pool and linear layer."""

    layers: LayerFactory
    num_outputs: int

    @nn.compact
    def __call__(self, x: Array) -> HeadOutputs:
        return self.layers.pool_fc(x, self.num_outputs)


def resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    widths: Sequence[int],
    stem: Callable[..., nn.Module],
    branch_init: Init = HE_TORCH,
) -> Architecture:
    """A ResNet.

    Args:
      block: the module of its blocks.
      depths: blocks per stage.
      widths: `features` of the blocks, per stage; every stage except the first has stride 2.
      stem: as in `Architecture`.
      branch_init: initialisers of the branches.
    """
    stages = (
        partial(Stage, block=block, depth=depth, features=width, stride=1 if l == 0 else 2)
        for l, (depth, width) in enumerate(zip(depths, widths, strict=True))
    )
    return Architecture(stem, tuple(stages), Head, HE_TORCH, branch_init, 224 if stem is ImageNetStem else 32)


def cifar(depth: int, width: float = 1) -> Architecture:
    """CIFAR ResNet of `depth` = 6n + 2 layers, with 16-32-64 channels times `width`.

    At width 4 the stem has 32 channels, as CRD's resnet8x4; at any other it has 16 * `width`.
    """
    stem = 32 if width == 4 else int(16 * width)
    widths = [int(features * width) for features in (16, 32, 64)]
    return resnet(BasicBlock, [(depth - 2) // 6] * 3, widths, partial(Stem, features=stem), HE_ZERO)


NETWORKS = {
    **{f"resnet{depth}": partial(cifar, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": partial(cifar, 8, 4),
    "resnet32x4": partial(cifar, 32, 4),
    # For 8x8 digits: a student that is too small for them.
    "resnet8_quarter": partial(cifar, 8, 0.25),
    "resnet8_half": partial(cifar, 8, 0.5),
    "ResNet18": partial(resnet, BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), partial(Stem, features=64)),
    "ResNet50": partial(resnet, Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), partial(Stem, features=64)),
    "resnet18_imagenet": partial(resnet, BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), ImageNetStem),
    "resnet34_imagenet": partial(resnet, BasicBlock, (3, 4, 6, 3), (64, 128, 256, 512), ImageNetStem),
    "resnet50_imagenet": partial(resnet, Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), ImageNetStem),
}
