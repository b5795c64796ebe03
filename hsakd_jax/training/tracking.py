"""Copies of a run's records for TensorBoard, Weights & Biases or trackio, besides metrics.jsonl; none by default.

A tracker gets every record so far when it is opened. So it also gets the records that a kill left unsent, and a
continued run is one curve. A trackio elsewhere has no query for its records, so it gets only the later ones. It lacks
those that a kill left unsent, and contains a step twice if the run trained it twice.
"""

import contextlib
import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.extras import install
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.metrics_log import Record

PROJECT = "hsakd_jax"
PATIENCE = 30.0  # seconds that a tracker has to end


class Run(NamedTuple):
    """The properties of a run that a tracker may use.

    Attributes:
      directory: its path.
      name: name of the directory.
      group: name of the folder around it; a pipeline's runs share one.
      identity: its own, wherever it is moved.
      config: of config.json.
      recorded: the last step on record; -1 for none.
    """

    directory: Path
    name: str
    group: str
    identity: str
    config: dict[str, Any]
    recorded: int


class Tracker(Protocol):
    """One run in one tool. An error of its methods is printed and ends the tracker, not the training."""

    def __init__(self, run: Run):
        """Begins the run there, or continues it; records logged before will be logged once more."""

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Adds values by name, such as 'train/loss'; twice for a step with an evaluation."""

    def close(self) -> None:
        """Ends the run there."""


class TensorBoard:
    """Event files in `tensorboard/` of the run directory, rewritten each time."""

    def __init__(self, run: Run):
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        folder = run.directory / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # From step 0 on, a TensorBoard that is open drops the content of the old files.
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=10)
        self._writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2)}\n```")

    def log(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, kept in `wandb/` of the run directory; offline without a login."""

    def __init__(self, run: Run):
        import wandb  # pyright: ignore[reportMissingImports]

        mode = os.environ.get("WANDB_MODE")
        mode = mode or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        if mode == "offline":  # such a run can't be continued, but holds all that the one before held
            for old in run.directory.glob(f"wandb/offline-run-*-{run.identity}"):
                shutil.rmtree(old)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            group=run.group,
            id=run.identity,
            resume=None if mode == "offline" else "allow",
            reinit="create_new",
            mode=mode,
            dir=str(run.directory),
            config=run.config,
            settings=wandb.Settings(
                console="off", silent=mode == "offline", init_timeout=PATIENCE, finish_timeout=PATIENCE / 2
            ),
        )

    def log(self, scalars: dict[str, float], step: int) -> None:
        if step >= self._run.starting_step:  # steps before are there, and can't be changed
            self._run.log(scalars, step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, on this machine unless $TRACKIO_SPACE_ID or $TRACKIO_SERVER_URL names another."""

    def __init__(self, run: Run):
        import trackio  # pyright: ignore[reportMissingImports]

        name, self._after = f"{run.name} {run.identity}", -1  # a run is found by its name alone
        if {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & os.environ.keys():
            self._after = run.recorded
        else:
            with contextlib.suppress(ValueError):  # there is no such project yet
                for old in trackio.Api().runs(PROJECT):
                    if old.name == name:
                        old.delete()
        self._run = trackio.init(
            project=PROJECT,
            name=name,
            group=run.group,
            config=run.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, scalars: dict[str, float], step: int) -> None:
        if step > self._after:
            self._run.log(scalars, step)

    def close(self) -> None:
        self._run.finish()


# Extra of pyproject.toml: (package, tracker).
TRACKERS: dict[str, tuple[str, Callable[[Run], Tracker]]] = {
    "tensorboard": ("tensorboardX", TensorBoard),
    "wandb": ("wandb", WandB),
    "trackio": ("trackio", Trackio),
}


def check(names: Sequence[str]) -> None:
    """Refuses trackers that can't be, and imports the others, since threads that import at once may fail at it.

    Raises:
      UserError: an unknown one, or its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"unknown tracker {name!r}: choose from {', '.join(TRACKERS)}")
        package = TRACKERS[name][0]
        try:
            found = import_module(package).__file__
        except Exception as error:  # of any kind, from other people's code
            raise UserError(f"tracking by {name} needs {package} ({error}): {install(name)}") from error
        if found is None:  # a folder of that name, such as wandb leaves where it runs
            raise UserError(f"tracking by {name} needs {package}: {install(name)}")


@contextlib.contextmanager
def follow(
    names: Sequence[str], directory: RunDirectory, say: Callable[[str], None]
) -> Iterator[Callable[[Record], None]]:
    """A function that passes a record to the trackers of a run; they get the records of metrics.jsonl first.

    Args:
      names: keys of `TRACKERS`.
      directory: of the run, acquired; a process that does not write there opens no tracker.
      say: prints a line; called once, when a tracker has failed.
    """
    if not (names and directory.writes):
        yield lambda record: None
        return
    path, records = directory.path.resolve(), directory.metrics.read()
    recorded = max((record.step for record in records), default=-1)
    run = Run(
        path,
        path.name,
        path.parent.name,
        directory.identity(),
        json.loads(msgspec.json.encode(directory.config())),
        recorded,
    )
    threads = [_Thread(name, run, say) for name in names]

    def log(record: Record) -> None:
        for thread in threads:
            thread.log(record)

    for record in records:
        log(record)
    try:
        yield log
    finally:
        for thread in threads:
            thread.close()


class _Thread:
    """A tracker that can't end, slow or stop the training, whatever it does."""

    def __init__(self, name: str, run: Run, say: Callable[[str], None]):
        self._name, self._run, self._say = name, run, say
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._said = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, record: Record) -> None:
        if not self._failed():
            self._records.put(record)

    def close(self) -> None:
        self._records.put(None)
        self._thread.join(PATIENCE)
        if not self._failed() and self._thread.is_alive():
            self._tell(f"has not ended after {PATIENCE:g} s, and may lack the last records")

    def _work(self) -> None:
        try:
            tracker = TRACKERS[self._name][1](self._run)
            while (record := self._records.get()) is not None:
                tracker.log(_scalars(record), record.step)
            tracker.close()
        except (Exception, SystemExit) as error:  # of any kind, from other people's code
            self._error = error

    def _failed(self) -> bool:
        if self._error is not None and not self._said:
            self._said = True
            reason = (str(self._error).strip() or type(self._error).__name__).splitlines()[0]
            self._tell(f"failed ({reason})")
        return self._said

    def _tell(self, what: str) -> None:
        self._say(f"warning: {self._run.directory}: tracking by {self._name} {what}; metrics.jsonl has them all")


def _scalars(record: Record) -> dict[str, float]:
    """A record's numbers under the name of their split: 'train/loss', 'test/top1'."""
    split = record.split or "train"
    numbers = {"epoch": record.epoch, **record.values, "score": record.score}
    return {f"{split}/{name}": float(value) for name, value in numbers.items() if value is not None}
