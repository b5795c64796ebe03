"""EfficientNets of Tan and Le 2019 (arXiv 1905.11946), as torchvision has them.

Stages are cut where the resolution halves: at 224x224 their maps are 56, 28, 14 and 7 pixels wide. The blocks at 112
pixels belong to the stem. Dropout and stochastic depth are left out: networks here compute the same in each call.
"""

import math
from functools import partial

import flax.linen as nn

from hsakd_jax.models.layers import HE_FAN_OUT, LayerFactory, SqueezeExcitation
from hsakd_jax.models.mobilenet import Head, InvertedResidual, Stage, Stem
from hsakd_jax.models.mobilenet_imagenet import round_channels
from hsakd_jax.models.network import Architecture

# The paper's table (expansion, kernel, features, repeats, stride) by resolution, of which the first is the stem's.
ROWS = (
    ((1, 3, 16, 1, 1),),
    ((6, 3, 24, 2, 2),),
    ((6, 5, 40, 2, 2),),
    ((6, 3, 80, 3, 2), (6, 5, 112, 3, 1)),
    ((6, 5, 192, 4, 2), (6, 3, 320, 1, 1)),
)


def attention(layers: LayerFactory, inputs: int, expanded: int, *, name: str) -> nn.Module:
    """Squeeze-and-excitation to a quarter of the block's input channels."""
    del expanded
    return SqueezeExcitation(layers, max(1, inputs // 4), nn.silu, name=name)


def repeats_of(repeats: int, depth: float) -> int:
    """Blocks of a row of the table."""
    return math.ceil(repeats * depth)


def efficientnet(width: float, depth: float, image_size: int) -> Architecture:
    """An EfficientNet whose channels are `width`, and whose repeats `depth` times those of the table."""
    first, *stages = (
        partial(
            Stage,
            blocks=tuple(
                partial(
                    InvertedResidual,
                    features=round_channels(width * features),
                    expansion=expansion,
                    stride=1 if i else stride,
                    kernel=kernel,
                    activation=nn.silu,
                    attention=attention,
                )
                for expansion, kernel, features, repeats, stride in rows
                for i in range(repeats_of(repeats, depth))
            ),
        )
        for rows in ROWS
    )
    stem = partial(Stem, features=round_channels(32 * width), stride=2, activation=nn.silu, blocks=first)
    head = partial(Head, features=4 * round_channels(320 * width), activation=nn.silu)
    return Architecture(stem, tuple(stages), head, HE_FAN_OUT, HE_FAN_OUT, image_size)


# Width, depth and size of the images of the paper.
SCALES = {"efficientnet_b0": (1.0, 1.0, 224), "efficientnet_b1": (1.0, 1.1, 240), "efficientnet_b2": (1.1, 1.2, 260)}
NETWORKS = {name: partial(efficientnet, *scale) for name, scale in SCALES.items()}
