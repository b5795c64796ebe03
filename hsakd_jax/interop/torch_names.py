"""PyTorch's names of our parameters: the state-dict keys of HSAKD, CRD, SSKD, mdistiller, torchvision and timm."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from hsakd_jax.interop import names_cnn, names_convnext, names_deit, names_mobile
from hsakd_jax.models import convnext, deit, mobilenet, resnet, shufflenet, vgg, wrn

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
BACKBONE, BRANCHES = "backbone.", "auxiliary_classifier."
# Of the networks that PyTorch has as well. CRD and mdistiller put MobileNetV2's last layer into a Sequential; HSAKD and
# SSKD do not.
HEADS = {
    **dict.fromkeys(resnet.NETWORKS, ("fc",)),
    **dict.fromkeys(wrn.NETWORKS, ("fc",)),
    **dict.fromkeys(vgg.NETWORKS, ("classifier",)),
    **dict.fromkeys(shufflenet.NETWORKS, ("linear",)),
    **names_mobile.HEADS,
    **dict.fromkeys(convnext.NETWORKS, ("classifier.2",)),
    **dict.fromkeys(deit.NETWORKS, ("head",)),
    "ResNet50": ("linear",),
    "mobilenetV2": ("classifier",),
    "mobilenetV2_crd": ("classifier.0", "classifier"),
    "vgg16_bn_imagenet": ("classifier.6",),
    "densenet121": ("classifier",),
}


def _with_leaf(layer: Callable[[Sequence[str]], str]) -> Callable[[Sequence[str], str], str]:
    """The function of a layer's path and the name of its variable, where each variable has the name in `LEAVES`."""
    return lambda module, leaf: f"{layer(module)}.{LEAVES[leaf]}"


# Keys of the networks of torchvision and timm. A network's function maps the path of a layer and the name of its
# variable, such as ('stage1', 'block0', 'conv1') and 'kernel', to the key. Only this package has their branches: a
# layer there has the name of the layer that it copies, with a prefix.
KEYS: dict[str, Callable[[Sequence[str], str], str]] = {
    "vgg16_bn_imagenet": _with_leaf(partial(names_cnn.vgg_imagenet, "vgg16_bn_imagenet")),
    "densenet121": _with_leaf(names_cnn.densenet),
    **names_mobile.KEYS,
    **dict.fromkeys(convnext.NETWORKS, names_convnext.key),
    **dict.fromkeys(deit.NETWORKS, names_deit.key),
}


def state_dict_key(name: str, num_stages: int, path: tuple[str, ...], branches: bool, head: str) -> str:
    """The key of one of our parameters or statistics.

    Args:
      name: of the network.
      num_stages: L.
      path: in 'params' or 'batch_stats', such as ('stage1', 'block0', 'conv1', 'kernel').
      branches: whether the checkpoint is of a network with branches, whose backbone's keys have a prefix.
      head: name of the last layer, one of `HEADS[name]`.
    """
    *module, leaf = path
    if name in KEYS:
        branch, *copied = module if module[0].startswith("branch") else ("", *module)
        if copied[0] == "stage":
            copied[0] = f"stage{num_stages}"
        where = f"{BRANCHES}{branch}." if branch else BACKBONE * branches
        return where + KEYS[name](copied, leaf)
    if module[0].startswith("branch"):
        l = int(module[0].removeprefix("branch"))
        where = BRANCHES + _in_branch(name, l, num_stages, module[1:])
    else:
        where = BACKBONE * branches + _in_backbone(name, module, head)
    return f"{where}.{LEAVES[leaf]}"


def num_batches_tracked(keys: Iterable[str]) -> Iterator[str]:
    """The keys of BatchNorm's counters, which neither inference nor our training reads."""
    return (key.replace("running_mean", "num_batches_tracked") for key in keys if key.endswith("running_mean"))


