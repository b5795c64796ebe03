"""How every command starts and ends: flags read, errors in one line, exit statuses."""

import signal
import sys
from collections.abc import Callable

from absl import flags
from absl import logging as absl_logging

from hsakd_jax.errors import Stopped, UserError


def command(main: Callable[[], None], usage: str, *required: str) -> None:
    """Reads the flags, runs `main` and exits.

    Args:
      main: the command.
      usage: what `--help` prints.
      *required: flags that must be given.
    """
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print(usage.strip())
        sys.exit(0)
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax and TFDS tell much that helps nobody here
    try:
        try:
            rest = flags.FLAGS(sys.argv)[1:]
        # ml_collections reports unknown keys, files and recipes each in its own way
        except (
            flags.Error,
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            OSError,
            ImportError,
            SyntaxError,
        ) as error:
            raise UserError(_one_line(error)) from error
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}: flags begin with --, see --help")
        for name in required:
            if flags.FLAGS[name].value is None:
                raise UserError(f"--{name} is missing: see --help")
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _one_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(text).split())
