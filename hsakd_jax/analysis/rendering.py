"""Renders tables of results as text of 120 columns, as Markdown, as CSV and as JSON."""

import csv
import io
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from hsakd_jax.analysis.departures import Agreement
from hsakd_jax.analysis.paper import Column, Number
from hsakd_jax.analysis.tables import Comparison, Entry
from hsakd_jax.core.console import table
from hsakd_jax.experiments.recipes import RECIPES

WIDTH = 120
EMPTY = "-"
LABEL = 27  # characters of the settings that differ, where they replace the name of a method


class Notes:
    """Numbered remarks below a table, to which its cells refer."""

    def __init__(self):
        self._lines: list[str] = []

    def mark(self, text: str) -> str:
        """'[1]' of a remark; the same text has the same number."""
        if text not in self._lines:
            self._lines.append(text)
        return f"[{self._lines.index(text) + 1}]"

    def lines(self) -> list[str]:
        """All remarks."""
        return [f"[{i}] {line}" for i, line in enumerate(self._lines, 1)]


def as_text(tables: Sequence[Comparison], everything: bool = False) -> str:
    """A block for each pair, methods as rows.

    Args:
      tables: to show.
      everything: whether each missing entry has its own command, instead of one for all that differ in the recipe.
    """
    parts = []
    for shown in tables:
        lines = [shown.title, "=" * len(shown.title), *_wrapped(shown.notes)]
        notes = Notes()
        for column in shown.columns:
            entries = [entry for entry in shown.entries if entry.column == column]
            lines += ["", _heading(column, shown), ""]
            lines += [_block(entries, shown.kinds, notes), *_verdicts(entries, notes), *_commands(entries, everything)]
        parts.append(
            "\n".join([*lines, *([""] if shown.runs() else []), *_wrapped([*notes.lines(), *_evidence(shown)])])
        )
    return "\n\n\n".join([*parts, "\n".join(_legend(tables))])


def as_markdown(tables: Sequence[Comparison], everything: bool = False) -> str:
    """Methods as rows, pairs as columns; arguments as `as_text`."""
    parts = []
    for shown in tables:
        notes = Notes()
        rows: dict[tuple[str, str], dict[Column, Entry]] = {}
        for entry in shown.entries:
            rows.setdefault((entry.method, _label(entry, notes)), {})[entry.column] = entry
        lines = [f"### {shown.title}", "", *(f"{note}  " for note in shown.notes), *([""] if shown.notes else [])]
        lines.append(_cells(["method", *(_heading(column, shown).replace(" (", "<br>(") for column in shown.columns)]))
        lines.append(_cells(["---"] * (1 + len(shown.columns))))
        for (method, differing), entries in rows.items():
            cells = [_cell(entries.get(column), shown.kinds, notes) for column in shown.columns]
            lines.append(_cells([method + (f"<br>{differing}" if differing else ""), *cells]))
        verdicts = []
        for column in shown.columns:
            found = _sentences([entry for entry in shown.entries if entry.column == column], notes)
            verdicts += [f"- {_heading(column, shown)}: {' '.join(words)}" for words in found]
        lines += ["", *verdicts] if verdicts else []
        lines += ["", *(f"{line}  " for line in [*notes.lines(), *_evidence(shown)])]
        commands = []
        for column in shown.columns:
            commands += _commands([entry for entry in shown.entries if entry.column == column], everything)
        commands = [f"# {line}" if line.startswith("missing") else line.removeprefix("  ") for line in commands if line]
        lines += ["", "```sh", *commands, "```"] if commands else []
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, "\n".join(f"{line}  " for line in _legend(tables))])


def as_csv(tables: Sequence[Comparison]) -> str:
    """One line for each entry, lists as JSON."""
    file = io.StringIO()
    rows = [row for shown in tables for row in _records(shown)]
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["table"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()})
    return file.getvalue().rstrip("\n")


def as_json(tables: Sequence[Comparison]) -> str:
    """A list of entries: 'departures' from published settings, and settings 'differing' from the first entry's."""
    return json.dumps([row for shown in tables for row in _records(shown)], indent=2)


