"""Downloads a published file with progress, continues an interrupted download, and returns only whole files."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from hsakd_jax.core.console import Progress
from hsakd_jax.core.errors import UserError

TIMEOUT = 30.0  # seconds without a byte before the connection counts as broken
ATTEMPTS = 4  # in a row that bring nothing; each that brings something starts the count again
PAUSE = 2.0  # seconds before the second attempt, doubled for each one after


def folder(url: str, data_dir: str | os.PathLike[str]) -> Path:
    """The folder of a published file: `data_dir` if the file is there, else its `downloads`."""
    root = Path(data_dir)
    return root if (root / url.rsplit("/", 1)[-1]).exists() else root / "downloads"


def fetch(url: str, md5: str, directory: Path) -> Path:
    """The published file in `directory`, downloaded unless it is there.

    The download grows in `NAME.part` and is renamed once it is whole; an interrupted one is continued.

    Args:
      url: address of the file.
      md5: its published md5, in hexadecimal.
      directory: the folder of the file.

    Returns:
      The path of the file, whose md5 has been verified.

    Raises:
      UserError: the file there is damaged, no network, an HTTP error, or the disk can't be written.
    """
    path = directory / url.rsplit("/", 1)[-1]
    if path.exists():
        if _md5(path) != md5:
            raise UserError(f"{path} is damaged or another file (its md5 is not {md5}): delete it and run again")
        return path
    part = path.with_name(path.name + ".part")
    by_hand = f"run again to continue, or put the file at {path} by hand"
    directory.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        size = part.stat().st_size if part.exists() else 0
        try:
            _download(url, part)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing after the .part: it is whole, or longer than the file
                break
            if error.code < 500:
                raise UserError(f"{url} can't be downloaded (HTTP {error.code} {error.reason}): {by_hand}") from error
            reason = f"HTTP {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, _BrokenError) as error:
            reason = str(getattr(error, "reason", error))
        except OSError as error:
            raise UserError(
                f"{part} can't be written ({error.strerror}): free some space and run again to continue"
            ) from error
        grown = part.exists() and part.stat().st_size > size
        failures = 1 if grown else failures + 1
        if failures == ATTEMPTS:
            raise UserError(f"{url} can't be downloaded ({reason}): check the network and {by_hand}")
        time.sleep(PAUSE * 2 ** (failures - 1))
    if _md5(part) != md5:
        part.unlink()
        raise UserError(f"{url} arrived damaged (its md5 is not {md5}): run again, or put the file at {path} by hand")
    part.rename(path)
    return path


class _BrokenError(Exception):
    """The connection broke."""


def _download(url: str, part: Path) -> None:
    """Appends the missing bytes to `part`. OSErrors are the disk's; the network's come as the other kinds."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # the server ignores Range and starts from the beginning
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as file,
            Progress(f"Downloading {url}", total, "MB", have, patience=0) as progress,
        ):
            done = have
            while True:
                progress.update(done)
                try:
                    # read1 returns the bytes that have come; read would wait for the whole piece on a slow line
                    piece = response.read1(1 << 20)
                except OSError as error:
                    raise _BrokenError(str(error)) from error
                if not piece:
                    break
                file.write(piece)
                file.flush()
                done += len(piece)
    if total is not None and done < total:
        raise _BrokenError(f"the connection broke after {done} of {total} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
