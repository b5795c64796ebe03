"""The reference implementation's names, weights and inputs, regenerated as golden/README.md says."""

import json
import zlib
from pathlib import Path

import numpy as np

from hsakd_jax.interop.torch_weights import load_torch

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


def state_dict(arch, salt=SALT, dtype=np.float64):
    """Golden weights under the reference's names, without BatchNorm's counters."""
    entries = ((name, shape) for name, shape in arch["state_dict"] if not name.endswith("num_batches_tracked"))
    return {name: tensor(name, shape, salt).astype(dtype) for name, shape in entries}


def variables(arch, salt=SALT, dtype=np.float64):
    """Golden weights in our tree."""
    return load_torch(state_dict(arch, salt, dtype), arch["name"].removesuffix("_aux"))


def architecture(name):
    return {**read("architectures.json")["architectures"][name], "name": name}


def create(name, **options):
    import hsakd_jax

    arch = architecture(name)
    network = hsakd_jax.create(
        name.removesuffix("_aux"), arch["num_classes"], branches=name.endswith("_aux"), **options
    )
    return arch, network


RULE_2 = "golden-v2"


def torchvision():
    """Golden networks of torchvision and timm by name; logits are in torchvision.npz."""
    networks = read("torchvision.json")["networks"]
    # Names that a network for CIFAR has too.
    return {{"vgg16_bn": "vgg16_bn_imagenet"}.get(name, name): network for name, network in networks.items()}


def torchvision_state_dict(arch, dtype=np.float32):
    """Weights of golden/README.md's rule 2 under the original names, without BatchNorm's counters."""

    def draw(name, shape):
        g = rng(name, RULE_2)
        if name.endswith("running_mean") or name.endswith(".bias"):
            return 0.1 * g.standard_normal(shape)
        if name.endswith("running_var"):
            return g.uniform(0.5, 1.5, shape)
        if len(shape) == 1 and name.endswith(".weight"):
            return g.uniform(0.8, 1.2, shape)
        return g.standard_normal(shape) * np.sqrt((2 if len(shape) == 4 else 1) / np.prod(shape[1:]))

    entries = ((name, shape) for name, shape in arch["state_dict"] if not name.endswith("num_batches_tracked"))
    return {name: draw(name, shape).astype(dtype) for name, shape in entries}


def torchvision_images(arch):
    """The two NHWC images of rule 2, float64."""
    side = arch["resolution"]
    return rng("input2", RULE_2).standard_normal((2, 3, side, side)).transpose(0, 2, 3, 1)
