"""Every form of convolution that a backend may prefer computes what `jax.lax` computes, derivatives included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hsakd_jax.models import cpu_ops, ops
from hsakd_jax.models.layers import normalise_batch


def derivatives(function, *operands):
    """Value and gradients of all operands, for a cotangent that is the same for functions of the same shape."""
    value, pull = jax.vjp(function, *operands)
    g = np.random.default_rng(1).normal(size=value.shape)
    return (value, *pull(jnp.asarray(g, value.dtype)))


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        assert abs(a - b).max() <= tolerance * abs(b).max()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("size", "stride", "groups", "shape"),
    [
        (1, 1, 1, (8, 8)),
        (1, 2, 1, (8, 6)),
        (1, 2, 1, (7, 5)),
        (1, 1, 3, (4, 6)),
        (3, 1, 12, (8, 6)),
        (3, 2, 12, (8, 6)),
        (3, 2, 12, (7, 5)),
        (3, 1, 1, (8, 6)),
        (3, 2, 1, (8, 6)),
        (3, 2, 1, (7, 5)),
        (3, 1, 3, (8, 6)),
        (5, 1, 12, (8, 6)),
        (5, 2, 12, (7, 6)),
        (7, 2, 1, (10, 8)),
        (2, 2, 1, (8, 6)),
        (2, 2, 1, (7, 5)),
        (4, 4, 1, (8, 9)),
    ],
)
def test_convolutions(size, stride, groups, shape, dtype):
    g = np.random.default_rng(0)
    x = jnp.asarray(g.normal(size=(4, *shape, 12)), dtype)
    kernel = jnp.asarray(g.normal(size=(size, size, 12 // groups, 24 if groups < 12 else 12)), dtype)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    pad = 0 if size == stride else size // 2
    ours, lax = (
        derivatives(lambda x, k, f=f: f(x, k, (stride, stride), [(pad, pad)] * 2, **options), x, kernel)
        for f in (ops.convolve, jax.lax.conv_general_dilated)
    )
    # bfloat16 has 8 bits: both sides round, in another order.
    assert_close(ours, lax, 2e-6 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 8), (3, 2, 8), (3, 2, 7), (5, 1, 4)])
def test_groups_of_several_dense_convolutions(size, stride, side):
    """18 groups of 8 channels with 16 results each: four at once, and two at last."""
    g = np.random.default_rng(0)
    x = jnp.asarray(g.normal(size=(2, side, side, 144)), jnp.float32)
    kernel = jnp.asarray(g.normal(size=(size, size, 8, 288)), jnp.float32)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 18}
    ours, lax = (
        derivatives(lambda x, k, f=f: f(x, k, (stride, stride), [(size // 2, size // 2)] * 2, **options), x, kernel)
        for f in (ops.convolve, jax.lax.conv_general_dilated)
    )
    assert_close(ours, lax, 2e-6)


def test_no_form_of_lax_is_left_where_another_is_faster():
    """What the other tests compare must be two computations."""

    def primitives(size, stride, groups):
        kernel = jnp.zeros((size, size, 12 // groups, 12))
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}

        def pull(x, kernel):
            out, pull = jax.vjp(
                lambda x, k: ops.convolve(x, k, (stride, stride), [(size // 2, size // 2)] * 2, **options),
                x,
                kernel,
            )
            return pull(out)

        return str(jax.make_jaxpr(pull)(jnp.zeros((2, 8, 8, 12)), kernel))

    assert all("conv_general_dilated" not in primitives(*c) for c in ((1, 1, 1), (1, 2, 1), (1, 1, 3), (3, 1, 12)))
    assert "lhs_dilation=(2, 2)" not in primitives(3, 2, 1)
    assert "feature_group_count=3" not in primitives(3, 1, 3)
    assert "lhs_dilation=(1, 1)" in primitives(3, 2, 1)


@pytest.mark.parametrize(
    ("channels", "shape", "dtype", "form"),
    [
        (4, (2, 2), jnp.float32, "_dense_3x3_of_2x2"),
        (4, (2, 2), jnp.bfloat16, "_dense_3x3_of_2x2"),
        (4, (2, 1), jnp.float32, "_dense_3x3_of_2x2"),
        (4, (1, 1), jnp.float32, "_dense_3x3_of_2x2"),
        (32, (4, 4), jnp.float32, "_winograd"),
        (128, (6, 5), jnp.float32, "_winograd"),
        (32, (3, 1), jnp.float32, "_winograd"),
        (32, (7, 9), jnp.float32, "_winograd"),
        (32, (9, 2), jnp.float32, "_winograd"),
        (64, (20, 16), jnp.float32, "_winograd"),
        (64, (8, 8), jnp.bfloat16, "_by_lax"),
        (32, (20, 16), jnp.float32, "_by_lax"),
        (32, (1, 3), jnp.float32, "_by_lax"),
        (16, (8, 8), jnp.float32, "_by_lax"),
    ],
)
def test_dense_3x3_convolutions(channels, shape, dtype, form, monkeypatch):
    g = np.random.default_rng(0)
    x, kernel = (jnp.asarray(g.normal(size=s), dtype) for s in ((2, *shape, channels), (3, 3, channels, channels)))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 1}
    ours, lax = (
        lambda x, k, f=f: f(x, k, (1, 1), [(1, 1)] * 2, **options) for f in (ops.convolve, jax.lax.conv_general_dilated)
    )
    # bfloat16 has 8 bits: both sides round, in another order.
    tolerance = 2e-6 if dtype == jnp.float32 else 2e-2
    assert_close(derivatives(ours, x, kernel), derivatives(lax, x, kernel), tolerance)
    taken, chosen = [], getattr(cpu_ops, form)
    monkeypatch.setattr(cpu_ops, form, lambda *a: taken.append(form) or chosen(*a))
    jax.clear_caches()  # or what is traced already would not call it
    ours(x, kernel)
    assert taken


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_relu(dtype):
    x = jnp.asarray([-np.inf, -2, -0.0, 0, 1e-30, 3, np.inf, np.nan], dtype)
    for ours, lax in zip(derivatives(ops.relu, x), derivatives(jax.nn.relu, x), strict=True):
        assert ours.dtype == lax.dtype
        np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(lax, np.float32))


def test_what_relu_gives_is_kept_for_all_that_read_it():
    """XLA would compute it, and what is before it, in each of them."""

    def computed(relu):
        def readers(x):
            y = relu(x * 2)
            return y + 1, y.transpose(1, 0, 2) * 2

        return jax.jit(readers).lower(jnp.ones((8, 8, 8))).compile().as_text().count("maximum(")

    assert (computed(ops.relu), computed(jax.nn.relu)) == (1, 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(8, 6), (7, 5)])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_sums_over_windows(backend, shape, dtype, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape, 3)), dtype)
    edges = [(0, 0), (1, 1), (1, 1), (0, 0)]

    def plain(x):
        return jax.lax.reduce_window(x, jnp.zeros((), dtype), jax.lax.add, (1, 3, 3, 1), (1, 2, 2, 1), edges)

    found = derivatives(jax.jit(lambda x: ops.window_sums(x, 3, 2)), x)
    assert_close(found, derivatives(plain, x), 2e-6 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("backend", "devices", "centre"), [("cpu", 1, 0), ("cpu", 1, 1.5), ("gpu", 1, 0), ("gpu", 8, 0)]
)
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 8, 8, 3), (16, 3)])
def test_batch_norm(shape, backend, devices, centre, dtype, monkeypatch):
    """Against JAX's own derivative of the textbook formula; the statistics and their centre pass no gradient."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    g = np.random.default_rng(0)
    x, centre = jnp.asarray(g.normal(2, 3, shape), dtype), jnp.full(shape[-1:], centre, jnp.float32)
    scale, bias = (jnp.asarray(g.normal(size=shape[-1:]), jnp.float32) for _ in range(2))
    axes = tuple(range(len(shape) - 1))

    def plain(x, scale, bias, centre):
        del centre
        wide = x.astype(jnp.float32)
        mean, var = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
        row = (1,) * len(axes) + scale.shape
        y = (wide - mean) / jnp.sqrt(var + 1e-5) * scale.reshape(row) + bias.reshape(row)
        return y.astype(x.dtype)

    ours = derivatives(lambda *a: normalise_batch(*a)[0], x, scale, bias, centre)
    assert_close(ours, derivatives(plain, x, scale, bias, centre), 2e-6 if dtype == jnp.float32 else 2e-2)
    _, mean, var = normalise_batch(x, scale, bias, centre)
    wide = x.astype(jnp.float32)
    assert_close((mean, var), (wide.mean(axes), wide.var(axes)), 2e-6)


