"""Methods that compare feature maps: FitNets, attention transfer, variational information distillation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import constant, variance_scaling

from hsakd_jax.distillation.methods.common import (
    Sample,
    StagePairs,
    equal_size_stage_pairs,
    groups_of,
    stage_pairs,
    unit_rows,
)
from hsakd_jax.distillation.options import MapsOf, Small, Stage, Variance
from hsakd_jax.models.layers import BatchNorm, torch_bias, torch_kernel
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.ops import convolve

Array = jax.Array


def hint_loss(student_map: Array, teacher_map: Array) -> Array:
    """FitNets (Romero et al. 2015, arXiv 1412.6550): mean squared error of two maps.

    Args:
      student_map: [B, H, W, C], at least float32, after the regressor.
      teacher_map: [B, H, W, C], at least float32.

    Returns:
      Scalar.
    """
    return jnp.square(student_map - teacher_map).mean()


def attention_loss(student_map: Array, teacher_map: Array) -> Array:
    """Attention transfer (Zagoruyko and Komodakis 2017, arXiv 1612.03928): squared error of two attention maps.

    An attention map is the mean over channels of the squared map, scaled to length 1.

    Args:
      student_map: [B, H, W, C], at least float32.
      teacher_map: [B, H, W, C'], at least float32; the number of channels may differ.

    Returns:
      Scalar, mean over images and pixels.
    """
    return jnp.square(_attention(student_map) - _attention(teacher_map)).mean()


def _attention(x: Array) -> Array:
    """[B, H, W, C] -> [B, H * W], rows of length 1."""
    return unit_rows(jnp.square(x).mean(-1).reshape(len(x), -1))


def gaussian_nll(mean: Array, target: Array, variance: Array) -> Array:
    """Negative log-likelihood of a Gaussian without its constant: 0.5 ((target - mean)^2 / variance + log variance).

    The loss of variational information distillation (Ahn et al. 2019, arXiv 1904.05835).

    Args:
      mean: [B, H, W, C], at least float32, regressed from the student's map.
      target: [B, H, W, C], at least float32, the teacher's map.
      variance: positive, broadcasts against both.

    Returns:
      Scalar, mean over all elements.
    """
    return 0.5 * (jnp.square(mean - target) / variance + jnp.log(variance)).mean()


# Wiring: which maps each loss takes, and the layers between them. By default these are the hints, which CRD's benchmark
# compares; the features differ from them only in VGG, whose stages HSAKD's branches follow.


def fitnet(
    outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample, stage: Stage = 2, maps: MapsOf = "hints"
) -> Array:
    """`hint_loss` of a map of the student, through a regressor to the teacher's size.

    Hint 2 is the map of CRD's `hint_layer 2`, which counts the stem's as 0. It follows the second stage of ResNets and
    WRNs, and the third block of VGG.

    Args:
      outputs: of the student.
      labels: [B], not used.
      teacher: its outputs.
      sample: not used.
      stage: number of the student's map, from 1.
      maps: the field of `Outputs` that has them.

    Raises:
      ValueError: the stage has no partner in the teacher, or the sizes differ so that no regressor fits.
    """
    pairs = stage_pairs(getattr(outputs, maps), getattr(teacher, maps))
    if stage not in pairs:
        raise ValueError(
            f"fitnet: choose a stage that has a partner (paired from the deepest): {', '.join(map(str, pairs))}"
        )
    student_map, teacher_map = pairs[stage]
    regressor = Regressor(teacher_map.shape[1:], groups_of(sample), name="fitnet")
    return hint_loss(regressor(student_map), teacher_map)


class Regressor(nn.Module):
    """Convolution to the size [H, W, C] of another map, BatchNorm, ReLU.

    The convolution is transposed 4x4/2 to double the size, 3x3/2 to halve it, and unpadded otherwise.

    Attributes:
      size: H, W, C of the other map.
      batch_norm_groups: see `BatchNorm.groups`.

    Raises:
      ValueError: none of the three convolutions reaches that size.
    """

    size: tuple[int, ...]
    batch_norm_groups: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        (height, width, channels), (h, w, features) = x.shape[1:], self.size
        if (2 * height, 2 * width) == (h, w):
            # PyTorch counts a transposed convolution's outputs as its fan-in.
            init = variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)
            bias = torch_bias(16 * features)
            x = nn.ConvTranspose(features, (4, 4), (2, 2), kernel_init=init, bias_init=bias, name="conv")(x)
        else:
            kernel, stride, pad = (3, 2, 1) if (height, width) == (2 * h, 2 * w) else (1 + height - h, 1, 0)
            if kernel < 1 or (stride == 1 and width - w != height - h):
                raise ValueError(f"no regressor from a map of {height}x{width} to one of {h}x{w}")
            x = nn.Conv(
                features,
                (kernel, kernel),
                stride,
                pad,
                kernel_init=torch_kernel,
                bias_init=torch_bias(kernel * kernel * channels),
                conv_general_dilated=convolve,
                name="conv",
            )(x)
        return nn.relu(BatchNorm(True, self.batch_norm_groups, name="bn")(x))


def at(outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample, maps: MapsOf = "hints") -> Array:
    """Sum of `attention_loss` over all pairs of `maps`."""
    pairs = equal_size_stage_pairs(getattr(outputs, maps), getattr(teacher, maps)).values()
    return jnp.stack([attention_loss(*pair) for pair in pairs]).sum()


def vid(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    variance: Variance = 5.0,
    eps: Small = 1e-5,
    maps: MapsOf = "hints",
) -> Array:
    """Sum of `gaussian_nll` over all pairs of `maps`, see `Gaussians`."""
    pairs = equal_size_stage_pairs(getattr(outputs, maps), getattr(teacher, maps))
    return Gaussians(variance, eps, name="vid")(pairs)


class Gaussians(nn.Module):
    """For each pair of maps three 1x1 convolutions to the mean of the teacher's map, and a variance per channel.

    Attributes:
      variance: the variances at the start.
      eps: the least variance.
    """

    variance: float
    eps: float

    @nn.compact
    def __call__(self, pairs: StagePairs) -> Array:
        """The sum of `gaussian_nll` over the pairs, a scalar."""
        start = constant(math.log(math.expm1(self.variance - self.eps)))  # the inverse of softplus
        terms: list[Array] = []
        for stage, (mean, target) in pairs.items():
            channels = target.shape[-1]
            for i in (1, 2, 3):
                mean = nn.relu(mean) if i > 1 else mean
                name = f"stage{stage}_conv{i}"
                mean = nn.Dense(channels, use_bias=False, kernel_init=torch_kernel, name=name)(mean)
            scale = self.param(f"stage{stage}_log_scale", start, (channels,)).reshape(1, 1, 1, -1)
            terms.append(gaussian_nll(mean, target, jax.nn.softplus(scale) + self.eps))
        return jnp.stack(terms).sum()
