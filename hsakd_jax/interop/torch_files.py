"""Tensors of checkpoint files by strangers: nothing in the files is executed, and damage is one line."""

import io
import mmap
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.extras import install
from hsakd_jax.core.files import expand

StateDict = dict[str, np.ndarray]
# Where HSAKD, its pre-trained backbones (and SSKD), CRD and mdistiller keep the network.
SECTIONS = ("net", "state_dict", "model")
# Names of the attribute of the trained network, which an average of its weights may accompany: 'model.', 'ema_model.'.
PLAIN = ("module", "model", "net", "online_model")
AVERAGE = re.compile(r"(^|_)(ema|avg|averaged?)(_|$)")
# Last parts of names of tensors that are no weights: counters of averaged models and of profilers.
BOOKKEEPING = ("n_averaged", "num_updates", "decay", "initted", "step", "total_ops", "total_params")
# Objects that training scripts save with the weights, as harmless as a pickle can be: a class that ignores its
# arguments. NumPy's own classes must not be let in: a crafted state of a dtype crashes the process.
IGNORED = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "argparse.Namespace")
# First bytes of other files, and their kinds.
OTHERS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89HDF": "an HDF5 file, as Keras saves it",
    b"\x1f\x8b": "compressed by gzip",
    b"version https://git-lfs": "a Git LFS pointer, which `git lfs pull` replaces by the file",
    b"<": "a web page",
}
ONNX = re.compile(rb"\x08[\x01-\x40][\x12\x3a\x42]")  # the version, then producer, graph or operators
RECORD = "hsakd_jax export 1"  # the key of a safetensors file's metadata for `Content.record`, with its version
WEIGHTS = "model.safetensors"  # of a folder for the Hub
# Bounds of a file: unpacked bytes per byte (torch stores them uncompressed), operations of its pickle, depth of its
# tuples, and objects in tuples over all operations. Python computes the hash of a nested tuple by recursion in C, which
# ends the process at great depth. It visits an object as often as tuples contain it: with each level twice as often.
MAX_UNPACKED, MAX_OPERATIONS, MAX_DEPTH, MAX_VISITS = 10, 2_000_000, 100, 10**8
LEGACY_PICKLES = 5  # magic number, protocol, system, content, keys of the storages


class Content(NamedTuple):
    """The tensors of a checkpoint file.

    Attributes:
      tensors: by their names in the file.
      section: the key of the file's dict that contains them, such as 'state_dict' or 'ema.module'. Or their prefix,
        where the file also contains an average of the weights under another one. '' where the file is the state dict.
      others: the other keys and prefixes, such as 'model_ema'.
      record: the settings of the run that exported the file, as `preprocessing.Record` is stored; '' without any.
    """

    tensors: StateDict
    section: str = ""
    others: tuple[str, ...] = ()
    record: str = ""


class _Ignored:
    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


def read(path: str | Path, part: str = "") -> Content:
    """The tensors of a checkpoint file. Nothing in the file is executed.

    Args:
      path: of `torch.save`, in the zip or the legacy form, or safetensors.
      part: key of the file's dict to take, if there is one of that name.

    Raises:
      UserError: absent, damaged, no checkpoint, or torch is not installed. Or one that would execute code, or would
        need far more memory than its size.
    """
    path = expand(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): {_remedy(path)}") from error
    if start[8:9] == b"{":  # the length of a JSON header, then the header
        try:
            with safetensors.safe_open(path, "numpy") as file:
                record = (file.metadata() or {}).get(RECORD, "")
            return take(safetensors.numpy.load_file(path), str(path), part)._replace(record=record)
        except UserError:
            raise
        except AttributeError as error:  # the reader looks the type up in NumPy
            raise UserError(f"{path} has tensors of a type that NumPy lacks ({error}): save it in float32") from error
        except Exception as error:  # a damaged file can fail anywhere in the reader
            raise UserError(f"{path} is a damaged safetensors file ({error}): get it again") from error
    is_zip = start.startswith(b"PK\x03\x04")
    if not is_zip and not re.match(rb"\x80[\x02-\x05]", start):
        raise UserError(f"{path} is {_describe(start)}: choose a file of torch.save, or safetensors")
    try:
        (_check_zip if is_zip else _check_legacy)(path)
    except UserError:
        raise
    except Exception as error:  # as above
        raise _damaged(path, error) from error
    return _read_torch(path, part)


