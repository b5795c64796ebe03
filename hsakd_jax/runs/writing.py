"""Writes the files of a run, with an error that states how to continue the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsakd_jax.core.errors import UserError


def write_or_explain(write: Callable[[Path, Any], None], path: Path, content: Any) -> None:
    """Writes a file of a run.

    Args:
      write: the function that writes.
      path: of the file, in the run directory.
      content: of the file.

    Raises:
      UserError: the directory is gone, or can't be written.
    """
    try:
        write(path, content)
    except OSError as error:
        if not path.parent.is_dir():
            raise UserError(
                f"{path.parent} was moved or deleted while it was used: nothing more is written; move it back, then "
                "run the same command to resume"
            ) from error
        raise UserError(
            f"can't write {path}: {error.strerror}; free some space, then run the same command to resume"
        ) from error
