"""WKD (Lv et al. 2024, arXiv 2412.08139): Wasserstein distances of predictions (WKD-L) and of features (WKD-F)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsakd_jax.distillation.methods.common import Sample, cells, groups_of, inner_products, stage_pairs, unit_rows
from hsakd_jax.distillation.methods.features import Regressor
from hsakd_jax.distillation.methods.logits import target_loss
from hsakd_jax.distillation.options import (
    ClassCost,
    ClassImages,
    Coefficient,
    Grid,
    Iterations,
    Projector,
    Regularisation,
    Small,
    Temperature,
    Width,
)
from hsakd_jax.models.layers import TORCH, LayerFactory
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array


def transport_loss(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    cost: Array,
    temperature: float,
    regularisation: float,
    iterations: int,
) -> Array:
    """WKD-L's part of the other classes: the cost of moving the student's prediction to the teacher's.

    The predictions are over all classes except the target. Sinkhorn's algorithm (Cuturi 2013, arXiv 1306.0895) finds
    the plan, and the gradient passes through all iterations. As in the published code, 1e-8 is added to the costs and
    to the divisors, and there is no factor tau^2.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      labels: [B], integers: the target classes.
      cost: [N, N], in the dtype of the logits but at least float32, by class of the student and class of the teacher.
        Negative ones count as 0. See `cosine_cost`, `cka_cost` and `sharpened_cost`.
      temperature: tau, which divides the logits.
      regularisation: weight of the plan's entropy.
      iterations: of Sinkhorn's algorithm.

    Returns:
      Scalar in at least float32, mean over the batch.
    """
    others = ~jax.nn.one_hot(labels, cost.shape[0], dtype=bool)
    q, p = (
        jax.nn.softmax(at_least_float32(logits) / temperature, where=others)
        for logits in (student_logits, teacher_logits)
    )
    cost = jnp.maximum(cost, 0) + 1e-8
    kernel = jnp.exp(-cost / regularisation)

    # The plan of an image is u[:, None] * kernel * v. Both factors are 0 at its target class, so all images use one
    # kernel of all classes.
    def iterate(_: int, scaling: tuple[Array, Array]) -> tuple[Array, Array]:
        v = p / (inner_products(scaling[0], kernel.T) + 1e-8)
        return q / (inner_products(v, kernel) + 1e-8), v

    start = others.astype(q.dtype) / (cost.shape[0] - 1)
    u, v = jax.lax.fori_loop(0, iterations, iterate, (start, start))
    return (inner_products(u, (kernel * cost).T) * v).sum(-1).mean()


def cosine_cost(kernel: Array) -> Array:
    """Cost of moving probability between classes: 1 - cosine similarity of their weights in a linear layer.

    Args:
      kernel: [D, N], at least float32, of the teacher's last layer.

    Returns:
      [N, N].
    """
    rows = unit_rows(kernel.T)
    return 1 - inner_products(rows, rows)


def cka_cost(features: Array) -> Array:
    """Cost of moving probability between classes: 1 - linear CKA (Kornblith et al. 2019, arXiv 1905.00414).

    CKA compares row r of one class with row r of the other. A class whose rows are all equal has the cost 1.

    Args:
      features: [N, R, D], at least float32: the teacher's, R rows of each class.

    Returns:
      [N, N].
    """
    classes, rows, channels = features.shape
    centred = features - features.mean(1, keepdims=True)
    # The scale of a class cancels out. Fourth powers of great features would not be finite.
    largest = jnp.abs(centred).max((1, 2), keepdims=True)
    centred = centred / jnp.where(largest > 0, largest, 1)
    if rows <= channels:
        # Of matrices [R, R] of each class.
        similarities = unit_rows(inner_products(centred, centred).reshape(classes, -1))
        return 1 - inner_products(similarities, similarities)
    # The same of matrices [D, D] of each pair, one class after the other, since pixels are many rows.
    by_channel = centred.swapaxes(1, 2)
    hsic = jax.lax.map(lambda own: jnp.square(inner_products(own, by_channel)).sum((1, 2)), by_channel)
    scale = jnp.diagonal(hsic)
    scale = jnp.where(scale > 0, jax.lax.rsqrt(jnp.where(scale > 0, scale, 1)), 0)
    return 1 - jnp.outer(scale, scale) * hsic


def sharpened_cost(cost: Array, sharpness: float) -> Array:
    """1 - exp(-sharpness * cost), of any shape."""
    return 1 - jnp.exp(-sharpness * cost)


def gaussian_distances(student_map: Array, teacher_map: Array, grid: int, eps: float) -> tuple[Array, Array]:
    """WKD-F: the two parts of the Wasserstein distance of Gaussians with diagonal covariances.

    A Gaussian has the mean and the variance of each channel over the pixels of a cell.

    Args:
      student_map: [B, H, W, C], at least float32, after the projector.
      teacher_map: [B, H, W, C], at least float32.
      grid: cells along each side of the map; 1 has one Gaussian for the whole map.
      eps: added to variances.

    Returns:
      Squared distance of the means, squared distance of the standard deviations: scalars, sum over channels, mean over
      cells and images.

    Raises:
      ValueError: a cell has one pixel, whose variance is not defined.
    """
    (mean_s, std_s), (mean_t, std_t) = (_cell_statistics(x, grid, eps) for x in (student_map, teacher_map))
    return jnp.square(mean_s - mean_t).sum(-1).mean(), jnp.square(std_s - std_t).sum(-1).mean()


def _cell_statistics(x: Array, grid: int, eps: float) -> tuple[Array, Array]:
    """[B, H, W, C] -> means and standard deviations, [grid * grid, B, C] each."""
    parts = cells(x, grid)
    if min(part[0, :, :, 0].size for part in parts) < 2:
        height, width = x.shape[1:3]
        raise ValueError(f"a map of {height}x{width} has cells of one pixel in a grid of {grid}: set a smaller grid")
    variances = jnp.stack([part.var((1, 2), ddof=1) for part in parts])
    return jnp.stack([part.mean((1, 2)) for part in parts]), jnp.sqrt(variances + eps)


# Wiring: the logits and the costs that WKD-L takes, the maps that WKD-F takes, and the projector between them.


def wkd_target(outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample) -> Array:
    """WKD-L's part of the target class: `target_loss` of the class logits. Its authors add it with weight 1."""
    return target_loss(outputs.logits, teacher.logits, labels)


