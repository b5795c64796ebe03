"""Numerical helpers of all backends' forms: the precision of sums, and several sums in one operation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


def at_least_float32(x: Array) -> Array:
    """`x` in float32 where it is narrower; float32 and float64 pass unchanged."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def joint_sums(maps: Sequence[Array], axes: Sequence[int]) -> tuple[Array, ...]:
    """Sums of several arrays of one shape over `axes`, in one operation that reads shared operands once."""
    zeros = tuple(jnp.zeros((), x.dtype) for x in maps)

    def add(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(x + y for x, y in zip(a, b, strict=True))

    return tuple(jax.lax.reduce(tuple(maps), zeros, add, axes))
