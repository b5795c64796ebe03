"""Tensors out of checkpoint files that nobody vouches for: nothing in them is executed, and damage is one line."""

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import expand

StateDict = dict[str, np.ndarray]
# Where HSAKD, its pre-trained backbones (and SSKD), CRD and mdistiller keep the network.
SECTIONS = ("net", "state_dict", "model")
# What training scripts save beside the weights, as harmless as a pickle can be: a class that ignores all it is given.
# NumPy's own classes must not be let in: a crafted state of a dtype crashes the process.
IGNORED = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "argparse.Namespace")


class _Ignored:
    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


def read(path: str | Path) -> StateDict:
    """The tensors of a checkpoint file, under the names they have there. Nothing in the file is executed.

    Raises:
      UserError: absent, damaged, no checkpoint, or one that would execute code; or torch is not installed.
    """
    path = expand(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): check the path") from error
    if start[8:] == b"{":  # the length of a JSON header, then the header
        try:
            return take(safetensors.numpy.load_file(path), str(path))
        except UserError:
            raise
        except Exception as error:  # a damaged file can fail anywhere in the reader
            raise UserError(f"{path} is a damaged safetensors file ({error}): get it again") from error
    return _read_torch(path)


def take(content: Any, label: str) -> StateDict:
    """The tensors of a state dict, or of what a training script has saved around one.

    Args:
      content: torch tensors or arrays by name, or a dict that holds such a state dict.
      label: what an error calls it.

    Returns:
      NumPy arrays, half precision as float32, without BatchNorm's counters.

    Raises:
      UserError: no state dict in it, or tensors that are not floating point.
    """
    return _arrays(_section(content, label), label)


def listed(keys: Iterable[str]) -> str:
    """The first keys and how many more there are."""
    keys = list(keys)
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def _read_torch(path: Path) -> StateDict:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} needs PyTorch to be read: pip install 'hsakd_jax[torch]', or save it as safetensors"
        ) from error
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in IGNORED]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        return take(content, str(path))
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None:
            raise UserError(f"{path} is damaged or no PyTorch checkpoint: get it again") from error
        raise UserError(
            f"{path} holds more than tensors ({asked[1]}) and could execute code, so it was not loaded: "
            "save the state dict alone where the file is trusted"
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        reason = str(error).partition(". ")[0].partition("\n")[0][:160] or type(error).__name__
        raise UserError(f"{path} is damaged or no PyTorch checkpoint ({reason}): get it again") from error


def _section(content: Any, label: str) -> Mapping[str, Any]:
    """The state dict in what a training script has saved."""
    if _is_state_dict(content):
        return content
    sections = {k: v for k, v in content.items() if _is_state_dict(v)} if isinstance(content, Mapping) else {}
    for key in SECTIONS:
        if key in sections:
            return sections[key]
    if len(sections) == 1:
        return next(iter(sections.values()))
    held = f"it holds {listed(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise UserError(f"{label} has no state dict under {', '.join(SECTIONS)} ({held}): save the network's state_dict()")


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(k, str) and hasattr(v, "shape") and hasattr(v, "dtype") for k, v in content.items())
    )


def _arrays(tensors: Mapping[str, Any], label: str) -> StateDict:
    """NumPy arrays without BatchNorm's counters; half precision as float32."""
    arrays = {}
    for key, value in tensors.items():
        if key.endswith("num_batches_tracked"):
            continue
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value).numpy()
        value = np.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(f"{label}: {key} is of {value.dtype}, not floating point: quantised weights can't be taken")
        arrays[key] = value.astype(np.float32) if value.dtype.itemsize < 4 else value
    return arrays
