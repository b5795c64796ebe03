"""Settings of the process for JAX: XLA's flags, the compilation cache, the C library's allocator on CPU."""

import mmap
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from hsakd_jax.core import allocator
from hsakd_jax.core.console import note
from hsakd_jax.core.extras import is_installed

# Turns YNNPACK off. XLA uses it for convolutions and sums since about jax 0.10, and is faster at them without it.
WITHOUT_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type="


def configure_runtime(restart: bool = False) -> None:
    """Sets `XLA_FLAGS`, the variables of the compilation cache and, without accelerators, the allocator.

    Call it before JAX is imported; later it has no effect on XLA. It keeps all values that the environment has, except
    `JAX_ENABLE_X64`.

    Args:
      restart: whether the process may restart itself, which some C libraries need: see
        `allocator.restart_with_tunables`.
    """
    # The networks mix dtypes on purpose, and XLA refuses programs that widen a part of them.
    if os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "t", "y", "yes", "on"):
        note("JAX_ENABLE_X64 has no effect: runs compute in float32 or bfloat16")
        del os.environ["JAX_ENABLE_X64"]
    # The allocator of GNU's C library slows XLA down on CPU, and grows, unless `allocator` changes its settings.
    on_cpu = installed_accelerator() is None
    if on_cpu and restart:
        allocator.restart_with_tunables()
    if on_cpu:
        allocator.retain_memory()
    flags = os.environ.get("XLA_FLAGS", "")
    # On a TPU, libtpu may read the same flags, but has others. XLA ends a process that sets a flag it does not have.
    if not is_installed("libtpu") and WITHOUT_YNNPACK not in flags and _has_flag(WITHOUT_YNNPACK.strip("-=")):
        os.environ["XLA_FLAGS"] = f"{flags} {WITHOUT_YNNPACK}".strip()
    cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not cache.startswith("~"):  # without a home folder, compiled programs are not kept
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{cache}/hsakd_jax")
    # Small programs too: each start has dozens.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def configure_compilation() -> None:
    """The settings that need JAX: without accelerators, `allocator.reserve_fragments` runs after long compilations.

    Call it in commands that compile steps. It imports JAX; a second call does nothing.
    """
    if installed_accelerator() is None:
        allocator.reserve_fragments_after_compilations()


def installed_accelerator() -> Literal["tpu", "gpu"] | None:
    """The accelerator for which a plug-in of JAX is installed; does not start JAX."""
    if is_installed("libtpu"):
        return "tpu"
    return "gpu" if is_installed("jax_plugins") else None


def _has_flag(flag: str) -> bool:
    """Whether jaxlib's library contains the flag's name: XLA itself can't check it before the start."""
    found = find_spec("jaxlib")
    library = Path(found.origin).parent / "libjax_common.so" if found and found.origin else Path()
    if not library.is_file():
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(flag.encode()) >= 0
