"""Exceptions that a person at the keyboard is meant to read."""


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
