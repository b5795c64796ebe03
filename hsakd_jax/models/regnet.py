"""RegNetY of Radosavovic et al. 2020 (arXiv 2003.13678), as torchvision has it."""

from functools import partial

import flax.linen as nn
import jax

from hsakd_jax.models.layers import HE_NORMAL, LayerFactory, SqueezeExcitation, torch_bias
from hsakd_jax.models.maps import Maps
from hsakd_jax.models.network import Architecture
from hsakd_jax.models.resnet import Head, Stage, Stem, shortcut

Array = jax.Array


class Block(nn.Module):
    """1x1, grouped 3x3, squeeze-and-excitation and 1x1, and a shortcut.

    [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].

    Attributes:
      layers: makes the layers.
      features: channels of all its maps.
      stride: of the 3x3 convolution and the shortcut.
      group_width: channels of a group of the 3x3 convolution.
    """

    layers: LayerFactory
    features: int
    stride: int
    group_width: int

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        layers, out, groups = self.layers, self.features, self.features // self.group_width
        y = layers.relu(layers.norm(layers.conv(x, out, 1, name="conv1"), name="bn1"))
        y = layers.conv(y, out, 3, self.stride, groups=groups, name="conv2")
        y = layers.relu(layers.norm(y, name="bn2"))
        y = SqueezeExcitation(layers, round(0.25 * x.shape[-1]), name="attention")(y)
        y = layers.norm(layers.conv(y, out, 1, name="conv3"), name="bn3")
        y = y + shortcut(layers, x, out, self.stride)
        return Maps(layers.relu(y), y)


def regnet_y(depths: tuple[int, ...], widths: tuple[int, ...], group_width: int) -> Architecture:
    """A RegNetY.

    Args:
      depths: blocks per stage.
      widths: channels per stage; every stage has stride 2.
      group_width: see `Block`.
    """
    block = partial(Block, group_width=group_width)
    stages = (
        partial(Stage, block=block, depth=depth, features=width, stride=2)
        for depth, width in zip(depths, widths, strict=True)
    )
    # Biases, which only squeeze-and-excitation has, keep PyTorch's default in torchvision.
    init = HE_NORMAL._replace(conv_bias=torch_bias)
    return Architecture(partial(Stem, features=32, stride=2), tuple(stages), Head, init, init, 224)


NETWORKS = {"regnet_y_400mf": partial(regnet_y, (1, 3, 6, 6), (48, 104, 208, 440), 8)}
