"""Sizes of a network: output shapes, parameters, multiply-adds, activation memory. Nothing is computed for them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsakd_jax.models.network import Network, Peers

Array = jax.Array


class ModuleProfile(NamedTuple):
    """Sizes of a stem, stage, head or branch, for one image.

    Attributes:
      shape: of its output: [H, W, C] of a map, [N] of logits.
      params: number of trainable parameters.
      multiply_adds: of its convolutions and linear layers.
    """

    shape: tuple[int, ...]
    params: int
    multiply_adds: int


def modules(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, ModuleProfile]:
    """Sizes of each module of a network, in the order of computation.

    Args:
      network: Linen module.
      image_shape: [H, W, C].

    Returns:
      Name of the module, such as 'stage1', -> its sizes.

    Raises:
      ValueError: the images are too small for the network.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    work: dict[str, int] = {}

    def count(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        path, module = context.module.path, context.module
        if path and context.method_name == "__call__":
            shapes.setdefault(path[0], ())  # in the order of the calls
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(module, nn.Conv | nn.Dense):
            amount = math.prod(module.variables["params"]["kernel"].shape) * math.prod(out.shape[1:-1])
            work[path[0]] = work.get(path[0], 0) + amount
        if context.method_name == "__call__" and len(path) == 1:
            # The first output of a head is its logits.
            shapes[path[0]] = jax.tree.leaves(out)[0].shape[1:]
        return out

    def init(key: Array, image: Array) -> Any:
        # A new function: JAX would not trace `network.init` a second time, and nothing would be counted.
        return network.init(key, image)

    with nn.intercept_methods(count):
        variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    params = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables["params"].items()}
    return {name: ModuleProfile(shape, params.get(name, 0), work.get(name, 0)) for name, shape in shapes.items()}


def totals(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, int]:
    """'parameters' (without running statistics) and 'multiply_adds' of a network for one image [H, W, C]."""
    found = modules(network, image_shape).values()
    return {"parameters": sum(p.params for p in found), "multiply_adds": sum(p.multiply_adds for p in found)}


def last_map_size(network: nn.Module, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """[H, W, C] of a network's map in front of its global average pool, for images [H, W, C].

    Raises:
      ValueError: the images are too small for the network, or its head has no such map.
    """
    image = jnp.zeros((1, *image_shape))
    outputs, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    if outputs.last_map is None:
        raise ValueError("the teacher's head returns no last map: return the result of `layers.pool_fc`")
    return outputs.last_map.shape[1:]


def sizes(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, dict[str, int]]:
    """`totals` of the trained network and of the deployed one, for one image [H, W, C].

    Returns:
      'parameters' and 'multiply_adds', each 'with_branches' and of the 'backbone' alone. For `Peers`, the backbone is
      that of the first network.
    """
    deployed = network.networks[0] if isinstance(network, Peers) else network.clone
    networks = {"with_branches": network, "backbone": deployed(branches=False)}
    found = {name: totals(n, image_shape) for name, n in networks.items()}
    return {key: {name: found[name][key] for name in found} for key in ("parameters", "multiply_adds")}


def activation_bytes(network: Network, image_shape: tuple[int, ...], rows: int) -> int:
    """Bytes of activations that a train step stores for its backward pass, before XLA drops those it can recompute.

    An upper bound: on CPU, compiled steps took 0.6 to 0.75 of it.

    Args:
      network: Linen module.
      image_shape: [H, W, C].
      rows: images in the network at a time, their rotations included.
    """
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))

    def backward(variables: Any, images: Array) -> Any:
        def outputs(params: Any) -> Any:
            found, _ = network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return found.logits, found.aux_logits

        return jax.vjp(outputs, variables["params"])[1]

    kept = jax.eval_shape(backward, variables, jax.ShapeDtypeStruct((rows, *image_shape), jnp.float32))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
