"""Reading and writing of small files: atomic writes, JSON, lists of class names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hsakd_jax.core.errors import UserError


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Writes each file atomically: a reader, or a run killed at any moment, sees either its old or its new content.

    Args:
      contents: bytes by path; all folders exist.

    Raises:
      OSError: the disk is full or not writable; the old files stay.
    """
    drafts = {path.with_name(f".{path.name}.{os.getpid()}.draft"): path for path in contents}
    try:
        for draft, path in drafts.items():
            draft.write_bytes(contents[path])
        for draft, path in drafts.items():
            os.replace(draft, path)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes one text atomically, in UTF-8; raises as `write_files`."""
    write_files({path: text.encode()})


def write_json(path: Path, value: Any) -> None:
    """`write_files` of indented JSON; `value` is what `msgspec` can encode."""
    write_files({path: msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"})


def check_folder(output: Path) -> None:
    """Checks that the folder of an output file exists.

    Raises:
      UserError: it does not.
    """
    if not os.path.isdir(output.parent):  # Path.is_dir raises an error where a folder may not be read
        raise UserError(f"{output.parent} is not a folder: create it, or choose another --output")


def read_json(path: Path, kind: Any) -> Any:
    """Reads a file of JSON strictly: no key may be missing, unknown, of another type or out of range.

    Args:
      path: the file.
      kind: type of its content, one that `msgspec` reads; the result has this type.

    Raises:
      UserError: the file can't be read, or its content is of another type; the line names the key.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UserError(f"{path} is not valid: {explain(error)}; restore the file or remove its folder") from error


def explain(error: Exception) -> str:
    """The message of a `msgspec` error, with the key in front: 'training.lr: Expected `float`, got `str`'."""
    message, _, key = str(error).partition(" - at `$.")
    return f"{key.rstrip('`')}: {message}" if key else message


def read_names(path: str | Path, count: int) -> list[str]:
    """The names of `count` classes, from a text file with one name per line; empty lines are skipped.

    Raises:
      UserError: the file can't be read, or has another number of names.
    """
    try:
        # Some editors write a byte order mark first.
        lines = Path(path).expanduser().read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}): use a text file with one class per line") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise UserError(f"{path} contains {len(names)} class names, the network has {count} classes: fix the file")
    return names
