"""OFA: a classifier after each stage of the student, which the teacher's class logits teach."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.nn.initializers import normal

from hsakd_jax.distillation.methods.common import Sample, embedding, groups_of
from hsakd_jax.distillation.options import Exponent, Temperature
from hsakd_jax.models.layers import Init, LayerFactory, he, torch_bias, zero_bias
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array


def ofa_loss(student_logits: Array, teacher_logits: Array, labels: Array, gamma: float, temperature: float) -> Array:
    """One-for-all KD (Hao et al. 2023, arXiv 2310.19444): cross-entropy with a teacher whose target class is enhanced.

    The weight of -log q is (1 + p)^gamma - 1 for the target class and p^gamma for the others. No tau^2 multiplies it.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      labels: [B], integers: the target classes.
      gamma: 1 for plain cross-entropy; above 1 the target class gains weight, the more the surer the teacher is.
      temperature: tau, which divides the logits.

    Returns:
      Scalar in at least float32, mean over the batch.
    """
    p = jax.nn.softmax(at_least_float32(teacher_logits) / temperature)
    target = jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
    logits = at_least_float32(student_logits) / temperature
    return optax.softmax_cross_entropy(logits, (p + target) ** gamma - target).mean()


# Wiring: which logits the loss takes, and the classifiers that make them.


def ofa(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    gamma: Exponent = 1.0,
    temperature: Temperature = 1.0,
) -> Array:
    """The sum of `ofa_loss` over the class logits and those of `Exits`, with the authors' defaults for CIFAR-100."""
    width = max(embedding(outputs).shape[-1], embedding(teacher).shape[-1])
    exits = Exits(width, outputs.logits.shape[-1], groups_of(sample), name="ofa")(outputs.features)
    every = [ofa_loss(logits, teacher.logits, labels, gamma, temperature) for logits in (outputs.logits, *exits)]
    return jnp.stack(every).sum()


class Exits(nn.Module):
    """A classifier of the map after each stage: L maps [B, H, W, C] -> L arrays [B, N], at least float32.

    Attributes:
      width: inputs of their linear layers.
      num_classes: N.
      batch_norm_groups: see `BatchNorm.groups`.
    """

    width: int
    num_classes: int
    batch_norm_groups: int = 1

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        layers = LayerFactory(Init(he, torch_bias, normal(0.02), zero_bias), None, True, False, self.batch_norm_groups)
        return [
            Exit(layers, len(maps) - l, self.width, self.num_classes, name=f"stage{l}")(at_least_float32(x))
            for l, x in enumerate(maps, 1)
        ]


class Exit(nn.Module):
    """Separable convolutions, one for each later stage, or else a 1x1 convolution; average pool and linear layer.

    Attributes:
      layers: makes the layers.
      later_stages: how many stages follow. Each separable convolution halves the map and doubles the channels.
      width: channels of the last convolution.
      num_classes: N.
    """

    layers: LayerFactory
    later_stages: int
    width: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(1, self.later_stages + 1):
            features = self.width if i == self.later_stages else 2 * x.shape[-1]
            x = SeparableConv(self.layers, features, name=f"conv{i}")(x)
        if not self.later_stages:
            x = self.layers.conv(x, self.width, 1, bias=True, name="conv")
        return self.layers.pool_fc(x, self.num_classes)[0]


class SeparableConv(nn.Module):
    """Depthwise 3x3 and 1x1 convolution, BatchNorm and ReLU, twice; the first one has stride 2.

    [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), features].
    """

    layers: LayerFactory
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layers, channels = self.layers, x.shape[-1]
        for i, stride, features in ((1, 2, channels), (2, 1, self.features)):
            x = layers.conv(x, channels, 3, stride, groups=channels, name=f"depthwise{i}")
            x = nn.relu(layers.norm(layers.conv(x, features, 1, name=f"pointwise{i}"), name=f"bn{i}"))
        return x
