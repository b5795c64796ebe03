"""The part of the page about what runs reached and how they got there: figures with their captions.

Each function gives the lines of its HTML, of groups of runs; `records` are the lines of metrics.jsonl by run.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsakd_jax.analysis import plots
from hsakd_jax.analysis.grouping import Group, is_alone
from hsakd_jax.analysis.html import Album, paragraph
from hsakd_jax.evaluation.accuracies import mean

if TYPE_CHECKING:
    from hsakd_jax.analysis.run_index import Run

COLOURS = ("c2", "c3", "c4", "c5", "c7")  # of terms
Records = Mapping[Path, list[dict[str, Any]]]
BOOKKEEPING = {"step", "epoch", "loss", "grad_norm", "top1", "lr", "images_per_s"}
TERMS = {
    "task": "cross-entropy with the labels",
    "joint": "cross-entropy of the branches with the class and the rotation",
    "kl": "distance from the teacher's classes",
    "kl_aux": "distance of the branches from the teacher's branches",
    "kl_final": "distance from the teacher's classes, in all rotations",
}


def results(groups: Sequence[Group], album: Album) -> list[str]:
    """Teacher, student alone and students side by side."""
    if len(groups) < 2:
        return []
    rows = []
    for g in groups:
        last = g.accuracies("last")
        gain = f" ({statistics.mean(g.gains):+.2f})" if g.gains and not is_alone(g) else ""
        rows.append(
            plots.Row(
                g.label,
                g.colour,
                statistics.mean(last),
                f"{statistics.mean(last):.2f}{gain}",
                statistics.stdev(last) if len(last) > 1 else None,
                statistics.mean(g.accuracies("best")),
            )
        )
    caption = "Dot: last epoch. Ring: best epoch. In brackets: points gained over the student alone."
    if any(len(g.runs) > 1 for g in groups):
        caption += " Whisker: one standard deviation over seeds."
    return album.figure(
        "results",
        "Teacher, student alone, students",
        caption,
        plots.dots(rows, "top-1 on test images, %"),
    )


def accuracy(groups: Sequence[Group], records: Records, album: Album) -> list[str]:
    """Accuracy over time, last and best marked."""
    lines, splits = [], set()
    for g in groups:
        tests = [[e for e in records[run.path] if "score" in e] for run in g.runs]
        curve = _curve(g, tests, _top1)
        if curve:
            splits |= {str(e.get("split", "test")) for entries in tests for e in entries}
            rings = [_best(entries) for entries in tests if entries]
            lines.append(curve._replace(rings=[(e["epoch"], _top1(e)) for e in rings]))
    if not lines:
        return [paragraph("Accuracy over time is not shown: no metrics.jsonl holds an evaluation.", "soft")]
    band = " Band: one standard deviation over seeds." if any(len(c.spread) for c in lines) else ""
    each = " of each seed" if band else ""
    caption = f"Dot: last epoch. Ring: best epoch{each}.{band}"
    return album.figure(
        "accuracy",
        "Accuracy over time",
        caption,
        plots.curves([("", lines)], "epoch", f"top-1 on {' or '.join(sorted(splits))} images, %"),
    )


def branches(groups: Sequence[Group], album: Album) -> list[str]:
    """What each branch knows after the last epoch."""
    panels = []
    for kind in ("joint", "class"):
        lines = []
        for g in groups:
            levels = [l for l in range(1, 10) if all(_branch(run, kind, l) is not None for run in g.runs)]
            values = [[_branch(run, kind, l) or 0.0 for run in g.runs] for l in levels]
            if levels:
                means = [statistics.mean(v) for v in values]
                spread = [statistics.stdev(v) for v in values] if len(g.runs) > 1 else ()
                lines.append(plots.Curve(g.label, g.colour, levels, means, spread))
        if lines:
            panels.append(({"joint": "class and rotation (joint)", "class": "class"}[kind], lines))
    if not panels:
        return [paragraph("Branches are not shown: no run was trained with any.", "soft")]
    caption = (
        "Last epoch, over all four rotations of each test image; branch l sits behind stage l of the network. "
        "Left: the likeliest pair of class and rotation is right. Right: the class is, after the logits of its "
        "four rotations are summed, which is the reference's measure and may lie below."
    )
    return album.figure(
        "branches",
        "What the branches know",
        caption,
        plots.curves(panels, "branch", "right, %", columns=2),
    )


def losses(groups: Sequence[Group], records: Records, album: Album) -> list[str]:
    """The terms of the loss over time."""
    panels, colours = [], {}
    for g in groups:
        logs = [[e for e in records[run.path] if "loss" in e] for run in g.runs]
        names = list(dict.fromkeys(k for log in logs for e in log for k in e if k not in BOOKKEEPING))
        lines = []
        # A term has one colour in all panels, none that stands for a run elsewhere, and in a panel its own.
        for name in names:
            here, used = {colours.get(other) for other in names}, list(colours.values())
            colours.setdefault(name, min(COLOURS, key=lambda colour: (colour in here, used.count(colour))))
        for name, colour in [("loss", "ink"), *((name, colours[name]) for name in names)]:
            curve = _curve(g, logs, lambda e, name=name: e.get(name))
            if curve and not (name == "loss" and len(names) == 1):
                lines.append(curve._replace(label="sum" if name == "loss" else name, colour=colour))
        if lines:
            panels.append((g.label, lines))
    if not panels:
        return [paragraph("Losses are not shown: no metrics.jsonl holds a line of training.", "soft")]
    known = [f"{name}: {TERMS[name]}" for name in colours if name in TERMS]
    caption = f"{'; '.join(known)}. " if known else ""
    caption += "Means between two lines of the log, each term before its weight; sum: with the weights."
    columns = min(2, len(panels))
    return album.figure("losses", "Loss terms", caption, plots.curves(panels, "epoch", "loss", columns, zero=True))


def pace(groups: Sequence[Group], records: Records, album: Album) -> list[str]:
    """Learning rate and throughput."""
    found: list[plots.Curve] = []
    named: list[list[str]] = []
    for g in groups:
        logs = [[e for e in records[run.path] if "lr" in e] for run in g.runs[:1]]
        curve = _curve(g, logs, lambda e: e["lr"])
        if curve is None:
            continue
        for other, labels in zip(found, named, strict=True):
            if (other.x, other.y) == (curve.x, curve.y):  # one line over another would hide it
                labels.append(g.label)
                break
        else:
            found.append(curve)
            named.append([g.label])
    labels = [", ".join(some) if len(some) < 3 else f"{len(some)} of the runs" for some in named]
    labels = ["all runs"] if len(found) == 1 else labels
    lines = []
    if found:
        found = [curve._replace(label=label) for curve, label in zip(found, labels, strict=True)]
        lines += album.figure(
            "schedule",
            "Learning rate",
            "",
            plots.curves([("", found)], "epoch", "learning rate", height=2.5, zero=True),
        )
    flow = [_curve(g, [records[r.path] for r in g.runs], lambda e: e.get("images_per_s")) for g in groups]
    if flow := [curve for curve in flow if curve]:
        log = max(max(curve.y) for curve in flow) > 5 * min(min(curve.y) for curve in flow)
        lines += album.figure(
            "throughput",
            "Throughput over time",
            "Between two lines of the log, without evaluation.",
            plots.curves([("", flow)], "epoch", "training images/s", 1, 2.5, zero=not log, log=log),
        )
    rates = [(g, [r.results["images_per_s"] for r in g.runs if r.results.get("images_per_s")]) for g in groups]
    rows = [plots.Row(g.label, g.colour, statistics.mean(r), f"{statistics.mean(r):,.0f}") for g, r in rates if r]
    if rows:
        devices = " or ".join(
            sorted({str(r.results.get("device")) for g in groups for r in g.runs if "device" in r.results})
        )
        caption = f"Median over the run, without evaluation{f', on {devices}' if devices else ''}. "
        caption += "Runs with branches see each image in four rotations, and students ask their teacher too."
        lines += album.figure("speed", "Speed of training", caption, plots.bars(rows, "training images a second"))
    return lines


def _curve(one: Group, logs: list[list[dict[str, Any]]], read: Callable[[dict], float | None]) -> plots.Curve | None:
    """Mean and deviation where all runs that have a log have a value; None where there is none."""
    series = [{e["epoch"]: value for e in log if (value := read(e)) is not None} for log in logs if log]
    common = sorted(set.intersection(*map(set, series))) if series else []
    if not common:
        return None
    values = [[values[x] for values in series] for x in common]
    spread = [statistics.stdev(v) for v in values] if len(series) > 1 else ()
    return plots.Curve(one.label, one.colour, common, [statistics.mean(v) for v in values], spread)


def _top1(entry: dict[str, Any]) -> float | None:
    return mean(entry, "top1")


def _best(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return max(entries, key=lambda e: (e["score"], e["step"]))


def _branch(run: "Run", kind: str, l: int) -> float | None:
    return mean(run.results["last"], f"{kind}_{l}")
