"""Preparing a dataset: once, quietly, by one process at a time, and all or nothing."""

import contextlib
import fcntl
import io
import shutil
import sys
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from hsakd_jax.errors import UserError


@contextlib.contextmanager
def quiet():
    """Keeps TFDS's bars, banners and advice away from the user; its errors still come as exceptions."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(True)
        logging.set_verbosity(verbosity)


def prepare(builder: tfds.core.GeneratorBasedBuilder) -> Path:
    """Writes the builder's dataset as array_record, unless that was done before.

    TFDS writes into an `incomplete.*` folder beside the final one and renames it at the end, so that a
    killed preparation leaves nothing that could be taken for a dataset.

    Returns:
      The folder of the prepared dataset.

    Raises:
      UserError: the folder is damaged or can't be written, the disk is full, or what the builder raises.
    """
    path = Path(builder.data_path)
    if _is_prepared(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent / ".lock"):
            if _is_prepared(path):  # by the process that held the lock before
                return path
            if path.exists():
                raise UserError(f"{path} is no whole dataset: delete this folder and run again")
            for left_over in path.parent.glob("incomplete.*"):
                shutil.rmtree(left_over)
            print(f"Preparing {builder.name} in {path}", file=sys.stderr, flush=True)
            with quiet():
                builder.download_and_prepare(
                    file_format="array_record",
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                )
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(
            f"{builder.name} can't be prepared in {path.parent} ({reason}): "
            "free some space or name another data_dir (TFDS_DATA_DIR for an image folder)"
        ) from error
    return path


def _is_prepared(path: Path) -> bool:
    return (path / "dataset_info.json").exists()


@contextlib.contextmanager
def _lock(path: Path):
    # The kernel frees the lock of a killed process, so that none can be left behind.
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that prepares {path.parent}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
