"""How every command starts and ends: flags parsed, errors in one line, exit statuses."""

import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags
from absl import logging as absl_logging

from hsakd_jax.core import failures, runtime
from hsakd_jax.core.console import note, one_line, show
from hsakd_jax.core.errors import Stopped, UserError

HELP = {"--help", "-h", "-help"}
# How the parsers of numbers and tuples refuse a word, and the remedy.
REMEDIES = {
    "invalid literal for int()": "set a whole number",
    "could not convert string to float": "set a number",
    "Error while parsing string": "set values in brackets, such as (1, 2)",
}


@dataclass(frozen=True)
class Command:
    """A command, `python -m hsakd_jax.NAME`.

    Attributes:
      main: the work. It gets the flags, as attributes, and, where `words` is set, the list of words without a flag.
      usage: the text of `--help`.
      define_flags: defines the command's flags in the `FlagValues` that it gets. A flag `config` is a config file.
      required: names of the flags that must be set.
      words: the placeholder of the words without a flag, 'IMAGE...' for one or more, '[FILE]' for at most one.
      takes_argv: whether `main` also gets the words of the command line, to record them.
      compiles: whether it compiles large programs, for which its own process has `runtime.configure_compilation`.
    """

    main: Callable[..., None]
    usage: str | None
    define_flags: Callable[[flags.FlagValues], None]
    required: tuple[str, ...] = ()
    words: str = ""
    takes_argv: bool = False
    compiles: bool = False


def start(command: Command) -> None:
    """Runs a command as its own process: sets up the process, runs the command and exits with its status."""
    if not HELP & set(sys.argv[1:]):
        set_up_process()
    try:
        status = run(command, sys.argv[1:], own_process=True)
    except BrokenPipeError:  # the reader has seen enough, such as `| head`
        os._exit(128 + signal.SIGPIPE)
    if status == 2:
        os._exit(2)  # threads of TensorStore would report a failed write a second time, below the error
    sys.exit(status)


def run(command: Command, argv: Sequence[str], *, own_process: bool = False) -> int:
    """Runs a command in this process, whose signals, memory and exit it leaves alone.

    Args:
      command: the command.
      argv: the words after its name.
      own_process: whether the process does nothing else, and its allocator may be changed.

    Returns:
      The exit status: 0 done, 2 bad input or a failure of the machine, 128 plus the number of a signal that
      stopped a run. The last two print one line to stderr.

    Raises:
      BrokenPipeError: the reader of the results has seen enough.
    """
    if HELP & set(argv):
        show((command.usage or "").strip())
        return 0
    status = 0
    try:
        values, words = parse(command, argv)
        if own_process and command.compiles:
            runtime.configure_compilation()  # not before: it imports JAX, and a mistyped flag is refused at once
        command.main(values, *([words] if command.words else []), *([argv] if command.takes_argv else []))
        sys.stdout.flush()
    except Stopped as stop:
        note(str(stop))
        status = 128 + stop.signal
    except BrokenPipeError:
        raise
    except Exception as error:  # a programming error keeps its traceback
        line = failures.explain(error)
        if line is None:
            raise
        note(f"error: {one_line(line)}")
        status = 2
    return status


def parse(command: Command, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags of a command, and the words without a flag.

    Args:
      command: the command.
      argv: the words after its name.

    Raises:
      UserError: an unknown flag or config key, a wrong value, a missing or an unexpected word.
    """
    # absl's flags have underscores only; people type dashes.
    argv = [re.sub(r"^--[\w-]+", lambda flag: f"--{flag[0][2:].replace('-', '_')}", word) for word in argv]
    values = flags.FlagValues()
    command.define_flags(values)
    try:
        config = _load_config(values, argv) if "config" in values else None
        words = values(["", *argv])[1:]
    except (flags.Error, ValueError) as error:
        raise UserError(_explain(error)) from error
    if config is not None:
        values["config"].value = config
    most = len(words) if command.words.endswith("...") else bool(command.words)
    if len(words) > most:
        raise UserError(f"unexpected argument {words[most]!r}: flags begin with --, see --help")
    if command.words and not words and not command.words.startswith("["):
        raise UserError(f"{command.words.removesuffix('...')} is missing: see --help")
    for name in command.required:
        if values[name].value in (None, ""):
            raise UserError(f"--{name} is missing: see --help")
    return values, words


def _load_config(values: flags.FlagValues, argv: list[str]) -> Any:
    """The config of `--config`, None without; a flag is defined for each of its keys that the command line sets."""
    from hsakd_jax.experiments import config_file

    values(["", *argv], known_only=True)  # finds --config among the words
    if not values["config"].value:
        return None
    config = config_file.load(values["config"].value)
    config_file.define_overrides(values, config, argv)
    return config


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split()).removeprefix("flag ")
    for reason, remedy in REMEDIES.items():
        setting, found, _ = text.partition(f": {reason}")
        if found:
            return f"{setting}: {remedy}"
    return text


def set_up_process() -> None:
    """Sets streams, runtime, logging and the output of unhandled errors for a process that runs one command."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the command was started with a closed output
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that lack the letters of a name
    runtime.configure_runtime(restart=True)
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax and TFDS log many lines that do not help a user
    sys.excepthook, sys.unraisablehook = _without_echoes, _without_unraisable_echoes
    # A full disk leaves the cache of compiled programs incomplete, which costs only time.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


def _without_echoes(kind, value, trace) -> None:
    """TensorStore's threads report a failed write a second time, when the loop they belong to is closed."""
    if not _is_echo(kind, value):
        sys.__excepthook__(kind, value, trace)


def _without_unraisable_echoes(unraisable) -> None:
    """The same where a thread can't raise an error to a caller."""
    if not _is_echo(unraisable.exc_type, unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _is_echo(kind, value) -> bool:
    return kind is RuntimeError and "Event loop is closed" in str(value)
