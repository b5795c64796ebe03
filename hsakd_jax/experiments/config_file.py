"""A config file, and the flags `--config.KEY=VALUE` that override its keys."""

import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags.tuple_parser import TupleParser

from hsakd_jax.core.errors import UserError, did_you_mean

PARSERS = {
    bool: flags.BooleanParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    str: flags.ArgumentParser(),
    tuple: TupleParser(),
}


def load(name: str) -> ConfigDict:
    """The config of a file.

    Args:
      name: 'FILE' or 'FILE:recipe'. A file `configs/...` that is not in the working directory is the one that is
        installed with the package.

    Raises:
      UserError: there is no such file, or its code fails, as it does for an unknown recipe.
    """
    file, colon, recipe = name.partition(":")
    installed = Path(__file__).parents[1] / file
    path = installed if file.startswith("configs/") and not Path(file).exists() else Path(file)
    if not path.is_file():
        raise UserError(f"the config file {file} can't be loaded (no such file): name one of configs/")
    try:
        get_config = runpy.run_path(str(path))["get_config"]
        return get_config(recipe) if colon else get_config()
    except Exception as error:  # a config is code: what it raises is of any kind
        raise UserError(str(error)) from error


def define_overrides(values: flags.FlagValues, config: ConfigDict, argv: Sequence[str]) -> None:
    """Defines a flag for each key of a config that the words of a command line set; parsing the flag sets the key.

    Args:
      values: where the flags are defined.
      config: the config.
      argv: words such as '--config.student.lr=0.1'.

    Raises:
      UserError: an unknown key, or one whose value no flag can have.
    """
    paths = (re.match(r"--?(?:no)?config\.([^=]+)", word) for word in argv)
    for path in dict.fromkeys(match[1] for match in paths if match):
        section, key = _find(config, path)
        if type(section[key]) not in PARSERS:
            raise UserError(f"--config.{path} can't be set as a whole: set the keys in it")
        flags.DEFINE_flag(_Override(f"config.{path}", section, key), values)


class _Override(flags.Flag):
    """A flag that sets a key of a section, whose value has the type that it had."""

    def __init__(self, name: str, section: ConfigDict, key: str):
        kind = type(section[key])
        super().__init__(PARSERS[kind], None, name, None, "", boolean=kind is bool)
        self._section, self._key = section, key

    def parse(self, argument: Any) -> None:
        super().parse(argument)
        self._section[self._key] = self.value


def _find(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """The section of a config that contains the key 'SECTION.KEY', and the key."""
    *sections, last = path.split(".")
    found: Any = config
    section = config
    for name in (*sections, last):
        section, known = found, list(found) if isinstance(found, ConfigDict) else []
        if name not in known:
            hint = did_you_mean(name, known, 0.75) or "docs/config.md has them all"
            raise UserError(f"unknown config key {name!r}: {hint}")
        found = section[name]
    return section, last
