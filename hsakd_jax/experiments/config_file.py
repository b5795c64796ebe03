"""A config file, and the flags `--config.KEY=VALUE` that override its keys."""

import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags.tuple_parser import TupleParser

from hsakd_jax.core.errors import UserError, unknown
from hsakd_jax.core.files import expand

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
      UserError: there is no such file, its code fails, as it does for an unknown recipe, or it makes no config.
    """
    file, colon, recipe = name.partition(":")
    installed = Path(__file__).parents[1] / file
    path = installed if file.startswith("configs/") and not expand(file).exists() else expand(file)
    if not path.is_file():
        reason = "it is a folder" if path.is_dir() else "no such file"
        raise UserError(f"the config file {file} can't be loaded ({reason}): set one, such as configs/cifar100.py")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config and (get_config(recipe) if colon else get_config())
    except ValueError as error:  # such as an unknown recipe
        raise UserError(str(error)) from error
    except (Exception, SystemExit) as error:  # a config is code, which may raise an error of any kind
        raise UserError(f"the config file {file} fails ({type(error).__name__}: {error}): fix it") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file} is no config file: define get_config(recipe), which returns make_config(...)")
    return config


def define_overrides(values: flags.FlagValues, config: ConfigDict, argv: Sequence[str]) -> None:
    """Defines a flag for each key of a config that the words of a command line set; parsing the flag sets the key.

    Args:
      values: where the flags are defined.
      config: the config.
      argv: words such as '--config.student.lr=0.1'.

    Raises:
      UserError: an unknown key, or one whose value no flag can have.
    """
    for path in overridden(argv):
        section, key = _find(config, path)
        if path == "recipe":
            raise UserError("--config.recipe can't be set: put the recipe behind the file, --config=FILE:RECIPE")
        if type(section[key]) not in PARSERS:
            raise UserError(f"--config.{path} can't be set as a whole: set the keys in it")
        flags.DEFINE_flag(_Override(f"config.{path}", section, key), values)


def overridden(argv: Sequence[str]) -> list[str]:
    """The paths of the keys that words of a command line set, such as 'student.lr'."""
    paths = (re.match(r"--?(?:no)?config\.([^=]+)", word) for word in argv)
    return list(dict.fromkeys(match[1] for match in paths if match))


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
    for depth, name in enumerate((*sections, last)):
        above = ".".join(sections[:depth])
        if not isinstance(found, ConfigDict):
            raise UserError(f"unknown config key {path!r}: {above} is a value, not a section; see docs/config.md")
        if name not in found:
            raise UserError(unknown("config key", name, found, above and f"{above}."))
        section, found = found, found[name]
    return section, last
