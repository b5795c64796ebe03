"""Functions that several methods share: the sample, pairs of stages, cells of maps, inner products, a linear layer."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsakd_jax.models.layers import average_pool, torch_bias, torch_kernel
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array
# Maps of student and teacher, by the student's stage, counted from 1.
StagePairs = dict[int, tuple[Array, Array]]


class Sample(NamedTuple):
    """The training images of a batch, and the outputs for their strong view, of B upright rows.

    Attributes:
      index: [B], int32, their positions in the training set.
      classes: [n], int32, the labels of all training images.
      key: random key of this step.
      strong: outputs of the network that learns for the strong view; None where the run has none.
      teacher_strong: outputs of the teacher for the strong view, without gradient; None where the run has none.
      batch_norm_groups: that of `Methods`, which sets it; None before.
    """

    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]: tuples have a method of this name
    classes: Array
    key: Array
    strong: Outputs | None = None
    teacher_strong: Outputs | None = None
    batch_norm_groups: int | None = None  # no leaf of a tree, which JAX would move to a device


def groups_of(sample: Sample | None) -> int:
    """See `BatchNorm.groups`: of the layers that a term creates."""
    return (sample.batch_norm_groups if sample else None) or 1


def embedding(outputs: Outputs) -> Array:
    """The embedding [B, D] in at least float32.

    Raises:
      ValueError: the outputs have none.
    """
    if outputs.embedding is None:
        raise ValueError("the outputs have no embedding")
    return at_least_float32(outputs.embedding)


def stage_pairs(student: Sequence[Array], teacher: Sequence[Array]) -> StagePairs:
    """Pairs of maps [B, H, W, C] in at least float32, paired from the deepest backwards.

    A map of the deeper network that has no partner is left out.

    Args:
      student: its maps, one per stage.
      teacher: its maps.
    """
    ahead = len(teacher) - len(student)
    return {
        l: (at_least_float32(student_map), at_least_float32(teacher[l + ahead - 1]))
        for l, student_map in enumerate(student, 1)
        if l + ahead > 0
    }


def equal_size_stage_pairs(student: Sequence[Array], teacher: Sequence[Array]) -> StagePairs:
    """`stage_pairs`, with the larger map of each pair average-pooled to the size of the smaller one.

    Raises:
      ValueError: a height or width does not divide that of its partner.
    """

    def equal_size(student_map: Array, teacher_map: Array) -> tuple[Array, Array]:
        height, width = (min(student_map.shape[axis], teacher_map.shape[axis]) for axis in (1, 2))
        return average_pool(student_map, height, width), average_pool(teacher_map, height, width)

    return {l: equal_size(*pair) for l, pair in stage_pairs(student, teacher).items()}


def cells(x: Array, grid: int) -> list[Array]:
    """Splits maps [B, H, W, C] into the grid * grid cells of PyTorch's adaptive pools, row by row.

    Of n pixels, cell i has those from floor(i n / grid) to below ceil((i + 1) n / grid). Cells overlap unless `grid`
    divides n.
    """
    rows, columns = ([slice(i * n // grid, -(-(i + 1) * n // grid)) for i in range(grid)] for n in x.shape[1:3])
    return [x[:, row, column] for row in rows for column in columns]


def unit_rows(x: Array) -> Array:
    """Rows (last axis) scaled to length 1; a row of zeros stays zero and gets no gradient."""
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def inner_products(a: Array, b: Array) -> Array:
    """Inner products of rows: [..., R, D], [..., S, D] -> [..., R, S]."""
    # The losses take small differences of these, which the short mantissa of accelerators' default would lose.
    return jnp.einsum("...rd,...sd->...rs", a, b, precision="highest")


def linear(x: Array, features: int, name: str) -> Array:
    """Linear layer that starts as PyTorch's does: [R, D] -> [R, features]. Call it inside a Linen module."""
    return nn.Dense(features, kernel_init=torch_kernel, bias_init=torch_bias(x.shape[-1]), name=name)(x)
