"""State dicts of PyTorch: recognises their network, reads and writes its variables."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hsakd_jax.core.errors import UserError
from hsakd_jax.interop import torch_names
from hsakd_jax.interop.torch_files import PLAIN, Content, StateDict, is_bookkeeping, listed, read, take
from hsakd_jax.models import NETWORKS, architecture, create
from hsakd_jax.models.network import Network

# Prefixes that training scripts, Lightning, averages and distillers put in front of all names, and that of SSKD's head.
ROLES = ("student", "teacher")
WRAPPERS = (*(f"{name}." for name in (*PLAIN, "ema_model", "model_ema", "ema", *ROLES)),)
FOREIGN = "proj_head."
# Prefixes that compilers, FSDP and checkpointing of activations put in front of the names inside each wrapped module.
INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


_TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}  # of ours, by their number


class Found(NamedTuple):
    """A network recognised in a state dict.

    Attributes:
      name: of the network.
      num_classes: N.
      branches: whether its auxiliary classifiers are there.
      channels: of its images.
      head: name of the last layer.
    """

    name: str
    num_classes: int
    branches: bool
    channels: int
    head: str

    def network(self) -> Network:
        """The network."""
        return create(self.name, self.num_classes, self.branches)


def load_torch(source: str | Path | Mapping[str, Any], name: str = "", part: str = "") -> dict[str, Any]:
    """Variables of one of our networks from a PyTorch checkpoint, with branches where it has them.

    Args:
      source: a checkpoint file (of `torch.save`, in the zip or the legacy form, or safetensors), or its content. That
        is torch tensors or arrays by name, or a dict with such a state dict in it.
      name: of the network; '' finds it from the tensors.
      part: one of several sets of weights, by a key of the dict such as 'model_ema', or a prefix of the names such as
        'teacher'. '' for the usual set.

    Returns:
      {'params', 'batch_stats'} of NumPy arrays, bit for bit the checkpoint's; half precision becomes float32.

    Raises:
      UserError: not a readable checkpoint, not of this network, or numbers that are not finite.
    """
    label = str(source) if isinstance(source, str | Path) else "the state dict"
    content = read(source, part) if isinstance(source, str | Path) else take(source, label, part)
    tensors, _ = unwrap(content, label, part)
    return to_variables(tensors, recognise(tensors, name, label), label)


def unwrap(content: Content, label: str, part: str = "") -> tuple[StateDict, list[str]]:
    """The tensors without the prefixes of wrappers, and the names of those that belong to none of our networks.

    Args:
      content: as of `torch_files.read` with the same `part`.
      label: name of the checkpoint in errors.
      part: unless it is the section of the content, the prefix of the tensors to take, without its dot; '' for all.

    Raises:
      UserError: no tensor has this prefix, or there are a student and a teacher to choose from.
    """
    tensors, prefix = _without_inside(content.tensors), "" if content.section == part else part
    foreign = [key for key in tensors if is_bookkeeping(key)]
    kept = _without_wrappers({key: value for key, value in tensors.items() if not is_bookkeeping(key)}, prefix)
    if not prefix and all(any(key.startswith(f"{role}.") for key in kept) for role in ROLES):
        raise UserError(f"{label} contains a student and a teacher: choose one (--part=student or --part=teacher)")
    if prefix:
        chosen = {key: value for key, value in kept.items() if key.startswith(f"{prefix}.")}
        if not chosen:
            parts = [name for name in (content.section, *content.others) if name]
            held = f"it has {listed(parts)}; " if parts else ""
            raise UserError(
                f"{label} has no part {prefix!r}: {held}its first tensors are {listed(tensors)}; check --part"
            )
        foreign += [key for key in kept if key not in chosen]
        kept = _without_wrappers({key.removeprefix(f"{prefix}."): value for key, value in chosen.items()})
    foreign += [key for key in kept if key.startswith(FOREIGN)]
    kept = {key: value for key, value in kept.items() if not key.startswith(FOREIGN)}
    backbone = torch_names.BACKBONE
    if all(key.startswith(backbone) for key in kept):  # SSKD's wrapper, not HSAKD's, which also has branches
        kept = {key.removeprefix(backbone): value for key, value in kept.items()}
    return kept, foreign


def _without_inside(tensors: StateDict) -> StateDict:
    pattern = re.compile("|".join(map(re.escape, INSIDE)))
    return {pattern.sub("", key): value for key, value in tensors.items()}


def _without_wrappers(tensors: StateDict, wanted: str = "") -> StateDict:
    wrappers = [wrapper for wrapper in WRAPPERS if wrapper != f"{wanted}."]
    while found := next((w for w in wrappers if tensors and all(key.startswith(w) for key in tensors)), ""):
        tensors = {key.removeprefix(found): value for key, value in tensors.items()}
    return tensors


def recognise(tensors: StateDict, name: str, label: str) -> Found:
    """Finds the network that has exactly these tensors.

    Args:
      tensors: as of `unwrap`.
      name: of the network, '' for any.
      label: name of the checkpoint in errors.

    Raises:
      UserError: no network has them, several do, or the last layer has one output.
    """
    if name:
        create(name, 2)  # refuses an unknown name
        _refuse_unnamed(name)
    shapes = {key: value.shape for key, value in tensors.items()}
    _refuse_one_logit(shapes, label)
    candidates = list(_candidates(shapes, [name] if name else _names(shapes)))
    matches = [found for found in candidates if _matches(found, shapes)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " and ".join(match.name for match in matches)
        raise UserError(f"{label} fits {names}, whose tensors are the same: name the one it is of (--arch)")
    if name:
        found = candidates[0] if candidates else None
        why = (
            _difference(_expected(found), shapes)
            if found
            else f"it lacks the first or the last layer, {torch_names.HEADS[name][0]}"
        )
        raise UserError(f"{label} is no checkpoint of {name}: {why}{_hint(shapes)}{_of_timm(shapes)}")
    raise UserError(
        f"{label} fits none of our networks; its first tensors are {listed(tensors)}: "
        f"name one (--arch) to see how they differ, or the prefix of its tensors (--part){_of_timm(shapes)}"
    )


def _refuse_one_logit(shapes: Mapping[str, tuple[int, ...]], label: str) -> None:
    last = {head for heads in torch_names.HEADS.values() for head in heads}
    for key in (f"{prefix}{head}.weight" for prefix in ("", torch_names.BACKBONE) for head in sorted(last)):
        if len(shapes.get(key, ())) == 2 and shapes[key][0] == 1:
            raise UserError(
                f"{label} has one output ({key} is of {list(shapes[key])}): a classifier here has an output for each "
                "of at least 2 classes"
            )


def to_variables(tensors: StateDict, found: Found, label: str) -> dict[str, Any]:
    """{'params', 'batch_stats'} of NumPy arrays, where `recognise` has found the network.

    Args:
      tensors: as of `unwrap`.
      found: of `recognise`.
      label: name of the checkpoint in errors.

    Raises:
      UserError: numbers that are not finite.
    """
    keys = _keys(found)
    if odd := [key for key, _ in keys.values() if not np.isfinite(tensors[key]).all()]:
        raise UserError(
            f"{label} has NaN or infinite numbers in {listed(odd)}: its training diverged, choose another checkpoint"
        )
    flat = {path: _to_ours(tensors[key]) for path, (key, _) in keys.items()}
    return {"batch_stats": {}, **unflatten_dict(flat)}  # networks without BatchNorm have no statistics


def to_state_dict(name: str, network: Network, variables: Mapping[str, Any]) -> StateDict:
    """The state dict that the reference's network of that name loads with `strict=True`, as NumPy arrays.

    Args:
      name: of the network.
      network: with or without branches.
      variables: its {'params', 'batch_stats'}; branches it does not have are left out.

    Raises:
      UserError: PyTorch's names of its layers are not defined, or it has a projector.
    """
    _refuse_unnamed(name)
    if network.projector:
        raise UserError("PyTorch's networks have no projector, which SimKD adds: export to stablehlo or onnx")
    flat: dict[tuple[str, ...], Any] = flatten_dict(variables)
    channels = variables["params"]["stem" if "stem" in variables["params"] else "stage1"]["conv1"]["kernel"].shape[-2]
    found = Found(name, network.num_classes, network.branches, channels, torch_names.HEADS[name][0])
    tensors = {key: _to_torch(np.asarray(flat[path])) for path, (key, _) in _keys(found).items()}
    return tensors | {key: np.array(0) for key in torch_names.num_batches_tracked(tensors)}


def _refuse_unnamed(name: str) -> None:
    if name not in torch_names.HEADS:
        raise UserError(f"PyTorch's names of the layers of {name} are not defined: export to stablehlo or onnx")


def _names(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Networks whose backbone has these tensors, branches aside, which take longer to compare."""
    prefix = torch_names.BACKBONE
    backbone = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)} or shapes
    found = (found.name for found in _candidates(backbone, list(NETWORKS)) if _matches(found, backbone))
    return list(dict.fromkeys(found))


