"""Verdicts on groups of runs: students compared with the baseline and with KD, within each seed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hsakd_jax.analysis.run_index import Run
from hsakd_jax.evaluation.verdict import Verdict, compare
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.runs.compare import differences, in_words

REFERENCES = {"baseline": "the baseline", "kd": "KD"}
# Settings that two groups must share; of others, the group with the fewest different ones is the reference.
NEEDED = ("classes", "data.name", "data.fraction", "data.validation", "training.epochs", "training.batch")
# Settings that a recipe decides: two methods may differ in them. `training.trainable` is one unless the user set it.
OF_METHODS = {
    *("network.branches", "network.projector", "network.peers"),
    *("training.rotated", "training.crop_rotations", "training.strong_view"),
}


class Compared(NamedTuple):
    """A group of runs compared with another one.

    Attributes:
      reference: a key of `REFERENCES`, the recipe of the other group.
      runs: of the other group; none where its `NEEDED` settings differ.
      verdict: positive where the first group is better.
      differing: settings of training, data, network and start that differ and that no method decides, by key: (here,
        there). Without `runs`, those that a comparison needs to be equal.
    """

    reference: str
    runs: Sequence[Run]
    verdict: Verdict
    differing: Mapping[str, tuple[Any, Any]]

    @property
    def name(self) -> str:
        """The reference in a sentence: 'the baseline'."""
        return REFERENCES[self.reference]

    @property
    def remark(self) -> str:
        """The settings that differ, as the end of a sentence; '' where none does or the reason names them."""
        if not (self.differing and self.runs):
            return ""
        return f"; settings differ too: {', '.join(in_words(self.differing, 'here', 'there'))}"


def compare_groups(groups: Sequence[tuple[str, Sequence[Run]]]) -> list[list[Compared]]:
    """Compares each group that is of a student with each reference that has its network.

    One of other data, epochs or batch is not compared, and the reason of the verdict names the settings that differ.

    Args:
      groups: recipe and runs of each; these differ in their seeds only.

    Returns:
      For each group, its comparisons, in the order of `REFERENCES`.
    """
    found = []
    for recipe, runs in groups:
        compared = []
        for reference in REFERENCES:
            if _is_student(recipe) and not _is(recipe, reference):
                others = [other for name, other in groups if _is(name, reference) and _same_pair(runs[0], other[0])]
                if other := min(others, key=lambda other: _distance(runs, other), default=None):
                    compared.append(_compare(reference, runs, other))
        # The baseline learns from no teacher: a verdict against KD would be the same again.
        found.append([] if _is(recipe, "baseline") else compared)
    return found


def _compare(reference: str, runs: Sequence[Run], others: Sequence[Run]) -> Compared:
    if needed := _needed(runs[0], others[0]):
        # The classes are there as a hash.
        reason = f"settings differ: {', '.join(in_words(needed, 'here', 'there'))}"
        reason = "other classes" if "classes" in needed else reason
        return Compared(reference, (), Verdict(None, None, None, _common_seeds(runs, others), reason), needed)
    verdict = compare(_by_seed(runs), _by_seed(others))
    return Compared(reference, others, verdict, _differing(runs[0], others[0]))


def _is_student(recipe: str) -> bool:
    return recipe in RECIPES and RECIPES[recipe].network == "student"


def _is(recipe: str, reference: str) -> bool:
    """Whether it is the recipe of a reference, on all training images or on a fraction of them."""
    return recipe in RECIPES and RECIPES[recipe].is_form_of(RECIPES[reference])


def _same_pair(run: Run, other: Run) -> bool:
    return (
        other.student == run.student
        and other.teacher in (None, run.teacher)
        and (other.recipe == "probe") == (run.recipe == "probe")
    )


def _needed(run: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """The settings that differ and that a comparison needs to be equal: (here, there)."""
    return {key: both for key, both in differences(run.settings, other.settings).items() if key in NEEDED}


def _distance(runs: Sequence[Run], others: Sequence[Run]) -> tuple[int, int, int]:
    """The number of needed settings that differ, then of all settings that do, then of seeds that are missing."""
    run, other = runs[0], others[0]
    return len(_needed(run, other)), len(_differing(run, other)), -_common_seeds(runs, others)


def _common_seeds(runs: Sequence[Run], others: Sequence[Run]) -> int:
    return len(_by_seed(runs).keys() & _by_seed(others).keys())


def _differing(run: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    found = differences(run.settings, other.settings)
    kinds = ("training.", "data.", "network.", "train_images")
    shown = {key: both for key, both in found.items() if key.startswith(kinds) and key not in OF_METHODS}
    if _has_trainable_of_recipe(run) and _has_trainable_of_recipe(other):
        shown.pop("training.trainable", None)
    # The other settings of the run that a network starts from are not shown.
    if any(key.partition(".")[0] == "init" for key in found):
        shown["training.init"] = run.config.training.init, other.config.training.init
    return shown


def _has_trainable_of_recipe(run: Run) -> bool:
    recipe = RECIPES.get(run.recipe)
    return recipe is not None and run.config.training.trainable == (recipe.trainable or None)


def _by_seed(runs: Sequence[Run]) -> dict[int, Any]:
    """The results of the first run of each seed; several have the same one if their teachers' seeds differ."""
    return {run.seeds[0]: run.results for run in reversed(runs)}
