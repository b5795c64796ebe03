"""A network for answers alone: BatchNorms that follow convolutions are part of them.

Accelerators compute a convolution with its bias and ReLU as one operation, which a BatchNorm between them prevents.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

from hsakd_jax.models.layers import BatchNorm, inverse_deviation, rows
from hsakd_jax.models.numerics import at_least_float32
from hsakd_jax.models.ops import convolve

Array = jax.Array
Path = tuple[str, ...]
CONV, NORM = "conv ", "norm "
# What computes a convolution as it is.
KNOWN = (None, jax.lax.conv_general_dilated, convolve)


@dataclass(frozen=True)
class Folded:
    """A network in eval mode, with variables as `fold` makes them; equal to the network but for rounding.

    Attributes:
      network: Linen module, of any layers. A `parts.BatchNorm` that alone reads what an `nn.Conv` gives is folded;
        others, and layers whose parameters are made from others (`nn.scan`, `nn.WeightNorm`), compute what they did.
    """

    network: Any

    @property
    def branches(self) -> bool:
        """The network's."""
        return self.network.branches

    def fold(self, variables: Any, images: Any) -> dict[str, Any]:
        """The network's variables as `apply` takes them: of a BatchNorm, what it multiplies by and adds.

        Kernels of convolutions have what their BatchNorm multiplies by in them, which it then has not, and the dtype
        that they are computed in, as what it adds has.

        Args:
          variables: of the network.
          images: [B, H, W, C], or their shape and dtype.
        """
        norms, follows, dtypes = _layers(self.network, variables, images)
        params: dict[Path, Any] = flatten_dict(variables["params"])
        stats: dict[Path, Any] = flatten_dict(variables.get("batch_stats", {}))
        gains = {}
        for norm in norms:
            if getattr(params.get((*norm, "scale")), "ndim", 0) == 1:
                gains[norm] = inverse_deviation(stats.pop((*norm, "var"))) * params.pop((*norm, "scale"))
                params[(*norm, "bias")] -= stats.pop((*norm, "mean")) * gains[norm]
        for conv, dtype in dtypes.items():
            norm = follows.get(conv, ())
            gain = gains.pop(norm, None)
            if gain is not None:
                params[(*norm, "bias")] = params[(*norm, "bias")].astype(dtype or gain.dtype)
            for path in {(*conv, "kernel"), (*conv, "bias")} & params.keys():
                folded = params[path] if gain is None else params[path] * rows(params[path], gain)[0]
                params[path] = folded.astype(dtype or folded.dtype)
        params |= {(*norm, "scale"): gain for norm, gain in gains.items()}
        return {**variables, "params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}

    def init(self, key: Array, images: Array) -> dict[str, Any]:
        """Folded variables of a network that has learned nothing."""
        return self.fold(self.network.init(key, images), images)

    def apply(self, variables: Any, images: Array) -> Any:
        """What the network gives for [B, H, W, C]."""

        def layer(call, args, kwargs, context):
            module = context.module
            if not _is_call(context, BatchNorm) or module.has_variable("batch_stats", "var"):
                return call(*args, **kwargs)
            (x,) = args
            (bias,) = rows(x, module.get_variable("params", "bias"))
            if not module.has_variable("params", "scale"):
                return x + bias.astype(x.dtype)
            (scale,) = rows(x, module.get_variable("params", "scale"))
            return (at_least_float32(x) * scale + bias).astype(x.dtype)

        with nn.intercept_methods(layer):
            return self.network.apply(variables, images)


def _is_call(context: Any, kind: type[nn.Module]) -> bool:
    # Not of a class that is made of it, which may compute something else.
    return type(context.module) is kind and context.method_name == "__call__"


def _layers(network: Any, variables: Any, images: Any) -> tuple[set[Path], dict[Path, Path], dict[Path, Any]]:
    """Paths of the BatchNorms; of convolutions, that of the BatchNorm which alone reads its result, and its dtype."""
    calls, dtypes = Counter(), {}

    def run(variables, images):
        params = flatten_dict(variables["params"])

        def layer(call, args, kwargs, context):
            module, path = context.module, context.module.path

            def has(name):
                return len(args) == 1 and module.get_variable("params", name) is params.get((*path, name))

            if _is_call(context, BatchNorm) and has("scale"):
                calls[path] += 1
                return call(checkpoint_name(args[0], name=NORM + "/".join(path)))
            result = call(*args, **kwargs)
            if _is_call(context, nn.Conv) and module.conv_general_dilated in KNOWN and has("kernel"):
                calls[path] += 1
                dtypes[path] = module.dtype
                return checkpoint_name(result, name=CONV + "/".join(path))
            return result

        with nn.intercept_methods(layer):
            return network.apply(variables, images)

    # The names mark both layers in the program, which knows who reads a result.
    program = jax.make_jaxpr(run)(variables, images)
    follows = {conv: norm for norm, conv in _follow(program.jaxpr) if calls[norm] == calls[conv] == 1}
    return calls.keys() - dtypes.keys(), follows, dtypes


def _follow(jaxpr: Any) -> Iterator[tuple[Path, Path]]:
    """Paths of each BatchNorm that alone reads a convolution's result, and of the convolution."""
    readers = Counter(id(v) for eqn in jaxpr.eqns for v in eqn.invars) + Counter(map(id, jaxpr.outvars))
    names = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name":
            (given,), (result,) = eqn.invars, eqn.outvars
            names[id(result)] = name = eqn.params["name"]
            before = names.get(id(given), "")
            if name.startswith(NORM) and before.startswith(CONV) and readers[id(given)] == 1:
                yield tuple(name.removeprefix(NORM).split("/")), tuple(before.removeprefix(CONV).split("/"))
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _follow(inner)
