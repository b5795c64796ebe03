"""A run directory describes itself: config.json, metrics.jsonl, checkpoints/, results.json."""

import fcntl
import json
import os
import secrets
import weakref
from pathlib import Path
from typing import Any

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import read_json, write_json, write_text

# Where data lies, how much memory is spared and who looks on say nothing about the run: a continued one may have them
# otherwise.
MAY_DIFFER = {"data.dir", "train.remat", "tracking"}


class RunDirectory:
    """The directory of one run.

    Args:
      path: the directory; it need not exist.
      write: False where another process of the run writes what is written once.
    """

    def __init__(self, path: str | Path, write: bool = True):
        self.writes = write
        self._lock: Any = None
        self.path = Path(path).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self._metrics = self.path / "metrics.jsonl"

    def check(self, config: dict[str, Any]) -> None:
        """Refuses a directory that is not that of `config` and can't become it; writes nothing.

        One of another config that has no checkpoint, such as of a run that failed at its first steps, can.

        Raises:
          UserError: it belongs to another config, or holds something else.
        """
        if (self.path / "config.json").exists():
            if (differing := self._differing(config)) and (self.has_checkpoint() or self.results()):
                raise UserError(
                    f"{self.path} belongs to another config: {', '.join(differing)}; choose another directory"
                )
        elif self.path.exists() and (not self.path.is_dir() or _visible(self.path)):
            runs = sorted(p.parent.name for p in self.path.glob("*/config.json"))
            held = f"; it holds the runs {', '.join(runs)}" if runs else ""
            raise UserError(f"{self.path} exists and is not a run directory{held}: choose another directory")

    def _differing(self, config: dict[str, Any]) -> list[str]:
        """What `config` has other than the run that is there, in words."""
        config = json.loads(json.dumps(config))  # tuples as lists, as they will be read
        old, new = flat(self.config()), flat(config)
        keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and k not in MAY_DIFFER)
        return [f"{k} ({old.get(k)} there, {new.get(k)} asked for)" for k in keys]

    def claim(self, config: dict[str, Any]) -> None:
        """Makes the directory that of `config`, and of this process as long as this object lives.

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
                lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
                self._lock = weakref.finalize(self, os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which ends with the process, killed or not
            if (self.path / "config.json").exists() and self._differing(config):
                for left in (self._metrics, self.path / ".identity"):
                    left.unlink(missing_ok=True)
            write_json(self.path / "config.json", config)
        except BlockingIOError as error:
            raise UserError(
                f"another process trains in {self.path}: wait for it, or choose another directory"
            ) from error
        except OSError as error:
            raise UserError(f"can't write to {self.path}: {error.strerror}; choose another directory") from error

    def config(self) -> dict[str, Any]:
        """The resolved config.

        Raises:
          UserError: this is not a run directory.
        """
        if not (self.path / "config.json").exists():
            inside = sorted(p.parent.name for p in self.path.glob("*/config.json"))
            hint = f"; it holds the runs {', '.join(inside)}: name one" if inside else ": check the path"
            raise UserError(f"{self.path} is not a run directory (no config.json){hint}")
        return read_json(self.path / "config.json")

    def identity(self) -> str:
        """Eight letters and digits that stay the run's own when it is killed, continued or moved."""
        path = self.path / ".identity"
        if not path.exists():
            self._try(write_text, path, secrets.token_hex(4))
        return path.read_text()

    def has_checkpoint(self) -> bool:
        """Whether a checkpoint was saved here, sound or not."""
        return any(path.name.isdigit() for path in self.checkpoints.glob("*"))

    def results(self) -> dict[str, Any] | None:
        """What the finished run reached, or None."""
        path = self.path / "results.json"
        return read_json(path) if path.exists() else None

    def finish(self, results: dict[str, Any]) -> None:
        """Writes results.json."""
        self._try(write_json, self.path / "results.json", results)

    def record(self, entry: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""

        def append(path, line):
            with path.open("a") as file:
                file.write(line)

        self._try(append, self._metrics, json.dumps(entry) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that was cut off by a kill is left out."""
        entries = []
        for line in self._metrics.read_text().splitlines() if self._metrics.exists() else ():
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
        return entries

    def best(self) -> dict[str, Any]:
        """The evaluation with the greatest score, the latest of equal ones, as Orbax keeps them.

        Raises:
          UserError: there was none yet.
        """
        # One that was damaged and set aside is no longer there.
        evaluations = [e for e in self.records() if "score" in e and (self.checkpoints / str(e["step"])).is_dir()]
        if not evaluations:
            raise UserError(f"{self.path} has no best checkpoint (no evaluation is on record): take the last")
        return max(evaluations, key=lambda e: (e["score"], e["step"]))

    def rewind(self, step: int) -> None:
        """Drops the records after `step`, which a continued run will write again."""
        lines = (json.dumps(e) + "\n" for e in self.records() if e["step"] <= step)
        self._try(write_text, self._metrics, "".join(lines))

    def _try(self, write, path, content) -> None:
        try:
            if self.writes:
                write(path, content)
        except OSError as error:
            raise UserError(
                f"can't write {path}: {error.strerror}; free some space, then run the same command to continue"
            ) from error


def _visible(path: Path) -> list[Path]:
    """What lies in a folder, without the drafts of a process that was killed."""
    return [p for p in path.iterdir() if not p.name.startswith(".")]


def beside(path: Path, other: str) -> Path:
    """Where another run lies, told from the run's own directory if its path is relative."""
    return Path(os.path.normpath(path / other))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
