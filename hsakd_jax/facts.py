"""What a result must say about itself: sizes of the network, versions, device, code."""

import math
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

PACKAGES = ("hsakd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def num_params(network: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Trainable numbers of a network, without running statistics."""
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def multiply_adds(network: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of all convolutions and linear layers for one image [H, W, C]."""
    total = 0

    def count(call, args, kwargs, context):
        nonlocal total
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, nn.Conv | nn.Dense):
            kernel = context.module.variables["params"]["kernel"]
            total += math.prod(kernel.shape) * math.prod(out.shape[1:-1])
        return out

    with nn.intercept_methods(count):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return total


def environment() -> dict[str, Any]:
    """Versions, devices and the commit of the code, '' where git does not know it."""
    devices = jax.devices()
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "git": _git_hash(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return ""


def _git_hash() -> str:
    def git(*args):
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.SubprocessError):
        return ""
