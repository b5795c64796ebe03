"""timm's names of the layers of MobileNetV1, and torchvision's of MobileNetV2, MobileNetV3, EfficientNet, RegNet."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from hsakd_jax.models import efficientnet, mobilenet_imagenet, regnet

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Last layers by network.
HEADS = {
    "mobilenetv1_100": ("classifier",),
    "mobilenet_v2": ("classifier.1",),
    "mobilenet_v3_small": ("classifier.3",),
    "mobilenet_v3_large": ("classifier.3",),
    **dict.fromkeys(efficientnet.NETWORKS, ("classifier.1",)),
    **dict.fromkeys(regnet.NETWORKS, ("fc",)),
}
V2, V3 = "mobilenet_v2", ("mobilenet_v3_small", "mobilenet_v3_large")


def _v1(module: Sequence[str]) -> str:
    part, *rest = module
    if rest == ["conv1"]:
        return "conv_stem"
    if len(rest) < 2:
        return {"bn1": "bn1", "fc": "classifier"}[rest[0]]
    resolution, layer = 0 if part == "stem" else int(part.removeprefix("stage")), rest[-1]
    block = rest[-2].removeprefix("block")
    return f"blocks.{resolution}.{block}.{ {'conv1': 'conv_dw', 'conv2': 'conv_pw'}.get(layer, layer) }"


def _regnet(module: Sequence[str]) -> str:
    part, *rest = module
    if part == "stem":
        return {"conv1": "stem.0", "bn1": "stem.1"}[rest[0]]
    if part == "head":
        return "fc"
    stage, block = part.removeprefix("stage"), rest[0].removeprefix("block")
    layers = {f"{kind}{i}": f"f.{'abc'[i - 1]}.{kind == 'bn':d}" for kind in ("conv", "bn") for i in (1, 2, 3)}
    layers |= {"shortcut_conv": "proj.0", "shortcut_bn": "proj.1", "attention": "f.se"}
    where = ".".join((layers[rest[1]], *rest[2:]))
    return f"trunk_output.block{stage}.block{stage}-{block}.{where}"


def _inverted(name: str, module: Sequence[str]) -> str:
    """Of the networks of inverted residual blocks, whose modules are numbered through: `features.N`."""
    part, *rest = module
    if part == "head":
        last = _blocks(name)[-1][0].split(".")[0]
        convolution = {f"{layer}": f"features.{int(last) + 1}.{i}" for i, layer in enumerate(("conv", "bn"))}
        return {**convolution, "fc1": "classifier.0", "fc": HEADS[name][0]}[rest[0]]
    if len(rest) == 1:
        return {"conv1": "features.0.0", "bn1": "features.0.1"}[rest[0]]
    stages = [_stem_blocks(name), *_stage_blocks(name)]
    before = sum(map(len, stages[: 0 if part == "stem" else int(part.removeprefix("stage"))]))
    block, *layer = rest[1:] if part == "stem" else rest
    where, parts = _blocks(name)[before + int(block.removeprefix("block"))]
    return f"features.{where}.{parts[layer[0]]}" + "".join(f".{inner}" for inner in layer[1:])


def _stem_blocks(name: str) -> Sequence[partial[Any]]:
    blocks = _architecture(name).stem.keywords["blocks"]
    return blocks.keywords["blocks"] if blocks else ()


def _stage_blocks(name: str) -> list[Sequence[partial[Any]]]:
    return [stage.keywords["blocks"] for stage in _architecture(name).stages]


@cache
def _architecture(name: str) -> Any:
    return (mobilenet_imagenet.NETWORKS | efficientnet.NETWORKS)[name]()


@cache
def _blocks(name: str) -> list[tuple[str, dict[str, str]]]:
    """Of each block, where it is in `features`, and our layers of it -> their places in it."""
    blocks = [*_stem_blocks(name), *(block for blocks in _stage_blocks(name) for block in blocks)]
    return [(where, _parts(name, block)) for where, block in zip(_places(name, len(blocks)), blocks, strict=True)]


def _places(name: str, count: int) -> Iterator[str]:
    if name in efficientnet.SCALES:
        rows = [row for rows in efficientnet.ROWS for row in rows]
        for i, (*_, repeats, _) in enumerate(rows, 1):
            for j in range(efficientnet.repeats_of(repeats, efficientnet.SCALES[name][1])):
                yield f"{i}.{j}"
    else:
        yield from map(str, range(1, count + 1))


def _parts(name: str, block: partial[Any]) -> dict[str, str]:
    options = block.keywords
    layers = ["1"] * (options["expansion"] != 1) + ["2"] + ["attention"] * bool(options.get("attention")) + ["3"]
    found = {}
    for i, layer in enumerate(layers):
        if layer == "attention":
            found[layer] = f"block.{i}"
        elif name == V2:  # its last two layers are not a module of their own
            last = layer == "3"
            found |= {f"conv{layer}": f"conv.{i}" if last else f"conv.{i}.0"}
            found |= {f"bn{layer}": f"conv.{i + 1}" if last else f"conv.{i}.1"}
        else:
            found |= {f"conv{layer}": f"block.{i}.0", f"bn{layer}": f"block.{i}.1"}
    return found


def _key(of_layer: Callable[[Sequence[str]], str], module: Sequence[str], leaf: str) -> str:
    return f"{of_layer(module)}.{LEAVES[leaf]}"


# Network -> function from the path of a layer and the name of its variable to the key.
KEYS: dict[str, Callable[[Sequence[str], str], str]] = {
    "mobilenetv1_100": partial(_key, _v1),
    **{name: partial(_key, partial(_inverted, name)) for name in (V2, *V3, *efficientnet.NETWORKS)},
    **{name: partial(_key, _regnet) for name in regnet.NETWORKS},
}
