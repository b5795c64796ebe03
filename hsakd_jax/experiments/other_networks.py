"""Settings of a run that belong to other networks than its own.

Only the networks behind the recipe select the published settings and the learning rate. A flag for a network, or the
network of `teacher.workdir`, does not.
"""

import re
from collections.abc import Sequence
from typing import Any

from hsakd_jax.distillation.methods import default_options
from hsakd_jax.experiments import published
from hsakd_jax.experiments.config_file import overridden
from hsakd_jax.experiments.make_config import SLOW
from hsakd_jax.experiments.recipes import RECIPES, published_terms
from hsakd_jax.runs.config import Config, RunConfig
from hsakd_jax.runs.restore import peer_config


def settings_of_other_networks(
    config: dict[str, Any], run: RunConfig, teacher: Config | None, command: Sequence[str] = ()
) -> list[str]:
    """A line for each setting of a run that belongs to other networks.

    Args:
      config: of the command.
      run: the config of the run.
      teacher: that of the run which teaches; None without one.
      command: arguments of the command. The user decides on the keys that they set: these have no line.
    """
    chosen = overridden(command)
    lines = _learning_rate(config, run, chosen, command)
    if teacher is None or run.teacher is None:
        return lines
    student, taught_by = run.network.arch, peer_config(teacher.network, run.teacher.workdir, peer=run.teacher.peer).arch
    dataset = published.dataset_of(run.data.name, run.classes)
    given, expected = config["objective"][run.recipe], published_terms(run.recipe, dataset, taught_by, student)
    for key in published.keys(run.recipe, dataset):
        term, option = key.split(".")
        path, defaults = f"objective.{run.recipe}.{key}", default_options(term)
        ours, theirs = ({**defaults, **terms[term]}.get(option) for terms in (given, expected))
        if ours != theirs and path not in chosen:
            lines.append(
                f"{path} is {ours}, and {theirs} is the setting of {taught_by} and {student}: name both behind the "
                f"recipe, --config=FILE:{config['recipe']}/{taught_by}/{student}, or set --config.{path}"
            )
    return lines


def _learning_rate(config: dict[str, Any], run: RunConfig, chosen: Sequence[str], command: Sequence[str]) -> list[str]:
    """The line about a rate of networks that learn at another one, or none."""
    recipe = RECIPES[run.recipe]
    where, networks = recipe.network, run.network.peers or (run.network.arch,)
    if recipe.schedule or f"{where}.lr" in chosen or not {f"{where}.arch", "peers"} & set(chosen):
        return []
    slow, was_slow = any(one.startswith(SLOW) for one in networks), _named(config, where, command).startswith(SLOW)
    if slow == was_slow:
        return []
    rule = "a fifth of that of others" if slow else "five times that of MobileNetV2 and the ShuffleNets"
    return [
        f"{where}.lr is {run.training.lr:g}, and the rate of {' and '.join(networks)} is {rule}: name the networks "
        f"behind the recipe, or set --config.{where}.lr"
    ]


def _named(config: dict[str, Any], section: str, command: Sequence[str]) -> str:
    """The network behind the recipe for a section; '' for none."""
    words = (re.match(r"--?config=[^:]*:[^/]*/(.*)", word) for word in command)
    networks = next((match[1].split("/") for match in words if match), [])
    one = RECIPES[config["recipe"]].network if config["recipe"] in RECIPES else "student"
    sections = ("teacher", "student") if len(networks) == 2 else (one,)
    return dict(zip(sections, networks, strict=False)).get(section, "")
