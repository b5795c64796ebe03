"""Provenance of a result: package versions, devices and the commit of the code."""

import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("hsakd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}


def environment() -> dict[str, Any]:
    """The environment of a result, as its run directory records it.

    Returns:
      'versions': package -> version, '' if it is not installed. 'device': number and kind of the devices that JAX uses,
      for CPUs with the processor's name and its widest vector instructions. 'git': commit of the code, with '-dirty' if
      files differ from it, '' outside a git checkout.
    """
    devices = jax.devices()
    kind = devices[0].device_kind
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "device": f"{len(devices)} x {kind}" + (_processor() if kind == "cpu" else ""),
        "git": _git_hash(),
    }


def _processor() -> str:
    """' (NAME, widest vector instructions)' of an x86 processor on Linux, since speed depends on both; '' elsewhere."""
    try:
        found = dict(re.findall(r"^(model name|flags)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M))
    except OSError:
        return ""
    if found.keys() != {"model name", "flags"}:
        return ""
    vectors = [name for flag, name in VECTORS.items() if flag in found["flags"].split()]
    return f" ({', '.join([found['model name'], *vectors[:1]])})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return ""


def _git_hash() -> str:
    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed copy may be inside another repository, whose commit would be wrong.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.SubprocessError):
        return ""