def _candidates(shapes: dict[str, tuple[int, ...]], names: list[str]) -> Iterator[Found]:
    """Networks whose last layer is where these tensors have one."""
    branches = any(key.startswith(torch_names.BRANCHES) for key in shapes)
    for name in names:
        first = "stage1" if NETWORKS[name]().stem is None else "stem"
        stem = shapes.get(torch_names.state_dict_key(name, 0, (first, "conv1", "kernel"), branches, ""), ())
        # Only HSAKD has branches, with one spelling.
        for head in torch_names.HEADS.get(name, ())[: 1 if branches else None]:
            last = shapes.get(f"{torch_names.BACKBONE * branches}{head}.weight", ())
            if len(last) == 2 and last[0] > 1 and len(stem) == 4:
                yield Found(name, last[0], branches, stem[1], head)


def _matches(found: Found, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a network has exactly these tensors. A trace takes long, so it ends at the first layer without."""

    def compare(layer: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs, module = layer(*args, **kwargs), context.module
        for variables in module.variables.values():
            own = {(*module.path, name): value for name, value in variables.items() if hasattr(value, "shape")}
            if any(shapes.get(_key(found, path)) != _torch_shape(value) for path, value in own.items()):
                raise _OtherError
        return outputs

    try:
        with nn.intercept_methods(compare):
            _variables(found)
    except _OtherError:
        return False
    return not _difference(_expected(found), shapes)


class _OtherError(Exception):
    """Another network."""


@cache
def _keys(found: Found) -> dict[tuple[str, ...], tuple[str, tuple[int, ...]]]:
    """(state-dict key, shape there) by path in our variables."""
    return {path: (_key(found, path[1:]), _torch_shape(leaf)) for path, leaf in _variables(found).items()}


def _variables(found: Found) -> dict[tuple[str, ...], Any]:
    """The shapes of our variables by path."""
    network = found.network()
    # Any image will do whose size the strides allow.
    image = jnp.zeros((1, 64, 64, found.channels))
    # A function of its own, since JAX keeps the traces of functions.
    return flatten_dict(jax.eval_shape(lambda key: network.init(key, image), jax.random.key(0)))


def _key(found: Found, path: tuple[str, ...]) -> str:
    stages = len(architecture(found.name).stages)
    return torch_names.state_dict_key(found.name, stages, path, found.branches, found.head)


def _torch_shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape[axis] for axis in _TORCH_AXES.get(leaf.ndim, range(leaf.ndim)))


def _expected(found: Found) -> dict[str, tuple[int, ...]]:
    return dict(_keys(found).values())


def _difference(expected: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]]) -> str:
    """The differences between two sets of tensors, in words; '' where there are none."""
    wrong = [
        f"{key} {list(shapes[key])} for {list(shape)}"
        for key, shape in expected.items()
        if key in shapes and shapes[key] != shape
    ]
    parts = {
        "missing": [key for key in expected if key not in shapes],
        "extra": [key for key in shapes if key not in expected],
        "of another shape": wrong,
    }
    return "; ".join(f"{len(keys)} {what}: {listed(keys)}" for what, keys in parts.items() if keys)


def _hint(shapes: dict[str, tuple[int, ...]]) -> str:
    names = _names(shapes)
    return f"; it is one of {' or '.join(names)}" if names else ""


def _of_timm(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A remedy for families that timm has with other tensors than torchvision."""
    timm = "conv_stem.weight" in shapes
    return "; EfficientNet, MobileNetV2 and V3 are those of torchvision here, not timm's" if timm else ""


def _to_ours(value: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, (out, in) -> (in, out)."""
    return value.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim, range(value.ndim)))


def _to_torch(value: np.ndarray) -> np.ndarray:
    """HWIO -> OIHW, (in, out) -> (out, in)."""
    return np.ascontiguousarray(value.transpose(_TORCH_AXES.get(value.ndim, range(value.ndim))))
