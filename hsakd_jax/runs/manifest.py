"""The manifest of a checkpoint: the content of its folder. Reading one needs neither JAX nor Orbax."""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import NOT_VALID, InvalidContent, read_regular, write_files
from hsakd_jax.runs.config import AnyConfig

NAME = "manifest.json"
CHUNK = 2**20  # bytes that are read at once


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of a checkpoint.

    Attributes:
      step: its name.
      score: the accuracy by which the best checkpoint is selected; None takes no part.
      content: SHA-256 of the arrays, in hexadecimal: the identity of a network, wherever its run is.
      sources: `content` of the checkpoints that the run depends on, by role: 'teacher' and 'init'. The SHA-256 of the
        training labels, in their order, under 'data'; that of the labels that select the best epoch under 'selection'.
        The `digest` of these images, where they have one, under 'data_images' and 'selection_images'.
      config: of the run when the checkpoint was written; None where it was not stored.
      files: CRC-32 of each file, by its path in the folder.
    """

    step: int
    score: float | None
    content: str
    sources: dict[str, str]
    config: AnyConfig | None
    files: dict[str, int]


class _Sealed(Struct, frozen=True, forbid_unknown_fields=True):
    """The file: the manifest and the CRC-32 of its bytes."""

    crc32: int
    manifest: msgspec.Raw


def steps(folder: Path) -> list[int]:
    """The names of all checkpoints in a folder, whole or damaged, ascending; none where there is no such folder.

    Raises:
      UserError: the folder can't be read. Such a run is not one without checkpoints.
    """
    try:
        with os.scandir(folder) as entries:
            # A folder of such a name is complete: it gets the name when everything is in it.
            named = [e.name for e in entries if e.name.isdecimal() and e.is_dir()]
        return sorted(int(name) for name in named if str(int(name)) == name)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.is_symlink():
            return []
        raise UserError(
            f"{folder} can't be read: {error.strerror}; make it readable or restore it, then run the same command again"
        ) from error


def read(folder: Path, step: int) -> Manifest | None:
    """The manifest of a checkpoint; None if it is absent, damaged or that of another step."""
    try:
        sealed = msgspec.json.decode(read_regular(folder / str(step) / NAME), type=_Sealed)
        found = msgspec.json.decode(sealed.manifest, type=Manifest)
    except (OSError, InvalidContent, *NOT_VALID):
        return None
    return found if found.step == step and zlib.crc32(sealed.manifest) == sealed.crc32 else None


def read_whole(folder: Path, step: int) -> Manifest | None:
    """`read`, and None if a file of the checkpoint is not the one that was written; other files do not matter."""
    found = read(folder, step)
    if found is None:
        return None
    try:
        whole = all(_crc32_inside(folder / str(step), name) == crc for name, crc in found.files.items())
    except OSError:
        return None
    return found if whole else None


def newest(folder: Path) -> Manifest | None:
    """The manifest of the newest checkpoint; None if it is absent or damaged, or the folder can't be read."""
    try:
        found = steps(folder)
    except UserError:  # to read config and results of a finished run needs no checkpoint
        return None
    return read(folder, found[-1]) if found else None


def select(folder: Path, checkpoint: str) -> int:
    """The step of the 'last' checkpoint, or of the 'best'.

    Raises:
      UserError: there is none, or `checkpoint` is another word.
    """
    found = steps(folder)
    if checkpoint not in ("last", "best"):
        raise UserError(f"unknown checkpoint {checkpoint!r}: choose last or best")
    if not found:
        state = "is finished, and its checkpoints are gone" if _results(folder).exists() else "has no checkpoint yet"
        raise UserError(f"{folder.parent} {state}: {making_again(folder)}")
    if checkpoint == "last":
        return found[-1]
    for step in found:
        if read(folder, step) is None and (folder / str(step)).is_dir():
            raise UserError(
                f"checkpoint {folder / str(step)} is damaged, and may be the best: use the last, or "
                f"{making_again(folder)}"
            )
    if (step := best(folder)) is None:
        raise UserError(f"{folder.parent} has no best checkpoint (no evaluation is on record): use the last")
    return step


def making_again(folder: Path) -> str:
    """The remedy of a run whose checkpoints in this folder are absent or damaged: a finished run trains no more."""
    done = f"delete {results} and " if (results := _results(folder)).exists() else ""
    return f"{done}run the command that made it again"


def _results(folder: Path) -> Path:
    return folder.parent / "results.json"


def best(folder: Path) -> int | None:
    """The checkpoint with the greatest score, the latest of equal ones; None if none has a score."""
    return best_of(read(folder, step) for step in steps(folder))


def best_of(manifests: Iterable[Manifest | None]) -> int | None:
    """The step of the one with the greatest score, the latest of equal ones; None if none has a score."""
    scored = ((one.score, one.step) for one in manifests if one is not None and one.score is not None)
    return max(scored, default=(0.0, None))[1]


def write(path: Path, manifest: Manifest) -> None:
    """Writes the manifest into the folder of a checkpoint, before the folder gets its name.

    Raises:
      OSError: the disk is full.
    """
    content = msgspec.json.encode(manifest)
    write_files({path / NAME: msgspec.json.encode(_Sealed(zlib.crc32(content), msgspec.Raw(content)))})


def checksums(path: Path) -> dict[str, int]:
    """CRC-32 of each regular file in the folder of a checkpoint except the manifest, by its path in the folder.

    Raises:
      OSError: a file can't be read, or was deleted in the meantime.
    """
    files = (Path(where, name) for where, _, names in os.walk(path) for name in names)
    regular = (f for f in files if f.is_file() and not f.is_symlink())
    return {str(f.relative_to(path)): _crc32(f) for f in regular if f.name != NAME}


def _crc32_inside(folder: Path, name: str) -> int | None:
    """CRC-32 of a regular file in a folder; None for a link, or a name that leads out of the folder."""
    path = folder / name
    inside = ".." not in Path(name).parts and not os.path.isabs(name)
    return _crc32(path) if inside and path.is_file() and not path.is_symlink() else None


def _crc32(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total
