"""The paper's tables with our runs: methods by pairs of networks, and a command for each missing entry."""

import os
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hsakd_jax.analysis.comparing import Compared, compare_groups
from hsakd_jax.analysis.departures import Agreement, Departures
from hsakd_jax.analysis.paper import TABLES, Column, Number
from hsakd_jax.analysis.run_index import UNKNOWN, Run, by_settings, same
from hsakd_jax.evaluation.accuracies import mean_top1
from hsakd_jax.experiments.recipes import RECIPES, parents
from hsakd_jax.runs.compare import differences
from hsakd_jax.runs.directory import resolve_path

MAIN = "python -m hsakd_jax.main"
ROOT = "runs"  # where the commands put their runs
PROBED_FROM = "cifar100"
KINDS = {"imagenet2012": ("top1", "top5"), "voc": ("map",)}  # of accuracies, where not top-1 alone
CONFIGS = {"imagenet2012": "imagenet"}  # where the config file is not named after the dataset
_SHOWN = 3  # teachers of a line


class Entry(NamedTuple):
    """One method on one pair of networks in one setting.

    Attributes:
      recipe: a key of `recipes.RECIPES`, or the paper's word where there is no recipe.
      column: the pair.
      runs: one for each seed; none where the entry is missing.
      differing: its settings that are not those of the first entry of this method and pair, by key: (here, there).
      departures: from the paper's settings.
      paper: the paper's number; None where it has none.
      command: trains the missing runs; None where none is missing, or no command can.
      compared: with the baseline and with KD of the same pair.
    """

    recipe: str
    column: Column
    runs: Sequence[Run] = ()
    differing: Mapping[str, tuple[Any, Any]] = {}
    departures: Departures = Departures(Agreement.UNPUBLISHED)
    paper: Number | None = None
    command: str | None = None
    compared: Sequence[Compared] = ()

    @property
    def method(self) -> str:
        """Its name in tables."""
        return RECIPES[self.recipe].title if self.recipe in RECIPES else self.recipe

    def ours(self, when: str, kind: str = "top1") -> tuple[float, float | None] | None:
        """Mean over seeds and, of two or more, standard deviation in %; None without runs.

        Args:
          when: 'last' or 'best'.
          kind: 'top1' or 'top5'.
        """
        found = [value for run in self.runs if (value := run.accuracy(when, kind)) is not None]
        return (statistics.mean(found), statistics.stdev(found) if len(found) > 1 else None) if found else None

    @property
    def epochs(self) -> int | None:
        """Of each run; None without runs."""
        return self.runs[0].epochs if self.runs else None

    def difference(self, kind: str = "top1") -> float | None:
        """Our best epoch minus the paper's; None unless there are both, with the paper's settings."""
        paper, ours = getattr(self.paper, kind, None), self.ours("best", kind)
        if self.departures.agreement is not Agreement.EQUAL or paper is None or ours is None:
            return None
        return ours[0] - paper


class Comparison(NamedTuple):
    """A table.

    Attributes:
      key: of `paper.TABLES`, or a dataset.
      title: its heading.
      notes: remarks for the reader.
      kinds: accuracies that it shows: 'top1' and perhaps 'top5', or 'map'.
      columns: pairs, in order.
      entries: by method, then by column.
      repeated: runs left out, since another one has their seeds and settings.
    """

    key: str
    title: str
    notes: list[str]
    kinds: tuple[str, ...]
    columns: list[Column]
    entries: list[Entry]
    repeated: list[Run]

    def runs(self) -> list[Run]:
        """All that it shows, each once."""
        return list({run.path: run for entry in self.entries for run in entry.runs}.values())


def compare(runs: Sequence[Run], everything: bool = False) -> list[Comparison]:
    """The tables that have a run; or all of the paper, and those that have a run.

    Args:
      runs: finished ones.
      everything: whether tables and columns without a run are shown too.
    """
    by_table: dict[str, list[Run]] = {}
    for run in runs:
        by_table.setdefault(_main_table(run), []).append(run)
    keys = [key for key in TABLES if everything or key in by_table] + sorted(by_table.keys() - TABLES.keys())
    return [_table(key, by_table.get(key, []), runs, everything) for key in keys]


