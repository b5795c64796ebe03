"""The reference implementation's names, weights and inputs, regenerated as golden/README.md says."""

import json
import zlib
from pathlib import Path

import numpy as np

from hsakd_jax.interop.torch_weights import load_torch

GOLDEN = Path(__file__).parent / "golden"
SALT, SALT2 = "golden-v1", "golden-v2"  # of the README's rules 1 and 2
# Where a network of CIFAR has torchvision's name.
OURS = {"vgg16_bn": "vgg16_bn_imagenet"}


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
        return g.uniform(0.8, 1.2, shape) if salt == SALT2 else g.uniform(0.3, 0.7, shape)
    gain = 2 if salt == SALT2 and len(shape) == 4 else 1
    return g.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))


def inputs(tag, batch, resolution, num_classes, salt=SALT):
    """NHWC images in float64 and labels."""
    g = rng(tag, salt)
    images = g.standard_normal((batch, 3, resolution, resolution)).transpose(0, 2, 3, 1)
    return images, g.integers(0, num_classes, (batch,))


def state_dict(arch, salt=SALT, dtype=np.float64):
    """Golden weights under the reference's names, without BatchNorm's counters."""
    entries = ((name, shape) for name, shape in arch["state_dict"] if not name.endswith("num_batches_tracked"))
    return {name: tensor(name, shape, salt).astype(dtype) for name, shape in entries}


def variables(arch, salt=SALT, dtype=np.float64):
    """Golden weights in our tree."""
    return load_torch(state_dict(arch, salt, dtype), arch["name"].removesuffix("_aux"))


def torchvision():
    """The figures of torchvision's and timm's networks, by our names."""
    found = read("torchvision.json")["networks"]
    return {OURS.get(name, name): {**arch, "name": OURS.get(name, name)} for name, arch in found.items()}


def torchvision_logits(name):
    """The eval-mode logits of one of them, [2, 1000], by our name."""
    theirs = {ours: name for name, ours in OURS.items()}.get(name, name)
    return np.load(GOLDEN / "torchvision.npz")[theirs]


def architecture(name):
    return {**read("architectures.json")["architectures"][name], "name": name}


def create(name, **options):
    import hsakd_jax

    arch = architecture(name)
    network = hsakd_jax.create(
        name.removesuffix("_aux"), arch["num_classes"], branches=name.endswith("_aux"), **options
    )
    return arch, network
