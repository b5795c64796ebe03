"""Forms of convolution, ReLU and sums for XLA's CPU backend; only `ops` calls them.

Every form computes the same as `jax.lax`, derivatives included. Forms of convolutions are jitted, so JAX traces each
once for all layers of a shape. A start is then faster, and XLA sees the same program.

Three properties of XLA on CPU decide the forms. Many of its loops, such as sums, run without vector instructions. It
computes a cheap operation again in every operation that reads its result. A sum down to [C] runs on one core.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from hsakd_jax.models.numerics import at_least_float32, joint_sums

Array = jax.Array
Pad = tuple[int, int]
Matrix = NDArray[np.floating[Any]]
PARTS = 16  # of a long sum


def convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> Array:
    """See `ops.convolve`."""
    size, _, depth, features = kernel.shape
    stride, pad, groups = strides[0], padding[0], options["feature_group_count"]
    if size == 1:
        return _pointwise(x[:, ::stride, ::stride], kernel[0, 0], groups)
    if size == stride and pad == (0, 0) and groups == 1:
        return _patches(x, kernel)
    if groups == features and depth == 1:
        return _depthwise(x, kernel[:, :, 0], stride, pad)
    if groups > 1:
        return _grouped(x, kernel, tuple(strides), tuple(padding), groups)
    if (size, pad) == (3, (1, 1)):
        height, width = x.shape[1:3]
        if stride == 2 and height % 2 == width % 2 == 0:
            return _dense_3x3_stride_2(x, kernel)
        if stride == 1:
            # XLA is up to a hundred times slower at maps of 2x2.
            return (_dense_3x3_of_2x2 if max(height, width) <= 2 else _dense_3x3)(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def multiply_rows(x: Array, kernel: Array) -> Array:
    """See `ops.multiply_rows`."""
    return _pointwise(x, kernel, 1)


def window_sums(x: Array, window: int, stride: int, pad: Pad) -> Array:
    """See `ops.window_sums`; XLA's own derivative runs without vector instructions."""
    return _depthwise(x, jnp.ones((window, window, x.shape[-1]), x.dtype), stride, pad)


def channel_sums(*maps: Array) -> tuple[Array, ...]:
    """See `ops.channel_sums`."""
    pixels = maps[0].size // maps[0].shape[0] // maps[0].shape[-1]
    if pixels < 64 or pixels % 8:
        return _sums_at_once(*maps)
    # XLA's sum over pixels runs without vector instructions, its sum of eight maps with them. So eight parts of the map
    # are added first. The barrier keeps XLA from joining the two sums.
    split = [x.reshape(len(x), 8, pixels // 8, -1) for x in maps]
    eighths = tuple(_add([x[:, i] for i in range(8)]) for x in split)
    return tuple(x.sum((0, 1)) for x in jax.lax.optimization_barrier(eighths))


def _sums_at_once(*maps: Array) -> tuple[Array, ...]:
    """`channel_sums` that reads operands which its maps share once."""
    # A sum down to [C] runs on one core, and several sums read their operands several times. By image first and all at
    # once, all cores have work. The barrier keeps XLA from joining the two sums again.
    by_image = joint_sums(maps, tuple(range(1, maps[0].ndim - 1)))
    return tuple(x.sum(0) for x in jax.lax.optimization_barrier(by_image))


def _add(arrays: Sequence[Array]) -> Array:
    return reduce(jnp.add, arrays)


def _keep_operands(
    form: Callable[[Array, Array], Array],
) -> Callable[[Array, Array], tuple[Array, tuple[Array, Array]]]:
    """The forward rule for `custom_vjp` of a form whose backward rule takes both operands."""

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return form(x, kernel), (x, kernel)

    return forward


# ReLU.


def relu(x: Array) -> Array:
    """See `ops.relu`."""
    return jax.jit(_relu)(x)


def _stored_once(x: Array) -> Array:
    """`x`, which XLA writes to memory once instead of computing it again in every reader.

    XLA joins a cheap operation to each operation that reads its result, and so computes it several times. With a ReLU
    it repeats all normalisations and sums back to the last convolutions. It never repeats a division, which it counts
    as expensive. So `x` is divided by one, in a way that XLA can't simplify: x / x is not one where x is NaN.
    `optimization_barrier` would express the same directly, but XLA drops it before it joins operations.
    """
    return x / jnp.where(x == x, jnp.ones_like(x), x)


@jax.custom_vjp
def _relu(x: Array) -> Array:
    return _stored_once(jax.nn.relu(x))


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = _relu(x)
    return y, y


def _relu_backward(y: Array, g: Array) -> tuple[Array]:
    return (jnp.where(y > 0, g, jnp.zeros_like(g)),)


_relu.defvjp(_relu_forward, _relu_backward)


# 1x1 convolutions: matrix products.


@partial(jax.jit, static_argnums=2)
def _pointwise(x: Array, kernel: Array, groups: int) -> Array:
    """1x1 convolution, a matrix product for each group: [..., C], [C / groups, F] -> [..., F]."""
    # Pixels as rows: XLA copies groups of arrays with more axes element by element.
    rows = x.reshape(-1, x.shape[-1])
    pairs = zip(jnp.split(rows, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    products = [_product_of_pixels(group, weights) for group, weights in pairs]
    return jnp.concatenate(products, -1).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.jit
def _patches(x: Array, kernel: Array) -> Array:
    """Convolution of windows that touch, as a matrix product: [B, H, W, C], [k, k, C, F] -> [B, H // k, W // k, F]."""
    size, _, depth, features = kernel.shape
    height, width = (n // size for n in x.shape[1:3])
    windows = x[:, : height * size, : width * size].reshape(len(x), height, size, width, size, depth)
    pixels = windows.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), height, width, size * size * depth)
    return _pointwise(pixels, kernel.reshape(-1, features), 1)


def _product(rows: Array, kernel: Array) -> Array:
    """Matrix product, [N, C], [C, F] -> [N, F], with a weight gradient that is four times faster than JAX's own."""
    n, depth = rows.shape
    if n > 64 or depth < 64 or depth % PARTS:
        return jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())))
    # Of few rows, as in squeeze-and-excitation, XLA adds all C products in one chain. Sums of parts have a third of its
    # rounding error. A network of many such layers enlarges the error thirtyfold.
    parts = rows.reshape(n, PARTS, -1), kernel.reshape(PARTS, -1, kernel.shape[-1])
    wide = at_least_float32(rows).dtype
    sums = jax.lax.dot_general(*parts, (((2,), (1,)), ((1,), (0,))), preferred_element_type=wide)
    return sums.sum(0).astype(rows.dtype)


