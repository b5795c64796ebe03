"""Files that are whole or absent."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hsakd_jax.core.errors import UserError


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Writes files so that a reader, or a run killed at any moment, sees each old or new, and whole.

    Raises:
      OSError: the disk is full or not writable; all old files stay.
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
    """`write_files` of one text in UTF-8."""
    write_files({path: text.encode()})


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_folder(output: Path) -> None:
    """Refuses a file to be written in a folder that is not there.

    Raises:
      UserError: it is not.
    """
    if not os.path.isdir(output.parent):  # Path's raises where a folder is closed
        raise UserError(f"{output.parent} is no folder: make it, or choose another --output")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      UserError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error}): restore it or remove its folder") from error


def read_names(path: str | Path, count: int) -> list[str]:
    """Reads what `count` classes are called, one a line.

    Raises:
      UserError: the file can't be read, or has another number of names.
    """
    try:
        lines = Path(path).expanduser().read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}): give a text file with one class a line") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise UserError(f"{path} names {len(names)} classes, the network has {count}: mend the file")
    return names
