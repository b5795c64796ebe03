"""Paths, locks, and reading and writing of small files: atomic writes, JSON, lists of class names."""

import contextlib
import errno
import fcntl
import os
import re
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hsakd_jax.core.console import note
from hsakd_jax.core.errors import UserError

SEAL = "crc32"
NOT_VALID = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # `msgspec` raises these on reading
MOST = 2**26  # bytes of a file of JSON; ours are far smaller
# Errors of a file system without locks, such as Lustre's or an old NFS.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOTSUP)


class InvalidContent(UserError):
    """A file was read, and its content is not valid."""


def expand(path: str | Path) -> Path:
    """A path that a user typed, with the home folder for `~`.

    Raises:
      UserError: an address such as gs://..., no such user, no home folder, or a character that no path can have.
    """
    if re.match(r"\w\w+:/", str(path)):  # pathlib makes one slash of two
        raise UserError(f"{path} is not a path of this machine: copy the files to a disk, or mount them")
    if "\0" in str(path):
        raise UserError(f"{path} contains a null character, which no path can have: check the path")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such home folder: set HOME, or write the path without ~") from error


def lock(path: Path, waiting: str = "") -> int:
    """Locks a file for this process; the kernel frees the lock when the process ends.

    Where the file system has no locks, the function prints a warning and locks nothing.

    Args:
      path: the file, which is created.
      waiting: a line to print before waiting for another process that holds the lock; '' does not wait.

    Returns:
      A descriptor, which frees the lock when it is closed.

    Raises:
      BlockingIOError: another process holds the lock, and `waiting` is ''.
      OSError: the file can't be created.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                raise
            note(waiting)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(descriptor)
            raise
        note(f"warning: the file system of {path.parent} has no locks: let no other process write there")
    return descriptor


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Writes each file atomically: a reader, or a run killed at any moment, sees either its old or its new content.

    The drafts that a killed process left of the same files are deleted.

    Args:
      contents: bytes by path; all folders exist.

    Raises:
      OSError: the disk is full or not writable; the old files stay.
    """
    for path in contents:
        _delete_drafts(path)
    drafts = {path.with_name(f".{path.name}.{os.getpid()}.draft"): path for path in contents}
    try:
        for draft, path in drafts.items():
            with draft.open("wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the new name with no content
        for draft, path in drafts.items():
            os.replace(draft, path)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def _delete_drafts(path: Path) -> None:
    """Deletes the drafts of a file, except those of processes that live."""
    draft = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.draft")
    for name in os.listdir(path.parent):
        if (found := draft.fullmatch(name)) and not _lives(int(found[1])):
            path.with_name(name).unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether a process of this number, other than this one, runs on this machine."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # sends no signal
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def sync_folder(path: Path) -> None:
    """Waits until the names of the files in a folder are on the disk, where the file system can do that.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Waits until the content of a file is on the disk.

    Raises:
      OSError: the disk fails.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Waits until all files in a folder are on the disk, and their names, at any depth.

    Raises:
      OSError: the disk fails.
    """
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(Path(where) / name)
        sync_folder(Path(where))


def write_text(path: Path, text: str) -> None:
    """Writes one text atomically, in UTF-8; raises as `write_files`."""
    write_files({path: text.encode()})


def write_json(path: Path, value: Any) -> None:
    """`write_files` of indented JSON; `msgspec` must be able to encode `value`."""
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
      InvalidContent: its content is of another type; the line names the key. Or it is no regular file, or too large.
      UserError: the file can't be read.
    """
    try:
        return msgspec.json.decode(read_regular(path), type=kind)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except NOT_VALID as error:
        raise InvalidContent(f"{path} is not valid: {explain(error)}; restore the file") from error


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file of at most `most` bytes, by default `MOST`; the file may be a stranger's.

    Raises:
      InvalidContent: it is a device, a FIFO or a folder, or has more than `most` bytes.
      OSError: it can't be read.
    """
    most = most or MOST
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise InvalidContent(f"{path} is not valid: it is no file of at most {most >> 20} MiB; restore the file")
    return path.read_bytes()


def write_sealed(path: Path, value: Any) -> None:
    """`write_json` of a struct, with a checksum under the key 'crc32'."""
    content = msgspec.to_builtins(value)
    write_json(path, {**content, SEAL: _checksum(content)})


def read_sealed(path: Path, kind: Any) -> Any:
    """`read_json`, and InvalidContent if a value is not the one that was written, or the checksum is missing."""
    content = read_json(path, dict[str, Any])
    if content.pop(SEAL, None) != _checksum(content):
        raise InvalidContent(f"{path} is not valid: its content and its checksum do not agree; restore the file")
    try:
        return msgspec.convert(content, kind)
    except msgspec.MsgspecError as error:
        raise InvalidContent(f"{path} is not valid: {explain(error)}; restore the file") from error


def _checksum(content: Any) -> int:
    return zlib.crc32(msgspec.json.encode(content))


def explain(error: Exception) -> str:
    """The message of a `msgspec` error, with the key in front: 'training.lr: Expected `float`, got `str`'."""
    message, _, key = str(error).partition(" - at `$.")
    return f"{key.rstrip('`')}: {message}" if key else message


def read_names(path: str | Path, count: int) -> list[str]:
    """The names of `count` classes, from a text file with one name per line; empty lines are skipped.

    Raises:
      UserError: the file can't be read, has another number of names, or one with a control character.
    """
    try:
        # Some editors write a byte order mark first.
        lines = expand(path).read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}): use a text file with one class per line") from error
    names = [line.strip() for line in lines if line.strip()]
    if odd := next((name for name in names if re.search(r"[\x00-\x1f\x7f]", name)), None):
        raise UserError(f"{path} has {odd!r}, with a tab or another control character: write one name in each line")
    if len(names) != count:
        raise UserError(f"{path} contains {len(names)} class names, the network has {count} classes: fix the file")
    return names