def _product_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    rows, kernel = kept
    over_pixels = (((0,), (0,)), ((), ()))
    # XLA copies the first operand, channels first: let it be the smaller one.
    narrow = rows.shape[-1] <= g.shape[-1]
    dkernel = jax.lax.dot_general(rows, g, over_pixels) if narrow else jax.lax.dot_general(g, rows, over_pixels).T
    return jax.lax.dot_general(g, kernel, (((1,), (1,)), ((), ()))), dkernel


_product_of_pixels = jax.custom_vjp(_product)
_product_of_pixels.defvjp(_keep_operands(_product), _product_backward)


# Depthwise convolutions: shifted multiply-adds.


def _multiply_add(x: Array, kernel: Array, stride: int, pad: Pad) -> Array:
    """Depthwise convolution as a sum of shifted maps: [B, H, W, C], [k, k, C] -> [B, H', W', C]."""
    weights = at_least_float32(kernel).reshape(-1, 1, 1, 1, x.shape[-1])
    return _add([tap * w for tap, w in zip(_taps(x, len(kernel), stride, pad), weights, strict=True)]).astype(x.dtype)


def _taps(x: Array, size: int, stride: int, pad: Pad) -> list[Array]:
    """For each of the size * size weights of a kernel the pixels that it multiplies, in at least float32."""
    x = jnp.pad(at_least_float32(x), ((0, 0), pad, pad, (0, 0)))
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    return [x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]


def _depthwise_forward(x: Array, kernel: Array, stride: int, pad: Pad) -> tuple[Array, tuple[Array, Array]]:
    return _multiply_add(x, kernel, stride, pad), (x, kernel)


