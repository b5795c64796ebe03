"""Checkpoints of a run: Orbax writes and reads the arrays; a manifest lists the files of a checkpoint."""

import hashlib
import math
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import sync_folder, sync_tree
from hsakd_jax.core.sharding import broadcast_from_first, run_in_first_process
from hsakd_jax.runs import manifest
from hsakd_jax.runs.config import AnyConfig
from hsakd_jax.runs.manifest import Manifest

# Folders that are not checkpoints: one that is being written, one that is being deleted.
DRAFT, OLD = ".{}.draft", ".{}.old"
LATEST = 2  # that are kept, since the newest may be damaged
# Arrays of networks are hardly compressed: a file that becomes so much larger is there to fill the memory.
GREATEST_RATIO, SMALL = 100, 2**30
# Orbax takes *, ?, [ and ] in a path for patterns, and TensorStore refuses a backslash.
PLAIN = re.compile(r"[\w ./+@#%=,:~()-]+")


class Checkpoints:
    """The checkpoints of one run: the two latest and the best are kept.

    Every process of a run calls the same methods. The first one writes, and each one reads for itself.

    Args:
      directory: where each checkpoint is a folder named by its step.
      write: False for reading only: nothing on disk is created, moved or cleaned. True sets damaged checkpoints
          aside, in a folder 'damaged' next to `directory`.
      config: of the run, which each checkpoint stores.
      sources: see `Manifest`, which stores them.

    Attributes:
      damaged: one line for each checkpoint that was set aside.

    Raises:
      UserError: the directory can't be written.
    """

    def __init__(
        self,
        directory: Path,
        write: bool = True,
        config: AnyConfig | None = None,
        sources: Mapping[str, str] = MappingProxyType({}),
    ):
        self._directory = directory.absolute()
        self._config, self._sources = config, dict(sources)
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(me, active_processes={me}, barrier_sync_key_prefix=str(me))
        self._handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        self._opened = -1  # a descriptor of the directory
        self.damaged: list[str] = []
        if write:
            run_in_first_process(self._clean, str(directory))

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return manifest.steps(self._directory)

    def best(self) -> int:
        """The step with the greatest score, see `manifest.select`."""
        return manifest.select(self._directory, "best")

    def is_scored(self, step: int) -> bool:
        """Whether a checkpoint has a score, the same answer in all processes; False if it is absent or damaged."""
        found = manifest.read(self._directory, step)
        return bool(broadcast_from_first(found is not None and found.score is not None))

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Saves a pytree of arrays, which every process has whole.

        Args:
          step: its name.
          state: flax must be able to turn it into nested dicts.
          score: the accuracy by which the best checkpoint is kept; None takes no part.

        Raises:
          UserError: the disk is full or not writable, the directory is gone, or other arrays were read back.
        """

        def save() -> None:
            # Outside of the code whose errors count as failures of the disk: the arrays may depend on other processes.
            host = jax.tree.map(np.asarray, jax.device_get(serialization.to_state_dict(state)))
            self._save(step, host, score)

        run_in_first_process(save, f"checkpoint {step} of {self._directory.parent}")

    def restore(self, step: int) -> Any:
        """The checkpoint as nested dicts of NumPy arrays, written by any devices.

        Raises:
          UserError: it is absent, or its files are not those that were written.
        """
        path = self._directory / str(step)
        saved = check(self._directory, step)
        try:
            state = self._read(path)
        except Exception as error:  # of any kind: the checkpoint may be a stranger's
            raise UserError(
                f"checkpoint {path} can't be read ({_first_line(error)}): {_remedy(self._directory)}"
            ) from error
        if digest(state) != saved.content:
            raise UserError(f"checkpoint {path} contains other arrays than were saved: {_remedy(self._directory)}")
        return state

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._handler.close()

    def _clean(self) -> None:
        """Deletes the drafts of a killed process, and sets damaged checkpoints aside."""
        try:
            self._directory.mkdir(exist_ok=True)
            self._opened = os.open(self._directory, os.O_RDONLY)
            weakref.finalize(self, os.close, self._opened)
            for pattern in (DRAFT, OLD):
                for left in self._directory.glob(pattern.format("*")):
                    shutil.rmtree(left, ignore_errors=True)
            best = manifest.best(self._directory)
            damaged = [step for step in self.steps() if not manifest.read_whole(self._directory, step)]
            self.damaged = [self._set_aside(step) + ("; it was the best" if step == best else "") for step in damaged]
            self._delete_old()
        except OSError as error:
            raise UserError(
                f"can't write to {self._directory}: {error.strerror}; free some space or check the permissions"
            ) from error

    def _set_aside(self, step: int) -> str:
        aside = self._directory.parent / "damaged" / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        shutil.move(self._directory / str(step), aside)
        return f"checkpoint {step} is damaged and was moved to {aside}"

    def _save(self, step: int, state: Any, score: float | None) -> None:
        draft = self._directory / DRAFT.format(step)
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            with _plain(draft) as path:
                self._handler.save(path, args=ocp.args.StandardSave(state))
                self._handler.finalize(path)
            content = digest(state)
            if digest(self._read(draft)) != content:
                raise ValueError("the disk returns other bytes than were written")
            described = Manifest(
                step=step,
                score=None if score is None else float(score),
                content=content,
                sources=self._sources,
                config=self._config,
                files=manifest.checksums(draft),
            )
            manifest.write(draft, described)
            if self._is_gone():
                raise FileNotFoundError(self._directory)
            self._publish(draft, step)
        except (OSError, ValueError) as error:  # TensorStore reports a full disk as a ValueError
            shutil.rmtree(draft, ignore_errors=True)
            if self._is_gone():
                self._remove_empty()
                raise UserError(
                    f"{self._directory.parent} was moved or deleted while it was used: step {step} is not saved; move "
                    "it back, then run the same command to resume"
                ) from error
            raise UserError(
                f"could not save checkpoint {step} in {self._directory}: {_first_line(error)}; free some space or "
                "check the permissions, then run the same command to continue"
            ) from error

    def _is_gone(self) -> bool:
        """Whether the directory is not the one that was opened: TensorStore makes all folders that are not there."""
        try:
            return not os.path.samestat(os.fstat(self._opened), self._directory.stat())
        except OSError:
            return True

    def _remove_empty(self) -> None:
        """Deletes the directory and that of the run where TensorStore made them again, unless something is in them."""
        with suppress(OSError):
            self._directory.rmdir()
            self._directory.parent.rmdir()

    def _publish(self, draft: Path, step: int) -> None:
        """Renames a whole checkpoint to its step, then deletes those that are no longer kept."""
        sync_tree(draft)  # Orbax leaves its own file to the system
        if step in self.steps():
            self._delete(step)
        os.rename(draft, self._directory / str(step))
        sync_folder(self._directory)
        self._delete_old()

    def _delete_old(self) -> None:
        """Deletes the checkpoints that are neither among the latest nor the best.

        One whose manifest can't be read now may be the best: it stays until `_clean` sets it aside.
        """
        saved = {step: manifest.read(self._directory, step) for step in self.steps()}
        best = manifest.best_of(saved.values())
        for old in list(saved)[:-LATEST]:
            if old != best and saved[old] is not None:
                self._delete(old)

    def _delete(self, step: int) -> None:
        old = self._directory / OLD.format(step)
        shutil.rmtree(old, ignore_errors=True)
        os.rename(self._directory / str(step), old)  # a half-deleted one must not look like a checkpoint
        shutil.rmtree(old, ignore_errors=True)

    def _read(self, path: Path) -> Any:
        # Orbax opens every file there, and the manifest of a stranger may list none.
        if strange := [p for p in path.rglob("*") if p.is_symlink() or not (p.is_file() or p.is_dir())]:
            raise ValueError(f"{strange[0].name} is no regular file")
        with _plain(path) as plain:
            metadata = self._handler.metadata(plain)
            metadata = getattr(metadata, "tree", metadata)
            _check_size(path, sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(metadata)))
            target = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), metadata)
            return self._handler.restore(plain, args=ocp.args.StandardRestore(target))


def check(directory: Path, step: int) -> Manifest:
    """The manifest of a checkpoint whose files are those that were written.

    Raises:
      UserError: it is absent or damaged.
    """
    path = directory / str(step)
    saved = manifest.read_whole(directory, step)
    if saved is None:
        raise UserError(f"checkpoint {path} is damaged or absent: {_remedy(directory)}")
    return saved


def _remedy(directory: Path) -> str:
    return f"use a run that has a whole one, or {manifest.making_again(directory)}"


def _check_size(path: Path, needed: int) -> None:
    """Refuses arrays of more bytes than the files of a network's checkpoint can hold, compressed as they are."""
    stored = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    if needed > max(SMALL, GREATEST_RATIO * stored):
        raise ValueError(f"its arrays take {needed / 2**30:.1f} GiB, its files {stored / 2**30:.1f}")


def digest(tree: Any) -> str:
    """SHA-256 of the arrays of a pytree, with their paths, dtypes and shapes, in hexadecimal."""
    found = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for path, leaf in sorted(leaves.items()):
        found.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


@contextmanager
def _plain(path: Path) -> Generator[Any]:  # Orbax declares its own type of path, and takes this one
    """A path to the folder that Orbax and TensorStore take as it is: where they would not, a link to it."""
    if PLAIN.fullmatch(str(path)):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "checkpoint"
        link.symlink_to(path)
        yield Path(link)


def _first_line(error: Exception) -> str:
    """The reason of an error; for TensorStore's, the operating system's reason, which follows long paths."""
    if found := re.search(r"\[OS error \d+: (?:E\w+ )?([^\]]+)\]", str(error)):
        return found[1]
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
