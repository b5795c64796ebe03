"""Groups of runs that differ in their seed only, with labels, colours and comparisons."""

import os
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from hsakd_jax.analysis.comparing import Compared, compare_groups
from hsakd_jax.analysis.run_index import Run, by_settings
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.runs.directory import is_seed_folder

# By kind of objective. The report writes them after the methods' names and a colon.
DESCRIPTIONS = {
    "baseline": "learns from the labels only",
    "kd": "learns from the labels and from its teacher's class probabilities",
    "teacher": "trains auxiliary branches on the joint labels of class and rotation",
    "student": "learns from the labels and from its teacher's classes and branches, in four rotations",
    "mutual": "trains several networks that teach each other; their mean is shown",
    "methods": "learns from the labels and from its teacher, with the losses of that method",
}


class Group(NamedTuple):
    """Runs that differ in their seed only.

    Attributes:
      label: unique among the groups of a dataset.
      colour: a key of `plots.COLOURS`.
      runs: at least one.
      compared: with the baseline and with KD, where there is a group to compare with.
    """

    label: str
    colour: str
    runs: Sequence[Run]
    compared: Sequence[Compared]

    @property
    def recipe(self) -> str:
        """Of all its runs."""
        return self.runs[0].recipe

    @property
    def is_baseline(self) -> bool:
        """Whether it is the student without a teacher."""
        return self.recipe == "baseline"

    @property
    def is_student(self) -> bool:
        """Whether it is a student, with or without a teacher."""
        return _role(self.recipe) == "student"

    @property
    def with_baseline(self) -> Compared | None:
        """The comparison with the baseline."""
        return next((one for one in self.compared if one.reference == "baseline"), None)

    def top1(self, when: str) -> list[float]:
        """Top-1 in % of each run; `when` is 'last' or 'best'."""
        return [run.top1(when) for run in self.runs]


class Grouping(NamedTuple):
    """The groups of a dataset.

    Attributes:
      groups: in the order of the recipes.
      subject: the group that the report is about: the best student, with a teacher if there is one.
      repeated: runs left out, since another one has their seed and settings.
    """

    groups: list[Group]
    subject: Group
    repeated: list[Run]


def group(runs: Sequence[Run]) -> Grouping:
    """Groups the runs of a dataset; there must be one."""
    order = {recipe: i for i, recipe in enumerate(RECIPES)}
    ordered = sorted(runs, key=lambda run: (order.get(run.recipe, len(order)), run.seeds[0]))
    members, repeated = by_settings(ordered, by_recipe=True)
    subject = max(members, key=_rank)
    compared = compare_groups([(some[0].method, some) for some in members])
    groups = list(map(Group, _labels(members), _colours(members, subject), members, compared))
    return Grouping(groups, groups[members.index(subject)], repeated)


def title_of(recipe: str) -> str:
    """The name of a recipe in tables; a recipe of another version keeps its own name."""
    return RECIPES[recipe].title if recipe in RECIPES else recipe


def describe(run: Run) -> str:
    """A description of a run's method, as it follows its name; its objective where there is no description."""
    if run.recipe == "probe":
        return "trains a new last layer on a trained backbone"
    kind = run.config.objective.kind
    if kind == "methods" and run.config.network.branches:  # HSAKD with another method's term
        kind = "student"
    return DESCRIPTIONS.get(kind, f"has the objective {kind}")


def _role(recipe: str) -> str | None:
    """'teacher' or 'student'; None for a recipe of another version."""
    return RECIPES[recipe].network if recipe in RECIPES else None


def _rank(runs: Sequence[Run]) -> tuple[int, float]:
    """Sorts students with a teacher above other students, these above the baseline, then by accuracy."""
    recipe = runs[0].recipe
    rank = 0
    if _role(recipe) == "student":
        rank = 3 if RECIPES[recipe].teacher else 1 if recipe == "baseline" else 2
    return rank, statistics.mean(run.top1("last") for run in runs)


def _labels(members: Sequence[list[Run]]) -> list[str]:
    """For each group the title of its recipe, with as much detail as distinguishes it from the others."""
    above = os.path.commonpath([run.path.resolve() for some in members for run in some])

    def candidates(run: Run) -> list[str]:
        title, path = title_of(run.recipe), run.path.resolve()
        *_, parent, name = "", "", *(part for part in path.parts if not is_seed_folder(part))  # of all seeds
        details = (run.student, name, parent, os.path.relpath(path, above))
        return [title, *(f"{title} ({detail})" for detail in details)]

    by_detail = list(zip(*(candidates(some[0]) for some in members), strict=True))
    labels = []
    for i, some in enumerate(members):
        unique = (titles[i] for titles in by_detail if titles.count(titles[i]) == 1)
        labels.append(next(unique, str(some[0].path)))
    return labels


def _colours(members: Sequence[list[Run]], subject: list[Run]) -> list[str]:
    """One colour for each group: c0 for the subject, c1 for its baseline, c6 for a teacher, others in turn."""
    others = iter([f"c{2 + i % 6}" for i in range(len(members)) if i % 6 != 4])
    colours: list[str] = []
    for some in members:
        run = some[0]
        if some is subject:
            colour = "c0"
        elif run.recipe == "baseline" and run.student == subject[0].student and "c1" not in colours:
            colour = "c1"
        elif _role(run.recipe) == "teacher" and "c6" not in colours:
            colour = "c6"
        else:
            colour = next(others, "c7")
        colours.append(colour)
    return colours
