"""The reference implementation's names, weights and inputs, regenerated as golden/README.md says."""

import json
import re
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
SALT = "golden-v1"


def read(name):
    return json.loads((GOLDEN / name).read_text())


def rng(tag, salt=SALT):
    return np.random.default_rng(zlib.crc32(f"{salt}/{tag}".encode()))


def tensor(name, shape, salt=SALT):
    """A state-dict tensor in PyTorch's layout, float64."""
    g = rng(name, salt)
    if name.endswith("running_mean") or name.endswith(".bias"):
        return 0.1 * g.standard_normal(shape)
    if name.endswith("running_var"):
        return g.uniform(0.5, 1.5, shape)
    if len(shape) == 1:
        return g.uniform(0.3, 0.7, shape)
    return g.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))


def inputs(tag, batch, resolution, num_classes):
    """NHWC images in float64 and labels."""
    g = rng(tag)
    images = g.standard_normal((batch, 3, resolution, resolution)).transpose(0, 2, 3, 1)
    return images, g.integers(0, num_classes, (batch,))


LEAF = {"weight": ("params", "kernel"), "bias": ("params", "bias")}
NORM_LEAF = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
# A block of MobileNetV2 is one Sequential, a VGG block another: positions of its layers.
MOBILE = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
VGG = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2"}
# MobileNetV2's first row of every stage: its rows 0..6 make four stages.
MOBILE_STAGE = {0: (1, 0), 1: (1, 1), 2: (2, 0), 3: (3, 0), 4: (3, 4), 5: (4, 0), 6: (4, 3)}


def layers(arch):
    """(state-dict prefix, our module path) of every layer, in the state dict's order."""
    family = arch["name"].removesuffix("_aux")
    num_stages = len(arch["features"]) if "features" in arch else None
    for name, shape in arch["state_dict"]:
        if name.endswith("num_batches_tracked"):
            continue
        module, leaf = name.rsplit(".", 1)
        yield name, shape, (*path(family, module, num_stages), leaf)


def path(family, module, num_stages):
    """Our module path of a reference module, e.g. 'backbone.layer2.0.conv1' -> ('stage2', 'block0', 'conv1')."""
    if m := re.fullmatch(r"auxiliary_classifier\.(?:fc|bn|conv2_)(\d)(?:\.(\d))?", module):
        part = {"f": "fc", "b": "bn1"}.get(module.split(".")[1][0]) or ("conv", "bn")[int(m[2])]
        return (f"branch{m[1]}", "head", part)
    if m := re.fullmatch(r"auxiliary_classifier\.block_extractor(\d)\.(.*)", module):
        branch, rest = int(m[1]), m[2]
        # The last branch is one more copy of the last stage.
        last = branch == num_stages
        head = re.fullmatch(r"(\d)", rest)
        if head and family.startswith("Shuffle"):
            return (f"branch{branch}", "head", ("conv", "bn")[int(rest) - (1 if last else num_stages - branch)])
        if family.startswith("vgg"):
            block, position = map(int, rest.split("."))
            order = {1: (1, 4, 7, 9), 2: (1, 4, 6), 3: (1, 3), 4: (0, 2)}[branch].index(block)
            stage = min(branch + 1 + order, 4)
            second = block == {1: 9, 2: 6, 3: 3, 4: 2}[branch]
            layer = vgg_layer(position, second)
            return (f"branch{branch}", "stage" if last else f"stage{stage}", layer)
        index, inner = rest.split(".", 1)
        inner = inner.removeprefix("layer.")
        if family.startswith("mobile"):
            stage, first = MOBILE_STAGE[{1: 2, 2: 3, 3: 5, 4: 5}[branch] + int(index)]
            block, inner = inner.split(".", 1)
            return (
                f"branch{branch}",
                "stage" if last else f"stage{stage}",
                *in_block(family, f"{int(block) + first}.{inner}"),
            )
        stage = "stage" if last else f"stage{branch + 1 + int(index)}"
        return (f"branch{branch}", stage, *in_block(family, inner))
    module = module.removeprefix("backbone.")
    if (m := re.fullmatch(r"(?:layer|block)(\d)\.(?:layer\.)?(\d+\..*)", module)) and not family.startswith("vgg"):
        return (f"stage{m[1]}", *in_block(family, m[2]))
    if m := re.fullmatch(r"block(\d)\.(\d)", module):
        block = int(m[1])
        return (f"stage{min(block + 1, 4)}", vgg_layer(int(m[2]), block == 4))
    if m := re.fullmatch(r"blocks\.(\d)\.(\d)\.conv\.(\d)", module):
        stage, first = MOBILE_STAGE[int(m[1])]
        return (f"stage{stage}", f"block{first + int(m[2])}", MOBILE[int(m[3])])
    if module in ("fc", "linear", "classifier"):
        return ("head", "fc")
    if family.startswith("mobile"):
        part, index = module.split(".")
        return ("stem", ("conv1", "bn1")[int(index)]) if part == "conv1" else ("head", ("conv", "bn")[int(index)])
    if family.startswith("wrn") and module == "bn1":
        return ("head", "bn1")
    return {"conv2": ("head", "conv"), "bn2": ("head", "bn")}.get(module, ("stem", module))


def vgg_layer(position, second_block):
    layer = VGG[position]
    return f"{layer[:-1]}{int(layer[-1]) + 2 * second_block}"


def in_block(family, rest):
    block, rest = rest.split(".", 1)
    if family.startswith("mobile"):
        return (f"block{block}", MOBILE[int(rest.removeprefix("conv."))])
    rest = re.sub(r"^(downsample|shortcut)\.0|^convShortcut", "shortcut_conv", rest)
    return (f"block{block}", re.sub(r"^(downsample|shortcut)\.1", "shortcut_bn", rest))


def to_ours(value):
    """PyTorch's layout to ours: OIHW -> HWIO, (out, in) -> (in, out)."""
    return value.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim, (0,)))


def place(arch):
    """state-dict name -> (shape, collection, path) of every tensor that is a number of ours."""
    places, norms = {}, {n.rsplit(".", 1)[0] for n, _ in arch["state_dict"] if n.endswith("running_var")}
    for name, shape, (*module, leaf) in layers(arch):
        collection, ours = (NORM_LEAF if name.rsplit(".", 1)[0] in norms else LEAF)[leaf]
        places[name] = (shape, collection, (*module, ours))
    return places


def variables(arch, salt=SALT, dtype=np.float64):
    """Golden weights in our tree."""
    tree = {}
    for name, (shape, *where) in place(arch).items():
        collection, (*module, leaf) = where
        node = tree.setdefault(collection, {})
        for part in module:
            node = node.setdefault(part, {})
        assert leaf not in node, f"{name}: two tensors at {where}"
        node[leaf] = to_ours(tensor(name, shape, salt)).astype(dtype)
    return tree


def architecture(name):
    return {**read("architectures.json")["architectures"][name], "name": name}


def create(name, **options):
    import hsakd_jax

    arch = architecture(name)
    network = hsakd_jax.create(
        name.removesuffix("_aux"), arch["num_classes"], branches=name.endswith("_aux"), **options
    )
    return arch, network
