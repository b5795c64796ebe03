"""ResNets of He et al. 2016 (arXiv 1512.03385) for CIFAR and ImageNet."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from hsakd_jax.models.layers import HE_TORCH, HE_ZERO, Init, Parts, max_pool
from hsakd_jax.models.network import Architecture


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    parts: Parts
    features: int
    stride: int

    expansion = 1

    @nn.compact
    def __call__(self, x):
        parts, out = self.parts, self.features
        y = parts.relu(parts.norm(parts.conv(x, out, 3, self.stride, name="conv1"), name="bn1"))
        y = parts.norm(parts.conv(y, out, 3, name="conv2"), name="bn2")
        return parts.relu(y + shortcut(parts, x, out, self.stride))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as torchvision has it) and 1x1 convolutions, four times wider outside."""

    parts: Parts
    features: int
    stride: int

    expansion = 4

    @nn.compact
    def __call__(self, x):
        parts, out = self.parts, self.expansion * self.features
        y = parts.relu(parts.norm(parts.conv(x, self.features, 1, name="conv1"), name="bn1"))
        y = parts.relu(parts.norm(parts.conv(y, self.features, 3, self.stride, name="conv2"), name="bn2"))
        y = parts.norm(parts.conv(y, out, 1, name="conv3"), name="bn3")
        return parts.relu(y + shortcut(parts, x, out, self.stride))


def shortcut(parts: Parts, x, features: int, stride: int):
    """The identity, or a projection where the shape changes."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return parts.norm(parts.conv(x, features, 1, stride, name="shortcut_conv"), name="shortcut_bn")


class Stage(nn.Module):
    """`depth` blocks `block(parts, features, stride, name=...)`, the first one with the stride."""

    parts: Parts
    block: Callable[..., nn.Module]
    depth: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = self.block(self.parts, self.features, self.stride if i == 0 else 1, name=f"block{i}")(x)
        return x


class Stem(nn.Module):
    """3x3 convolution, BatchNorm, ReLU."""

    parts: Parts
    features: int

    @nn.compact
    def __call__(self, x):
        return self.parts.relu(self.parts.norm(self.parts.conv(x, self.features, 3, name="conv1"), name="bn1"))


class ImageNetStem(nn.Module):
    """7x7/2 convolution, BatchNorm, ReLU, 3x3/2 max-pool."""

    parts: Parts

    @nn.compact
    def __call__(self, x):
        x = self.parts.relu(self.parts.norm(self.parts.conv(x, 64, 7, 2, name="conv1"), name="bn1"))
        return max_pool(x, 3, 2)


class Head(nn.Module):
    """Global average pool and linear layer."""

    parts: Parts
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        return self.parts.pool_fc(x, self.num_outputs)


def resnet(block, depths, widths, stem, branch_init: Init = HE_TORCH) -> Architecture:
    """Stages of `depths` blocks at `widths`, every stage but the first at stride 2."""
    stages = (
        partial(Stage, block=block, depth=depth, features=width, stride=1 if l == 0 else 2)
        for l, (depth, width) in enumerate(zip(depths, widths, strict=True))
    )
    return Architecture(stem, tuple(stages), Head, HE_TORCH, branch_init)


def cifar(depth: int, width: float = 1) -> Architecture:
    """ResNet of `depth` = 6n + 2 layers, 16-32-64 channels times `width`.

    Four times wider networks have a stem of 32 channels (CRD's resnet8x4), others one of 16 * `width`.
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
