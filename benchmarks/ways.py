"""What each form in `models/cpu_ops.py` gains on this backend: a student's forward and backward pass.

    python -m benchmarks.ways [NAME...] [--batch 64] [--rounds 5]

Each row computes one thing as JAX would without us, the rest as we do; times alternate, medians over the rounds.
"""

import statistics

from hsakd_jax.core import runtime

runtime.configure_runtime()
runtime.configure_compilation()

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import Parser, warn_if_busy
from benchmarks.exports import network_name, random_variables
from benchmarks.step import measure
from hsakd_jax.core.sharding import Devices
from hsakd_jax.models import create, layers, ops
from hsakd_jax.models.numerics import at_least_float32
from hsakd_jax.models.rotations import ROTATIONS

# Which convolutions are left to jax.lax: (size, stride, groups, depth) -> bool.
CONVOLUTIONS = {
    "1x1 by jax.lax": lambda size, stride, groups, depth: size == 1 and groups == 1,
    "grouped 1x1 by jax.lax": lambda size, stride, groups, depth: size == 1 and groups > 1,
    "depthwise by jax.lax": lambda size, stride, groups, depth: depth == 1 and groups > 1,
    "stride 2 by jax.lax": lambda size, stride, groups, depth: size == 3 and stride == 2 and groups == 1,
    "3x3 by jax.lax": lambda size, stride, groups, depth: size == 3 and stride == 1 and groups == 1,
    "all by jax.lax": lambda size, stride, groups, depth: True,
}
NORM = "BatchNorm by JAX alone"


def leaving(which):
    """A `convolve` that leaves some convolutions to jax.lax."""

    def convolve(x, kernel, strides, padding, **options):
        left = which(kernel.shape[0], strides[0], options["feature_group_count"], kernel.shape[2])
        chosen = jax.lax.conv_general_dilated if left else ops.convolve
        return chosen(x, kernel, strides, padding, **options)

    return convolve


def plain_norm(x, scale, bias, centre, eps):
    """`layers.normalise_batch` without a derivative of its own."""
    del centre
    wide, axes = at_least_float32(x), tuple(range(x.ndim - 1))
    mean, var = wide.mean(axes), wide.var(axes)
    gain = jax.lax.rsqrt(var + eps) * scale
    return ((wide - mean) * gain + bias).astype(x.dtype), mean, var


def make(network, variables, images, norm=layers.normalise_batch, convolve=ops.convolve):
    """A forward and backward pass that waits for its end."""

    def loss(params):
        outputs, _ = network.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])
        return sum(jnp.square(q).sum() for q in (outputs.logits, *outputs.aux_logits))

    original = layers.normalise_batch, layers.convolve
    layers.normalise_batch, layers.convolve = norm, convolve
    try:
        compiled = Devices().jit(jax.grad(loss), replicated=1).lower(variables["params"]).compile()
    finally:
        layers.normalise_batch, layers.convolve = original
    return lambda: jax.block_until_ready(compiled(variables["params"]))


def main() -> None:
    """Measures and prints."""
    parser = Parser(__doc__)
    parser.add_argument("names", nargs="*", type=network_name, default=["wrn_16_2", "mobilenetV2", "ShuffleV1"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warn_if_busy()
    print("| network | computed | seconds | times ours |\n|---|---|---|---|")
    for name in args.names:
        network = create(name, 100)
        variables = jax.device_put(random_variables(network, (32, 32, 3)))
        images = np.random.default_rng(0).standard_normal((ROTATIONS * args.batch, 32, 32, 3)).astype(np.float32)
        sides = {"ours": make(network, variables, images), NORM: make(network, variables, images, plain_norm)}
        for title, which in CONVOLUTIONS.items():
            sides[title] = make(network, variables, images, convolve=leaving(which))
        seconds = {side: statistics.median(times) for side, times in measure(sides, args.rounds).items()}
        for side, middle in seconds.items():
            print(f"| {name} | {side} | {middle:.2f} | {middle / seconds['ours']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
