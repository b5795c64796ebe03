"""Runs that belong together: their names, colours and gains, and the command that repeats one."""

import json
import os
import runpy
import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hsakd_jax.analysis.run_index import Run

CONFIGS = Path(__file__).parents[1] / "configs"


class Group(NamedTuple):
    """Runs that differ in their seed alone.

    Attributes:
      label: unique among the groups of a dataset.
      colour: a key of `figures.COLOURS`.
      runs: at least one.
      pairs: each run that gained on a student alone, and that.
    """

    label: str
    colour: str
    runs: "list[Run]"
    pairs: "list[tuple[Run, Run]]"

    @property
    def gains(self) -> list[float]:
        """Top-1 over the student alone, of each pair."""
        return [_top1_of(run) - _top1_of(partner) for run, partner in self.pairs]

    def accuracies(self, when: str) -> list[float]:
        """Top-1 in % of each run; `when` is 'last' or 'best'."""
        return [run.accuracy(when, "top1") or 0.0 for run in self.runs]


def group(runs: "Sequence[Run]") -> "tuple[list[Group], list[Run]]":
    """Runs by their settings, in the order of the recipes, and those left out since another has their seeds as well."""
    from hsakd_jax.analysis.run_index import by_settings
    from hsakd_jax.experiments.recipes import RECIPES

    order = {recipe: i for i, recipe in enumerate(RECIPES)}
    runs = sorted(runs, key=lambda run: (order.get(run.recipe, len(order)), run.seeds[0]))
    groups, repeated = by_settings(runs, also=lambda run: run.recipe)
    above = os.path.commonpath([run.path.resolve() for run in runs])

    def titles(runs: "list[Run]") -> list[str]:
        title, path = title_of(runs[0].recipe), runs[0].path.resolve()
        details = (runs[0].student, path.name, path.parent.name, os.path.relpath(path, above))
        return [title, *(f"{title} ({detail})" for detail in details)]

    def label(runs: "list[Run]") -> str:
        for i, title in enumerate(titles(runs)):
            if sum(titles(other)[i] == title for other in groups) == 1:
                return title
        return str(runs[0].path)

    alone = [run for members in groups for run in members if run.recipe == "baseline"]
    made = []
    for members in groups:
        partners = [(run, partner_of(run, alone)) for run in members]
        pairs = [(run, partner) for run, partner in partners if partner and partner is not run]
        made.append(Group(label(members), "", members, pairs))
    subject = subject_of(made)
    free = iter([f"c{2 + i % 6}" for i in range(len(made)) if i % 6 != 4])
    taken = []
    for one in made:
        if one is subject:
            colour = "c0"
        elif is_alone(one) and one.runs[0].student == subject.runs[0].student and "c1" not in taken:
            colour = "c1"
        elif _teaches(one.runs[0]) and "c6" not in taken:
            colour = "c6"
        else:
            colour = next(free, "c7")
        taken.append(colour)
    return [one._replace(colour=colour) for one, colour in zip(made, taken, strict=True)], repeated


def repeat(run: "Run", config: dict[str, Any]) -> str:
    """The command that trains a run once more, beside it; '' where its recipe or config file is not there any more."""
    from hsakd_jax.analysis.tables import CONFIGS as NAMES
    from hsakd_jax.experiments.recipes import RECIPES
    from hsakd_jax.runs.directory import beside, flat

    # A config file is code, and the name of the data may be a stranger's: only a file of the package's own is run.
    files = {path.stem: path for path in CONFIGS.glob("*.py")}
    path = files.get(NAMES.get(run.dataset, run.dataset), files.get("cifar100"))
    kind = RECIPES.get(run.recipe)
    if kind is None or path is None:
        return ""
    base = flat(runpy.run_path(str(path))["get_config"](run.recipe).to_dict())
    network, taught = config["network"], config.get("teacher") or {}
    peers = network.get("peers") if isinstance(network.get("peers"), list) else []
    wanted = {
        **{key: config.get(key) for key in ("seed", "eval_every", "log_every", "eval_batch")},
        **flat(config["data"], "data."),
        **flat(config["objective"], f"objective.{run.recipe}."),
        f"{kind.network}.arch": network["arch"],
        f"{kind.schedule or kind.network}.dtype": network["dtype"],
        "batch_norm_groups": config["train"].get("batch_norm_groups"),
    }
    wanted["data.fraction"] = round(config["data"]["fraction"] / kind.share, 9)
    if peers:
        wanted["peers"] = ["" if peer == network["arch"] else peer for peer in peers]
    for key, value in config["train"].items():
        if key == "init" and value:
            value = str(beside(run.path, value).resolve())
        if not (key == "trainable" and value == kind.trainable):
            sections = (kind.schedule, kind.network)
            wanted[next((f"{s}.{key}" for s in sections if f"{s}.{key}" in base), "")] = value
    if taught:
        wanted["teacher.workdir"] = str(beside(run.path, taught["workdir"]).resolve())
        names = {"checkpoint": "checkpoint", "peer": "peer", "dtype": "inference_dtype"}
        wanted |= {f"teacher.{names[key]}": value for key, value in taught.items() if key in names}
    words = [f"--config=configs/{path.name}:{run.recipe}", f"--workdir={run.path.resolve()}-again"]
    for key, value in wanted.items():
        # An option that there was not, or is no longer, is left as it is.
        if value is not None and key in base and json.loads(json.dumps(base[key])) != value:
            value = tuple(value) if isinstance(value, list) else value
            words.append(f"--config.{key}={value}")
    return shlex.join(["python", "-m", "hsakd_jax.main", *words])


