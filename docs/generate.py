"""Writes the parts of pages that repeat the code, such as the tables of keys and flags: `python docs/generate.py`.

A part is between the lines `<!-- begin NAME -->` and `<!-- end -->`. A test compares it with the code.
"""

import importlib
import inspect
import itertools
import re
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from absl.flags import EnumParser, FlagValues  # noqa: E402

from hsakd_jax.__main__ import COMMANDS  # noqa: E402
from hsakd_jax.data.builders import BUILDERS  # noqa: E402
from hsakd_jax.experiments import make_config, published  # noqa: E402
from hsakd_jax.experiments.recipes import RECIPES  # noqa: E402
from hsakd_jax.experiments.validate import TYPES  # noqa: E402
from hsakd_jax.runs import config as typed  # noqa: E402

PAGES = ("docs/config.md", "docs/commands.md", "docs/methods.md")
PART = re.compile(r"(<!-- begin (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
FILES = ("cifar100", "digits", "imagenet", "own", "stl10", "tiny_imagenet")
SECTIONS = ("teacher", "frozen", "head")  # with the keys of `student`
# Typed sections whose docstrings describe the keys. `ELSEWHERE` has the keys with another name there.
TYPED = (typed.RunConfig, typed.Network, typed.Data, typed.Training)
ELSEWHERE = {
    "eval_batch": (typed.Config, "eval_batch"),
    "eval_every": (typed.Evaluation, "every"),
    "log_every": (typed.Logging, "every"),
}
# Names of the code, and the names that they contain.
NAMES = {
    "a key of `data.builders.BUILDERS`": ", ".join(BUILDERS),
    "a key of `models.NETWORKS`": "one of [these](networks.md)",
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    lines = [list(head), *map(list, rows)]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], ["---"] * len(cells[0]), *cells[1:])) + "\n"


def shown(value: Any) -> str:
    """A value as it is set in a flag."""
    text = str(value) or "''"
    return f"`{text.replace(', ', ',')}`"


def comments() -> dict[str, str]:
    """The comment of each key in `make_config.py`."""
    source = inspect.getsource(make_config)
    return dict(re.findall(r'^ +"(\w+)": .*?,  # (.*)$', source, re.MULTILINE))


def described(section: type, key: str) -> str:
    """The meaning of a field of a section, from its docstring; '' where it has none."""
    text = " ".join((inspect.getdoc(section) or "").partition("Attributes:")[2].split("\n"))
    found = re.search(rf"(?:^|  ){key}: (.*?)(?=   *\w+: |$)", text)
    return found[1] if found else ""


def meaning(key: str) -> str:
    """The comment of a key of the config, or else the docstring of the typed field."""
    section, field = ELSEWHERE.get(key, (None, key))
    texts = [comments().get(key, ""), *(described(one, field) for one in ([section] if section else TYPED))]
    text = next(filter(None, texts))
    for old, new in NAMES.items():
        text = text.replace(old, new)
    return " ".join(re.sub(r"; None .*", "", text).rstrip(".").split())


def defaults() -> dict[str, Any]:
    """The config before a file of `configs/` sets its values."""
    training = {**make_config.TRAINING, "arch": None}
    data = make_config.DATA
    config = make_config.make_config("hsakd", data=data, teacher=training, student=training, frozen=training)
    return config.to_dict()


TOP = [key for key, kind in TYPES.items() if not isinstance(kind, dict) and key != "recipe"]


def keys() -> str:
    """All keys with their default and meaning, without those of `objective`."""
    base = defaults()
    taught = [key for key in TYPES["teacher"] if key not in TYPES["student"]]
    found = [(key, base.get(key), key) for key in TOP]
    for section, names in (("data", TYPES["data"]), ("student", TYPES["student"]), ("teacher", taught)):
        found += [(f"{section}.{key}", base[section].get(key), key) for key in names]
    rows = ((f"`{path}`", "by file" if value is None else shown(value), meaning(key)) for path, value, key in found)
    return table(("key", "default", "meaning"), rows)


