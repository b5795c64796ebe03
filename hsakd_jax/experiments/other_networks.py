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
from hsakd_jax.experiments.make_config import SLOW, by_section
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
    values = published.values(run.recipe, dataset, taught_by, student)
    pair = f"{taught_by} and {student}" + (f" on {dataset}" if "data.name" in chosen else "")
    given, expected = config["objective"][run.recipe], published_terms(run.recipe, dataset, taught_by, student)
    others, of_flag = [], "data.name" in chosen
    # Where none are published for the dataset of a flag, the config file's may be those for its own dataset.
    elsewhere = of_flag and not published.keys(run.recipe, dataset)
    for key in published.keys(run.recipe, None if elsewhere else dataset):
        term, option = key.split(".")
        path, defaults = f"objective.{run.recipe}.{key}", default_options(term)
        ours, theirs = ({**defaults, **terms[term]}.get(option) for terms in (given, expected))
        if ours == theirs or path in chosen:
            continue
        if key not in values:
            others.append(f"{key} {ours}")
            continue
        file = f", in the config file of {dataset}" if of_flag else ""
        remedy = f"name both behind the recipe{file}, --config=FILE:{config['recipe']}/{taught_by}/{student}"
        lines.append(f"{path} is {ours}, and {theirs} is published for {pair}: {remedy}, or set --config.{path}")
    if others:
        lines.append(
            f"objective.{run.recipe} has the settings of {'another dataset' if elsewhere else 'other networks'} "
            f"({', '.join(others)}), and none are published for {pair}: select your own on held-out images, "
            "--config.data.validation=0.1"
        )
    return lines


def _learning_rate(config: dict[str, Any], run: RunConfig, chosen: Sequence[str], command: Sequence[str]) -> list[str]:
    """The line about a rate of networks that learn at another one, or none."""
    recipe = RECIPES[run.recipe]
    where, networks = recipe.network, run.network.peers or (run.network.arch,)
    if recipe.schedule or f"{where}.lr" in chosen or not {f"{where}.arch", "peers"} & set(chosen):
        return []
    slow = [one for one in networks if one.startswith(SLOW)]
    if bool(slow) == _named(config, where, command).startswith(SLOW):
        return []
    rule = "a fifth of that of others" if slow else "five times that of MobileNetV2 and the ShuffleNets"
    names = " and ".join(dict.fromkeys(slow or networks))
    return [
        f"{where}.lr is {run.training.lr:g}, and the rate of {names} is {rule}: set --config.{where}.lr, or "
        "name a network behind the recipe and not by a flag"
    ]


def _named(config: dict[str, Any], section: str, command: Sequence[str]) -> str:
    """The network behind the recipe for a section; '' for none."""
    found = re.search(r"(?:^|\n)--?config[=\n][^:\n]*:[^/\n]*/([^\n]*)", "\n".join(command))
    return by_section(config["recipe"], found[1].split("/") if found else ()).get(section, "")
