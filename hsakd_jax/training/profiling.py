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
      console: prints that the trace is written, or that these steps were not made.
    """

    def __init__(self, steps: tuple[int, int] | None, directory: RunDirectory, console: Console):
        self._first, self._last = steps or (-1, -1)
        self._path, self._console = directory.path / FOLDER, console
        self._on, self._written = False, steps is None
        self._made: tuple[int, int] | None = None  # first step of this command, and the one to come

    def limit(self, done: int, until: int) -> int:
        """The step to run up to from `done`, at most `until`, so that the trace begins and ends at its steps."""
        return min([until, *(step for step in (self._first, self._last) if step > done)])

    def update(self, done: int, state: Any) -> None:
        """Begins or ends the trace, where `done` is its first or last step."""
        self._made = self._made[0] if self._made else done, done
        if done == self._first and not self._on:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._path), create_perfetto_trace=True)
            self._on = True
        elif done == self._last and self._on:
            jax.block_until_ready(state)
            self._stop(self._last)

    def close(self) -> None:
        """Ends a trace whose last step was not reached, and warns of one whose first step was not."""
        if self._on:
            self._stop(self._made[1] if self._made else self._last)
        elif self._made and not self._written:
            first, end = self._made
            made = f"the steps {first} to {end - 1}" if end > first else "no step"
            self._console.line(
                f"warning: {self._path}: no trace, since this command made {made} and profile is "
                f"({self._first}, {self._last}): set --config.profile within the steps to make"
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
