"""ResNets for CIFAR and ImageNet: He et al. 2016 (arXiv 1512.03385), and two variants of its bottleneck.

Those are ResNeXt (Xie et al. 2017, arXiv 1611.05431) and Wide ResNet-50-2 (arXiv 1605.07146), as torchvision has them.
"""

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

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        layers, out = self.layers, self.features
        y = layers.relu(layers.norm(layers.conv(x, out, 3, self.stride, name="conv1"), name="bn1"))
        y = layers.norm(layers.conv(y, out, 3, name="conv2"), name="bn2")
        y = y + shortcut(layers, x, out, self.stride)
        return Maps(layers.relu(y), y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the 3x3 has the stride, as in torchvision.

    Attributes:
      layers: makes the layers.
      features: a quarter of the channels of the result.
      stride: of the 3x3 convolution and the shortcut.
      width: channels between the convolutions, as a multiple of `features`.
      groups: of channels, which the 3x3 convolution convolves separately.
    """

    layers: LayerFactory
    features: int
    stride: int
    width: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        layers, hidden, out = self.layers, self.width * self.features, 4 * self.features
        y = layers.relu(layers.norm(layers.conv(x, hidden, 1, name="conv1"), name="bn1"))
        y = layers.conv(y, hidden, 3, self.stride, groups=self.groups, name="conv2")
        y = layers.relu(layers.norm(y, name="bn2"))
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
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.layers.conv(x, self.features, 3, self.stride, name="conv1")
        return self.layers.relu(self.layers.norm(x, name="bn1"))


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
    block: Callable[..., nn.Module],
    depths: Sequence[int],
    widths: Sequence[int],
    stem: Callable[..., nn.Module],
    branch_init: Init = HE_TORCH,
) -> Architecture:
    """A ResNet.

    Args:
      block: makes its blocks, see `Stage`.
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


WIDTHS = (64, 128, 256, 512)
NETWORKS = {
    **{f"resnet{depth}": partial(cifar, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": partial(cifar, 8, 4),
    "resnet32x4": partial(cifar, 32, 4),
    # For 8x8 digits: a student that is too small for them.
    "resnet8_quarter": partial(cifar, 8, 0.25),
    "resnet8_half": partial(cifar, 8, 0.5),
    "ResNet18": partial(resnet, BasicBlock, (2, 2, 2, 2), WIDTHS, partial(Stem, features=64)),
    "ResNet50": partial(resnet, Bottleneck, (3, 4, 6, 3), WIDTHS, partial(Stem, features=64)),
    "resnet18_imagenet": partial(resnet, BasicBlock, (2, 2, 2, 2), WIDTHS, ImageNetStem),
    "resnet34_imagenet": partial(resnet, BasicBlock, (3, 4, 6, 3), WIDTHS, ImageNetStem),
    "resnet50_imagenet": partial(resnet, Bottleneck, (3, 4, 6, 3), WIDTHS, ImageNetStem),
    "resnet101": partial(resnet, Bottleneck, (3, 4, 23, 3), WIDTHS, ImageNetStem),
    "resnet152": partial(resnet, Bottleneck, (3, 8, 36, 3), WIDTHS, ImageNetStem),
    "resnext50_32x4d": partial(resnet, partial(Bottleneck, width=2, groups=32), (3, 4, 6, 3), WIDTHS, ImageNetStem),
    "wide_resnet50_2": partial(resnet, partial(Bottleneck, width=2), (3, 4, 6, 3), WIDTHS, ImageNetStem),
}