def _depthwise_backward(stride: int, pad: Pad, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    g = jax.lax.optimization_barrier(g)  # or XLA would compute it again for each weight
    # JAX's own derivative sums on one core for the weights; XLA makes a loop without vector instructions of the map's.
    before, size = len(kernel) - 1 - pad[0], len(kernel)
    edges = [
        (before, n + size - 2 - before - (m - 1) * stride, stride - 1)
        for n, m in zip(x.shape[1:3], g.shape[1:3], strict=True)
    ]
    spread = jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    dx = _multiply_add(spread, kernel[::-1, ::-1], 1, (0, 0))
    sums = _sums_at_once(*(tap * g.astype(tap.dtype) for tap in _taps(x, size, stride, pad)))
    return dx, jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


_depthwise_vjp = jax.custom_vjp(_multiply_add, nondiff_argnums=(2, 3))
_depthwise_vjp.defvjp(_depthwise_forward, _depthwise_backward)
_depthwise = jax.jit(_depthwise_vjp, static_argnums=(2, 3))


# Grouped convolutions: some groups at once, as dense ones whose kernels are 0 between groups. XLA computes gradients
# of grouped convolutions in loops without vector instructions: a step of ResNeXt-50 took 21 s, and takes 0.8 s so.

WIDTH = 32  # most channels of such a dense convolution, unless one group has more


@partial(jax.jit, static_argnums=(2, 3, 4))
def _grouped(x: Array, kernel: Array, strides: tuple[int, ...], padding: tuple[Pad, ...], groups: int) -> Array:
    """Grouped convolution: [B, H, W, C], [k, k, C / groups, F] -> [B, H', W', F]."""
    depth, width = kernel.shape[2], kernel.shape[3] // groups
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 1}
    at_once, results = max(1, WIDTH // depth), []
    for first in range(0, groups, at_once):
        count = min(at_once, groups - first)
        own = np.kron(np.eye(count, dtype=bool), np.ones((depth, width), bool))  # pairs of channels of one group
        weights = jnp.tile(kernel[..., first * width : (first + count) * width], (1, 1, count, 1))
        dense = jnp.where(own[None, None], weights, jnp.zeros((), kernel.dtype))
        channels = x[..., first * depth : (first + count) * depth]
        results.append(convolve(channels, dense, strides, padding, **options))
    return jnp.concatenate(results, -1)


# Dense 3x3 convolutions of padding 1: [B, H, W, C], [3, 3, C, F] -> [B, H', W', F].


def _by_lax(x: Array, kernel: Array, stride: int = 1) -> Array:
    """The convolution as `jax.lax` has it."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=numbers)


def _kernel_gradient(x: Array, kernel: Array, g: Array, stride: int = 1) -> Array:
    return jax.linear_transpose(lambda kernel: _by_lax(x, kernel, stride), kernel)(g)[0]


# Stride 2. XLA would slide the kernel over the result's gradient g with zeros between its elements to compute the map's
# gradient. Three quarters of these are zeros. Along one axis, output u is w0 x[2u-1] + w1 x[2u] + w2 x[2u+1]:
#
#     pixel of x      0    1    2    3    4    5
#     weight of g[0]  w1   w2
#     weight of g[1]       w0   w1   w2
#     weight of g[2]                 w0   w1   w2
#
# Read by columns, an even pixel meets one output and an odd pixel two:
#
#     dx[2u]     = w1 g[u]                                   weights   d = 0   d = 1
#     dx[2u + 1] = w2 g[u] + w0 g[u + 1]                     a = 0      w1      0
#                                                            a = 1      w2      w0
#
# So pixel 2u + a takes weight i = a + 1 - 2d of output u + d. This is one convolution of g whose kernel has two
# weights, d, and two results, a. Along both axes its kernel is 2x2, and its results are the four pixels (a, b) of u.


def _dense_3x3_stride_2_forward(x: Array, kernel: Array) -> Array:
    """Stride 2, of maps of even height and width."""
    return _by_lax(x, kernel, 2)


def _dense_3x3_stride_2_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    batch, height, width, channels = x.shape
    # A zero in front of the weights, [0, w0, w1, w2], as [[0, w0], [w1, w2]] is indexed by 1 - d and a.
    weights = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(2, 2, 2, 2, channels, -1)
    # (d, a, d', b, C, F) -> (d, d', F, a, b, C)
    weights = weights[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, -1, 4 * channels)
    dx = jax.lax.conv_general_dilated(g, weights, (1, 1), [(0, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    dx = dx.reshape(batch, height // 2, width // 2, 2, 2, channels).swapaxes(2, 3).reshape(x.shape)
    return dx, _kernel_gradient(x, kernel, g, 2)


_dense_3x3_stride_2_vjp = jax.custom_vjp(_dense_3x3_stride_2_forward)
_dense_3x3_stride_2_vjp.defvjp(_keep_operands(_dense_3x3_stride_2_forward), _dense_3x3_stride_2_backward)
_dense_3x3_stride_2 = jax.jit(_dense_3x3_stride_2_vjp)


# Stride 1.


@jax.jit
def _dense_3x3_of_2x2(x: Array, kernel: Array) -> Array:
    """Of maps of at most 2x2, as one matrix product: each pixel of the result meets all pixels of the map."""
    _, height, width, _ = x.shape
    weights = jnp.stack(
        [jnp.stack([kernel[1 - i :][:height, 1 - j :][:, :width] for j in range(width)]) for i in range(height)]
    )
    return jnp.einsum("bijc,yxijcf->byxf", x, weights)


def _dense_3x3_forward(x: Array, kernel: Array) -> Array:
    height, width = x.shape[1:3]
    # With few channels, Winograd's sums cost as much as its products save. bfloat16 has too few bits for sums of
    # operands.
    channels = min(kernel.shape[2:])
    narrow = channels < 32 or (channels < 64 and height * width > 256)
    return (_by_lax if narrow or height < 3 or x.dtype.itemsize < 4 else _winograd)(x, kernel)


def _dense_3x3_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    return _dense_3x3_forward(g, kernel[::-1, ::-1].swapaxes(2, 3)), _kernel_gradient(x, kernel, g)


_dense_3x3_vjp = jax.custom_vjp(_dense_3x3_forward)
_dense_3x3_vjp.defvjp(_keep_operands(_dense_3x3_forward), _dense_3x3_backward)
_dense_3x3 = jax.jit(_dense_3x3_vjp)


# Winograd's F(4, 3) along the height (Lavin and Gray 2015, arXiv 1509.09308). Four rows of the result need six rows of
# the map, the outer two of which are shared with the tiles above and below:
#
#     rows of the map       3 | 4   5   6   7 | 8          y4 = w0 x3 + w1 x4 + w2 x5
#                       above |    tile 1     | below      ...
#     rows of the result      | 4   5   6   7 |            y7 = w0 x6 + w1 x7 + w2 x8
#
# That is 12 products of a row and a row of weights. Six are enough:
#
#     y = FROM_TILES ((TO_WEIGHTS w) * (TO_TILES x))       [4] = [4, 6] (([6, 3] [3]) * ([6, 6] [6]))
#
# Why: let V(n) be the values of the powers 0..n-1 at six points. Polynomials with 4 coefficients a and 3 coefficients w
# multiply by their values (Toom and Cook): the 6 coefficients of the product are V(6)^-1 ((V(3) w) * (V(4) a)). As a
# function of a this is a matrix whose transpose takes x to y. Transposed, the factors change their order:
# y = V(4)^T ((V(3) w) * (V(6)^-T x)).


def _powers(count: int) -> Matrix:
    """V(count), [6, count]: powers of the six points, the last of which is infinity.

    Of seven sets of points these five had the smallest error in float32, three times a plain convolution's.
    """
    finite = np.vander([0, 2 / 3, -2 / 3, 4 / 3, -4 / 3], count, increasing=True)
    return np.vstack([finite, np.eye(count)[-1]])


# B^T, G and A^T of Lavin and Gray.
_TO_TILES, _TO_WEIGHTS, _FROM_TILES = np.linalg.inv(_powers(6)).T, _powers(3), _powers(4).T


@jax.jit
def _winograd(x: Array, kernel: Array) -> Array:
    """Stride 1 with half of the products: each of the six products is a convolution along the width.

    Along both axes, F(2x2, 3x3) would save hardly more products, and has twice the sums.
    """
    batch, height, width, depth = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % 4), (0, 0), (0, 0))).reshape(batch, -1, 4, width, depth)
    # The shared rows are padded rather than the map, of which XLA would make a copy.
    above = jnp.pad(x[:, :-1, 3], ((0, 0), (1, 0), (0, 0), (0, 0)))
    below = jnp.pad(x[:, 1:, 0], ((0, 0), (0, 1), (0, 0), (0, 0)))
    tiles = _combined(_TO_TILES, [above, *(x[:, :, i] for i in range(4)), below])
    weights = _combined(_TO_WEIGHTS, list(kernel))
    rows = [
        jax.lax.conv_general_dilated(
            tile, row[None], (1, 1), [(0, 0), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        for tile, row in zip(tiles, weights, strict=True)
    ]
    y = jnp.stack(_combined(_FROM_TILES, rows), 2).reshape(batch, -1, width, kernel.shape[-1])[:, :height]
    return _stored_once(y)


def _combined(matrix: Matrix, vector: Sequence[Array]) -> list[Array]:
    """A matrix [M, N] times a vector of N arrays of one shape: M arrays."""
    return [_add([float(w) * x for w, x in zip(row, vector, strict=True) if abs(w) > 1e-9]) for row in matrix]
