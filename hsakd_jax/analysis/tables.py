"""Runs and the paper's numbers -> tables: rows by method, columns by pair, the command for what is missing."""

import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hsakd_jax.analysis.paper import TABLES, Column, Number
from hsakd_jax.analysis.run_index import UNKNOWN, Run, by_settings, same
from hsakd_jax.experiments.recipes import RECIPES, parents

MAIN = "python -m hsakd_jax.main"
ROOT = "runs"  # where commands put what they train
PROBED_FROM = "cifar100"
KINDS = {"imagenet2012": ("top1", "top5"), "voc": ("map",)}  # of accuracies, where not top-1 alone
CONFIGS = {"imagenet2012": "imagenet"}  # where the file is not called as the dataset


class Entry(NamedTuple):
    """One method on one pair in one setting.

    Attributes:
      row: a key of `recipes.RECIPES`, or another word where there is no recipe.
      column: the pair.
      runs: one for each seed; none where the entry is missing.
      apart: how its settings differ from those of the first entry of this row and column, by key: (here, there).
      departures: how its settings differ from the paper's, by key: (here, the paper's); None where the paper has none.
      paper: its number; None where the paper has none.
      command: what fills it; '' where nothing is missing or no command can.
    """

    row: str
    column: Column
    runs: list[Run]
    apart: dict[str, tuple[Any, Any]]
    departures: dict[str, tuple[Any, Any]] | None
    paper: Number | None
    command: str

    @property
    def method(self) -> str:
        """What people call it."""
        return RECIPES[self.row].title if self.row in RECIPES else self.row

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
        return self.runs[0].results["last"]["epoch"] if self.runs else None

    def difference(self, kind: str = "top1") -> float | None:
        """Our best epoch minus the paper's; None unless both are there and the settings are the paper's."""
        paper, ours = getattr(self.paper, kind, None), self.ours("best", kind)
        return None if self.departures != {} or paper is None or ours is None else ours[0] - paper


class Comparison(NamedTuple):
    """A table.

    Attributes:
      key: of `published.TABLES`, or a dataset.
      title: what it shows.
      notes: what a reader must know.
      kinds: accuracies that it shows: 'top1' and perhaps 'top5', or 'map'.
      columns: pairs, in order.
      entries: by row, then by column.
      repeated: runs left out, since another one has their seed and settings.
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
      everything: whether also tables and columns without a run are given.
    """
    homes: dict[str, list[Run]] = {}
    for run in runs:
        homes.setdefault(_home(run), []).append(run)
    keys = [key for key in TABLES if everything or key in homes] + sorted(homes.keys() - TABLES.keys())
    return [_table(key, homes.get(key, []), runs, everything) for key in keys]


def command(key: str, row: str, column: Column, runs: Sequence[Run] = ()) -> str:
    """What fills an entry, in a place where what it needs is shared with the other rows; '' where nothing does.

    Args:
      key: of the table.
      row: a recipe.
      column: the pair.
      runs: finished ones; a teacher among them is not trained again.
    """
    kind, (dataset, teacher, student) = RECIPES.get(row), column
    if kind is None or key == "voc":
        return ""
    pair = "-".join(filter(None, (teacher, student)))
    shared = f"{ROOT}/{dataset}/{pair}/seed0"
    own = f"{shared}/{row}"
    config = f"configs/{CONFIGS.get(dataset, dataset)}.py"
    if key == "probe":
        source = Column(PROBED_FROM, teacher, student)
        start = _found(runs, row, source) or [Path(f"{ROOT}/{PROBED_FROM}/{pair}/seed0/{row}")]
        return f"{MAIN} --config={config}:probe --workdir={own} --config.student.init={shlex.quote(str(start[0]))}"
    names = [student] if kind.network == "student" or not teacher else [teacher]
    # A run that needs others has a subdirectory, as they have; one that needs none would take the whole directory.
    workdir, options = shared if parents(row) else own, []
    if kind.teacher:
        names = [teacher, student]
        there = _found(runs, kind.teacher, column)
        if there and Path(shared, kind.teacher) not in there:
            workdir, options = own, [f"--config.teacher.workdir={shlex.quote(str(there[0]))}"]
    options += ["--config.data.dir=DIR"] if dataset == "imagenet2012" else []
    return " ".join([MAIN, f"--config={config}:{'/'.join([row, *names])}", f"--workdir={workdir}", *options])


def _found(runs: Sequence[Run], row: str, column: Column) -> list[Path]:
    """Runs of a row with the paper's settings."""
    return [run.path for run in runs if run.departures == {} and _fits(run, "", row, column)]


def _home(run: Run) -> str:
    """The one table that is shown because of a run."""
    kind = RECIPES.get(run.recipe)
    if run.recipe == "probe":
        return "probe"
    if kind and kind.share < 1:
        return "few_shot"
    if run.recipe.startswith("ablation_"):
        return "ablation"
    if kind and kind.objective == "mutual":
        return "online"
    if run.recipe in ("rotated", "joint"):
        return "labels"
    for key in (run.dataset, "online", "labels"):
        if key in TABLES and any(_fits(run, key, row, c) for row, cells in TABLES[key].numbers.items() for c in cells):
            return key
    return run.dataset


