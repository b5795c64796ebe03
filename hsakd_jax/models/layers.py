"""Convolution, normalisation and linear layers that compute and start as PyTorch's do.

A `Parts` is made once for the backbone and once for the branches (they start differently, see `Init`) and is
handed to every stem, stage and head, so that no network file decides on dtypes, initialisers or BatchNorm modes.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, variance_scaling, zeros

from hsakd_jax.models.numerics import at_least_float32
from hsakd_jax.models.ops import channel_sums, convolve, relu, window_sums

Array = jax.Array
Train = bool | str
# JAX's own protocol demands an argument `out_sharding`, which Flax never gives.
Initializer = Callable[..., Array]


def is_trainable(train: Train, path: str) -> bool:
    """Whether the parameter or layer at `path` ('branch1/head/fc/kernel') learns.

    Args:
      train: True (everything), False (nothing), or a regular expression searched for in the path.
      path: module or parameter names joined by '/'.
    """
    return bool(re.search(train, path)) if isinstance(train, str) else train


class Init(NamedTuple):
    """Initialisers of one part of a network, biases by fan-in; BatchNorm always starts at scale 1, bias 0."""

    conv: Initializer
    conv_bias: Callable[[int], Initializer]
    fc: Initializer
    fc_bias: Callable[[int], Initializer]


def torch_bias(fan_in: int) -> Initializer:
    """PyTorch's default bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5

    return init


def zero_bias(fan_in: int) -> Initializer:
    """Zeros, whatever the fan-in."""
    del fan_in
    return zeros


def he(key, shape, dtype=jnp.float32):
    """He et al. 2015, fan-out: N(0, 2 / (k k C_out)) for an HWIO kernel; groups are not considered."""
    height, width, _, features = shape
    return jax.random.normal(key, shape, dtype) * (2 / (height * width * features)) ** 0.5


# U(-b, b) with b = 1/sqrt(fan_in) has variance 1 / (3 fan_in).
torch_kernel = variance_scaling(1 / 3, "fan_in", "uniform")

