"""Checkpoints of a run: Orbax behind one adapter, with checksums that Orbax does not make."""

import json
import logging
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import write_json
from hsakd_jax.core.sharding import broadcast_from_first, is_first_process

# Orbax warns that a directory opened for reading is opened for reading.
logging.getLogger("absl").addFilter(lambda record: "Given directory is read only" not in record.getMessage())
CHECKSUMS = "crc32.json"


class Checkpoints:
    """The checkpoints of one run: the two latest and the best are kept.

    Two, since the newest may be damaged; the best, since `best_fn` with `max_to_keep` would delete the newest.

    Args:
      directory: where each checkpoint is a folder named by its step.
      write: False for reading only: nothing on disk is created, moved or cleaned. True sets damaged checkpoints
        aside, in a folder 'damaged' beside `directory`.

    Attributes:
      damaged: one line for each checkpoint that was set aside.
    """

    def __init__(self, directory: Path, write: bool = True):
        self._directory = directory.absolute()
        first = write and is_first_process()
        self.damaged = [self._set_aside(step) for step in self.steps() if first and not self._is_whole(step)]
        if write:
            broadcast_from_first(0)  # nobody goes on before that is done
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=lambda m: m["score"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=best.get_metric_fn,  # without it Orbax forgets the scores of an earlier process
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best]),
            enable_async_checkpointing=False,
            cleanup_tmp_directories=write,
            create=write,
            read_only=not write,
            save_interval_steps=int(write),
        )
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        # A folder of that name is complete: Orbax writes under another name and renames.
        return sorted(int(p.name) for p in self._directory.glob("*") if p.is_dir() and p.name.isdigit())

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Saves a pytree of arrays.

        Args:
          step: its name.
          state: what flax can turn into nested dicts.
          score: the accuracy by which the best checkpoint is kept; None takes no part.

        Raises:
          UserError: the disk is full or not writable.
        """
        try:
            self._manager.save(
                step,
                args=ocp.args.StandardSave(serialization.to_state_dict(state)),
                metrics=None if score is None else {"score": float(score)},
            )
            if is_first_process():
                write_json(self._directory / str(step) / CHECKSUMS, _checksums(self._directory / str(step)))
        except (OSError, ValueError) as error:  # TensorStore reports a full disk as a ValueError
            raise UserError(
                f"could not save checkpoint {step} in {self._directory}: {str(error).strip().splitlines()[0][:200]}; "
                "free some space or check the permissions, then run the same command to continue"
            ) from error

    def restore(self, step: int) -> Any:
        """The checkpoint as nested dicts of NumPy arrays, whatever devices wrote it.

        Raises:
          UserError: it is absent, or its files are not those that were written.
        """
        path = self._directory / str(step)
        if not self._is_whole(step):
            results = path.parents[1] / "results.json"
            done = f"delete {results} and " if results.exists() else ""
            raise UserError(
                f"checkpoint {path} is damaged or absent: name a run that has a whole one, or {done}give again the "
                "command that made it"
            )
        metadata = self._manager.item_metadata(step)
        target = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), getattr(metadata, "tree", metadata))
        return self._manager.restore(step, args=ocp.args.StandardRestore(target))

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()

    def _is_whole(self, step: int) -> bool:
        """Whether the files are those that were written: Orbax restores flipped bits without complaint."""
        path = self._directory / str(step)
        # A process killed between Orbax's rename and the writing of the sums leaves a whole checkpoint without them.
        if not (path / CHECKSUMS).exists():
            return path.is_dir()
        try:
            expected = json.loads((path / CHECKSUMS).read_text())
        except ValueError:
            return False
        return _checksums(path) == expected

    def _set_aside(self, step: int) -> str:
        aside = self._directory.parent / "damaged" / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        shutil.move(self._directory / str(step), aside)
        return f"checkpoint {step} is damaged and was moved to {aside}"


def _checksums(path: Path) -> dict[str, int]:
    files = (f for f in sorted(path.rglob("*")) if f.is_file() and f.name != CHECKSUMS)
    return {str(f.relative_to(path)): zlib.crc32(f.read_bytes()) for f in files}
