"""BatchNorm folding: a network for inference that computes each BatchNorm inside the convolution before it.

Accelerators compute a convolution, its bias and its ReLU as one operation, which a BatchNorm between them prevents.

Example with one channel. A 1x1 convolution 'conv1' has the kernel 3. The BatchNorm 'bn1' after it has scale 4, bias 1,
running mean 6 and running variance 4 (without eps):

    y = 4 * (3 * x - 6) / sqrt(4) + 1        gain = scale / sqrt(variance) = 2
      = (3 * gain) * x + (1 - 6 * gain)
      = 6 * x - 11

`Folded.fold` changes the variables, and `Folded.apply` adds only the bias for a BatchNorm without running variance:

    params/conv1/kernel    3  ->    6
    params/bn1/scale       4  ->    (removed)
    params/bn1/bias        1  ->  -11
    batch_stats/bn1    6 and 4 ->   (removed)

This needs a BatchNorm that reads the convolution's result, and nothing else that reads it, such as a shortcut. A module
has no list of the readers of its result, but the traced program has. So we trace the network with each convolution's
result and each BatchNorm's input passed through `checkpoint_name`, an identity that records a name. The program is then

    g = conv_general_dilated images kernel
    h = name["conv conv1"] g
    i = name["norm bn1"] h
    j = sub i mean ...

`h` is read once, by the mark of bn1: the pair is (conv1, bn1). A name contains the path of the layer's variables:
"conv stage1/block0/conv2" means params/stage1/block0/conv2/kernel.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name

from hsakd_jax.models.layers import BatchNorm, inverse_std, per_channel
from hsakd_jax.models.numerics import at_least_float32
from hsakd_jax.models.ops import convolve

Array = jax.Array
Path = tuple[str, ...]
# How names of the two marks begin.
CONV, NORM = "conv ", "norm "
# Values of `nn.Conv.conv_general_dilated` that compute a plain convolution.
PLAIN = (None, jax.lax.conv_general_dilated, convolve)


@dataclass(frozen=True)
class Folded:
    """A network in eval mode that takes variables from `fold`; its outputs are those of the network up to rounding.

    Attributes:
      network: Linen module, of any layers. A `layers.BatchNorm` is folded if it alone reads the result of an `nn.Conv`.
        Layers that are called twice, or whose parameters are computed from others (`nn.scan`, `nn.WeightNorm`), stay.
    """

    network: Any

    @property
    def branches(self) -> bool:
        """Whether the network has auxiliary classifiers."""
        return self.network.branches

    def clone(self, **changes: Any) -> "Folded":
        """A copy whose network has other attributes, as `clone` of Linen modules."""
        return replace(self, network=self.network.clone(**changes))

    def fold(self, variables: Any, images: Any) -> dict[str, Any]:
        """Folds the variables of the network.

        Args:
          variables: of the network, {'params': ..., 'batch_stats': ...}.
          images: [B, H, W, C], or their shape and dtype.

        Returns:
          Variables for `apply`. A folded BatchNorm has only a 'bias', any other its gain as 'scale' and a 'bias'.
          Kernels and biases of convolutions, and biases of folded BatchNorms, have the convolution's compute dtype.
        """
        layers = _find_layers(self.network, variables, images)
        params: dict[Path, Any] = flatten_dict(variables["params"])
        stats: dict[Path, Any] = flatten_dict(variables.get("batch_stats", {}))
        gains: dict[Path, Array] = {}
        for norm, eps in layers.norms.items():
            if getattr(params.get((*norm, "scale")), "ndim", 0) == 1:  # more axes: the layers of a loop, stacked
                gains[norm] = inverse_std(stats.pop((*norm, "var")), eps) * params.pop((*norm, "scale"))
                params[(*norm, "bias")] -= stats.pop((*norm, "mean")) * gains[norm]
        for conv, dtype in layers.conv_dtypes.items():
            norm = layers.norm_after.get(conv)
            gain = gains.pop(norm, None) if norm else None
            if norm and gain is not None:
                params[(*norm, "bias")] = params[(*norm, "bias")].astype(dtype or gain.dtype)
            for path in {(*conv, "kernel"), (*conv, "bias")} & params.keys():
                folded = params[path] if gain is None else params[path] * per_channel(params[path], gain)[0]
                params[path] = folded.astype(dtype or folded.dtype)
        params |= {(*norm, "scale"): gain for norm, gain in gains.items()}
        return {**variables, "params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}

    def init(self, key: Array, images: Array) -> dict[str, Any]:
        """Folded variables of an untrained network, for images [B, H, W, C]."""
        return self.fold(self.network.init(key, images), images)

    def apply(self, variables: Any, images: Array) -> Any:
        """The outputs of the network for images [B, H, W, C], from the variables that `fold` returns."""
        with nn.intercept_methods(_apply_folded_norm):
            return self.network.apply(variables, images)


def _apply_folded_norm(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """Interceptor: computes a BatchNorm without running variance by its scale, if it has one, and its bias."""
    module = context.module
    if not _is_call(context, BatchNorm) or module.has_variable("batch_stats", "var"):
        return call(*args, **kwargs)
    (x,) = args
    (bias,) = per_channel(x, module.get_variable("params", "bias"))
    if not module.has_variable("params", "scale"):
        return x + bias.astype(x.dtype)
    (scale,) = per_channel(x, module.get_variable("params", "scale"))
    return (at_least_float32(x) * scale + bias).astype(x.dtype)


def _is_call(context: Any, kind: type[nn.Module]) -> bool:
    # Not a subclass, which may compute something else.
    return type(context.module) is kind and context.method_name == "__call__"


class _Layers(NamedTuple):
    """Layers of a network, by path.

    Attributes:
      norms: BatchNorm -> its eps.
      conv_dtypes: convolution -> the dtype it computes in, None for that of its parameters.
      norm_after: convolution -> the BatchNorm that alone reads its result.
    """

    norms: dict[Path, float]
    conv_dtypes: dict[Path, Any]
    norm_after: dict[Path, Path]


def _find_layers(network: Any, variables: Any, images: Any) -> _Layers:
    calls: Counter[Path] = Counter()
    norms: dict[Path, float] = {}
    conv_dtypes: dict[Path, Any] = {}

    def traced(variables: Any, images: Any) -> Any:
        params: dict[Path, Any] = flatten_dict(variables["params"])

        def mark(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            module, path = context.module, context.module.path

            def has_own(name: str) -> bool:
                # A parameter that is computed from others, or cut out of a stack, is another object.
                return len(args) == 1 and module.get_variable("params", name) is params.get((*path, name))

            if _is_call(context, BatchNorm) and has_own("scale"):
                calls[path] += 1
                norms[path] = module.eps
                return call(checkpoint_name(args[0], name=NORM + "/".join(path)))
            result = call(*args, **kwargs)
            if _is_call(context, nn.Conv) and module.conv_general_dilated in PLAIN and has_own("kernel"):
                calls[path] += 1
                conv_dtypes[path] = module.dtype
                return checkpoint_name(result, name=CONV + "/".join(path))
            return result

        with nn.intercept_methods(mark):
            return network.apply(variables, images)

    program = jax.make_jaxpr(traced)(variables, images)
    pairs = _marked_pairs(program.jaxpr)
    norm_after = {conv: norm for conv, norm in pairs if calls[conv] == calls[norm] == 1}
    return _Layers(norms, conv_dtypes, norm_after)


def _marked_pairs(jaxpr: Any) -> Iterator[tuple[Path, Path]]:
    """Each marked convolution whose result only a marked BatchNorm reads, and that BatchNorm."""
    # By id, since an input of an equation may be a literal, which has no hash.
    readers = Counter(id(v) for eqn in jaxpr.eqns for v in eqn.invars) + Counter(map(id, jaxpr.outvars))
    convs: dict[int, Path] = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name":
            (before,), (after,), name = eqn.invars, eqn.outvars, eqn.params["name"]
            if name.startswith(CONV):
                convs[id(after)] = tuple(name.removeprefix(CONV).split("/"))
            elif name.startswith(NORM) and id(before) in convs and readers[id(before)] == 1:
                yield convs[id(before)], tuple(name.removeprefix(NORM).split("/"))
        # Programs inside this one, such as those of `jax.jit` and `nn.remat`.
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _marked_pairs(inner)