def _in_backbone(name: str, module: list[str], head: str) -> str:
    part, *rest = module
    if part == "stem":
        return f"conv1.{_position(rest[0])}" if name in mobilenet.NETWORKS else rest[0]
    if part == "head":
        if rest[0] == "fc":
            return head
        if name in mobilenet.NETWORKS:
            return "conv2" + {"conv": ".0", "bn": ".1"}[rest[0]]
        return {"conv": "conv2", "bn": "bn2", "bn1": "bn1"}[rest[0]]
    l = int(part.removeprefix("stage"))
    if name in vgg.NETWORKS:
        block, layer = _vgg_block(name, l, rest[0])
        return f"block{block}.{layer}"
    if name in mobilenet.NETWORKS:
        row, block = _mobile_row(l, rest[0])
        return f"blocks.{row}.{block}.{_in_block(name, rest[1])}"
    prefix = f"block{l}.layer" if name in wrn.NETWORKS else f"layer{l}"
    return f"{prefix}.{rest[0].removeprefix('block')}.{_in_block(name, rest[1])}"


def _in_branch(name: str, l: int, num_stages: int, module: list[str]) -> str:
    part, *rest = module
    first = min(l + 1, num_stages)  # the last branch is one more copy of the last stage
    if part == "head":
        if name in shufflenet.NETWORKS and rest[0] != "fc":
            position = num_stages - first + 1
            return f"block_extractor{l}.{position + {'conv': 0, 'bn': 1}[rest[0]]}"
        return {"fc": f"fc{l}", "bn1": f"bn{l}", "conv": f"conv2_{l}.0", "bn": f"conv2_{l}.1"}[rest[0]]
    stage = num_stages if part == "stage" else int(part.removeprefix("stage"))
    if name in vgg.NETWORKS:
        block, layer = _vgg_block(name, stage, rest[0])
        # One Sequential of pools, blocks and ReLUs: no pool before block 4 nor before the copy of the last stage.
        position = 2 * (block - 3) if l == num_stages else 3 * (block - l) + 1 - (block == 4)
        return f"block_extractor{l}.{position}.{layer}"
    if name in mobilenet.NETWORKS:
        row, block = _mobile_row(stage, rest[0])
        return f"block_extractor{l}.{row - _mobile_row(first, 'block0')[0]}.{block}.{_in_block(name, rest[1])}"
    layer = ".layer" if name in wrn.NETWORKS else ""
    return f"block_extractor{l}.{stage - first}{layer}.{rest[0].removeprefix('block')}.{_in_block(name, rest[1])}"


def _in_block(name: str, layer: str) -> str:
    if name in mobilenet.NETWORKS:
        return f"conv.{_position(layer)}"
    if name in wrn.NETWORKS:
        return layer.replace("shortcut_conv", "convShortcut")
    shortcut = "shortcut" if name == "ResNet50" else "downsample"
    return layer.replace("shortcut_conv", f"{shortcut}.0").replace("shortcut_bn", f"{shortcut}.1")


def _position(layer: str) -> int:
    """Of 'conv1', 'bn1', 'conv2', ... in a Sequential, which counts the ReLUs too."""
    kind, number = layer[:-1], int(layer[-1])
    return 3 * (number - 1) + (kind == "bn")


def _vgg_block(name: str, stage: int, layer: str) -> tuple[int, int]:
    """(block, position in it): the last stage is two blocks of equal depth."""
    depth = len(vgg.NETWORKS[name]().stages[-1].keywords["widths"]) // 2
    number = int(layer[-1])
    if stage == 4 and number > depth:
        return 4, _position(f"{layer[:-1]}{number - depth}")
    return stage - 1, _position(layer)


def _mobile_row(stage: int, block: str) -> tuple[int, int]:
    """(row of the paper's table, block in it)."""
    row, i = sum(len(rows) for rows in mobilenet.STAGES[: stage - 1]), int(block.removeprefix("block"))
    for _, _, repeats, _ in mobilenet.STAGES[stage - 1]:
        if i < repeats:
            break
        row, i = row + 1, i - repeats
    return row, i
