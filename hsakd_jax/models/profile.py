"""Sizes of a network: output shapes, parameters, multiply-adds, activation memory."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsakd_jax.models.network import Network, Peers


class Part(NamedTuple):
    """Stem, stage, head or branch of a network, for one image.

    Attributes:
      shape: of what it gives: [H, W, C] of a map, [N] of logits.
      params: trainable numbers.
      multiply_adds: of its convolutions and linear layers.
    """

    shape: tuple[int, ...]
    params: int
    multiply_adds: int


def parts(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Part]:
    """The parts of a network by name, in the order of computation, for images [H, W, C]. Nothing is computed."""
    shapes: dict[str, tuple[int, ...]] = {}
    work: dict[str, int] = {}

    def count(call, args, kwargs, context):
        path, module = context.module.path, context.module
        if path and context.method_name == "__call__":
            shapes.setdefault(path[0], ())  # in the order of the calls
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(module, nn.Conv | nn.Dense):
            amount = math.prod(module.variables["params"]["kernel"].shape) * math.prod(out.shape[1:-1])
            work[path[0]] = work.get(path[0], 0) + amount
        if context.method_name == "__call__" and len(path) == 1:
            # A head gives its logits first.
            shapes[path[0]] = jax.tree.leaves(out)[0].shape[1:]
        return out

    # A function of its own: JAX would not trace `network.init` again where a run has, and nothing be counted.
    with nn.intercept_methods(count):
        variables = jax.eval_shape(
            lambda key, image: network.init(key, image), jax.random.key(0), jnp.zeros((1, *image_shape))
        )
    params = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables["params"].items()}
    return {name: Part(shape, params.get(name, 0), work.get(name, 0)) for name, shape in shapes.items()}


def totals(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, int]:
    """'parameters' (without running statistics) and 'multiply_adds' of a network for one image [H, W, C]."""
    found = parts(network, image_shape).values()
    return {"parameters": sum(p.params for p in found), "multiply_adds": sum(p.multiply_adds for p in found)}


def activation_bytes(network: Network, image_shape: tuple[int, ...], rows: int) -> int:
    """Bytes that a train step keeps from its forward for its backward pass, before XLA drops what it can recompute.

    An upper bound: on CPU, compiled steps took 0.6 to 0.75 of it.

    Args:
      network: Linen module.
      image_shape: [H, W, C].
      rows: images in the network at a time, their rotations included.
    """
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))

    def backward(variables, images):
        def outputs(params):
            found, _ = network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return found.logits, found.aux_logits

        return jax.vjp(outputs, variables["params"])[1]

    kept = jax.eval_shape(backward, variables, jax.ShapeDtypeStruct((rows, *image_shape), jnp.float32))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def sizes(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """'parameters' and 'multiply_adds' of what is trained ('with_branches') and of what is deployed ('backbone').

    Of several networks the first one is.
    """
    deployed = network.networks[0] if isinstance(network, Peers) else network.clone
    networks = {"with_branches": network, "backbone": deployed(branches=False)}
    found = {name: totals(n, image_shape) for name, n in networks.items()}
    return {key: {name: found[name][key] for name in found} for key in ("parameters", "multiply_adds")}
