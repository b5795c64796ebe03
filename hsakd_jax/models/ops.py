"""Convolution and sums as each backend computes them fastest; the results are those of `jax.lax`.

XLA's CPU backend is many times slower at some forms than at others that compute the same. What each form gains is
in `benchmarks/MEASURES.md`; other backends take `jax.lax`'s own. Forms are jitted, to be traced once for all layers of
a shape: a start is faster for it, and XLA sees the same program.
"""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def at_least_float32(x: Array) -> Array:
    """`x` in float32 where it is narrower; float32 and float64 pass unchanged."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def convolve(x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options) -> Array:
    """`jax.lax.conv_general_dilated` of NHWC maps and HWIO kernels, in the form that suits the backend.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, features].
      strides: two equal ones.
      padding: two equal pairs.
      **options: the others of `jax.lax.conv_general_dilated`; all but `feature_group_count` must be as `nn.Conv` of
        an undilated 2-D convolution gives them.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    size, _, depth, features = kernel.shape
    stride, pad, groups = strides[0], padding[0], options["feature_group_count"]
    if size == 1:
        x = x[:, ::stride, ::stride]
        return _pointwise(x, kernel[0, 0], groups)
    if groups == features and depth == 1:
        return _depthwise(x, kernel[:, :, 0], stride, pad)
    if (size, stride, pad, groups) == (3, 2, (1, 1), 1) and not (x.shape[1] % 2 or x.shape[2] % 2):
        return _halving(x, kernel)
    if (size, stride, pad, groups) == (3, 1, (1, 1), 1):
        # At maps of 2x2 XLA is up to a hundred times slower.
        return (_whole if max(x.shape[1:3]) <= 2 else _same)(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def window_sums(x: Array, window: int, stride: int) -> Array:
    """Sums over windows of NHWC maps, padded by (window - 1) // 2; of XLA's on CPU the derivative has no vectors."""
    pad = ((window - 1) // 2,) * 2
    if jax.default_backend() == "cpu":
        return _depthwise(x, jnp.ones((window, window, x.shape[-1]), x.dtype), stride, pad)
    # Of a start that is traced, JAX would not know that it is a sum's, which has a derivative.
    shape, strides, edges = (1, window, window, 1), (1, stride, stride, 1), [(0, 0), pad, pad, (0, 0)]
    return jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, shape, strides, edges)


def relu(x: Array) -> Array:
    """max(x, 0).

    On CPU the result is kept in memory for all that read it. XLA would compute it again in each of them, and with it
    all the normalisations and sums before it, back to the last convolutions. A quotient it does not compute twice.
    """
    return jax.jit(_relu)(x) if jax.default_backend() == "cpu" else jax.nn.relu(x)


def channel_sums(*maps: Array) -> tuple[Array, ...]:
    """Sums of maps [B, ..., C] over all axes but the last, each [C]."""
    if jax.default_backend() != "cpu":
        axes = tuple(range(maps[0].ndim - 1))
        # Over several devices, XLA makes all-gathers of a joint sum and all-reduces of separate ones.
        return tuple(x.sum(axes) for x in maps) if jax.device_count() > 1 else _reduce(maps, axes)
    pixels = maps[0].size // maps[0].shape[0] // maps[0].shape[-1]
    if pixels < 64 or pixels % 8:
        return _sums_at_once(*maps)
    # XLA's sums have no vectors, but its sum of a few maps has. The barrier keeps it from joining the two.
    parts = [x.reshape(len(x), 8, pixels // 8, -1) for x in maps]
    eighths = [reduce(jnp.add, (x[:, i] for i in range(8))) for x in parts]
    return tuple(x.sum((0, 1)) for x in jax.lax.optimization_barrier(tuple(eighths)))


def _sums_at_once(*maps: Array) -> tuple[Array, ...]:
    """`channel_sums` that reads what its maps share once."""
    # A sum down to [C] runs on one core, and several sums read their operands several times.
    # By image first and all at once, all cores have work; the barrier keeps XLA from joining the two sums again.
    rows = _reduce(maps, tuple(range(1, maps[0].ndim - 1)))
    return tuple(x.sum(0) for x in jax.lax.optimization_barrier(rows))


def _reduce(maps, axes):
    """Sums of several maps in one operation."""
    start = tuple(jnp.zeros((), x.dtype) for x in maps)
    return tuple(jax.lax.reduce(maps, start, lambda a, b: tuple(map(jnp.add, a, b)), axes))


def _kept(x: Array) -> Array:
    # The divisor is one, which XLA cannot know: NaN differs from itself.
    return x / jnp.where(x == x, jnp.ones_like(x), x)


@jax.custom_vjp
def _relu(x):
    return _kept(jax.nn.relu(x))


def _relu_forward(x):
    y = _relu(x)
    return y, y


def _relu_backward(y, g):
    return (jnp.where(y > 0, g, jnp.zeros_like(g)),)


_relu.defvjp(_relu_forward, _relu_backward)


def _product(rows: Array, kernel: Array) -> Array:
    """1x1 convolution as a matrix product of pixels, whose weight gradient is four times faster: [N, C], [C, F]."""
    return jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())))


