"""Tables of results as text for 120 columns, as Markdown, as CSV and as JSON."""

import csv
import io
import json
import re
import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Any

from hsakd_jax.analysis.paper import Column, Number
from hsakd_jax.analysis.tables import Comparison, Entry
from hsakd_jax.core.console import table
from hsakd_jax.experiments.recipes import RECIPES

WIDTH = 120
EMPTY = "-"
APART = 27  # characters of the settings by which a row stands apart


class Notes:
    """Remarks below a table, each with the number by which a cell refers to it."""

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
      tables: what to show.
      everything: whether each missing entry has a command of its own, instead of one for those alike.
    """
    parts = []
    for shown in tables:
        lines = [shown.title, "=" * len(shown.title), *_wrapped(shown.notes)]
        notes = Notes()
        for column in shown.columns:
            entries = [entry for entry in shown.entries if entry.column == column]
            lines += ["", _heading(column, shown), ""]
            lines += [_block(entries, shown.kinds, notes), *_commands(entries, everything)]
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
            rows.setdefault((entry.method, _apart(entry, notes)), {})[entry.column] = entry
        lines = [f"### {shown.title}", "", *(f"{note}  " for note in shown.notes), *([""] if shown.notes else [])]
        lines.append(_cells(["method", *(_heading(column, shown).replace(" (", "<br>(") for column in shown.columns)]))
        lines.append(_cells(["---"] * (1 + len(shown.columns))))
        for (method, apart), entries in rows.items():
            cells = [_cell(entries.get(column), shown.kinds, notes) for column in shown.columns]
            lines.append(_cells([method + (f"<br>{apart}" if apart else ""), *cells]))
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
    """A list of entries; 'departures' are from the paper's settings, 'apart' from those of the row's first entry."""
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
        recipe = entry.row if entry.row in RECIPES else ""
        name = [f"  {_apart(entry, notes)}", ""] if entry.apart else [entry.method, recipe]
        trained = [str(len(entry.runs)), str(entry.epochs or EMPTY)]
        rows.append([*name, *ours, *trained, _paper(entry.paper, kinds), _difference(entry, kinds, notes)])
    kind = "top-1 / top-5 %" if "top5" in kinds else "top-1 %" if "top1" in kinds else "mAP %"
    header[2] += f", {kind}"
    if not any(entry.paper for entry in entries):
        header, rows = header[:6], [row[:6] for row in rows]
    return table(header, rows, left=2)


def _cell(entry: Entry | None, kinds: Sequence[str], notes: Notes) -> str:
    if entry is None:
        return ""
    ours = EMPTY
    if entry.runs:
        n = len(entry.runs)
        last, best = (_ours(entry, when, kinds) for when in ("last", "best"))
        ours = f"**{last}** last, {best} best, {n} run{'s' * (n > 1)} to epoch {entry.epochs}"
    if not entry.paper:
        return ours
    difference = _difference(entry, kinds, notes)
    return f"{ours}<br>paper {_paper(entry.paper, kinds)}" + (f": {difference}" if difference else "")


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _ours(entry: Entry, when: str, kinds: Sequence[str]) -> str:
    found = {kind: entry.ours(when, kind) for kind in kinds}
    # One deviation a cell: more would not be read.
    return " / ".join(_number(n[0], n[1] if k == "top1" else None) for k, n in found.items() if n) or EMPTY


def _paper(number: Number | None, kinds: Sequence[str]) -> str:
    if number is None:
        return ""
    found = [_number(number.top1, number.std), *([f"{number.top5:.2f}"] if "top5" in kinds and number.top5 else [])]
    return " / ".join(found)


def _number(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" + (f" ({std:.2f})" if std is not None else "")


def _difference(entry: Entry, kinds: Sequence[str], notes: Notes) -> str:
    """Ours minus the paper's, or the number of the remark that says why there is none."""
    if not entry.runs or not entry.paper:
        return ""
    if entry.departures is None:
        return notes.mark("not compared: the paper does not give its settings")
    if entry.departures:
        return notes.mark(f"not the paper's settings: {_settings(entry.departures, 'paper')}")
    found = [f"{d:+.2f}" for kind in kinds if (d := entry.difference(kind)) is not None]
    return " / ".join(found)


