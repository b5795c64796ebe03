"""The table at the end of a command: its runs by recipe, and verdicts on the gain by distillation."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from hsakd_jax.core.console import table
from hsakd_jax.evaluation.accuracies import best_branch, mean_top1
from hsakd_jax.evaluation.verdict import compare
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.runs.results import Results


def summary(results: Mapping[int, Mapping[str, Results]]) -> str:
    """A table of runs by seed and recipe: last epoch, best epoch, and verdicts on the gain by distillation."""
    recipes = next(iter(results.values()))
    by_recipe = {recipe: {seed: runs[recipe] for seed, runs in results.items()} for recipe in recipes}
    header = ["run", "network", "parameters", "top-1 last", "top-1 best", "best branch joint"]
    rows = []
    for recipe, runs in by_recipe.items():
        one = next(iter(runs.values()))
        top1, best = ([mean_top1(getattr(r, when)) for r in runs.values()] for when in ("last", "best"))
        joint = [best_branch(r.last) for r in runs.values()] if any("joint_" in name for name in one.last) else []
        # Of several different networks the size is the first one's, and the accuracy their mean.
        size = "" if "+" in one.arch else f"{one.parameters.backbone:,}"
        rows.append([RECIPES[recipe].title, one.arch, size, _cell(top1), _cell(best), _cell(joint)])
    shown = [i for i in range(len(header)) if any(row[i] for row in rows)]
    first = next(iter(by_recipe.values()))
    one = next(iter(first.values()))
    note = f"% of {one.test_images} test images"
    note += f", mean (standard deviation) of {len(first)} seeds" if len(first) > 1 else ""
    note += f"; the best epoch was selected on the {one.selected_by.rpartition(' ')[2]} images"
    kinds = {RECIPES[recipe].select_by for recipe in by_recipe}
    note += ", a teacher's by its branches" if "joint" in kinds else ""
    lines = [table([header[i] for i in shown], [[row[i] for i in shown] for row in rows]), *_verdicts(by_recipe), note]
    return "\n\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    """The mean, and of several values the standard deviation."""
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ({stdev(values):.2f})" if len(values) > 1 else "")


def _verdicts(by_recipe: Mapping[str, Mapping[int, Results]]) -> list[str]:
    """Compares students with the first one that has no teacher, or else with KD.

    They are compared if they have its network and number of images. If no run is one to compare with, a line names the
    remedy.
    """
    students = [recipe for recipe in by_recipe if RECIPES[recipe].network == "student"]

    def trained(recipe: str) -> tuple[str, int]:
        one = next(iter(by_recipe[recipe].values()))
        return one.arch, one.train_images

    def compared_with(reference: str) -> list[str]:
        return [recipe for recipe in students if recipe != reference and trained(recipe) == trained(reference)]

    references = [recipe for recipe in students if not RECIPES[recipe].teacher]
    references += [recipe for recipe in students if RECIPES[recipe].is_form_of(RECIPES["kd"])]
    reference = next(filter(compared_with, references), None)
    if reference is None:
        distilled = [recipe for recipe in students if RECIPES[recipe].teacher and RECIPES[recipe].fraction == 1]
        names = ", ".join(f"'{recipe}'" for recipe in ("baseline", *distilled))
        line = f'no run to compare with: for verdicts, add the baseline, --config.runs="({names})"'
        return [line] if len(distilled) > 1 and "baseline" not in students else []
    others = compared_with(reference)
    width = max(len(RECIPES[recipe].title) for recipe in others)
    lines = [f"compared with {RECIPES[reference].title}, last epoch, points of top-1:"]
    for recipe in others:
        lines.append(f"{RECIPES[recipe].title.ljust(width)}  {compare(by_recipe[recipe], by_recipe[reference])}")
    return ["\n".join(lines)]