HE_TORCH = Init(he, zero_bias, torch_kernel, torch_bias)
HE_ZERO = Init(he, zero_bias, torch_kernel, zero_bias)
HE_NORMAL = Init(he, zero_bias, normal(0.01), zero_bias)
TORCH = Init(torch_kernel, torch_bias, torch_kernel, torch_bias)


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last, equal to PyTorch's (momentum 0.1, eps 1e-5).

    The running variance is the unbiased one, n / (n - 1) times the variance that normalises, as in PyTorch;
    Flax's own BatchNorm keeps the biased one. Statistics are computed in at least float32 and the result has the
    input's dtype. Under `jax.jit` over a mesh the statistics are those of the global batch.

    Attributes:
      train: whether this layer uses and updates batch statistics (see `is_trainable`, matched on its path).
      groups: parts of neighbouring rows that are normalised each by its own statistics ("ghost" BatchNorm, Hoffer et
        al. 2017, arXiv 1705.08741), on any number of devices; the running statistics take the parts' mean.
    """

    train: Train
    groups: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        # The pattern speaks of parameters, so the layer asks about its own scale.
        if is_trainable(self.train, "/".join((*self.path, "scale"))):
            if self.groups == 1:
                # Traced once for all layers of a shape, see `cpu_ops`.
                y, mean, var = jax.jit(normalise_batch)(x, scale, bias, running_mean.value)
            else:
                parts = x.reshape(self.groups, -1, *x.shape[1:])
                shared = scale, bias, running_mean.value
                y, mean, var = jax.vmap(normalise_batch, (0, None, None, None))(parts, *shared)
                y, mean, var = y.reshape(x.shape), mean.mean(0), var.mean(0)
            if not self.is_initializing():
                n = x.size // x.shape[-1] // self.groups
                if n < 2:
                    raise ValueError("BatchNorm in training mode needs more than one value a channel: larger batch")
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * (n / (n - 1)) * var
            return y
        mean, gain, bias = rows(x, running_mean.value, inverse_deviation(running_var.value) * scale, bias)
        return ((at_least_float32(x) - mean) * gain + bias).astype(x.dtype)


def inverse_deviation(var: Array) -> Array:
    """What BatchNorm divides by, inverted, [C]."""
    return jax.lax.rsqrt(var + 1e-5)


def rows(x: Array, *vectors: Array) -> list[Array]:
    """Vectors [C] as [1, ..., 1, C], since strict promotion aligns no ranks."""
    return [v.reshape((1,) * (x.ndim - 1) + v.shape) for v in vectors]


@jax.custom_vjp
def normalise_batch(x: Array, scale: Array, bias: Array, centre: Array) -> tuple[Array, Array, Array]:
    """BatchNorm by the batch's own statistics (Ioffe and Szegedy 2015), computed in at least float32.

    Its derivative is written out, since JAX's own passes over the maps twice as often and keeps more of them.

    Args:
      x: [B, ..., C].
      scale: [C].
      bias: [C].
      centre: [C], about the mean, which no gradient passes through. Both sums are of `x - centre`, so that they need
        one pass over the map and, over several devices, one exchange; far from the mean, the variance loses precision.

    Returns:
      [B, ..., C] in the dtype of `x`, and mean and biased variance, [C], which no gradient passes through.
    """
    (mean, gain, shift), var = _statistics(x, scale, bias, centre)
    return ((at_least_float32(x) - mean) * gain + shift).astype(x.dtype), mean.reshape(-1), var


def _statistics(x, scale, bias, centre):
    n = x.size // x.shape[-1]
    off = at_least_float32(x) - rows(x, centre)[0]
    mean, square = (total / n for total in channel_sums(off, jnp.square(off)))
    var = jnp.maximum(square - jnp.square(mean), 0)
    return rows(x, centre + mean, inverse_deviation(var) * scale, bias), var


def _normalise_forward(x, scale, bias, centre):
    y, mean, var = normalise_batch(x, scale, bias, centre)
    return (y, mean, var), (x, scale, mean, inverse_deviation(var))


def _normalise_backward(kept, cotangents):
    x, scale, mean, inverse = kept
    n = x.size // x.shape[-1]
    mean, inverse, scale = rows(x, mean, inverse, scale)
    g, normal = at_least_float32(cotangents[0]), (at_least_float32(x) - mean) * inverse
    dbias, dscale = channel_sums(g, g * normal)
    mean_g, mean_gx = rows(x, dbias / n, dscale / n)
    return (scale * inverse * (g - mean_g - normal * mean_gx)).astype(x.dtype), dscale, dbias, None


normalise_batch.defvjp(_normalise_forward, _normalise_backward)


def _check_size(x: Array, stride: int, what: str) -> None:
    if min(x.shape[1:3]) < stride:
        raise ValueError(
            f"image too small for the network: {what} of stride {stride} meets a map of {x.shape[1]}x{x.shape[2]}; "
            "give larger images or a network with fewer strides"
        )


class Parts(NamedTuple):
    """Layer makers shared by one part of a network.

    Attributes:
      init: initialisers.
      dtype: dtype of convolutions; None computes in the parameters' own dtype.
      train: mode of every BatchNorm (see `is_trainable`).
      portable: whether layers are computed as `jax.lax` has them, not in the form that suits this backend.
      groups: of BatchNorm.
    """

    init: Init
    dtype: Any
    train: Train
    portable: bool
    groups: int = 1

    def conv(
        self,
        x: Array,
        features: int,
        kernel: int,
        stride: int = 1,
        *,
        name: str,
        groups: int = 1,
        bias: bool = False,
    ) -> Array:
        """Square convolution of NHWC maps, padded by kernel // 2 on every side as in PyTorch (not 'SAME').

        Raises:
          ValueError: the map is smaller than the stride.
        """
        _check_size(x, stride, "a convolution")
        return nn.Conv(
            features,
            (kernel, kernel),
            stride,
            padding=kernel // 2,
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=self.init.conv,
            bias_init=self.init.conv_bias(kernel * kernel * x.shape[-1] // groups),
            dtype=self.dtype,
            conv_general_dilated=jax.lax.conv_general_dilated if self.portable else convolve,
            name=name,
        )(x)

    def norm(self, x: Array, *, name: str) -> Array:
        """BatchNorm."""
        return BatchNorm(self.train, self.groups, name=name)(x)

    def relu(self, x: Array) -> Array:
        """max(x, 0), faster than `nn.relu` on CPU, but in networks with depthwise convolutions."""
        return nn.relu(x) if self.portable else relu(x)

    def avg_pool(self, x: Array, window: int, stride: int) -> Array:
        """Average pool of NHWC maps, padded by (window - 1) // 2, the padding counted in the mean.

        Raises:
          ValueError: the map is smaller than the stride.
        """
        _check_size(x, stride, "an average pool")
        sums = _pool(x, 0.0, jax.lax.add, window, stride) if self.portable else window_sums(x, window, stride)
        return sums / window**2

    def pool_fc(self, x: Array, features: int) -> tuple[Array, Array]:
        """Global average pool and linear layer 'fc': [B, H, W, C] -> [B, features] and [B, C], in at least float32."""
        x = at_least_float32(x).mean((1, 2))
        bias_init = self.init.fc_bias(x.shape[-1])
        return nn.Dense(features, kernel_init=self.init.fc, bias_init=bias_init, name="fc")(x), x


def max_pool(x: Array, window: int, stride: int) -> Array:
    """Max-pool of NHWC maps, padded by (window - 1) // 2 as the reference's pools are.

    Raises:
      ValueError: the map is smaller than the stride.
    """
    _check_size(x, stride, "a max-pool")
    return _pool(x, -jnp.inf, jax.lax.max, window, stride)


def _pool(x, start, reduce, window, stride):
    # Padded first, since the ONNX export knows no pool with padding; XLA folds the padding into the forward pool.
    if pad := (window - 1) // 2:
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=start)
    return nn.pool(x, start, reduce, (window, window), (stride, stride), "VALID")
