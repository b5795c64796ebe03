"""Exceptions whose message a command prints in one line, without a traceback."""


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