def test_batch_norm_far_from_zero():
    """A centre near the mean keeps the variance of values that are small beside it; one that is not loses it."""
    x = jnp.asarray(np.random.default_rng(0).normal(1000, 1, (16, 8, 8, 3)), jnp.float32)
    ones, true = jnp.ones(3), np.asarray(x, np.float64).var((0, 1, 2))

    def error(centre):
        return abs(np.asarray(normalise_batch(x, ones, ones, centre * ones)[2], np.float64) / true - 1).max()

    assert error(999.0) < 1e-6 < 1e-3 < error(0.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_long_products_of_few_rows(dtype):
    """Those of squeeze-and-excitation, whose rounding decides that of an EfficientNet."""
    g = np.random.default_rng(0)
    x, kernel = np.abs(g.normal(size=(2, 1, 1, 2112))), g.normal(size=(1, 1, 2112, 88))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 1}
    given = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
    plain = derivatives(lambda a, b: jax.lax.conv_general_dilated(a, b, (1, 1), ((0, 0),) * 2, **options), *given)
    ours = derivatives(lambda a, b: cpu_ops.convolve(a, b, (1, 1), ((0, 0),) * 2, **options), *given)
    assert_close(ours, plain, 1e-5 if dtype == jnp.float32 else 1e-2)
    exact = np.asarray(given[0], np.float64)[:, 0, 0] @ np.asarray(given[1], np.float64)[0, 0]
    found, chain = (abs(np.asarray(a[0], np.float64)[:, 0, 0] - exact).mean() for a in (ours, plain))
    assert found < 8e-6 < chain if dtype == jnp.float32 else found < 1.01 * chain


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_of_rows(dtype):
    g = np.random.default_rng(0)
    x, kernel = jnp.asarray(g.normal(size=(3, 5, 7, 12)), dtype), jnp.asarray(g.normal(size=(12, 20)), dtype)
    ours, plain = (derivatives(f, x, kernel) for f in (ops.multiply_rows, jnp.matmul))
    assert_close(ours, plain, 2e-6 if dtype == jnp.float32 else 2e-2)
