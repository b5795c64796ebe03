"""What XLA is told before JAX is loaded: how to compute on CPU, and where to keep what it compiled."""

import importlib.util
import mmap
import os
from pathlib import Path

# YNNPACK, which XLA gives convolutions and sums to since about jax 0.10, is slower at them than XLA's own code.
WITHOUT_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type="


def prepare() -> None:
    """Sets `XLA_FLAGS` and `JAX_COMPILATION_CACHE_DIR`; what the environment says already is kept.

    Has an effect only before JAX starts. A flag that this jaxlib does not know is left out, since XLA ends a process
    that gives it one.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # On a TPU, libtpu may read the same flags, and knows others.
    cpu = importlib.util.find_spec("libtpu") is None
    if cpu and WITHOUT_YNNPACK not in flags and _knows(WITHOUT_YNNPACK.strip("-=").encode()):
        os.environ["XLA_FLAGS"] = f"{flags} {WITHOUT_YNNPACK}".strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hsakd_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))


def _knows(flag: bytes) -> bool:
    """Whether jaxlib has the flag's name in its library: there is no other way to ask without starting it."""
    found = importlib.util.find_spec("jaxlib")
    library = Path(found.origin).parent / "libjax_common.so" if found and found.origin else Path()
    if not library.is_file():
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(flag) >= 0