def _remedy(path: Path) -> str:
    """For a path that can't be read."""
    if (path / WEIGHTS).is_file():
        return f"did you mean {path / WEIGHTS}?"
    if (path / "checkpoints").is_dir():
        return "it is a run already"
    return "check the path"


def take(content: Any, label: str, part: str = "") -> Content:
    """The tensors of a state dict, or of a dict that contains one.

    Args:
      content: torch tensors or arrays by name, or a dict that holds such a state dict.
      label: its name in errors.
      part: as for `read`.

    Returns:
      NumPy arrays, half precision as float32, without BatchNorm's counters.

    Raises:
      UserError: no state dict in it, or tensors that are not floating point.
    """
    if _is_state_dict(content):
        return _one_of_copies(Content(_arrays(content, label)), part)
    sections = dict(_sections(content)) if isinstance(content, Mapping) else {}
    usual = [key for key in (part, *SECTIONS) if key in sections]
    if len(sections) > 1 and not usual:
        raise UserError(f"{label} contains the state dicts {listed(sections)}: choose one (--part)")
    if not sections:
        held = (
            f"it holds {listed(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        )
        raise UserError(
            f"{label} has no state dict under {', '.join(SECTIONS)} ({held}): save the network's state_dict()"
        )
    section = [*usual, *sections][0]
    others = tuple(key for key in sections if key != section)
    return _one_of_copies(Content(_arrays(sections[section], label), section, others), part)


def _sections(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The state dicts with weights in a dict, three levels deep, and their keys, such as 'ema.module'."""
    for key, value in content.items():
        if not isinstance(key, str) or key.startswith("optim"):  # whose averages are of gradients
            continue
        if _is_state_dict(value) and any(len(tensor.shape) > 1 for tensor in value.values()):
            yield prefix + key, value
        elif isinstance(value, Mapping) and prefix.count(".") < 2:
            yield from _sections(value, f"{prefix}{key}.")


def _one_of_copies(content: Content, part: str) -> Content:
    """The network alone, or the `part` of it, where a state dict has all names twice: plain, and of an average."""
    groups: dict[str, StateDict] = {}
    bookkeeping: StateDict = {}
    for key, value in content.tensors.items():
        (bookkeeping if is_bookkeeping(key) else groups.setdefault(key.partition(".")[0], {}))[key] = value
    plain = [name for name in groups if name in PLAIN]
    if len(plain) != 1 or len(groups) == 1 or not all(AVERAGE.search(name) for name in groups if name not in plain):
        return content
    section = part if part in groups else plain[0]
    others = tuple(name for name in groups if name != section)
    return Content(groups[section] | bookkeeping, section, (*others, *content.others))


def listed(keys: Iterable[str]) -> str:
    """The first keys and how many more there are."""
    keys = list(keys)
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def _describe(start: bytes) -> str:
    """The kind of a file that is no checkpoint, from its first bytes."""
    if not start:
        return "empty"
    if found := next((what for magic, what in OTHERS.items() if start.startswith(magic)), ""):
        return f"{found}, no checkpoint"
    if ONNX.match(start):
        return "an ONNX file, no checkpoint"
    printable = all(byte >= 32 or byte in b"\t\n\r\f" for byte in start)
    return "a text file, no checkpoint" if printable else "damaged or no checkpoint"


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).partition(". ")[0].partition("\n")[0][:160] or type(error).__name__
    return UserError(f"{path} is damaged or no PyTorch checkpoint ({reason}): get it again")


def _check_zip(path: Path) -> None:
    """Refuses a zip archive that unpacks to far more than its size, or is no checkpoint of tensors."""
    with zipfile.ZipFile(path) as archive:
        entries, size = archive.infolist(), path.stat().st_size
        if (unpacked := sum(entry.file_size for entry in entries)) > MAX_UNPACKED * size:
            raise UserError(
                f"{path} of {size / 1e6:.1f} MB would unpack to {unpacked / 1e6:,.1f} MB, so it was not loaded: "
                "save the checkpoint again where the file is trusted"
            )
        names = [entry.orig_filename.lower() for entry in entries]  # torch does not distinguish cases either
        # An archive of PyTorch 1.0 to 1.3 describes its modules in a model.json.
        if any(name.endswith(("/constants.pkl", "/model.json")) for name in names):
            raise UserError(f"{path} is a TorchScript archive: save the network's state_dict() instead")
        pickles = [entry for name, entry in zip(names, entries, strict=True) if name.endswith("/data.pkl")]
        if not pickles:
            raise UserError(f"{path} is a zip archive, no checkpoint: choose a file of torch.save, or safetensors")
        for entry in pickles:
            _check_pickle(io.BytesIO(archive.read(entry)), path)


def _check_legacy(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for _ in range(LEGACY_PICKLES):
            _check_pickle(content, path)


def _check_pickle(stream: Any, path: Path) -> None:
    """Refuses a pickle of too many operations, with too deep or large tuples or with `bytearray`; executes nothing.

    `torch` permits `bytearray(N)`, which is N bytes of memory for a few bytes of the file. No tensor needs it.

    Lists and dicts have no hash, so the depth of tuples inside them does not matter once they are memoised.
    """
    stack: list[tuple[int, int]] = []  # of each object: the depth of tuples in it, and the objects in them
    marks: list[int] = []
    memo: dict[Any, tuple[int, int]] = {}
    visits = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if isinstance(argument, str) and argument.split()[-1:] == ["bytearray"]:
            raise UserError(
                f"{path} would fill memory with more than the file contains, so it was not loaded: save tensors only"
            )
        name, before = operation.name, operation.stack_before
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("PUT") or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        else:
            marked = pickletools.markobject in before
            first = marks.pop() - before.index(pickletools.markobject) if marked else len(stack) - len(before)
            is_tuple = name.startswith("TUPLE")
            depths, sizes = zip(*stack[first:], strict=True) if stack[first:] else ((0,), (0,))
            depth, size = max(depths) + is_tuple, 1 + sum(sizes) if is_tuple else max(sizes)
            stack[first:] = [(depth, size)] * len(operation.stack_after)
            visits += 0 if is_tuple else sum(sizes)
            if depth > MAX_DEPTH or visits > MAX_VISITS or count > MAX_OPERATIONS:
                raise UserError(
                    f"{path} contains more than the tensors of a network (nested or very many objects) and was not "
                    "loaded: save the state dict alone where the file is trusted"
                )


def _read_torch(path: Path, part: str) -> Content:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch to be read: {install('torch')}, or save it as safetensors") from error
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in IGNORED]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        return take(content, str(path), part)
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
        raise _damaged(path, error) from error


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(k, str) and hasattr(v, "shape") and hasattr(v, "dtype") for k, v in content.items())
    )


def is_bookkeeping(key: str) -> bool:
    """Whether a tensor of this name is no weight, see `BOOKKEEPING`."""
    return key.rpartition(".")[2] in BOOKKEEPING


def _arrays(tensors: Mapping[str, Any], label: str) -> StateDict:
    """NumPy arrays without BatchNorm's counters; half precision as float32."""
    arrays = {}
    storages = [value.untyped_storage() for value in tensors.values() if hasattr(value, "untyped_storage")]
    stored = sum({one.data_ptr(): one.nbytes() for one in storages}.values())  # tensors may share one
    used = 0
    for key, value in tensors.items():
        if key.endswith("num_batches_tracked"):
            continue
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise UserError(f"{label}: {key} has more numbers than the file: save the state dict again")
            used += value.numel() * value.element_size()
            if used > MAX_UNPACKED * stored:
                raise UserError(f"{label}: its tensors share their numbers too often: save the state dict again")
            value = (value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value).numpy()
        value = np.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.floating) and not is_bookkeeping(key):
            raise UserError(f"{label}: {key} is of {value.dtype}, not floating point: quantised weights can't be used")
        arrays[key] = value.astype(np.float32) if value.dtype.itemsize < 4 else value
    return arrays
