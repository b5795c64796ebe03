"""A run directory: config.json, metrics.jsonl, checkpoints/ and results.json."""

import contextlib
import os
import re
import secrets
import shlex
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hsakd_jax.core.console import warn
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import (
    InvalidContent,
    expand,
    lock,
    read_json,
    read_regular,
    read_sealed,
    write_json,
    write_sealed,
    write_text,
)
from hsakd_jax.runs import manifest
from hsakd_jax.runs.compare import RUNS, conflicts, in_words
from hsakd_jax.runs.config import AnyConfig, Config, RunConfig
from hsakd_jax.runs.metrics_log import MetricsLog
from hsakd_jax.runs.results import Results
from hsakd_jax.runs.writing import write_or_explain

FORMAT = "hsakd_jax "  # how 'format' begins in a config.json of this package


class RunDirectory:
    """The directory of one run. It is one if its config.json is of this package; no other folder is written to.

    Args:
      path: the directory; it need not exist.
      write: False where another process of the run writes its files.

    Attributes:
      path: as above, expanded.
      writes: as `write`.
      checkpoints: the folder of the checkpoints.
      metrics: the log of the run, metrics.jsonl.

    Raises:
      UserError: `path` is the address of a remote place.
    """

    def __init__(self, path: str | Path, write: bool = True):
        self.writes = write
        self._lock: Any = None
        self.path = expand(path)
        self.checkpoints = self.path / "checkpoints"
        self._config = self.path / "config.json"
        self.metrics = MetricsLog(self.path / "metrics.jsonl", write)
        self._results = self.path / "results.json"

    def check(self, config: Config) -> None:
        """Refuses a directory that is not that of `config` and can't become it; writes nothing.

        A directory of another config that has no checkpoint, such as of a run that failed at its first steps, can.
        The runs that it depends on may have moved: their content decides, where it is known.

        Raises:
          UserError: it belongs to another config, or contains something else.
        """
        if self._config.exists():
            if type(self.config()) is not type(config):
                raise UserError(f"{self.path} contains another run: choose another directory")
            if (self.has_checkpoint() or self._results.exists()) and (differing := self._differing(config)):
                raise UserError(
                    f"{self.path} belongs to another config: {', '.join(differing)}; choose another directory"
                )
        elif self.path.exists() and (not self.path.is_dir() or _visible(self.path)):
            runs = [str(run.relative_to(self.path)) for run in runs_inside(self.path)]
            held = f"; it contains the runs {', '.join(runs)}" if runs else ""
            raise UserError(f"{self.path} exists and is not a run directory{held}: choose another directory")

    def _differing(self, config: Config) -> list[str]:
        """The settings in which `config` differs from the run that is there, in words."""
        found = conflicts(self.config(), config)
        saved = manifest.newest(self.checkpoints)
        then, now = saved.sources if saved else {}, self.sources(config, finished=True)
        for role in then.keys() & now.keys():
            found.pop(RUNS[role], None)
            if then[role] != now[role]:
                found[f"the network of its {role}"] = (then[role][:8], now[role][:8])
        return in_words(found, "there", "here")

    def acquire(self, config: Config) -> None:
        """Makes the directory that of `config`, and locks it for this process as long as this object lives.

        A finished run that can't be written stays as it is.

        Raises:
          UserError: as `check`; or another process trains there, or it can't be written.
        """
        self.check(config)
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = weakref.finalize(self, os.close, lock(self.path / ".lock"))
            self.check(config)  # another process may have come first
            for draft in self.path.glob(".*.draft"):
                draft.unlink(missing_ok=True)
            if self._config.exists() and self._differing(config):
                self.metrics.delete()
                (self.path / ".identity").unlink(missing_ok=True)
            write_json(self._config, config)
        except BlockingIOError as error:
            raise UserError(
                f"another process trains in {self.path}: wait for it, or choose another directory"
            ) from error
        except OSError as error:
            if self.results():
                return
            raise UserError(f"can't write to {self.path}: {error.strerror}; choose another directory") from error

    def config(self) -> AnyConfig:
        """The config of the run, or of the converted checkpoint.

        Raises:
          UserError: this is not a run directory, or its config.json is not valid, or not that of its checkpoint.
        """
        if not self._config.exists():
            inside = [str(run.relative_to(self.path)) for run in runs_inside(self.path)]
            hint = f"; it contains the runs {', '.join(inside)}: choose one" if inside else ": check the path"
            if (self.path.parent / "config.json").exists():
                hint = f": set its folder, {self.path.parent}"
            elif self.path.is_file():
                command = f"python -m hsakd_jax.convert {shlex.quote(str(self.path))} --output=RUN"
                hint = f": if it is a checkpoint, make a run of it, `{command}`, and set RUN instead"
            raise UserError(f"{self.path} is not a run directory (no config.json){hint}")
        if not self.is_ours():
            raise UserError(
                f"{self._config} is of another program, so that {self.path} is not a run directory: choose another one"
            )
        config = read_json(self._config, AnyConfig)
        saved = manifest.newest(self.checkpoints)
        if saved and saved.config and (changed := conflicts(saved.config, config, movable=True)):
            raise UserError(
                f"{self._config} was changed after checkpoint {saved.step} was written: "
                f"{', '.join(in_words(changed, 'then', 'now'))}; restore the file"
            )
        return config

    def is_ours(self) -> bool:
        """Whether config.json is there and has a tag of this package, in any version.

        Raises:
          UserError: it can't be read as JSON.
        """
        if not self._config.exists():
            return False
        found = read_json(self._config, object)
        return isinstance(found, dict) and str(found.get("format")).startswith(FORMAT)

    def identity(self) -> str:
        """Eight letters and digits that stay the run's own when it is killed, resumed or moved."""
        path = self.path / ".identity"
        found = read_regular(path).decode(errors="replace") if path.exists() else ""
        if not re.fullmatch("[0-9a-f]{8}", found):
            found = secrets.token_hex(4)
            if self.writes:
                write_or_explain(write_text, path, found)
        return found

    def sources(self, config: Config, finished: bool = False) -> dict[str, str]:
        """The content of the checkpoints that a run of `config` here depends on, see `manifest.Manifest`.

        Args:
          config: of the run.
          finished: whether runs that still train are left out, since their content changes.
        """
        used = checkpoints_of(config) if isinstance(config, RunConfig) else {}
        found: dict[str, str] = {}
        for role, (where, checkpoint) in used.items():
            run = RunDirectory(resolve_path(self.path, where))
            if run.has_checkpoint() and not (finished and not run.is_finished()):
                saved = manifest.read(run.checkpoints, manifest.select(run.checkpoints, checkpoint))
                found |= {role: saved.content} if saved else {}
        return found

    def check_sources(self, sources: Mapping[str, str]) -> None:
        """Refuses a teacher, a start or training images other than those that the run began with.

        Of other images for the selection of the best epoch, it only warns: the training does not depend on them.

        Args:
          sources: as in `manifest.Manifest`.

        Raises:
          UserError: they differ from those of the newest checkpoint.
        """
        saved = manifest.newest(self.checkpoints)
        for role, content in sources.items():
            if saved and saved.sources.get(role, content) != content:
                if role.startswith("selection"):
                    warn(
                        f"{self.path}: the images that select the best epoch have changed: scores before and after "
                        "this resume are of other images"
                    )
                    continue
                if role.startswith("data"):
                    raise UserError(
                        f"{self.path} began with other training images: restore the data, or choose another directory"
                    )
                raise UserError(
                    f"{self.path} began with another {role}, whose checkpoint had other content: set the path of that "
                    "run, or choose another directory"
                )

    def has_checkpoint(self) -> bool:
        """Whether a checkpoint was saved here, whole or damaged."""
        return bool(manifest.steps(self.checkpoints))

    def newest_step(self) -> int:
        """The step of the newest checkpoint, whole or damaged; 0 without any."""
        return max(manifest.steps(self.checkpoints), default=0)

    def is_finished(self) -> bool:
        """Whether the run has ended; a converted checkpoint has."""
        return self.results() is not None or (self._config.exists() and not isinstance(self.config(), RunConfig))

    def results(self) -> Results | None:
        """The results of the finished run, None before its end and of a converted checkpoint.

        Those that are damaged count as absent, with a warning: the run can write them again from its last checkpoint.

        Raises:
          UserError: results.json can't be read.
        """
        try:
            return read_sealed(self._results, Results) if self._results.exists() else None
        except InvalidContent as error:
            if self.writes:
                warn(f"{error}, or run the command of the run again, which writes it from the last checkpoint")
            return None

    def finish(self, results: Results) -> None:
        """Writes results.json."""
        if self.writes:
            write_or_explain(write_sealed, self._results, results)


