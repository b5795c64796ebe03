"""VGG with BatchNorm, Simonyan and Zisserman 2015 (arXiv 1409.1556), for 32x32 images."""

from functools import partial

import flax.linen as nn

from hsakd_jax.models.layers import HE_NORMAL, TORCH, Parts, max_pool
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.resnet import Head


class Stage(nn.Module):
    """Optional 2x2 max-pool (`stride` 2), then 3x3 convolutions with bias, BatchNorm and ReLU."""

    parts: Parts
    widths: tuple[int, ...]
    stride: int

    @nn.compact
    def __call__(self, x):
        if self.stride > 1:
            x = max_pool(x, self.stride, self.stride)
        for i, features in enumerate(self.widths, 1):
            x = self.parts.conv(x, features, 3, bias=True, name=f"conv{i}")
            x = self.parts.relu(self.parts.norm(x, name=f"bn{i}"))
        return x


def vgg(*depths: int) -> Architecture:
    """VGG with `depths` convolutions in its five blocks; the last two blocks make one stage, without a pool."""
    blocks = [(width,) * depth for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True)]
    stages = (*blocks[:3], blocks[3] + blocks[4])
    recipes = (partial(Stage, widths=widths, stride=1 if l == 0 else 2) for l, widths in enumerate(stages))
    # The reference never called its branches' initialiser, hence PyTorch's defaults there.
    return Architecture(None, tuple(recipes), Head, HE_NORMAL, TORCH)


NETWORKS = {
    "vgg8_bn": partial(vgg, 1, 1, 1, 1, 1),
    "vgg11_bn": partial(vgg, 1, 1, 2, 2, 2),
    "vgg13_bn": partial(vgg, 2, 2, 2, 2, 2),
    "vgg16_bn": partial(vgg, 2, 2, 3, 3, 3),
    "vgg19_bn": partial(vgg, 2, 2, 4, 4, 4),
}
