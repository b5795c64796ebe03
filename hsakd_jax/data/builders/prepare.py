"""Preparing a dataset: once, quietly, by one process at a time, and all or nothing."""

import contextlib
import io
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import shuffle

from hsakd_jax.core.console import note
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import lock


def prepare(
    builder_class: type[tfds.core.GeneratorBasedBuilder], data_dir: Path, config: tfds.core.BuilderConfig | None = None
) -> Path:
    """Writes a dataset as array_record, unless that was done before.

    TFDS writes into an `incomplete.*` folder next to the final one and renames it at the end. So a killed preparation
    leaves nothing that looks like a dataset.

    Args:
      builder_class: a builder of this package.
      data_dir: the folder of all datasets.
      config: to prepare, for a builder that has configs.

    Returns:
      The folder of the prepared dataset.

    Raises:
      UserError: the folder is damaged or can't be written, the disk is full, or an error of the builder.
    """
    path = place(builder_class, data_dir, config)
    folder = path.parent
    if is_prepared(path):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            if is_prepared(path):  # by the process that held the lock before
                return path
            if path.exists():
                raise UserError(f"{path} is no whole dataset: delete this folder and run again")
            for left_over in folder.glob("incomplete.*"):
                shutil.rmtree(left_over)
            note(f"Preparing {builder_class.name} in {path}")
            with _quiet(), _large():
                builder_class(data_dir=data_dir, config=config).download_and_prepare(
                    file_format="array_record",
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                )
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError where it can't write
        # TFDS puts an example's own error on the last line.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = getattr(error, "strerror", None) or " ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))[:300]
        raise UserError(
            f"{builder_class.name} can't be prepared in {folder} ({reason}): fix its files if they are the cause, or "
            "free some space, or set another folder for data: data.dir, or TFDS_DATA_DIR for an image folder or the "
            "default one"
        ) from error
    return path


def place(
    builder_class: type[tfds.core.GeneratorBasedBuilder], data_dir: Path, config: tfds.core.BuilderConfig | None = None
) -> Path:
    """The folder into which `prepare` writes a dataset."""
    return data_dir / builder_class.name / (config.name if config else "") / str(builder_class.VERSION)


def is_prepared(path: Path) -> bool:
    """Whether a folder contains a whole dataset."""
    return (path / "dataset_info.json").exists()


@contextlib.contextmanager
def _locked(path: Path):
    descriptor = lock(path, waiting=f"Waiting for another process that prepares {path.parent}")
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _quiet():
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


@contextlib.contextmanager
def _large():
    """Lets TFDS sort data larger than its buffer of 1 GB in a thousand plain files, which it opens by TensorFlow."""
    module: Any = shuffle
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft + shuffle.BUCKETS_NUMBER
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough if hard == resource.RLIM_INFINITY else min(enough, hard), hard))
    files = SimpleNamespace(GFile=open, exists=os.path.exists, remove=os.remove)
    theirs = module.tf
    module.tf = SimpleNamespace(
        io=SimpleNamespace(gfile=files), errors=SimpleNamespace(ResourceExhaustedError=MemoryError)
    )
    try:
        yield
    finally:
        module.tf = theirs
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