def values() -> str:
    """The values of the keys that the files of `configs/` set."""
    base = defaults()
    configs = [runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]().to_dict() for name in FILES]
    found = {f"`{key}`": [(config[key], base.get(key)) for config in configs] for key in TOP}
    for section in ("data", "student", *SECTIONS):
        for key in TYPES[section]:
            # Of the training sections, `student` has the values that the others are compared with.
            usual = [config["student"] if section in SECTIONS else {} for config in configs]
            found[f"`{section}.{key}`"] = [
                (config[section][key], same.get(key, base[section].get(key)))
                for config, same in zip(configs, usual, strict=True)
            ]
    rows = ([key, *(shown(value) for value, _ in row)] for key, row in found.items() if any(a != b for a, b in row))
    return table(("key", *(f"`{name}`" for name in FILES)), rows)


def terms() -> str:
    """The terms of each recipe with their options; recipes with the same ones share a row."""
    rows: dict[str, list[str]] = {}
    for name, recipe in RECIPES.items():
        if re.search(r"_\d\d$", name):  # few-shot, with the terms of the recipe before it
            continue
        options = (f"{term}.{key}={value}" for term, found in recipe.terms.items() for key, value in found.items())
        rows.setdefault(" ".join(map(shown, options)), []).append(f"`{name}`")
    return table(("recipe", "`objective.RECIPE.`..."), ((" ".join(names), text) for text, names in rows.items()))


def settings() -> str:
    """The published settings; pairs of networks with the same ones share a row."""
    rows: dict[tuple[str, str, str, str], tuple[list[str], list[str]]] = {}
    for line in published.SETTINGS:
        values = " ".join(shown(f"{key}={value}") for key, value in line.values.items())
        place, _, file = line.source.partition(" ")
        place, file = (place, f"`{file}`") if "/" in place else (line.source, "")
        pairs, files = rows.setdefault((f"`{line.recipe}`", line.dataset, values, place), ([], []))
        pairs.append("all" if line.pair == published.ANY_PAIR else line.pair)
        files += [file] if file and file not in files else []
    order = list(RECIPES)
    found = sorted(rows.items(), key=lambda row: order.index(row[0][0].strip("`")))
    cells = ([recipe, data, ", ".join(pairs), values, f"{place} {', '.join(files)}".rstrip()]
             for (recipe, data, values, place), (pairs, files) in found)  # fmt: skip
    return table(("recipe", "dataset", "pairs", "`objective.RECIPE.`...", "source"), cells)


def help_of(command: str) -> str:
    """The `--help` of a command, and its flags."""
    module = importlib.import_module(f"hsakd_jax.{command}")
    flags = FlagValues()
    module.COMMAND.define_flags(flags)
    rows = []
    for flag in itertools.chain(*flags.flags_by_module_dict().values()):  # in the order of their definitions
        choices = f"; {' or '.join(flag.parser.enum_values)}" if isinstance(flag.parser, EnumParser) else ""
        default = "" if flag.default in (None, "", [], 0) and not flag.boolean else shown(flag.default)
        text = re.sub("^<.*?>: ", "", " ".join(flag.help.rstrip(".").split()))
        rows.append((f"`--{flag.name}`", default, text + choices))
    return f"```text\n{module.__doc__.strip()}\n```\n\n{table(('flag', 'default', 'meaning'), rows)}"


MAKERS = {"keys": keys, "values": values, "terms": terms, "settings": settings} | {
    f"help {name}": lambda name=name: help_of(name) for name in COMMANDS
}


def filled(page: str) -> str:
    """A page with its parts as the code has them now."""
    return PART.sub(lambda found: f"{found[1]}\n{MAKERS[found[2]]()}\n{found[3]}", page)


if __name__ == "__main__":
    for path in map(ROOT.joinpath, PAGES):
        path.write_text(filled(path.read_text()))