def _product_forward(rows, kernel):
    return _product(rows, kernel), (rows, kernel)


def _product_backward(kept, g):
    rows, kernel = kept
    sums = (((0,), (0,)), ((), ()))
    # XLA copies the first operand, channels first: let it be the smaller one.
    narrow = rows.shape[-1] <= g.shape[-1]
    dkernel = jax.lax.dot_general(rows, g, sums) if narrow else jax.lax.dot_general(g, rows, sums).T
    return jax.lax.dot_general(g, kernel, (((1,), (1,)), ((), ()))), dkernel


_product_of_pixels = jax.custom_vjp(_product)
_product_of_pixels.defvjp(_product_forward, _product_backward)


@partial(jax.jit, static_argnums=2)
def _pointwise(x: Array, kernel: Array, groups: int) -> Array:
    """1x1 convolution, a matrix product for each group: [B, H, W, C], [C / groups, features]."""
    # Groups of pixels in rows; of maps of more axes XLA makes each copy element by element.
    rows = x.reshape(-1, x.shape[-1])
    parts = zip(jnp.split(rows, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    products = [_product_of_pixels(part, weights) for part, weights in parts]
    return jnp.concatenate(products, -1).reshape(*x.shape[:-1], kernel.shape[-1])


def _taps(x: Array, size: int, stride: int, pad: tuple[int, int]) -> list[Array]:
    """The pixels that each of the size * size weights of a kernel meets, in at least float32."""
    x = jnp.pad(at_least_float32(x), ((0, 0), pad, pad, (0, 0)))
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    return [x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]


def _shifted(x: Array, kernel: Array, stride: int, pad: tuple[int, int]) -> Array:
    """Depthwise convolution as shifted multiply-adds: [B, H, W, C], [k, k, C] -> [B, H', W', C]."""
    weights = at_least_float32(kernel).reshape(-1, 1, 1, 1, x.shape[-1])
    products = (tap * weight for tap, weight in zip(_taps(x, len(kernel), stride, pad), weights, strict=True))
    return reduce(jnp.add, products).astype(x.dtype)


def _depthwise_forward(x, kernel, stride, pad):
    return _shifted(x, kernel, stride, pad), (x, kernel)


def _depthwise_backward(stride, pad, kept, g):
    x, kernel = kept
    g = jax.lax.optimization_barrier(g)  # or XLA would compute it again for each weight
    # JAX's own derivative sums on one core for the weights; of the map's, XLA makes a loop without vectors.
    before, size = len(kernel) - 1 - pad[0], len(kernel)
    rows, columns = zip(x.shape[1:3], g.shape[1:3], strict=True)
    edges = [(before, n + size - 2 - before - (m - 1) * stride, stride - 1) for n, m in (rows, columns)]
    spread = jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    dx = _shifted(spread, kernel[::-1, ::-1], 1, (0, 0))
    sums = _sums_at_once(*(tap * g.astype(tap.dtype) for tap in _taps(x, len(kernel), stride, pad)))
    return dx, jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


_depthwise = jax.custom_vjp(_shifted, nondiff_argnums=(2, 3))
_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
_depthwise = jax.jit(_depthwise, static_argnums=(2, 3))


def _plain(x: Array, kernel: Array, stride: int = 1) -> Array:
    """3x3 convolution of padding 1 as `jax.lax` has it."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=numbers)


def _kernel_gradient(x: Array, kernel: Array, g: Array, stride: int = 1) -> Array:
    return jax.linear_transpose(lambda kernel: _plain(x, kernel, stride), kernel)(g)[0]


def _halving_forward(x: Array, kernel: Array) -> Array:
    """3x3 convolution of stride 2, padding 1, of maps of even height and width."""
    return _plain(x, kernel, 2)


def _halving_backward(kept, g):
    x, kernel = kept
    # XLA would slide the kernel over a gradient three quarters zeros. Pixel 2u + a of the map meets weight
    # i = a + 1 - 2d of output u + d: one 2x2 convolution gives the four pixels (a, b) of u as channels.
    batch, height, width, channels = x.shape
    # Padded by one weight in front, i + 1 = 2 (1 - d) + a.
    phases = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(2, 2, 2, 2, channels, -1)
    phases = phases[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, -1, 4 * channels)
    dx = jax.lax.conv_general_dilated(g, phases, (1, 1), [(0, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    dx = dx.reshape(batch, height // 2, width // 2, 2, 2, channels).swapaxes(2, 3).reshape(x.shape)
    return dx, _kernel_gradient(x, kernel, g, 2)


_halving = jax.custom_vjp(_halving_forward)
_halving.defvjp(lambda x, kernel: (_halving_forward(x, kernel), (x, kernel)), _halving_backward)
_halving = jax.jit(_halving)


def _powers(count: int) -> np.ndarray:
    """[6, count]: powers of the points that polynomials are interpolated from, the last of them infinity.

    Of seven sets these five had the smallest error in float32, three times a plain convolution's.
    """
    finite = np.vander([0, 2 / 3, -2 / 3, 4 / 3, -4 / 3], count, increasing=True)
    return np.vstack([finite, np.eye(count)[-1]])


# B^T, G and A^T of Lavin and Gray. A result's polynomial times the kernel's is known from its values at the points
# (Toom and Cook); Winograd's form is the transpose of that.
_TO_TILES, _TO_WEIGHTS, _FROM_TILES = np.linalg.inv(_powers(6)).T, _powers(3), _powers(4).T


@jax.jit
def _winograd(x: Array, kernel: Array) -> Array:
    """`_plain` with half of its products: Winograd's F(4, 3) along the height (Lavin and Gray 2015, arXiv 1509.09308).

    Six sums of six rows each meet six sums of the kernel's rows in convolutions along the width, and four sums of
    these are rows of the result. Along both axes F(2x2, 3x3) saves hardly more products, and has twice the sums.
    """
    batch, height, width, depth = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % 4), (0, 0), (0, 0))).reshape(batch, -1, 4, width, depth)
    # The two rows that tiles share, rather than padded maps, of which XLA would make a copy.
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
    return _kept(y)


def _combined(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """A matrix times a vector of arrays."""
    return [reduce(jnp.add, (float(w) * x for w, x in zip(row, parts, strict=True) if abs(w) > 1e-9)) for row in matrix]


@jax.jit
def _whole(x: Array, kernel: Array) -> Array:
    """`_plain` of maps of at most 2x2 as one matrix product: each pixel of the result meets all of the map."""
    _, height, width, _ = x.shape
    kernel = jnp.stack(
        [jnp.stack([kernel[1 - i :][:height, 1 - j :][:, :width] for j in range(width)]) for i in range(height)]
    )
    return jnp.einsum("bijc,yxijcf->byxf", x, kernel)


def _same_forward(x: Array, kernel: Array) -> Array:
    height, width = x.shape[1:3]
    # With few channels sums cost what products save. bfloat16 has too few bits for sums before the products.
    channels = min(kernel.shape[2:])
    narrow = channels < 32 or (channels < 64 and height * width > 256)
    return (_plain if narrow or height < 3 or x.dtype.itemsize < 4 else _winograd)(x, kernel)


def _same_backward(kept, g):
    x, kernel = kept
    return _same_forward(g, kernel[::-1, ::-1].swapaxes(2, 3)), _kernel_gradient(x, kernel, g)


_same = jax.custom_vjp(_same_forward)
_same.defvjp(lambda x, kernel: (_same_forward(x, kernel), (x, kernel)), _same_backward)
_same = jax.jit(_same)
