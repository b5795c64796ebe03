"""Exceptions that a person at the keyboard is meant to read."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that names the thing and the remedy.

    Raised by every room for what the user can mend (a wrong name, a missing file, a full disk); the
    commands print it without a traceback and exit with status 2.
    """


class Stopped(Exception):
    """A run that was asked to end has saved its state.

    Attributes:
      signal: the number of the signal that asked.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint for the message about an unknown name.

    Args:
      name: the unknown name.
      known: the names that exist.
      cutoff: the least similarity of a suggestion, 0 to 1 (see `difflib.get_close_matches`).

    Returns:
      "did you mean 'resnet20'?" with the most similar known name, or '' if none is similar.
    """
    similar = difflib.get_close_matches(name, list(known), 1, cutoff)
    return f"did you mean {similar[0]!r}?" if similar else ""
