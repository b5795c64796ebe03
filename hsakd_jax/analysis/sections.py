"""Sections of the report about groups of runs: their results and the course of training, as figures with captions."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from hsakd_jax.analysis import plots
from hsakd_jax.analysis.grouping import Group
from hsakd_jax.evaluation.accuracies import mean
from hsakd_jax.runs.metrics_log import Record

COLOURS = ("c2", "c3", "c4", "c5", "c7")  # of terms
NOT_TERMS = {"loss", "grad_norm", "top1", "lr", "images_per_s"}
TERMS = {
    "task": "cross-entropy with the labels",
    "joint": "cross-entropy of the branches with the joint labels of class and rotation",
    "kl": "divergence from the teacher's class probabilities",
    "kl_aux": "divergence of the branches from the teacher's branches",
    "kl_final": "divergence from the teacher's class probabilities, in all rotations",
}
Records = Mapping[Path, Sequence[Record]]  # the lines of metrics.jsonl, by run


class Card(NamedTuple):
    """An image of the page, with lines of text below it.

    Attributes:
      png: the file.
      description: for readers who can't see it.
      lines: of text.
    """

    png: bytes
    description: str
    lines: Sequence[str]


class Section(NamedTuple):
    """A section of the page.

    Attributes:
      title: its heading; None for a remark without a heading.
      text: the remark, or a caption; None without one.
      name: of its figure, unique in its dataset; None without a figure.
      figure: shown in the page, unless there are cards.
      cards: shown in the place of the figure, which is then only for export.
      level: of the heading, 2 or 3.
    """

    title: str | None
    text: str | None
    name: str | None = None
    figure: Figure | None = None
    cards: Sequence[Card] = ()
    level: int = 2


def results(groups: Sequence[Group]) -> list[Section]:
    """The accuracies of all groups."""
    if len(groups) < 2:
        return []
    rows = []
    for g in groups:
        last = g.top1("last")
        difference = g.with_baseline.verdict.difference if g.with_baseline else None
        gain = "" if difference is None else f" ({difference:+.2f})"
        rows.append(
            plots.Row(
                g.label,
                g.colour,
                value=statistics.mean(last),
                note=f"{statistics.mean(last):.2f}{gain}",
                spread=statistics.stdev(last) if len(last) > 1 else None,
                ring=statistics.mean(g.top1("best")),
            )
        )
    caption = "Dot: last epoch. Ring: best epoch. In brackets: points over the baseline within each seed."
    if any(len(g.runs) > 1 for g in groups):
        caption += " Whisker: one standard deviation over seeds."
    return [Section("Results", caption, name="results", figure=plots.dots(rows, "top-1 on test images, %"))]


def accuracy(groups: Sequence[Group], records: Records) -> list[Section]:
    """Accuracy over time, with the last and the best epoch marked."""
    lines, splits = [], set()
    for g in groups:
        tests = [[r for r in records[run.path] if r.score is not None] for run in g.runs]
        if curve := _curve(g, tests, _top1):
            splits |= {str(r.split) for log in tests for r in log}
            best = [max(log, key=lambda r: (r.score or 0.0, r.step)) for log in tests if log]
            lines.append(curve._replace(rings=[(r.epoch, _top1(r)) for r in best]))
    if not lines:
        return [Section(None, "Accuracy over time is not shown: no metrics.jsonl contains an evaluation.")]
    band = " Band: one standard deviation over seeds." if any(len(c.spread) for c in lines) else ""
    caption = f"Dot: last epoch. Ring: best epoch{' of each seed' if band else ''}.{band}"
    figure = plots.curves([("", lines)], "epoch", f"top-1 on {' or '.join(sorted(splits))} images, %")
    return [Section("Accuracy over time", caption, name="accuracy", figure=figure)]


def branches(groups: Sequence[Group]) -> list[Section]:
    """The accuracy of each branch after the last epoch."""
    panels = []
    for kind, title in (("joint", "class and rotation (joint)"), ("class", "class")):
        lines = []
        for g in groups:
            found = {l: [run.accuracy("last", f"{kind}_{l}") for run in g.runs] for l in range(1, 10)}
            values = {l: [v for v in row if v is not None] for l, row in found.items() if None not in row}
            if values:
                means = [statistics.mean(row) for row in values.values()]
                spread = [statistics.stdev(row) for row in values.values()] if len(g.runs) > 1 else ()
                lines.append(plots.Curve(g.label, g.colour, x=list(values), y=means, spread=spread))
        if lines:
            panels.append((title, lines))
    if not panels:
        return [Section(None, "Branches are not shown: no run has any.")]
    caption = (
        "Last epoch, over all four rotations of each test image; branch l follows stage l of the network. Left: the "
        "likeliest pair of class and rotation is correct. Right: the class is correct after the logits of its four "
        "rotations are summed. This is the reference's measure, and can be lower."
    )
    figure = plots.curves(panels, "branch", "accuracy, %", columns=2)
    return [Section("Accuracy of the branches", caption, name="branches", figure=figure)]


def losses(groups: Sequence[Group], records: Records) -> list[Section]:
    """The terms of the loss over time."""
    panels = []
    colours: dict[str, str] = {}
    for g in groups:
        logs = [[r for r in records[run.path] if "loss" in r.values] for run in g.runs]
        names = list(dict.fromkeys(name for log in logs for r in log for name in r.values if name not in NOT_TERMS))
        lines = []
        # A term has one colour in all panels, none of a run in other figures, and in a panel its own.
        for name in names:
            here, used = {colours.get(other) for other in names}, list(colours.values())
            colours.setdefault(name, min(COLOURS, key=lambda colour: (colour in here, used.count(colour))))
        for name, colour in [("loss", "ink"), *((name, colours[name]) for name in names)]:
            curve = _curve(g, logs, lambda r, name=name: r.values.get(name))
            if curve and not (name == "loss" and len(names) == 1):
                lines.append(curve._replace(label="sum" if name == "loss" else name, colour=colour))
        if lines:
            panels.append((g.label, lines))
    if not panels:
        return [Section(None, "Losses are not shown: no metrics.jsonl contains a record of training.")]
    known = [f"{name}: {TERMS[name]}" for name in colours if name in TERMS]
    caption = f"{'; '.join(known)}. " if known else ""
    caption += "Means between two records, each term before its weight; sum: the weighted sum."
    figure = plots.curves(panels, "epoch", "loss", columns=min(2, len(panels)), zero=True)
    return [Section("Loss terms", caption, name="losses", figure=figure)]


def schedule(groups: Sequence[Group], records: Records) -> list[Section]:
    """Learning rates; groups with the same one share a line, since one line would hide the other."""
    shared: dict[tuple, tuple[plots.Curve, list[str]]] = {}
    for g in groups:
        logs = [[r for r in records[run.path] if "lr" in r.values] for run in g.runs[:1]]
        if curve := _curve(g, logs, lambda r: r.values["lr"]):
            shared.setdefault((tuple(curve.x), tuple(curve.y)), (curve, []))[1].append(g.label)
    if not shared:
        return []
    lines = []
    for curve, labels in shared.values():
        label = ", ".join(labels) if len(labels) < 3 else f"{len(labels)} of the runs"
        lines.append(curve._replace(label="all runs" if len(shared) == 1 else label))
    figure = plots.curves([("", lines)], "epoch", "learning rate", height=2.5, zero=True)
    return [Section("Learning rate", None, name="schedule", figure=figure)]


def throughput(groups: Sequence[Group], records: Records) -> list[Section]:
    """Training images per second, over time and in the median."""
    sections = []
    flow = [_curve(g, [records[r.path] for r in g.runs], lambda e: e.values.get("images_per_s")) for g in groups]
    if lines := [curve for curve in flow if curve]:
        log = max(max(curve.y) for curve in lines) > 5 * min(min(curve.y) for curve in lines)
        figure = plots.curves([("", lines)], "epoch", "training images/s", height=2.5, zero=not log, log=log)
        caption = "Between two records, without evaluation."
        sections.append(Section("Throughput over time", caption, name="throughput", figure=figure))
    rows = []
    for g in groups:
        if rates := [r.results.images_per_s for r in g.runs if r.results.images_per_s]:
            rows.append(
                plots.Row(g.label, g.colour, value=statistics.mean(rates), note=f"{statistics.mean(rates):,.0f}")
            )
    if rows:
        devices = " or ".join(sorted({run.results.device for g in groups for run in g.runs}))
        caption = (
            f"Median over the run, without evaluation, on {devices}. Runs with branches use each image in four "
            "rotations, and students evaluate their teacher too."
        )
        sections.append(
            Section("Training throughput", caption, name="speed", figure=plots.bars(rows, "training images/s"))
        )
    return sections


def _curve(one: Group, logs: Sequence[Sequence[Record]], read: Callable[[Record], float | None]) -> plots.Curve | None:
    """Mean and deviation at the epochs that all logs share; empty logs are left out. None without a value."""
    series = [{r.epoch: value for r in log if (value := read(r)) is not None} for log in logs if log]
    epochs = sorted(set.intersection(*map(set, series))) if series else []
    if not epochs:
        return None
    values = [[found[epoch] for found in series] for epoch in epochs]
    spread = [statistics.stdev(v) for v in values] if len(series) > 1 else ()
    return plots.Curve(one.label, one.colour, x=epochs, y=[statistics.mean(v) for v in values], spread=spread)


def _top1(record: Record) -> float | None:
    return mean(record.values, "top1")
