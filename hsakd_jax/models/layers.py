"""Convolution, normalisation and linear layers that compute and start as PyTorch's do.

Every stem, stage and head gets a `LayerFactory`, one for the backbone and one for the branches, whose initialisers
differ. So no network file decides on dtypes, initialisers or BatchNorm modes.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import normal, variance_scaling, zeros

from hsakd_jax.core.errors import UserError
from hsakd_jax.models.maps import HeadOutputs
from hsakd_jax.models.numerics import at_least_float32
from hsakd_jax.models.ops import channel_sums, convolve, multiply_rows, relu, window_sums

Array = jax.Array
Train = bool | str
# JAX's own protocol requires an argument `out_sharding`, which Flax never passes.
Initializer = Callable[..., Array]


def is_trainable(train: Train, path: str) -> bool:
    """Whether a parameter is trained.

    Args:
      train: True (every parameter), False (none), or a regular expression that is searched for in the path.
      path: names of modules and of the parameter, joined by '/': 'branch1/head/fc/kernel'.

    Raises:
      UserError: the pattern is no regular expression.
    """
    if not isinstance(train, str):
        return train
    try:
        return bool(re.search(train, path))
    except re.error as error:
        raise UserError(f"trainable={train!r} is not a regular expression: {error}") from error


class Init(NamedTuple):
    """Initialisers of a backbone or of branches; BatchNorm always starts at scale 1, bias 0.

    Attributes:
      conv: of convolution kernels, HWIO.
      conv_bias: fan-in -> initialiser of convolution biases.
      fc: of the kernels of linear layers, [D, features].
      fc_bias: fan-in -> initialiser of the biases of linear layers.
      grouped_conv: groups -> initialiser of the kernels of convolutions with more than one group; None for `conv`.
    """

    conv: Initializer
    conv_bias: Callable[[int], Initializer]
    fc: Initializer
    fc_bias: Callable[[int], Initializer]
    grouped_conv: Callable[[int], Initializer] | None = None


def torch_bias(fan_in: int) -> Initializer:
    """PyTorch's default bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5

    return init


def zero_bias(fan_in: int) -> Initializer:
    """Zeros, whatever the fan-in."""
    del fan_in
    return zeros


