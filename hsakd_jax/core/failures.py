"""Errors of the operating system and the libraries, in one line: the only place that lists their kinds."""

import errno
import os
import sys

from hsakd_jax.core.errors import UserError

# Remedies by the number of an error of the operating system.
REMEDIES = {
    errno.EACCES: "change the permissions, or choose another path",
    errno.EPERM: "change the permissions, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the link that leads back to itself",
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some space, then run the same command again",
    errno.EFBIG: "free some space, then run the same command again",
    errno.EROFS: "choose a folder that can be written",
    errno.EIO: "check the disk, then run the same command again",
    errno.ESTALE: "check the network's disk, then run the same command again",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs, or allow more open files",
    errno.ENOMEM: "free some memory",
}


def remedy(error: OSError) -> str:
    """The remedy of an error of the operating system."""
    return REMEDIES.get(error.errno or 0, "check the path")


def explain(error: Exception) -> str | None:
    """The cause and the remedy of an error that is not the program's own fault.

    Args:
      error: of any kind.

    Returns:
      One line, of a `UserError` its own; None for a programming error, which keeps its traceback.
    """
    if isinstance(error, UserError):
        return str(error)
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return _of_system(error, text)
    if isinstance(error, UnicodeError):
        return f"text can't be read or written ({text}): use UTF-8, such as by PYTHONIOENCODING=utf-8"
    if isinstance(error, MemoryError):
        cause = f" ({text})" if text else ""
        return f"not enough memory{cause}: set a smaller batch or eval_batch, or close other programs"
    if not isinstance(error, RuntimeError | AssertionError):
        return None
    if any(word in text for word in ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY", "out of memory", "Out of memory")):
        return (
            f"the device has not enough memory ({text[:200]}): set a smaller batch, more micro-batches (accumulate) or "
            "remat=True, or end other programs that use the device"
        )
    return _of_backend()


def _of_system(error: OSError, text: str) -> str:
    if error.errno is None:  # of a library, in its own words
        return text or type(error).__name__
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    return ": ".join(filter(None, [path, error.strerror or text, remedy(error)]))


def _of_backend() -> str | None:
    """Why JAX has no device, if it has none: every call of JAX then failed for this reason.

    JAX shortens tracebacks, and raises an AssertionError without a text for some values of JAX_PLATFORMS.
    """
    if "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        named = f" with JAX_PLATFORMS={platforms}" if platforms else ""
        cause = " ".join(str(error).partition(" (set JAX_PLATFORMS")[0].split()) or "no such backend is installed"
        return f"JAX has no device{named} ({cause}): set another JAX_PLATFORMS, or install JAX for this accelerator"
    return None
