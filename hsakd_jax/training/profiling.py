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
      steps: first and last step.
      directory: of the run.
      console: prints that the trace is written.
    """

    def __init__(self, steps: tuple[int, int] | None, directory: RunDirectory, console: Console):
        self._first, self._last = steps or (-1, -1)
        self._path, self._console = directory.path / FOLDER, console
        self._on = False

    def limit(self, done: int, until: int) -> int:
        """The step to run up to from `done`, at most `until`, so that the trace begins and ends at its steps."""
        return min([until, *(step for step in (self._first, self._last) if step > done)])

    def update(self, done: int, state: Any) -> None:
        """Begins or ends the trace, where `done` is its first or last step."""
        if done == self._first and not self._on:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._path), create_perfetto_trace=True)
            self._on = True
        elif done == self._last and self._on:
            jax.block_until_ready(state)
            self.close()
            self._console.line(f"{self._path}: trace of the steps {self._first} to {self._last} (docs/profile.md)")

    def close(self) -> None:
        """Ends a trace whose last step was not reached."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()


@contextlib.contextmanager
def follow(steps: tuple[int, int] | None, directory: RunDirectory, console: Console) -> Iterator[Trace]:
    """A `Trace` that ends with the block."""
    trace = Trace(steps, directory, console)
    try:
        yield trace
    finally:
        trace.close()
