"""How every command starts and ends: flags read, errors in one line, exit statuses."""

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from absl import flags
from absl import logging as absl_logging

from hsakd_jax.core import runtime
from hsakd_jax.core.errors import Stopped, UserError


def command(main: Callable[..., None], usage: str | None, *required: str, words: str = "") -> None:
    """Reads the flags, runs `main` and exits.

    Args:
      main: the command.
      usage: what `--help` prints.
      *required: flags that must be given.
      words: what is given without a flag, such as 'CHECKPOINT', or 'IMAGE...' for one or more; `main` gets the list.
    """
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print((usage or "").strip())
        sys.exit(0)
    runtime.configure_runtime(restart=True)
    # Python's exception for Ctrl-C would be lost in a callback of JAX's, or crash its threads. A run that has a state
    # to save first uses `preemption.catch_stop_signals`.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax and TFDS tell much that helps nobody here
    sys.excepthook = _without_echoes
    # What a full disk does to the cache of compiled programs costs time, nothing else.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    try:
        given = _read_flags(required, words)
        main(*([given] if words else []))
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)  # threads of TensorStore would report a failed write a second time, below the error
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.signal)
    except BrokenPipeError:  # the reader has seen enough, such as `| head`
        os._exit(128 + signal.SIGPIPE)


def _read_flags(required: tuple[str, ...], words: str) -> list[str]:
    # absl's flags have underscores only; people type dashes.
    argv = [re.sub(r"^--[\w-]+", lambda flag: f"--{flag[0][2:].replace('-', '_')}", word) for word in sys.argv]
    # Of a key that is given twice the last one counts; of lists the flags' library would make one.
    keys = [word.partition("=")[0] if word.startswith("--config.") and "=" in word else word for word in argv]
    argv = [word for i, word in enumerate(argv) if word == keys[i] or keys[i] not in keys[i + 1 :]]
    try:
        rest = flags.FLAGS([re.sub(r"^(--config=)?(configs/\w+\.py)", _find_config, word) for word in argv])[1:]
        missing = [name for name in required if flags.FLAGS[name].value in (None, "")]
        for name in required:  # a config that failed to load says so when it is first touched
            getattr(flags.FLAGS[name].value, "recipe", None)
    except Exception as error:  # a config is code: what it raises, for an unknown key or recipe, is of any kind
        raise UserError(_explain(error)) from error
    most = len(rest) if words.endswith("...") else bool(words)
    if len(rest) > most:
        raise UserError(f"unexpected argument {rest[most]!r}: flags begin with --, see --help")
    if words and not rest:
        raise UserError(f"{words.removesuffix('...')} is missing: see --help")
    if missing:
        raise UserError(f"--{missing[0]} is missing: see --help")
    return rest


def _find_config(word: re.Match[str]) -> str:
    """A file of configs/ that is not in the working directory is the one that is installed with the package."""
    installed = Path(__file__).parent / word[2]
    return f"{word[1] or ''}{installed}" if installed.exists() and not Path(word[2]).exists() else word[0]


def _explain(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:  # ml_collections has the key quoted, and a suggestion behind it, in one string
        key, *near = re.findall(r"^\W*(\w+)|Did you mean \W*(\w+)", str(cause.args[0]).replace("\\n", " "))
        hint = f"did you mean {near[0][1]!r}?" if near else "docs/config.md has them all"
        return f"unknown config key {key[0]!r}: {hint}"
    text = " ".join(str(error).split())
    if wrong := re.fullmatch(r"flag --(\S+?)=(.*): (invalid literal for|could not convert string to).*", text):
        return f"--{wrong[1]}={wrong[2]}: give a {'whole ' if wrong[3].startswith('invalid') else ''}number"
    if attempt := re.search(r"Failed loading config file.*?Attempted \[[^]]*\]: (\S+) (.*)", text):
        return f"the config file {attempt[1]} can't be loaded ({attempt[2]}): name one of configs/"
    return text.rsplit("Error: ", 1)[1] if "Traceback" in text else text


def _without_echoes(kind, value, trace) -> None:
    """TensorStore's threads report a failed write a second time, when the loop they belong to is closed."""
    if not (kind is RuntimeError and "Event loop is closed" in str(value)):
        sys.__excepthook__(kind, value, trace)