def _fits(run: Run, key: str, row: str, column: Column) -> bool:
    """Whether a run belongs to a row and a column of a table."""
    if (run.recipe == "probe") != (key == "probe") or run.dataset != column.dataset or same(run.row) != same(row):
        return False
    kind = RECIPES.get(row)
    if kind is None or kind.teacher:
        return (run.teacher, run.student) == (column.teacher, column.student)
    if not column.teacher:  # one row is enough for what is trained alike
        return row == _alone(row) and run.student == column.student
    return run.student == (column.teacher if kind.network == "teacher" else column.student)


def _alone(row: str) -> str:
    """The recipe that trains the same outside of a pair of networks: 'baseline' for 'backbone'."""
    return next((name for name, kind in RECIPES.items() if same(name) == same(row) and kind.network == "student"), row)


def _table(key: str, homes: Sequence[Run], runs: Sequence[Run], everything: bool) -> Comparison:
    paper = TABLES.get(key)
    numbers = paper.numbers if paper else {}
    published = list(dict.fromkeys(column for cells in numbers.values() for column in cells))
    columns = _columns(key, homes, published, list(numbers), everything)
    extras = {row for run in homes for row in (run.row, _alone(run.row))} - numbers.keys()
    entries, repeated = [], []
    for row in _ordered(list(numbers), extras):
        for column in columns:
            number = numbers.get(row, {}).get(column)
            found = [run for run in runs if _fits(run, key, row, column)]
            if found:
                made, again = _entries(row, column, found, number)
                entries += made
                repeated += again
            elif number:
                entries.append(Entry(row, column, [], {}, None, number, command(key, row, column, runs)))
    notes = [paper.note] if paper and paper.note else []
    networks = {name for column in columns for name in column[1:]}
    if "mobilenetV2" in networks:
        notes.append("mobilenetV2 is HSAKD's, whose stem has stride 1; CRD's of that name is mobilenetV2_crd")
    if "mobilenetV2_crd" in networks:
        notes.append("mobilenetV2_crd is CRD's MobileNetV2, not the paper's: its numbers are for mobilenetV2")
    if UNKNOWN in networks:
        notes.append(f"{UNKNOWN}: the teacher's run is not found, nor named in the results")
    if any(entry.row == "probe" for entry in entries):
        notes.append(f"{RECIPES['probe'].title}: the run that it started from is not found")
    again = list({run.path: run for run in repeated}.values())
    return Comparison(key, paper.title if paper else key, notes, KINDS.get(key, ("top1",)), columns, entries, again)


def _columns(
    key: str, homes: Sequence[Run], published: list[Column], rows: list[str], everything: bool
) -> list[Column]:
    """The paper's columns that have a run, in its order, then others."""
    found: list[Column] = []
    for run in sorted(homes, key=lambda run: not run.teacher):  # pairs first: who was not taught may stand in one
        own = Column(run.dataset, run.teacher, run.student)
        fitting = [c for c in [*found, *published] if any(_fits(run, key, row, c) for row in [run.row, *rows])]
        found.append(own if run.teacher else [*fitting, own][0])
    shown = [column for column in published if everything or column in found]
    return list(dict.fromkeys([*shown, *found]))


def _ordered(rows: list[str], extras: Iterable[str]) -> list[str]:
    """Rows in the order of the paper, others where the recipes have them."""
    order = {row: i for i, row in enumerate(RECIPES)}
    for extra in sorted(extras, key=lambda row: (order.get(row, len(order)), row)):
        before = [i for i, row in enumerate(rows) if row in order and order[row] < order.get(extra, len(order))]
        rows = [*rows]
        rows.insert(before[-1] + 1 if before else 0, extra)
    return rows


def _entries(row: str, column: Column, runs: Sequence[Run], number: Number | None) -> tuple[list[Entry], list[Run]]:
    """Entries by setting, the paper's first, then by their number of runs; and runs whose seed is there already."""
    groups, repeated = by_settings(runs)
    ordered = sorted(groups, key=lambda group: (group[0].departures != {}, -len(group)))
    first = ordered[0][0].settings
    entries = []
    for group in ordered:
        apart = _differing(group[0].settings, first)
        entries.append(Entry(row, column, group, apart, group[0].departures, number, ""))
    return entries, repeated


def _differing(here: dict[str, Any], there: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = {key for key in here.keys() | there.keys() if here.get(key) != there.get(key)}
    for role in ("teacher", "init"):
        # Of a run that is not found, or of another kind, more need not be said.
        for whole in {role, f"{role}.recipe"} & keys:
            keys = {key for key in keys if key == whole or not key.startswith(f"{role}.")}
    return {key: (here.get(key), there.get(key)) for key in sorted(keys)}