def _wrapped(lines: Sequence[str]) -> list[str]:
    # Paths and settings stay whole.
    wrap = partial(textwrap.wrap, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [part for line in lines for part in wrap(line, WIDTH)]


def _heading(column: Column, shown: Comparison) -> str:
    pair = " -> ".join(filter(None, column[1:]))
    return pair if column.dataset == shown.key else f"{pair} ({column.dataset})"


def _block(entries: Sequence[Entry], kinds: Sequence[str], notes: Notes) -> str:
    header = ["method", "recipe", "last", "best", "runs", "epochs", "paper", "best - paper"]
    rows = []
    for entry in entries:
        ours = [_ours(entry, when, kinds) for when in ("last", "best")]
        recipe = entry.recipe if entry.recipe in RECIPES else ""
        label = f"  {_label(entry, notes)}" if entry.differing else entry.method
        name = [label + _own_choice(entry, notes), "" if entry.differing else recipe]
        trained = [str(len(entry.runs)), str(entry.epochs or EMPTY)]
        rows.append([*name, *ours, *trained, _paper(entry.paper, kinds), _difference(entry, kinds, notes)])
    kind = "top-1 / top-5 %" if "top5" in kinds else "top-1 %" if "top1" in kinds else "mAP %"
    header[2] += f", {kind}"
    if not any(entry.paper for entry in entries):
        header, rows = header[:6], [row[:6] for row in rows]
    return table(header, rows, left=2)


def _sentences(entries: Sequence[Entry], notes: Notes) -> list[tuple[str, str]]:
    """For each comparison, its two methods, and the verdict."""
    found = []
    for entry in entries:
        label = f" ({_label(entry, notes)})" if entry.differing else ""
        for one in entry.compared:
            found.append((f"{entry.method}{label} against {one.name}:", f"{one.verdict}{one.remark}"))
    return found


def _verdicts(entries: Sequence[Entry], notes: Notes) -> list[str]:
    sentences = _sentences(entries, notes)
    width = max((len(who) for who, _ in sentences), default=0)
    indent = " " * min(width + 3, WIDTH // 2)
    wrap = partial(textwrap.wrap, width=WIDTH, initial_indent="  ", subsequent_indent=indent)
    lines = [line for who, verdict in sentences for line in wrap(f"{who.ljust(width)} {verdict}")]
    return ["", "compared within each seed, last epoch, points of top-1:", *lines] if lines else []


def _cell(entry: Entry | None, kinds: Sequence[str], notes: Notes) -> str:
    if entry is None:
        return ""
    ours = EMPTY
    if entry.runs:
        n = len(entry.runs)
        last, best = (_ours(entry, when, kinds) for when in ("last", "best"))
        ours = f"**{last}** last, {best} best, {n} run{'s' * (n > 1)} to epoch {entry.epochs}"
        ours += _own_choice(entry, notes)
    if not entry.paper:
        return ours
    difference = _difference(entry, kinds, notes)
    return f"{ours}<br>paper {_paper(entry.paper, kinds)}" + (f": {difference}" if difference else "")


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _ours(entry: Entry, when: str, kinds: Sequence[str]) -> str:
    found = {kind: entry.ours(when, kind) for kind in kinds}
    # One deviation per cell: more would not be read.
    return " / ".join(_number(n[0], n[1] if k == "top1" else None) for k, n in found.items() if n) or EMPTY


def _paper(number: Number | None, kinds: Sequence[str]) -> str:
    if number is None:
        return ""
    found = [_number(number.top1, number.std), *([f"{number.top5:.2f}"] if "top5" in kinds and number.top5 else [])]
    return " / ".join(found)


def _number(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" + (f" ({std:.2f})" if std is not None else "")


def _difference(entry: Entry, kinds: Sequence[str], notes: Notes) -> str:
    """Ours minus the paper's, or a reference to the remark that explains why there is no difference."""
    if not entry.runs or not entry.paper:
        return ""
    if entry.departures.agreement is Agreement.UNPUBLISHED:
        return notes.mark("not compared: its settings are not published")
    if entry.departures.agreement is Agreement.DIFFERENT:
        return notes.mark(f"not the published settings: {_settings(entry.departures.settings, 'published')}")
    found = [f"{d:+.2f}" for kind in kinds if (d := entry.difference(kind)) is not None]
    return " / ".join(found)


def _own_choice(entry: Entry, notes: Notes) -> str:
    """A reference to the remark on settings without a published value; '' without any."""
    if not entry.departures.own_choice:
        return ""
    chosen = ", ".join(f"{key} {_value(value)}" for key, value in entry.departures.own_choice.items())
    return f" {notes.mark(f'not published for these networks, our choice: {chosen}')}"


def _settings(differing: Mapping[str, tuple[Any, Any]], other: str) -> str:
    found = []
    for key, (here, there) in differing.items():
        found.append(f"{key} {_value(here)}" + (f" ({other}: {_value(there)})" if there is not None else ""))
    return ", ".join(found)


def _value(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) and value else json.dumps(value)


def _label(entry: Entry, notes: Notes) -> str:
    """The settings that differ from the first entry's, shortened; a remark then has all of them."""
    found = [f"{key.removeprefix('training.')} {_value(here)}" for key, (here, _) in entry.differing.items()]
    if len(label := ", ".join(found)) <= LABEL:
        return label
    mark = notes.mark(f"differs from the first row: {_settings(entry.differing, 'there')}")
    for shown in range(len(found) - 1, 0, -1):
        if len(label := ", ".join([*found[:shown], f"{len(found) - shown} more {mark}"])) <= LABEL:
            return label
    return f"{len(found)} other settings {mark}" if len(found) > 1 else f"another {next(iter(entry.differing))} {mark}"


def _commands(entries: Sequence[Entry], everything: bool) -> list[str]:
    """Commands for missing entries; those that differ in the recipe only share one."""
    missing = {entry.recipe: entry.command for entry in entries if entry.command}
    if everything:
        return ["", "missing:", *(f"  {command}" for command in missing.values())] if missing else []
    alike: dict[str, list[str]] = {}
    for recipe, command in missing.items():
        template = re.sub(rf"(\.py:|/seed0/){recipe}(?=[/ ]|$)", r"\1RECIPE", command)
        alike.setdefault(template, []).append(recipe)
    lines = []
    for template, recipes in alike.items():
        many = len(recipes) > 1
        line = template if many else template.replace("RECIPE", recipes[0])
        lines += ["", f"missing; RECIPE is one of {', '.join(recipes)}:" if many else f"missing, {recipes[0]}:"]
        words, line = line.split(" "), " "
        for word in words:
            if len(line) + 1 + len(word) > WIDTH - 2:
                lines.append(f"{line} \\")
                line = "   "
            line += f" {word}"
        lines.append(line)
    return lines


def _legend(tables: Sequence[Comparison]) -> list[str]:
    runs = [run for shown in tables for run in shown.runs()]
    selected = sorted({run.results.selected_by for run in runs}, reverse=True) or ["top-1 on test"]
    lines = [
        f"last: after the last epoch; best: at the best epoch of a run, selected by {' or by '.join(selected)}.",
    ]
    has_paper = any(entry.paper for shown in tables for entry in shown.entries)
    lines.append(f"{'Ours: mean' if has_paper else 'Mean'} (standard deviation) over runs, one per seed.")
    if has_paper:
        lines.append("The paper's: at the best epoch, so compared with our best; on CIFAR-100 the mean of 3 runs.")
    return lines


def _evidence(shown: Comparison) -> list[str]:
    runs = shown.runs()
    if not runs:
        return []

    versions = []
    for package in ("hsakd_jax", "jax", "flax"):
        if found := {run.results.versions[package] for run in runs if run.results.versions.get(package)}:
            versions.append(f"{package} {' or '.join(sorted(found))}")
    epochs = sorted({run.epochs for run in runs})
    line = [
        f"{len(runs)} run{'s' * (len(runs) > 1)} of {' or '.join(map(str, epochs))} epochs",
        ", ".join(versions),
        " or ".join(sorted({run.results.device for run in runs})),
    ]
    lines = [f"evidence: {'; '.join(part for part in line if part)}"]
    if shown.repeated:
        paths = ", ".join(str(run.path) for run in shown.repeated)
        lines.append(f"left out, since another run has the same seed and settings: {paths}")
    return lines


def _records(shown: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "table": shown.key,
            "method": entry.method,
            "recipe": entry.recipe,
            "dataset": entry.column.dataset,
            "teacher": entry.column.teacher or "",
            "student": entry.column.student,
            "differing": {key: here for key, (here, _) in entry.differing.items()},
            "runs": [str(run.path) for run in entry.runs],
            "seeds": [run.seeds[0] for run in entry.runs],
            "epochs": entry.epochs,
            **_accuracies(entry),
            "paper_top1": entry.paper and entry.paper.top1,
            "paper_top1_std": entry.paper and entry.paper.std,
            "paper_top5": entry.paper and entry.paper.top5,
            "difference_top1": entry.difference(),
            "difference_top5": entry.difference("top5"),
            "compared": {one.reference: one.verdict._asdict() | {"differing": one.differing} for one in entry.compared},
            "departures": _departures(entry),
            "own_choice": dict(entry.departures.own_choice),
            "command": entry.command or "",
        }
        for entry in shown.entries
    ]


def _accuracies(entry: Entry) -> dict[str, float | None]:
    """'last_top1', its standard deviation 'last_top1_std', and the same of 'best' and 'top5'."""
    found = {}
    for when in ("last", "best"):
        for kind in ("top1", "top5"):
            found[f"{when}_{kind}"], found[f"{when}_{kind}_std"] = entry.ours(when, kind) or (None, None)
    return found


def _departures(entry: Entry) -> dict[str, dict[str, Any]] | None:
    if entry.departures.agreement is Agreement.UNPUBLISHED:
        return None
    return {key: {"here": ours, "published": paper} for key, (ours, paper) in entry.departures.settings.items()}
