"""VGG with BatchNorm, Simonyan and Zisserman 2015 (arXiv 1409.1556), for 32x32 images."""

from functools import partial

import flax.linen as nn
import jax

from hsakd_jax.models.layers import HE_NORMAL, TORCH, LayerFactory, max_pool
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.resnet import Head

Array = jax.Array


class Stage(nn.Module):
    """2x2 max-pool if `stride` is 2, then for each of `widths` a 3x3 convolution with bias, BatchNorm and ReLU."""

    layers: LayerFactory
    widths: tuple[int, ...]
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.stride > 1:
            x = max_pool(x, self.stride, self.stride)
        for i, features in enumerate(self.widths, 1):
            x = self.layers.conv(x, features, 3, bias=True, name=f"conv{i}")
            x = self.layers.relu(self.layers.norm(x, name=f"bn{i}"))
        return x


def vgg(*depths: int) -> Architecture:
    """VGG with `depths` convolutions in its five blocks; the last two blocks make one stage, without a pool."""
    blocks = [(width,) * depth for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True)]
    stages = (*blocks[:3], blocks[3] + blocks[4])
    makers = (partial(Stage, widths=widths, stride=1 if l == 0 else 2) for l, widths in enumerate(stages))
    # The reference never calls the initialiser of its branches, so they start as PyTorch's defaults.
    return Architecture(None, tuple(makers), Head, HE_NORMAL, TORCH)


NETWORKS = {
    "vgg8_bn": partial(vgg, 1, 1, 1, 1, 1),
    "vgg11_bn": partial(vgg, 1, 1, 2, 2, 2),
    "vgg13_bn": partial(vgg, 2, 2, 2, 2, 2),
    "vgg16_bn": partial(vgg, 2, 2, 3, 3, 3),
    "vgg19_bn": partial(vgg, 2, 2, 4, 4, 4),
}
