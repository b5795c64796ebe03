"""How the configs of two runs differ: in their settings, and in their classes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from hsakd_jax.runs.config import Config, RunConfig

# Settings that may change when a run resumes: they do not change its result.
MAY_DIFFER = frozenset({"command", "data.dir", "training.remat", "logging.tracking"})

# Paths of other runs, by the part that they play: where the content of the other run is known, it decides instead.
RUNS = {"teacher": "teacher.workdir", "init": "training.init"}


def flatten(config: Config) -> dict[str, Any]:
    """All settings of a config by their path, such as 'training.lr' or 'objective.kl_aux.temperature'.

    Values are those of JSON, so that a config that was read equals the one that was written.
    """
    tree = msgspec.to_builtins(config, str_keys=True)
    if isinstance(config, RunConfig):
        terms = {
            name: {**{k: v for k, v in term.items() if k != "options"}, **term["options"]}
            for name, term in tree["objective"].pop("terms").items()
        }
        tree["objective"] |= terms
    return dict(_paths(json.loads(json.dumps(tree)), ""))


def _paths(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys of two flat configs whose values differ: key -> (ours, theirs), None where one has no such key."""
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    return {key: (ours.get(key), theirs.get(key)) for key in keys}


def conflicts(ours: Config, theirs: Config, movable: bool = False) -> dict[str, tuple[Any, Any]]:
    """The differing settings of two configs that can't be those of one run: key -> (ours, theirs).

    Args:
      ours: one config.
      theirs: the other.
      movable: whether the paths of other runs may differ too.
    """
    found = differences(flatten(ours), flatten(theirs))
    moved = {key for key in RUNS.values() if movable and None not in found.get(key, (None,))}
    return {key: values for key, values in found.items() if key not in MAY_DIFFER | moved}


def class_difference(config: Config, count: int, names: Sequence[str]) -> str | None:
    """How the classes of a run differ from others, as the end of a sentence; None where they are equal.

    Args:
      config: of the run.
      count: how many classes the others are.
      names: the others' names; empty where they are not known, since a converted checkpoint may not have them.
    """
    if config.network.num_classes != count:
        return f"has {config.network.num_classes} classes, not {count}"
    if config.classes and names and tuple(names) != config.classes:
        theirs, ours = next((a, b) for a, b in zip(config.classes, names, strict=True) if a != b)
        return f"has other classes: {theirs!r} where {ours!r} is expected"
    return None
