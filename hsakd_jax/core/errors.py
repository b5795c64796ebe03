"""Exceptions whose message a command prints in one line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input that the user can fix, such as a wrong name, a missing file or a full disk.

    The message is one line that contains the cause and the remedy. A command prints it and exits with status 2.
    """


class Stopped(Exception):
    """A stop signal ended the run, after its state was saved. A command prints it and exits with status 128 + signal.

    Attributes:
      signal: the number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint for the message about an unknown name.

    Args:
      name: the unknown name.
      known: the names that exist.
      prefix: the section that contains the names, such as 'student.'.

    Returns:
      "did you mean 'resnet20'?" with the most similar known name, or '' if none is similar.
    """
    similar = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {prefix + similar[0]!r}?" if similar else ""


def unknown(kind: str, name: str, known: Iterable[str], prefix: str = "") -> str:
    """The message about an unknown name, with the most similar known name, or all of them where none is similar.

    Args:
      kind: the kind of name, such as 'network'.
      name: the unknown name.
      known: the names that exist.
      prefix: the section that contains the names, such as 'student.'.
    """
    known = list(known)
    hint = did_you_mean(name, known, prefix) or f"known: {', '.join(known)}"
    return f"unknown {kind} {prefix + name!r}: {hint}"