def _settings(differing: dict[str, tuple[Any, Any]], other: str) -> str:
    beside = {key: f" ({other}: {_value(there)})" if there is not None else "" for key, (_, there) in differing.items()}
    return ", ".join(f"{key} {_value(here)}{beside[key]}" for key, (here, _) in differing.items())


def _value(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) and value else json.dumps(value)


def _apart(entry: Entry, notes: Notes) -> str:
    """The settings by which an entry stands apart, in few words; if these are not all, a remark has them."""
    found = [f"{key.removeprefix('train.')} {_value(here)}" for key, (here, _) in entry.apart.items()]
    if len(label := ", ".join(found)) <= APART:
        return label
    mark = notes.mark(f"apart from the first row: {_settings(entry.apart, 'there')}")
    for shown in range(len(found) - 1, 0, -1):
        if len(label := ", ".join([*found[:shown], f"{len(found) - shown} more {mark}"])) <= APART:
            return label
    return f"{len(found)} other settings {mark}" if len(found) > 1 else f"another {next(iter(entry.apart))} {mark}"


def _commands(entries: Sequence[Entry], everything: bool) -> list[str]:
    """How missing entries are filled; those whose commands differ by the recipe's name only share one."""
    missing = [entry for entry in entries if entry.command]
    if everything:
        return ["", "missing:", *(f"  {entry.command}" for entry in missing)] if missing else []
    alike: dict[str, list[str]] = {}
    for entry in missing:
        template = re.sub(rf"(\.py:|/seed0/){entry.row}(?=[/ ]|$)", r"\1RECIPE", entry.command)
        alike.setdefault(template, []).append(entry.row)
    lines = []
    for template, rows in alike.items():
        many = len(rows) > 1
        line = template if many else template.replace("RECIPE", rows[0])
        lines += ["", f"missing; RECIPE is one of {', '.join(rows)}:" if many else f"missing, {rows[0]}:"]
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
    chosen = sorted({run.results["best"].get("chosen_by", "?") for run in runs}, reverse=True) or ["top-1 on test"]
    lines = [
        f"last: after the last epoch; best: at the epoch chosen by {' or by '.join(chosen)}.",
        "Ours: mean (standard deviation) over runs, one a seed.",
    ]
    if any(entry.paper for shown in tables for entry in shown.entries):
        lines.append("The paper's: at the best epoch, hence compared with our best; on CIFAR-100 the mean of 3 runs.")
    return lines


def _evidence(shown: Comparison) -> list[str]:
    runs = shown.runs()
    if not runs:
        return []

    def words(found):
        return " or ".join(sorted({str(word) for word in found if word}))

    packages = ("hsakd_jax", "jax", "flax")
    versions = [
        f"{package} {found}"
        for package in packages
        if (found := words(run.results.get("versions", {}).get(package) for run in runs))
    ]
    epochs = sorted({run.results["last"]["epoch"] for run in runs})
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    line = [
        f"{count} of {' or '.join(map(str, epochs))} epochs",
        ", ".join(versions),
        words(run.results.get("device") for run in runs),
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
            "recipe": entry.row,
            "dataset": entry.column.dataset,
            "teacher": entry.column.teacher,
            "student": entry.column.student,
            "apart": {key: here for key, (here, _) in entry.apart.items()},
            "runs": [str(run.path) for run in entry.runs],
            "seeds": [run.seeds[0] for run in entry.runs],
            "epochs": entry.epochs,
            **{
                f"{when}_{kind}{suffix}": (entry.ours(when, kind) or (None, None))[i]
                for when in ("last", "best")
                for kind in ("top1", "top5")
                for i, suffix in enumerate(("", "_std"))
            },
            "paper_top1": entry.paper and entry.paper.top1,
            "paper_top1_std": entry.paper and entry.paper.std,
            "paper_top5": entry.paper and entry.paper.top5,
            "difference_top1": entry.difference(),
            "difference_top5": entry.difference("top5"),
            "departures": None
            if entry.departures is None
            else {key: {"here": ours, "paper": paper} for key, (ours, paper) in entry.departures.items()},
            "command": entry.command,
        }
        for entry in shown.entries
    ]
