"""MobileNetV2 of Sandler et al. 2018 (arXiv 1801.04381) as HSAKD and CRD have it: width 0.5, ReLU for ReLU6."""

from functools import partial

import flax.linen as nn

from hsakd_jax.models.layers import HE_NORMAL, Parts
from hsakd_jax.models.network import Architecture

# The paper's rows (expansion, width halved, repeats, stride), in the stages the branches need.
STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


class InvertedResidual(nn.Module):
    """1x1 expansion (also at expansion 1), 3x3 depthwise, linear 1x1; identity where the shape is kept."""

    parts: Parts
    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        parts, hidden = self.parts, self.expansion * x.shape[-1]
        y = nn.relu(parts.norm(parts.conv(x, hidden, 1, name="conv1"), name="bn1"))
        y = nn.relu(parts.norm(parts.conv(y, hidden, 3, self.stride, groups=hidden, name="conv2"), name="bn2"))
        y = parts.norm(parts.conv(y, self.features, 1, name="conv3"), name="bn3")
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class Stage(nn.Module):
    """Rows of (expansion, width, repeats, stride); the stride is the first block's of its row.

    Attributes:
      stride: replaces the first row's stride where given.
    """

    parts: Parts
    rows: tuple[tuple[int, int, int, int], ...]
    stride: int | None = None

    @nn.compact
    def __call__(self, x):
        blocks = [(e, c, s if i == 0 else 1) for e, c, n, s in self.rows for i in range(n)]
        for i, (expansion, features, stride) in enumerate(blocks):
            if i == 0 and self.stride is not None:
                stride = self.stride
            x = InvertedResidual(self.parts, expansion, features, stride, name=f"block{i}")(x)
        return x


class Stem(nn.Module):
    """3x3 convolution, BatchNorm, ReLU."""

    parts: Parts
    stride: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(self.parts.norm(self.parts.conv(x, 16, 3, self.stride, name="conv1"), name="bn1"))


class Head(nn.Module):
    """1x1 convolution to `features` channels, BatchNorm, ReLU, global average pool, linear layer."""

    parts: Parts
    num_outputs: int
    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.parts.norm(self.parts.conv(x, self.features, 1, name="conv"), name="bn"))
        return self.parts.pool_fc(x, self.num_outputs)


def mobilenet(stem_stride: int) -> Architecture:
    """MobileNetV2 (T = 6, width 0.5) behind a stem of the given stride."""
    stages = tuple(partial(Stage, rows=rows) for rows in STAGES)
    return Architecture(partial(Stem, stride=stem_stride), stages, partial(Head, features=1280), HE_NORMAL, HE_NORMAL)


NETWORKS = {
    "mobilenetV2": partial(mobilenet, 1),
    # The network of the same name in CRD, SSKD and mdistiller: four times fewer pixels, some 8 points less accuracy.
    "mobilenetV2_crd": partial(mobilenet, 2),
}
