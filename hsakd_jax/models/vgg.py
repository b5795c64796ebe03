"""VGG with BatchNorm, Simonyan and Zisserman 2015 (arXiv 1409.1556), for 32x32 images."""

from functools import partial

import flax.linen as nn
import jax

from hsakd_jax.models.layers import HE_NORMAL, TORCH, LayerFactory, max_pool
from hsakd_jax.models.maps import Maps
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.resnet import Head

Array = jax.Array


class Stage(nn.Module):
    """2x2 max-pool if `stride` is 2, then for each of `widths` a 3x3 convolution with bias, BatchNorm and ReLU.

    Attributes:
      layers: makes the layers.
      widths: channels of the convolutions.
      stride: of the pool; 1 for none.
      hints: numbers, from 1, of the convolutions whose maps CRD's benchmark compares.
    """

    layers: LayerFactory
    widths: tuple[int, ...]
    stride: int
    hints: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        if self.stride > 1:
            x = max_pool(x, self.stride, self.stride)
        maps: list[Maps] = []
        for i, features in enumerate(self.widths, 1):
            y = self.layers.norm(self.layers.conv(x, features, 3, bias=True, name=f"conv{i}"), name=f"bn{i}")
            x = self.layers.relu(y)
            maps.append(Maps(x, y))
        return maps[-1]._replace(hints=tuple(maps[i - 1] for i in self.hints))


def vgg(*depths: int) -> Architecture:
    """VGG with `depths` convolutions in its five blocks; the last two blocks make one stage, without a pool.

    CRD's benchmark compares the maps after blocks 2 to 5; block 1 counts as the stem there.
    """
    blocks = [(width,) * depth for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True)]
    stages = (*blocks[:3], blocks[3] + blocks[4])
    hints = ((), (depths[1],), (depths[2],), (depths[3], depths[3] + depths[4]))
    makers = (
        partial(Stage, widths=widths, stride=1 if l == 0 else 2, hints=compared)
        for l, (widths, compared) in enumerate(zip(stages, hints, strict=True))
    )
    # The reference never calls the initialiser of its branches, so they start as PyTorch's defaults.
    return Architecture(None, tuple(makers), Head, HE_NORMAL, TORCH)


NETWORKS = {
    "vgg8_bn": partial(vgg, 1, 1, 1, 1, 1),
    "vgg11_bn": partial(vgg, 1, 1, 2, 2, 2),
    "vgg13_bn": partial(vgg, 2, 2, 2, 2, 2),
    "vgg16_bn": partial(vgg, 2, 2, 3, 3, 3),
    "vgg19_bn": partial(vgg, 2, 2, 4, 4, 4),
}