def he(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """He et al. 2015 (arXiv 1502.01852), fan-out: N(0, 2 / (k k C_out)) for an HWIO kernel, whatever its groups."""
    height, width, _, features = shape
    return jax.random.normal(key, shape, dtype) * (2 / (height * width * features)) ** 0.5


def he_grouped(groups: int) -> Initializer:
    """He et al. 2015 with the fan-out of a group: N(0, 2 groups / (k k C_out)) for an HWIO kernel."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return he(key, shape, dtype) * groups**0.5

    return init


# U(-b, b) with b = 1/sqrt(fan_in) has variance 1 / (3 fan_in).
torch_kernel = variance_scaling(1 / 3, "fan_in", "uniform")
uniform_fan_out = variance_scaling(1 / 3, "fan_out", "uniform")

HE_TORCH = Init(he, zero_bias, torch_kernel, torch_bias)
HE_ZERO = Init(he, zero_bias, torch_kernel, zero_bias)
HE_NORMAL = Init(he, zero_bias, normal(0.01), zero_bias)
# He et al. 2015 with the fan-in, N(0, 2 / (k k C_in / groups)).
HE_IN_ZERO = Init(variance_scaling(2.0, "fan_in", "normal"), zero_bias, torch_kernel, zero_bias)
HE_FAN_OUT = Init(he, zero_bias, uniform_fan_out, zero_bias)
TORCH = Init(torch_kernel, torch_bias, torch_kernel, torch_bias)


class BatchNorm(nn.Module):
    """BatchNorm over all axes except the last, equal to PyTorch's.

    The running variance is the unbiased one, n / (n - 1) times the variance that normalises, as in PyTorch; Flax's own
    BatchNorm stores the biased one. Statistics are computed in at least float32, and the result has the dtype of the
    input. Under `jax.jit` over a mesh the statistics are those of the global batch.

    Attributes:
      train: whether this layer uses and updates batch statistics; a pattern is matched with the path of its scale, see
        `is_trainable`.
      groups: number of groups of neighbouring rows, each of which is normalised by its own statistics ("ghost"
        BatchNorm, Hoffer et al. 2017, arXiv 1705.08741), on any number of devices. The running statistics take the mean
        over the groups.
      eps: added to a variance before its root.
      momentum: fraction of a batch's statistics in the new running ones, as PyTorch counts it.
    """

    train: Train
    groups: int = 1
    eps: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, ..., C] -> [B, ..., C].

        Raises:
          ValueError: in training, a group has one value per channel, whose variance is not defined.
        """
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features)
        bias = self.param("bias", zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        if is_trainable(self.train, "/".join((*self.path, "scale"))):
            if self.groups == 1:
                # Jitted, so that JAX traces it once for all layers of a shape.
                jitted = jax.jit(normalise_batch, static_argnums=4)
                y, mean, var = jitted(x, scale, bias, running_mean.value, self.eps)
            else:
                grouped = x.reshape(self.groups, -1, *x.shape[1:])
                shared = scale, bias, running_mean.value
                by_group = jax.vmap(partial(normalise_batch, eps=self.eps), (0, None, None, None))
                y, mean, var = by_group(grouped, *shared)
                y, mean, var = y.reshape(x.shape), mean.mean(0), var.mean(0)
            if not self.is_initializing():
                n = x.size // x.shape[-1] // self.groups
                if n < 2:
                    raise ValueError(
                        "BatchNorm in training mode needs more than one value per channel: use a larger batch"
                    )
                old, new = 1 - self.momentum, self.momentum
                running_mean.value = old * running_mean.value + new * mean
                running_var.value = old * running_var.value + new * (n / (n - 1)) * var
            return y
        gain = inverse_std(running_var.value, self.eps) * scale
        mean, gain, bias = per_channel(x, running_mean.value, gain, bias)
        return ((at_least_float32(x) - mean) * gain + bias).astype(x.dtype)


def inverse_std(var: Array, eps: float) -> Array:
    """1 / sqrt(variance + eps), [C], by which BatchNorm multiplies."""
    return jnp.sqrt(1 / (var + eps))  # `rsqrt`, also that of 1 / sqrt(x), is less exact on CPU


def per_channel(x: Array, *vectors: Array) -> list[Array]:
    """Vectors [C] as [1, ..., 1, C], of the rank of `x`, since strict rank promotion does not align them."""
    return [v.reshape((1,) * (x.ndim - 1) + v.shape) for v in vectors]


def _normalise_batch(
    x: Array, scale: Array, bias: Array, centre: Array, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """BatchNorm by the statistics of the batch (Ioffe and Szegedy 2015, arXiv 1502.03167), in at least float32.

    Its derivative is written out: JAX's own reads the maps twice as often, and stores more of them.

    Args:
      x: [B, ..., C], floating point.
      scale: [C].
      bias: [C].
      centre: [C], near the mean; it gets no gradient. Sum and sum of squares are those of `x - centre`, so that they
        need one pass over the map and, over several devices, one exchange. If `centre` is far from the mean, the
        variance loses precision.
      eps: added to the variance.

    Returns:
      The result, [B, ..., C] in the dtype of `x`; the mean, [C]; the biased variance, [C]. Only the result passes a
      gradient.
    """
    (mean, gain, shift), var = _statistics(x, scale, bias, centre, eps)
    return ((at_least_float32(x) - mean) * gain + shift).astype(x.dtype), mean.reshape(-1), var


def _statistics(x: Array, scale: Array, bias: Array, centre: Array, eps: float) -> tuple[list[Array], Array]:
    """([mean, gain, shift], variance); the first three are [1, ..., 1, C], so that y = (x - mean) * gain + shift."""
    n = x.size // x.shape[-1]
    off = at_least_float32(x) - per_channel(x, centre)[0]
    mean, square = (total / n for total in channel_sums(off, jnp.square(off)))
    var = jnp.maximum(square - jnp.square(mean), 0)
    return per_channel(x, centre + mean, inverse_std(var, eps) * scale, bias), var


def _normalise_forward(
    x: Array, scale: Array, bias: Array, centre: Array, eps: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, var = _normalise_batch(x, scale, bias, centre, eps)
    return (y, mean, var), (x, scale, mean, inverse_std(var, eps))


def _normalise_backward(eps: float, kept: tuple[Array, ...], cotangents: tuple[Array, ...]) -> tuple[Array | None, ...]:
    del eps  # it is in the inverse standard deviation
    x, scale, mean, inverse = kept
    n = x.size // x.shape[-1]
    mean, inverse, scale = per_channel(x, mean, inverse, scale)
    g, normal = at_least_float32(cotangents[0]), (at_least_float32(x) - mean) * inverse
    dbias, dscale = channel_sums(g, g * normal)
    mean_g, mean_gx = per_channel(x, dbias / n, dscale / n)
    return (scale * inverse * (g - mean_g - normal * mean_gx)).astype(x.dtype), dscale, dbias, None


# With its derivative.
normalise_batch = jax.custom_vjp(_normalise_batch, nondiff_argnums=(4,))
normalise_batch.defvjp(_normalise_forward, _normalise_backward)


class LayerNorm(nn.Module):
    """LayerNorm over channels (Ba et al. 2016, arXiv 1607.06450), computed in at least float32.

    Flax's own does not compute in float64 without implicit promotion of dtypes.

    Attributes:
      eps: added to the variance; the default is that of torchvision's ConvNeXt and timm's transformers.
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] -> [..., C], in the dtype of `x`."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", zeros, x.shape[-1:])
        scale, bias = per_channel(x, scale, bias)
        off = at_least_float32(x)
        off = off - off.mean(-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(off).mean(-1, keepdims=True) + self.eps)
        return (off * inverse * scale + bias).astype(x.dtype)


def _check_size(x: Array, stride: int, operation: str) -> None:
    if min(x.shape[1:3]) < stride:
        raise ValueError(
            f"image too small for the network: {operation} of stride {stride} meets a map of "
            f"{x.shape[1]}x{x.shape[2]}; use larger images or a network with fewer strides"
        )


class LayerFactory(NamedTuple):
    """Makes and applies the layers of a backbone or of branches; call its methods inside a Linen module.

    Attributes:
      init: initialisers.
      dtype: dtype of convolutions; None computes in the dtype of the parameters.
      train: mode of every BatchNorm, see `is_trainable`.
      for_export: whether layers are computed as `jax.lax` has them, for other backends and formats, and not in the form
        that suits this backend.
      batch_norm_groups: see `BatchNorm.groups`.
      batch_norm_eps: see `BatchNorm.eps`.
      batch_norm_momentum: see `BatchNorm.momentum`.
    """

    init: Init
    dtype: Any
    train: Train
    for_export: bool
    batch_norm_groups: int = 1
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.1

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
        padding: int | None = None,
    ) -> Array:
        """Square convolution, padded by the same number of zeros on every side as in PyTorch (not 'SAME').

        Args:
          x: [B, H, W, C], floating point.
          features: channels of the result.
          kernel: side of the kernel.
          stride: along both axes.
          name: of the layer's variables.
          groups: of channels that are convolved separately.
          bias: whether a bias is added.
          padding: zeros on every side; None for kernel // 2.

        Returns:
          [B, H', W', features] in `dtype` or that of the parameters. H' is ceil(H / stride) for odd kernels with the
          usual padding, and floor(H / stride) for kernels of side `stride` without padding.

        Raises:
          ValueError: the map is smaller than the stride.
        """
        _check_size(x, stride, "a convolution")
        grouped = self.init.grouped_conv if groups > 1 else None
        return nn.Conv(
            features,
            (kernel, kernel),
            stride,
            padding=kernel // 2 if padding is None else padding,
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=grouped(groups) if grouped else self.init.conv,
            bias_init=self.init.conv_bias(kernel * kernel * x.shape[-1] // groups),
            dtype=self.dtype,
            conv_general_dilated=jax.lax.conv_general_dilated if self.for_export else convolve,
            name=name,
        )(x)

    def norm(self, x: Array, *, name: str) -> Array:
        """`BatchNorm`: [B, ..., C] -> [B, ..., C]."""
        options = self.batch_norm_groups, self.batch_norm_eps, self.batch_norm_momentum
        return BatchNorm(self.train, *options, name=name)(x)

    def layer_norm(self, x: Array, *, name: str) -> Array:
        """`LayerNorm`: [..., C] -> [..., C]."""
        return LayerNorm(name=name)(x)

    def dense(self, x: Array, features: int, *, name: str) -> Array:
        """Linear layer with bias of each pixel or token, [..., C] -> [..., features], in the dtype of convolutions."""
        product = None if self.for_export else lambda rows, kernel, *_, **__: multiply_rows(rows, kernel)
        return self.linear(x, features, name=name, dtype=self.dtype, dot_general=product)

    def relu(self, x: Array) -> Array:
        """max(x, 0); on CPU faster than `nn.relu`, except in networks with depthwise convolutions."""
        return nn.relu(x) if self.for_export else relu(x)

    def avg_pool(self, x: Array, window: int, stride: int) -> Array:
        """Average pool, [B, H, W, C] -> [B, H', W', C], padded by (window - 1) // 2 zeros that count in the mean.

        Raises:
          ValueError: the map is smaller than the stride.
        """
        _check_size(x, stride, "an average pool")
        sums = _pool(x, 0.0, jax.lax.add, window, stride) if self.for_export else window_sums(x, window, stride)
        return sums / window**2

    def pool_fc(self, x: Array, features: int) -> HeadOutputs:
        """Global average pool and the linear layer 'fc', by which every head ends.

        Args:
          x: [B, H, W, C], floating point.
          features: outputs of the linear layer.

        Returns:
          Its outputs, [B, features], its inputs, [B, C], both in at least float32, and `x`.
        """
        pooled = at_least_float32(x).mean((1, 2))
        return HeadOutputs(self.linear(pooled, features, name="fc"), pooled, x)

    def linear(self, x: Array, features: int, *, name: str, **options: Any) -> Array:
        """Linear layer with bias, [..., D] -> [..., features]; `options` are those of `nn.Dense`."""
        bias_init = self.init.fc_bias(x.shape[-1])
        return nn.Dense(features, kernel_init=self.init.fc, bias_init=bias_init, name=name, **options)(x)


class SqueezeExcitation(nn.Module):
    """Weights of channels, computed from their means (Hu et al. 2018, arXiv 1709.01507): [B, H, W, C] -> [B, H, W, C].

    Attributes:
      layers: makes the layers.
      squeezed: channels between the two 1x1 convolutions, which have biases.
      activation: after the first one.
      gate: after the second one, to weights between 0 and 1.
    """

    layers: LayerFactory
    squeezed: int
    activation: Callable[[Array], Array] = nn.relu
    gate: Callable[[Array], Array] = nn.sigmoid

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layers, means = self.layers, at_least_float32(x).mean((1, 2), keepdims=True)
        y = self.activation(layers.conv(means, self.squeezed, 1, bias=True, name="fc1"))
        return x * self.gate(layers.conv(y, x.shape[-1], 1, bias=True, name="fc2"))


def max_pool(x: Array, window: int, stride: int) -> Array:
    """Max-pool, [B, H, W, C] -> [B, H', W', C], padded by (window - 1) // 2 as the reference's pools are.

    Raises:
      ValueError: the map is smaller than the stride.
    """
    _check_size(x, stride, "a max-pool")
    return _pool(x, -jnp.inf, jax.lax.max, window, stride)


def adaptive_avg_pool(x: Array, size: int) -> Array:
    """[B, H, W, C] -> [B, size, size, C], as PyTorch's `AdaptiveAvgPool2d`; windows overlap unless `size` divides.

    Window i of an axis of n values contains those from floor(i n / size) to ceil((i + 1) n / size), the last excluded.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        if n == size:
            continue
        means = np.zeros((size, n))
        for i in range(size):
            window = slice(i * n // size, -(-(i + 1) * n // size))
            means[i, window] = 1 / (window.stop - window.start)
        x = weighted_sums(x, axis, means)
    return x


def weighted_sums(x: Array, axis: int, weights: np.ndarray) -> Array:
    """Replaces the n values along an axis by m weighted sums of them; `weights` are [m, n]."""
    # Accelerators round the operands of products by default.
    sums = jnp.tensordot(weights.astype(x.dtype), x, (1, axis), precision="highest")
    return jnp.moveaxis(sums, 0, axis)


def average_pool(x: Array, height: int, width: int) -> Array:
    """[B, H, W, C] -> [B, height, width, C], over windows that do not overlap.

    Raises:
      ValueError: `height` does not divide H, or `width` does not divide W.
    """
    batch, h, w, channels = x.shape
    if h % height or w % width:
        raise ValueError(f"maps of {h}x{w} and {height}x{width} do not compare: one must divide the other")
    return x.reshape(batch, height, h // height, width, w // width, channels).mean((2, 4))


def _pool(x: Array, start: float, reduce: Callable[..., Any], window: int, stride: int) -> Array:
    # Padded first, since the ONNX export has no pool with padding; XLA merges the padding into the forward pool.
    if pad := (window - 1) // 2:
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=start)
    return nn.pool(x, start, reduce, (window, window), (stride, stride), "VALID")
