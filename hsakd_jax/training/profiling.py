"""A trace of some steps, which XProf and Perfetto open."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from hsakd_jax.core.console import Console
from hsakd_jax.runs.directory import RunDirectory

FOLDER = "profile"


class Trace:
    """A trace of the steps from `first` up to `last`, in the folder `profile` of a run; of no steps where it is None.

    Args:
      steps: first step, and the step after the last one.
      directory: of the run.
      console: prints that the trace is written, or that these steps were not made.
    """

    def __init__(self, steps: tuple[int, int] | None, directory: RunDirectory, console: Console):
        self._first, self._last = steps or (-1, -1)
        self._path, self._console = directory.path / FOLDER, console
        self._on, self._written = False, steps is None or self._path.exists()
        self._start: int | None = None  # the first step of this command
        self._done = 0

    def limit(self, done: int, until: int) -> int:
        """The step to run up to from `done`, at most `until`, so that the trace begins and ends at its steps."""
        return min([until, *(step for step in (self._first, self._last) if step > done)])

    def begin(self, done: int, state: Any) -> None:
        """Begins the trace, where `done` is its first step."""
        self._start = done if self._start is None else self._start
        if done == self._first and not self._on:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._path), create_perfetto_trace=True)
            self._on = True

    def end(self, done: int, state: Any) -> None:
        """Ends the trace, where `done` is the step after its last."""
        self._done = done
        if done == self._last and self._on:
            jax.block_until_ready(state)
            self._stop(self._last)

    def close(self) -> None:
        """Ends a trace whose last step was not reached."""
        if self._on:
            self._stop(self._done)

    def warn_if_missing(self) -> None:
        """Warns of a trace whose first step was not reached."""
        if self._start is not None and not self._written:
            self._console.line(
                f"warning: {self._path}: no trace, since this command made the steps {self._start} to {self._done - 1} "
                f"and profile is ({self._first}, {self._last})"
            )

    def _stop(self, end: int) -> None:
        self._on, self._written = False, True
        jax.profiler.stop_trace()
        self._console.line(f"{self._path}: trace of the steps {self._first} to {end - 1} (docs/profile.md)")


@contextlib.contextmanager
def follow(steps: tuple[int, int] | None, directory: RunDirectory, console: Console) -> Iterator[Trace]:
    """A `Trace` that ends with the block."""
    trace = Trace(steps, directory, console)
    try:
        yield trace
    finally:
        trace.close()
    trace.warn_if_missing()  # not where the run was stopped
