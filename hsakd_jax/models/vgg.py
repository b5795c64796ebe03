"""VGG with BatchNorm, Simonyan and Zisserman 2015 (arXiv 1409.1556), for 32x32 images and for ImageNet."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax

from hsakd_jax.models.layers import HE_NORMAL, TORCH, LayerFactory, adaptive_avg_pool, max_pool
from hsakd_jax.models.maps import HeadOutputs, Maps
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.numerics import at_least_float32
from hsakd_jax.models.resnet import Head

Array = jax.Array


def convolutions(layers: LayerFactory, x: Array, widths: Sequence[int]) -> list[Maps]:
    """The maps, [B, H, W, width], after each of the 3x3 convolutions with bias, BatchNorm and ReLU."""
    maps = [Maps(x)]
    for i, features in enumerate(widths, 1):
        y = layers.norm(layers.conv(maps[-1].output, features, 3, bias=True, name=f"conv{i}"), name=f"bn{i}")
        maps.append(Maps(layers.relu(y), y))
    return maps[1:]


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
        maps = convolutions(self.layers, x, self.widths)
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


class ImageNetStem(nn.Module):
    """Block 1, whose map has the size of the image."""

    layers: LayerFactory
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return convolutions(self.layers, x, self.widths)[-1].output


class Classifier(nn.Module):
    """2x2 max-pool, average pool to 7x7, and three linear layers with ReLUs between them.

    The linear layers compute in at least float32. torchvision's two dropouts in front of the last two layers are
    omitted, since networks here get no random numbers.

    Attributes:
      layers: makes the layers.
      num_outputs: of the last linear layer.
      hidden: outputs of the other two.
    """

    layers: LayerFactory
    num_outputs: int
    hidden: int = 4096

    @nn.compact
    def __call__(self, x: Array) -> HeadOutputs:
        x = adaptive_avg_pool(at_least_float32(max_pool(x, 2, 2)), 7)
        # In PyTorch's order, so that its weights are ours.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        # Not 'fc1' and 'fc2', since 'head/fc' is the pattern of the last layer, which a linear probe trains.
        for name in ("hidden1", "hidden2"):
            x = self.layers.relu(self.layers.linear(x, self.hidden, name=name))
        return HeadOutputs(self.layers.linear(x, self.num_outputs, name="fc"), x, x[:, None, None])


def vgg_imagenet(*depths: int) -> Architecture:
    """torchvision's VGG with `depths` convolutions in its five blocks: block 1 is the stem, and each other one a stage.

    Each branch ends with a classifier of its own, as the one rule demands. At 1000 classes that has 136 million
    parameters, so VGG-16 with its four branches has 724 million, and 138 million without them. Parameters, gradients
    and momentum of the former take 8.1 GiB.
    """
    blocks = [(width,) * depth for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True)]
    stages = tuple(partial(Stage, widths=widths, stride=2, hints=(len(widths),)) for widths in blocks[1:])
    return Architecture(
        partial(ImageNetStem, widths=blocks[0]), stages, Classifier, HE_NORMAL, HE_NORMAL, image_size=224
    )


NETWORKS = {
    "vgg8_bn": partial(vgg, 1, 1, 1, 1, 1),
    "vgg11_bn": partial(vgg, 1, 1, 2, 2, 2),
    "vgg13_bn": partial(vgg, 2, 2, 2, 2, 2),
    "vgg16_bn": partial(vgg, 2, 2, 3, 3, 3),
    "vgg19_bn": partial(vgg, 2, 2, 4, 4, 4),
    "vgg16_bn_imagenet": partial(vgg_imagenet, 2, 2, 3, 3, 3),
}
