"""Convolution, ReLU and sums in the form that each backend computes fastest; the results are those of `jax.lax`.

Accelerators use `jax.lax`'s own forms. XLA's CPU backend computes some of them many times slower than other forms of
the same. So on CPU each function has a form of its own in `cpu_ops`. `benchmarks/MEASURES.md` has the gains.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from hsakd_jax.models import cpu_ops
from hsakd_jax.models.numerics import joint_sums

Array = jax.Array


def convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> Array:
    """`jax.lax.conv_general_dilated` of NHWC maps and HWIO kernels.

    Args:
      x: [B, H, W, C], floating point.
      kernel: [k, k, C / groups, features], of the same dtype.
      strides: two equal ones.
      padding: two equal pairs.
      **options: the others of `jax.lax.conv_general_dilated`; all except `feature_group_count` must be as `nn.Conv`
        sets them for an undilated 2-D convolution.

    Returns:
      [B, H', W', features] in the dtype of `x`.
    """
    form = cpu_ops.convolve if _on_cpu() else jax.lax.conv_general_dilated
    return form(x, kernel, strides, padding, **options)


def multiply_rows(x: Array, kernel: Array) -> Array:
    """Matrix product over the last axis of `x`, [..., D], [D, F] -> [..., F], both of the same dtype."""
    return cpu_ops.multiply_rows(x, kernel) if _on_cpu() else x @ kernel


def window_sums(x: Array, window: int, stride: int) -> Array:
    """Sums over windows of NHWC maps, padded by (window - 1) // 2: [B, H, W, C] -> [B, H', W', C]."""
    pad = ((window - 1) // 2, (window - 1) // 2)
    if _on_cpu():
        return cpu_ops.window_sums(x, window, stride, pad)
    shape, strides, edges = (1, window, window, 1), (1, stride, stride, 1), [(0, 0), pad, pad, (0, 0)]
    # A NumPy zero: if the start value were traced, JAX could not recognise a sum, whose derivative it has.
    return jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, shape, strides, edges)


def relu(x: Array) -> Array:
    """max(x, 0), of any shape; on CPU the result is stored once for all operations that read it."""
    return cpu_ops.relu(x) if _on_cpu() else jax.nn.relu(x)


def channel_sums(*maps: Array) -> tuple[Array, ...]:
    """Sums of maps [B, ..., C] of one shape over all axes except the last, each [C]."""
    if _on_cpu():
        return cpu_ops.channel_sums(*maps)
    axes = tuple(range(maps[0].ndim - 1))
    # Over several devices, XLA makes all-gathers of a joint sum and all-reduces of separate ones.
    return tuple(x.sum(axes) for x in maps) if jax.device_count() > 1 else joint_sums(maps, axes)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"