def command(key: str, recipe: str, column: Column, runs: Sequence[Run] = ()) -> str | None:
    """The command that trains a missing entry; entries that need the same run, such as a teacher, share its directory.

    Args:
      key: of the table.
      recipe: of the entry.
      column: the pair.
      runs: finished ones; a teacher among them is not trained again.

    Returns:
      A shell command; None where no command can.
    """
    kind, (dataset, teacher, student) = RECIPES.get(recipe), column
    if kind is None or key == "voc":
        return None
    pair = "-".join(filter(None, (teacher, student)))
    shared = f"{ROOT}/{dataset}/{pair}/seed0"
    own = f"{shared}/{recipe}"
    config = f"configs/{CONFIGS.get(dataset, dataset)}.py"
    if key == "probe":
        source = Column(PROBED_FROM, teacher, student)
        start = _find(runs, recipe, source) or [Path(f"{ROOT}/{PROBED_FROM}/{pair}/seed0/{recipe}")]
        return f"{MAIN} --config={config}:probe --workdir={own} --config.student.init={shlex.quote(str(start[0]))}"
    names = [student if kind.network == "student" or teacher is None else teacher]
    # A run that needs others has a subdirectory, as they have; one that needs none would take the whole directory.
    workdir, options = shared if parents(recipe) else own, []
    if kind.teacher:
        names = [teacher, student]
        there = _find(runs, kind.teacher, column)
        if there and Path(shared, kind.teacher) not in there:
            workdir, options = own, [f"--config.teacher.workdir={shlex.quote(str(there[0]))}"]
    options += ["--config.data.dir=DIR"] if dataset == "imagenet2012" else []
    return " ".join([MAIN, f"--config={config}:{'/'.join([recipe, *names])}", f"--workdir={workdir}", *options])


def _find(runs: Sequence[Run], recipe: str, column: Column) -> list[Path]:
    """Runs of a recipe with the paper's settings."""
    equal = [run for run in runs if run.departures.agreement is Agreement.EQUAL]
    return [run.path for run in equal if _fits(run, None, recipe, column)]


def _main_table(run: Run) -> str:
    """The one table that is shown because of a run; others may contain the run too."""
    kind = RECIPES.get(run.recipe)
    if run.recipe == "probe":
        return "probe"
    if kind and kind.fraction < 1:
        return "few_shot"
    if run.recipe.startswith("ablation_"):
        return "ablation"
    if run.config.objective.kind == "mutual":
        return "online"
    if run.recipe in ("rotated", "joint"):
        return "labels"
    for key in (run.dataset, "online", "labels"):
        if key in TABLES and any(_fits(run, key, row, c) for row, cells in TABLES[key].numbers.items() for c in cells):
            return key
    return run.dataset


def _fits(run: Run, key: str | None, recipe: str, column: Column) -> bool:
    """Whether a run belongs to a recipe and a column of a table; `key` None is for any table but that of probes."""
    if (run.recipe == "probe") != (key == "probe") or run.dataset != column.dataset or same(run.method) != same(recipe):
        return False
    kind = RECIPES.get(recipe)
    if kind is None or kind.teacher:
        return (run.teacher, run.student) == (column.teacher, column.student)
    if column.teacher is None:  # of recipes that train the same, one is enough
        return recipe == _student_form(recipe) and run.student == column.student
    return run.student == (column.teacher if kind.network == "teacher" else column.student)


def _student_form(recipe: str) -> str:
    """The recipe that trains the same outside of a pair of networks: 'baseline' for 'backbone'."""
    alike = (name for name, kind in RECIPES.items() if same(name) == same(recipe) and kind.network == "student")
    return next(alike, recipe)


def _table(key: str, main_runs: Sequence[Run], runs: Sequence[Run], everything: bool) -> Comparison:
    """A table; `main_runs` are those because of which it is shown."""
    paper = TABLES.get(key)
    numbers = paper.numbers if paper else {}
    published = list(dict.fromkeys(column for cells in numbers.values() for column in cells))
    columns = _columns(key, main_runs, published, list(numbers), everything)
    extras = {recipe for run in main_runs for recipe in (run.method, _student_form(run.method))} - numbers.keys()
    entries, repeated = [], []
    for recipe in _ordered(list(numbers), extras):
        for column in columns:
            number = numbers.get(recipe, {}).get(column)
            found = [run for run in runs if _fits(run, key, recipe, column)]
            if found:
                made, again = _entries(recipe, column, found, number)
                entries += made
                repeated += again
            elif number:
                entries.append(Entry(recipe, column, paper=number, command=command(key, recipe, column, runs)))
    for column in columns:
        entries = _with_comparisons(entries, column)
    notes = [paper.note] if paper and paper.note else []
    notes += _remarks({name for column in columns for name in column[1:]}, entries)
    notes += _unlisted_teachers(entries, runs)
    return Comparison(
        key=key,
        title=paper.title if paper else key,
        notes=notes,
        kinds=KINDS.get(key, ("top1",)),
        columns=columns,
        entries=entries,
        repeated=list({run.path: run for run in repeated}.values()),
    )


