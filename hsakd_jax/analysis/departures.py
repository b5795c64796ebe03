"""The published settings for a run, and how a run departs from them."""

import json
from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, NamedTuple

from hsakd_jax.analysis.paper import SETTINGS, SLOW_LR
from hsakd_jax.experiments import published
from hsakd_jax.experiments.make_config import SLOW
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.runs.config import RunConfig


class Agreement(Enum):
    """Whether a run has the published settings."""

    UNPUBLISHED = auto()  # there are no published settings for such runs
    EQUAL = auto()
    DIFFERENT = auto()


class Departures(NamedTuple):
    """The differences between a run's settings and the published ones: the paper's, or those of a method's authors.

    Attributes:
      agreement: whether they differ.
      settings: those that differ, by key: (the run's, the published one). Empty unless `agreement` is DIFFERENT.
      own_choice: settings of its objective without a published value for its pair of networks, by key.
    """

    agreement: Agreement
    settings: Mapping[str, tuple[Any, Any]] = {}
    own_choice: Mapping[str, Any] = MappingProxyType({})


def published_settings(config: RunConfig, dataset: str, teacher: str | None) -> dict[str, Any] | None:
    """The published settings for a run, by flat key; None where the paper has none for such runs.

    Those of HSAKD's own terms are the paper's. Those of other methods are their authors', where `published` has them.

    Args:
      config: of the run.
      dataset: a key of `paper.SETTINGS`, or a dataset without published settings.
      teacher: the network of its teacher; None without one, or one without settings published for the pair.
    """
    recipe, arch = RECIPES.get(config.recipe), config.network.arch
    if recipe is None:
        return None
    schedule = "probe" if config.recipe == "probe" else recipe.schedule or "full"
    if (dataset, schedule) not in SETTINGS:
        return None
    reference = {
        **SETTINGS[dataset, schedule],
        "data.fraction": recipe.fraction,
        "training.trainable": recipe.trainable or None,
    }
    if recipe.objective in ("methods", "kd") or config.recipe in published.OURS:
        values = published.values(config.recipe, dataset, teacher or "", arch)
        reference |= {f"objective.{key}": value for key, value in values.items()}
    else:
        for term, options in recipe.terms.items():
            reference |= {f"objective.{term}.{key}": value for key, value in options.items()}
    if dataset == "cifar100" and arch.startswith(SLOW) and schedule == "full":
        reference["training.lr"] = SLOW_LR
    if recipe.objective == "mutual":
        reference["network.peers"] = [arch, arch]
    if config.teacher and config.teacher.dtype:  # without one, the teacher keeps the dtype of its training
        reference["teacher.dtype"] = "float32"
    return json.loads(json.dumps(reference))  # lists for tuples, as in a config that was read


def own_choice(config: RunConfig, settings: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the terms that a run uses, without those that are published."""
    used = [f"objective.{name}." for name, term in config.objective.terms.items() if term.weight]
    # A weight that is constant is no setting of its own.
    constant = {f"{prefix}{key}" for prefix in used for key in ("warmup", "decay") if not settings.get(prefix + key)}
    return {
        key.removeprefix("objective."): value
        for key, value in settings.items()
        if key.startswith(tuple(used)) and key not in reference and key not in constant
    }
