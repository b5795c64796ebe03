"""A run directory: config.json, metrics.jsonl, checkpoints/ and results.json."""

import os
import secrets
import weakref
from pathlib import Path
from typing import Any

import msgspec

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import expand, lock, read_json, write_json, write_text
from hsakd_jax.runs.compare import MAY_DIFFER, differences, flatten
from hsakd_jax.runs.config import AnyConfig, Config, RunConfig
from hsakd_jax.runs.results import Record, Results

MOST_SHOWN = 8  # differing settings that an error names


class RunDirectory:
    """The directory of one run.

    Args:
      path: the directory; it need not exist.
      write: False where another process of the run writes its files.
    """

    def __init__(self, path: str | Path, write: bool = True):
        self.writes = write
        self._lock: Any = None
        self.path = expand(path)
        self.checkpoints = self.path / "checkpoints"
        self._config = self.path / "config.json"
        self._metrics = self.path / "metrics.jsonl"
        self._results = self.path / "results.json"

    def check(self, config: Config) -> None:
        """Refuses a directory that is not that of `config` and can't become it; writes nothing.

        A directory of another config that has no checkpoint, such as of a run that failed at its first steps, can.

        Raises:
          UserError: it belongs to another config, or contains something else.
        """
        if self._config.exists():
            if type(self.config()) is not type(config):
                raise UserError(f"{self.path} contains another run: choose another directory")
            if (differing := self._differing(config)) and (self.has_checkpoint() or self.is_finished()):
                raise UserError(
                    f"{self.path} belongs to another config: {', '.join(differing)}; choose another directory"
                )
        elif self.path.exists() and (not self.path.is_dir() or _visible(self.path)):
            runs = sorted(p.parent.name for p in self.path.glob("*/config.json"))
            held = f"; it contains the runs {', '.join(runs)}" if runs else ""
            raise UserError(f"{self.path} exists and is not a run directory{held}: choose another directory")

    def _differing(self, config: Config) -> list[str]:
        """The settings in which `config` differs from the run that is there, in words."""
        found = differences(flatten(self.config()), flatten(config))
        keys = [key for key in found if key not in MAY_DIFFER]
        words = [f"{key} ({found[key][0]} there, {found[key][1]} asked for)" for key in keys[:MOST_SHOWN]]
        return [*words, f"{len(keys) - MOST_SHOWN} more"] if len(keys) > MOST_SHOWN else words

    def acquire(self, config: Config) -> None:
        """Makes the directory that of `config`, and locks it for this process as long as this object lives.

        Raises:
          UserError: as `check`; or another process trains there, or it can't be written.
        """
        self.check(config)
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for draft in self.path.glob(".*.draft"):
                draft.unlink(missing_ok=True)
            if self._lock is None:
                self._lock = weakref.finalize(self, os.close, lock(self.path / ".lock"))
            if self._config.exists() and self._differing(config):
                for left in (self._metrics, self.path / ".identity"):
                    left.unlink(missing_ok=True)
            write_json(self._config, config)
        except BlockingIOError as error:
            raise UserError(
                f"another process trains in {self.path}: wait for it, or choose another directory"
            ) from error
        except OSError as error:
            raise UserError(f"can't write to {self.path}: {error.strerror}; choose another directory") from error

    def config(self) -> AnyConfig:
        """The config of the run, or of the converted checkpoint.

        Raises:
          UserError: this is not a run directory, or its config.json is not valid.
        """
        if not self._config.exists():
            inside = sorted(p.parent.name for p in self.path.glob("*/config.json"))
            hint = f"; it contains the runs {', '.join(inside)}: choose one" if inside else ": check the path"
            raise UserError(f"{self.path} is not a run directory (no config.json){hint}")
        return read_json(self._config, AnyConfig)

    def identity(self) -> str:
        """Eight letters and digits that stay the run's own when it is killed, resumed or moved."""
        path = self.path / ".identity"
        if not path.exists():
            self._try(write_text, path, secrets.token_hex(4))
        return path.read_text()

    def has_checkpoint(self) -> bool:
        """Whether a checkpoint was saved here, whole or damaged."""
        return any(path.name.isdigit() for path in self.checkpoints.glob("*"))

    def is_finished(self) -> bool:
        """Whether the run has ended; a converted checkpoint has."""
        return self._results.exists() or (self._config.exists() and not isinstance(self.config(), RunConfig))

    def results(self) -> Results | None:
        """The results of the finished run, None before its end and of a converted checkpoint.

        Raises:
          UserError: results.json is not valid.
        """
        return read_json(self._results, Results) if self._results.exists() else None

    def finish(self, results: Results) -> None:
        """Writes results.json."""
        self._try(write_json, self._results, results)

    def record(self, entry: Record) -> None:
        """Appends a line to metrics.jsonl."""

        def append(path: Path, line: str) -> None:
            with path.open("a") as file:
                file.write(line)

        self._try(append, self._metrics, entry.to_json() + "\n")

    def records(self) -> list[Record]:
        """The lines of metrics.jsonl; one that a kill cut off is left out."""
        entries: list[Record] = []
        for line in self._metrics.read_text().splitlines() if self._metrics.exists() else ():
            try:
                entries.append(Record.from_json(line))
            except msgspec.MsgspecError:
                break
        return entries

    def best(self) -> Record:
        """The evaluation with the greatest score, the latest of equal ones, as Orbax keeps them.

        Raises:
          UserError: there was none yet.
        """
        # A checkpoint that was damaged and set aside no longer counts.
        scored = [
            (entry.score, entry.step, entry)
            for entry in self.records()
            if entry.score is not None and (self.checkpoints / str(entry.step)).is_dir()
        ]
        if not scored:
            raise UserError(f"{self.path} has no best checkpoint (no evaluation is on record): use the last")
        return max(scored, key=lambda found: found[:2])[-1]

    def rewind(self, step: int) -> None:
        """Drops the records after `step`, which a resumed run writes again."""
        lines = (entry.to_json() + "\n" for entry in self.records() if entry.step <= step)
        self._try(write_text, self._metrics, "".join(lines))

    def _try(self, write: Any, path: Path, content: Any) -> None:
        try:
            if self.writes:
                write(path, content)
        except OSError as error:
            raise UserError(
                f"can't write {path}: {error.strerror}; free some space, then run the same command to resume"
            ) from error


def _visible(path: Path) -> list[Path]:
    """The entries of a folder, without the drafts of a process that was killed."""
    return [p for p in path.iterdir() if not p.name.startswith(".")]


def resolve_path(path: Path, other: str) -> Path:
    """The directory of another run; a relative path starts at the run's own directory."""
    return Path(os.path.normpath(path / other))