def title_of(recipe: str) -> str:
    """What tables call a recipe; its own name where there is none of it any more."""
    from hsakd_jax.experiments.recipes import RECIPES

    return RECIPES[recipe].title if recipe in RECIPES else recipe


def words_of(recipe: str) -> str:
    """What a recipe does, as the end of a sentence; '' where that is not known."""
    from hsakd_jax.experiments.recipes import RECIPES

    if recipe == "probe":
        return "is a new last layer on a trained backbone"
    return {
        "baseline": "learns from the labels alone",
        "kd": "learns from the labels and from its teacher's classes",
        "teacher": "has branches that learn to tell class and rotation",
        "student": "learns from the labels and from its teacher's classes and branches, in four rotations",
        "mutual": "trains several networks that teach one another, whose mean is shown",
        "methods": "learns from the labels and from its teacher by another method",
    }.get(RECIPES[recipe].objective if recipe in RECIPES else "", "")


def subject_of(groups: Sequence[Group]) -> Group:
    """What the report is about: the best student, of one that was taught if there is any."""
    from hsakd_jax.experiments.recipes import RECIPES

    def rank(one):
        kind = RECIPES.get(one.runs[0].recipe)
        reached = statistics.mean(one.accuracies("last"))
        if kind is None or kind.network != "student":
            return 0, reached
        return 3 if kind.teacher else 1 if is_alone(one) else 2, reached

    return max(groups, key=rank)


def is_alone(one: Group) -> bool:
    """Whether it is the student alone."""
    return one.runs[0].recipe == "baseline"


def is_student(one: Group) -> bool:
    """Whether it is a student, taught or alone; not a teacher."""
    from hsakd_jax.experiments.recipes import RECIPES

    recipe = one.runs[0].recipe
    return recipe in RECIPES and RECIPES[recipe].network == "student"


def _teaches(run: "Run") -> bool:
    from hsakd_jax.experiments.recipes import RECIPES

    return run.recipe in RECIPES and RECIPES[run.recipe].network == "teacher"


def partner_of(run: "Run", alone: "Iterable[Run]") -> "Run | None":
    """The student alone that a run gained on, of its network, data, epochs and batch.

    Of several the one that was trained most like it, then one of its seed, then one of its folder.
    """
    if _teaches(run):
        return None
    needed = ("classes", "data.name", "data.fraction", "data.validation", "train.epochs", "train.batch")

    def apart(other: "Run") -> tuple[int, bool, bool]:
        keys = {key for key in run.settings if key.startswith(("train.", "data.", "network."))} - {"network.branches"}
        differing = sum(other.settings.get(key) != run.settings[key] for key in keys)
        return differing, other.seeds[0] != run.seeds[0], other.path.parent != run.path.parent

    found = [
        other
        for other in alone
        if other.student == run.student and all(other.settings.get(k) == run.settings.get(k) for k in needed)
    ]
    return min(found, key=apart, default=None)


def _top1_of(run: "Run") -> float:
    return run.accuracy("last", "top1") or 0.0