def runs_inside(folder: Path) -> list[Path]:
    """The run directories in a folder and in its folders of seeds, not deeper, in the order of their paths.

    Those of other programs are left out, with a warning.
    """
    found = [*folder.glob("*/config.json"), *folder.glob(f"{seed_folder(Path(), '*')}/*/config.json")]
    return [path.parent for path in sorted(found) if is_run(path.parent)]


def seed_folder(root: Path, seed: int | str) -> Path:
    """The folder of the runs of one of several seeds."""
    return root / f"seed_{seed}"


def is_seed_folder(name: str) -> bool:
    """Whether a folder of this name is one of `seed_folder`."""
    return re.fullmatch(r"seed_\d+", name) is not None


def is_run(folder: Path) -> bool:
    """Whether a folder that contains a config.json is a run directory; if not, a warning that it is left out."""
    with contextlib.suppress(InvalidContent):
        if RunDirectory(folder).is_ours():
            return True
    warn(f"{folder} is left out: its config.json is damaged or of another program")
    return False


def resolve_path(path: Path, other: str) -> Path:
    """The directory of another run; a relative path starts at the run's own directory."""
    return Path(os.path.normpath(path / other))


def _visible(path: Path) -> list[Path]:
    """The entries of a folder, without the drafts of a process that was killed."""
    return [p for p in path.iterdir() if not p.name.startswith(".")]


def checkpoints_of(config: RunConfig) -> dict[str, tuple[str, str]]:
    """The checkpoints that a run depends on, by role: the path of their run and which one, 'last' or 'best'."""
    teacher, init = config.teacher, config.training.init
    found = {"teacher": (teacher.workdir, str(teacher.checkpoint))} if teacher else {}
    return found | ({"init": (init, "last")} if init else {})