def _with_comparisons(entries: Sequence[Entry], column: Column) -> list[Entry]:
    """The entries, those of a column with their comparisons."""
    trained = [i for i, entry in enumerate(entries) if entry.column == column and entry.runs]
    found = compare_groups([(entries[i].recipe, entries[i].runs) for i in trained])
    compared = dict(zip(trained, found, strict=True))
    return [entry._replace(compared=compared.get(i, entry.compared)) for i, entry in enumerate(entries)]


def _remarks(networks: set[str | None], entries: Sequence[Entry]) -> list[str]:
    remarks = []
    if "mobilenetV2" in networks:
        remarks.append("mobilenetV2 is HSAKD's, whose stem has stride 1; CRD's of that name is mobilenetV2_crd")
    if "mobilenetV2_crd" in networks:
        remarks.append("mobilenetV2_crd is CRD's MobileNetV2, not the paper's: its numbers are for mobilenetV2")
    if UNKNOWN in networks:
        remarks.append(f"{UNKNOWN}: the teacher's run is not found, and the results do not name it")
    if any(entry.recipe == "probe" for entry in entries):
        remarks.append(f"{RECIPES['probe'].title}: the run that it started from is not found")
    return remarks


def _unlisted_teachers(entries: Sequence[Entry], runs: Sequence[Run]) -> list[str]:
    """The line about teachers that are none of the finished runs: a row of their network is another run's.

    Args:
      entries: of a table.
      runs: all finished ones.
    """
    listed = {os.path.realpath(run.path) for run in runs}
    taught: dict[str, list[tuple[str, Run]]] = {}  # method and run, by teacher
    for entry in entries:
        for run in entry.runs:
            if run.config.teacher:
                where = os.path.realpath(resolve_path(run.path, run.config.teacher.workdir))
                taught.setdefault(where, []).append((entry.method, run))
    shown = []
    for where in taught.keys() - listed:
        methods = ", ".join(dict.fromkeys(method for method, _ in taught[where]))
        accuracies = dict.fromkeys(top1 for _, run in taught[where] if (top1 := _measured(run)))
        shown.append(f"{', '.join([where, *accuracies])} (of {methods})")
    if not shown:
        return []
    more = ["..."] * (len(shown) > _SHOWN)
    return [f"teachers that are not among these finished runs: {'; '.join([*sorted(shown)[:_SHOWN], *more])}"]


def _measured(run: Run) -> str:
    """The teacher's accuracy as the run measured it: 'top-1 72.61 % on test'; '' where it stored none."""
    if not (run.results.teacher and (found := run.results.teacher.measured)):
        return ""
    return f"top-1 {mean_top1(found):.2f} % on {run.results.selected_on}"


def _columns(
    key: str, main_runs: Sequence[Run], published: list[Column], recipes: list[str], everything: bool
) -> list[Column]:
    """The paper's columns that have a run, in its order, then others."""
    found: list[Column] = []
    # Pairs first: a run without a teacher may belong to one.
    for run in sorted(main_runs, key=lambda run: run.teacher is None):
        own = Column(run.dataset, run.teacher, run.student)
        fitting = [c for c in [*found, *published] if any(_fits(run, key, name, c) for name in [run.method, *recipes])]
        found.append(own if run.teacher else [*fitting, own][0])
    shown = [column for column in published if everything or column in found]
    return list(dict.fromkeys([*shown, *found]))


def _ordered(recipes: list[str], extras: Iterable[str]) -> list[str]:
    """Recipes in the order of the paper, others where `RECIPES` has them."""
    order = {name: i for i, name in enumerate(RECIPES)}
    for extra in sorted(extras, key=lambda name: (order.get(name, len(order)), name)):
        before = [i for i, name in enumerate(recipes) if order.get(name, len(order)) < order.get(extra, len(order))]
        recipes = [*recipes]
        recipes.insert(before[-1] + 1 if before else 0, extra)
    return recipes


def _entries(recipe: str, column: Column, runs: Sequence[Run], number: Number | None) -> tuple[list[Entry], list[Run]]:
    """Entries by setting, the paper's first, then by their number of runs; and runs that repeat a seed."""
    groups, repeated = by_settings(runs)
    ordered = sorted(groups, key=lambda runs: (runs[0].departures.agreement is not Agreement.EQUAL, -len(runs)))
    first = ordered[0][0].settings
    entries = []
    for group in ordered:
        differing = _differing(group[0].settings, first)
        entries.append(Entry(recipe, column, group, differing, departures=group[0].departures, paper=number))
    return entries, repeated


def _differing(here: dict[str, Any], there: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    found = differences(here, there)
    for role in ("teacher", "init"):
        # If that run is not found, or has another recipe, its other settings are not shown.
        for whole in {role, f"{role}.recipe"} & found.keys():
            found = {key: both for key, both in found.items() if key == whole or not key.startswith(f"{role}.")}
    return found
