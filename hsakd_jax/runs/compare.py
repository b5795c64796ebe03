"""Differences between the configs of two runs: their settings and their classes."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from hsakd_jax.runs.config import Config, Data, RunConfig

# Settings that may change when a run resumes: they do not change its result.
MAY_DIFFER = frozenset({"command", "data.dir", "training.remat", "logging.tracking", "logging.profile"})

# Paths of other runs, by their role. Where the content of the other run is known, it decides instead.
RUNS = {"teacher": "teacher.workdir", "init": "training.init"}

# Difference of two means or standard deviations that is passed over: 1 / 255 of the range of a pixel.
CLOSE = 4e-3
IMAGENET, WORDNET_ID = 1000, re.compile(r"n\d{8}")
MOST_SHOWN = 8  # differing settings that a message names
LONGEST = 9  # values of a list in a message


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


class ClassMatch(NamedTuple):
    """How the classes of a run and other ones correspond.

    Attributes:
      difference: why they are not the same classes, as the end of a sentence; None where they are.
      order: the run's index of each of the other classes; None where both have one order.
      note: a line for the user where the order was changed or is not known; None elsewhere.
    """

    difference: str | None = None
    order: tuple[int, ...] | None = None
    note: str | None = None


def match_classes(config: Config, path: Path, count: int, names: Sequence[str], other: str) -> ClassMatch:
    """Compares the classes of a run with others, by name where both have names.

    Args:
      config: of the run.
      path: of the run, for the line.
      count: how many classes the others are.
      names: the others' names; empty where they are not known, since a converted checkpoint may not have them.
      other: name of the others in the line, such as that of a dataset.
    """
    ours = config.classes
    if config.network.num_classes != count:
        return ClassMatch(f"has {config.network.num_classes} classes, not {count}")
    if not ours or not names:
        unknown, known = (other, str(path)) if ours else (str(path), other)
        named = list(ours or names)
        if all(name.isdecimal() for name in named) and named != sorted(named, key=int):
            # Such as folders in alphabetic order: 0, 1, 10, 2. Networks are trained on 0, 1, 2, ..., 10.
            return ClassMatch(
                f"may have another order of classes: those of {known} are {', '.join(named[:3])}, ..., and those of "
                f"{unknown} have no names; convert the checkpoint with --classes=FILE"
            )
        note = f"the class names of {unknown} are not known: their order is taken as that of {known}"
        note += f" ({', '.join(named[:3])}{', ...' if len(named) > 3 else ''})" if named else ""
        return ClassMatch(note=note)
    if tuple(names) == ours:
        return ClassMatch()
    if any(_are_imagenet(a) and not _are_ids(b) for a, b in ((names, ours), (ours, names))):
        # Such as torchvision's 'tench' for n01440764. Published networks have the order of the sorted ids. A tree of
        # folders has that of the sorted words.
        if any(list(one) == sorted(one) and not _are_ids(one) for one in (names, ours)):
            return ClassMatch(
                "may have another order of classes: there are words in alphabetic order and ImageNet's ids; name the "
                "folders by the ids"
            )
        note = f"{path} or {other} has words for ImageNet's WordNet ids: both are taken to be in the order of the ids"
        return ClassMatch(note=note)
    if sorted(names) != sorted(ours):
        missing, expected = ([name for name in a if name not in b] for a, b in ((ours, names), (names, ours)))
        # Names that occur more than once can differ in their number only.
        theirs, wanted = (found[0] if found else "a repeated name" for found in (missing, expected))
        return ClassMatch(f"has other classes: {theirs!r} where {wanted!r} is expected")
    if len(set(ours)) < count:
        return ClassMatch("has the classes in another order, and some have the same name: rename these")
    order = tuple(ours.index(name) for name in names)
    return ClassMatch(order=order, note=f"{path} has the classes of {other} in another order: matched by name")


def _are_imagenet(names: Sequence[str]) -> bool:
    """Whether these are the 1000 WordNet ids of ImageNet in their order, such as n01440764."""
    return len(names) == IMAGENET and list(names) == sorted(names) and _are_ids(names)


def _are_ids(names: Sequence[str]) -> bool:
    """Whether these are WordNet ids, which have an order only by their names."""
    return all(WORDNET_ID.fullmatch(one) for one in names)


def in_words(found: Mapping[str, tuple[Any, Any]], first: str, second: str) -> list[str]:
    """Differing settings, such as 'seed (0 there, 1 here)', at most `MOST_SHOWN` of them.

    Args:
      found: the two values, by key.
      first: the word for the first value.
      second: the word for the second value.
    """
    words = []
    for key, both in list(found.items())[:MOST_SHOWN]:
        a, b = _shortened(*both)
        words.append(f"{key} ({a} {first}, {b} {second})")
    return [*words, f"{len(found) - MOST_SHOWN} more"] if len(found) > MOST_SHOWN else words


def _shortened(a: Any, b: Any) -> tuple[Any, Any]:
    """Two values that differ; of two long lists, such as the names of a hundred classes, the first difference."""
    if not (isinstance(a, list) and isinstance(b, list) and max(len(a), len(b)) > LONGEST):
        return a, b
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    first, second = (f"{len(one)} values, number {at + 1} is {(one[at : at + 1] or [None])[0]!r}" for one in (a, b))
    return first, second


def normalisation_difference(theirs: Data, ours: Data) -> str:
    """The difference between the normalisations of two runs, in words; '' where there is none.

    Args:
      theirs: data of the run whose network is used.
      ours: data of the run that uses it.
    """
    pairs = ((theirs.mean, ours.mean), (theirs.std, ours.std))
    if all(np.allclose(a, b, rtol=0, atol=CLOSE) for a, b in pairs):
        return ""
    return (
        f"was trained on images normalised by mean {list(theirs.mean)} and std {list(theirs.std)}, and this run "
        f"normalises by {list(ours.mean)} and {list(ours.std)}: set --config.data.mean and --config.data.std to its "
        "values"
    )