def wkd_l(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    cost: ClassCost = "cka_map",
    images: ClassImages = 500,
    sharpness: Coefficient = 1.0,
    temperature: Temperature = 8.0,
    regularisation: Regularisation = 0.05,
    iterations: Iterations = 10,
) -> Array:
    """WKD-L's part of the other classes: `transport_loss` of the class logits.

    The costs between classes are constants of the run. `training.class_costs` makes them before the first step. Their
    source is the teacher's last linear layer ('classifier', see `cosine_cost`), or its features of the first `images`
    training images of each class (see `cka_cost`). For 'cka_map', as in the authors' code for CIFAR-100, the rows of
    the features are the pixels of the map after the last stage. For 'cka_logits', as there for ImageNet, they are the
    class logits. A sharpness above 0 applies `sharpened_cost`.

    The defaults are those of their code for resnet32x4 and resnet8x4. It decreases the weight of this term along a
    cosine, on CIFAR-100 from epoch 150 of 240 on.
    """
    logits = at_least_float32(outputs.logits)
    costs = jax.lax.stop_gradient(ClassCosts(logits.shape[-1], name="wkd_l")(logits.dtype))
    costs = sharpened_cost(costs, sharpness) if sharpness else costs
    return transport_loss(logits, teacher.logits, labels, costs, temperature, regularisation, iterations)


class ClassCosts(nn.Module):
    """Costs [N, N] that a run keeps: NaN until they are made.

    Attributes:
      classes: N.
    """

    classes: int

    @nn.compact
    def __call__(self, dtype: Any) -> Array:
        return self.variable("batch_stats", "cost", jnp.full, (self.classes,) * 2, jnp.nan, dtype).value


def wkd_f(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    ratio: Coefficient = 4.0,
    grid: Grid = 1,
    eps: Small = 1e-5,
    projector: Projector = "regressor",
    hidden: Width = 256,
) -> Array:
    """`gaussian_distances` of the maps after the last stages: ratio * means + standard deviations.

    The student's map first passes a projector: FitNets' `Regressor`, or a `Bottleneck` of `hidden` channels, which the
    authors use on ImageNet. The defaults are those of their code for resnet32x4 and resnet8x4. It decreases the weight
    of this term along a cosine, on CIFAR-100 from epoch 150 of 240 on.

    Raises:
      ValueError: no projector reaches the size of the teacher's map, or a cell of the grid has one pixel.
    """
    student_map, teacher_map = stage_pairs(outputs.features, teacher.features)[len(outputs.features)]
    size = teacher_map.shape[1:]
    groups = groups_of(sample)
    if projector == "regressor":
        module = Regressor(size, groups, name="wkd_f")
    else:
        module = Bottleneck(hidden, size, groups, name="wkd_f")
    means, deviations = gaussian_distances(module(student_map), teacher_map, grid, eps)
    return ratio * means + deviations


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions to the channels of another map of equal size, then BatchNorm and ReLU.

    As in the published code, there is no layer between the convolutions.

    Attributes:
      hidden: channels of the first two convolutions.
      size: H, W, C of the other map.
      batch_norm_groups: see `BatchNorm.groups`.

    Raises:
      ValueError: the maps differ in height or width.
    """

    hidden: int
    size: tuple[int, ...]
    batch_norm_groups: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        (height, width), (h, w, features) = x.shape[1:3], self.size
        if (height, width) != (h, w):
            raise ValueError(f"no bottleneck from a map of {height}x{width} to one of {h}x{w}: use the regressor")
        layers = LayerFactory(TORCH, None, True, False, self.batch_norm_groups)
        x = layers.conv(x, self.hidden, 1, bias=True, name="conv1")
        x = layers.conv(x, self.hidden, 3, bias=True, name="conv2")
        x = layers.conv(x, features, 1, bias=True, name="conv3")
        return layers.relu(layers.norm(x, name="bn"))
