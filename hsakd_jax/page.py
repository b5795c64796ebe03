"""The page that `report` writes: sections of HTML around figures, for the runs of each dataset."""

import re
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsakd_jax.accuracies import mean
from hsakd_jax.groups import Group, group, is_alone, is_student, repeat, subject_of, title_of, words_of
from hsakd_jax.markup import Album, document, escape, paragraph

if TYPE_CHECKING:
    from hsakd_jax.collected import Run

MISTAKES = 24  # that are shown
BOOKKEEPING = {"step", "epoch", "loss", "grad_norm", "top1", "lr", "images_per_s"}
TERMS = {
    "task": "cross-entropy with the labels",
    "joint": "cross-entropy of the branches with the class and the rotation",
    "kl": "distance from the teacher's classes",
    "kl_aux": "distance of the branches from the teacher's branches",
    "kl_final": "distance from the teacher's classes, in all rotations",
}


def make(
    runs: "Sequence[Run]", unfinished: Sequence[Path] = (), data_dir: str | None = None, classes: str = ""
) -> tuple[str, dict[str, Callable[[], bytes]]]:
    """The page, and what draws each of its figures as PNG, by name.

    Args:
      runs: finished ones.
      unfinished: directories that are named, no more.
      data_dir: where the test images lie now; None for where the runs found them.
      classes: a file of their names, one a line; '' for the names that the runs know.

    Raises:
      UserError: there is no such file, it names more or fewer classes or those of several datasets, or a run can't be
        read.
    """
    from hsakd_jax.errors import UserError

    pictures: dict[str, Callable[[], bytes]] = {}
    datasets: dict[tuple[str, str], list[Run]] = {}
    for run in runs:  # folders of images have one name, whatever they hold
        datasets.setdefault((run.dataset, run.settings["classes"]), []).append(run)
    if classes and len(datasets) > 1:
        names = ", ".join(dict.fromkeys(name for name, _ in datasets))
        raise UserError(f"--classes names those of one dataset, and the runs have several ({names}): choose among them")
    parts = [_Part(members, pictures, len(datasets) > 1, classes) for members in datasets.values()]
    body = [line for part in parts for line in part.lines(data_dir)]
    if unfinished:
        body.append(paragraph(f"Not finished, and not shown: {', '.join(map(str, unfinished))}.", "soft"))
    title = f"hsakd_jax: {', '.join(dict.fromkeys(name for name, _ in datasets))}"
    return document(title, body), pictures


class _Part:
    """The runs of one dataset."""

    def __init__(self, runs: "list[Run]", pictures: dict[str, Callable[[], bytes]], several: bool, classes: str):
        from hsakd_jax.files import read_names
        from hsakd_jax.rundir import RunDirectory

        self.dataset = runs[0].dataset
        prefix = f"{''.join(c if c.isalnum() else '_' for c in self.dataset)}-" if several else ""
        self.album = Album(pictures, prefix)
        self.groups, self.repeated = group(runs)
        self.runs = [run for run in runs if run not in self.repeated]
        self.configs = {run.path: RunDirectory(run.path).config() for run in self.runs}
        self.records = {run.path: _records(run.path) for run in self.runs}
        # One that ends early would end the mean of all seeds.
        self.cut = [run.path for run in self.runs if _ends_early(run, self.records[run.path])]
        self.records |= {path: [] for path in self.cut}
        self.subject = subject_of(self.groups)
        config = self.configs[self.subject.runs[0].path]
        self.names = list(map(str, config["classes"]))
        if classes:
            self.names = read_names(classes, config["network"]["num_classes"])

    def lines(self, data_dir: str | None) -> list[str]:
        """The lines of its HTML."""
        return [
            f"<h1>{escape(self._headline()).replace('top-1', '<span>top-1</span>')}</h1>",
            *self._setting(),
            *self._results(),
            *self._predictions(data_dir),
            *self._accuracy(),
            *self._branches(),
            *self._losses(),
            *self._pace(),
            *self._evidence(),
        ]

    def _headline(self) -> str:
        subject = self.subject
        run, reached = subject.runs[0], statistics.mean(subject.accuracies("last"))
        line = f"{subject.label}: {run.student} reaches {reached:.2f}\N{NO-BREAK SPACE}% top-1 on {self.dataset}"
        if subject.gains and not is_alone(subject):
            change = statistics.mean(subject.gains)
            apart = (
                f"{abs(change):.2f} points {'more' if change > 0 else 'less'} than"
                if round(change, 2)
                else "no more than"
            )
            line += f", {apart} alone"
            line += " (may be chance)" if abs(change) < _chance(subject) else ""
        taught = [top1 for r in subject.runs if (top1 := self._teachers_top1(r)) is not None]
        if len(taught) == len(subject.runs):
            gap = statistics.mean(taught) - reached
            apart = f"{abs(gap):.2f} {'below' if gap > 0 else 'above'}" if round(gap, 2) else "level with"
            line += f", {apart} its teacher {run.teacher}"
        return line + (f" (mean of {len(subject.runs)} seeds)" if len(subject.runs) > 1 else "")

    def _teachers_top1(self, run: "Run") -> float | None:
        from hsakd_jax.rundir import beside

        given = self.configs[run.path].get("teacher") or {}
        where = beside(run.path, given["workdir"]).resolve() if given else None
        there = next((other.results for other in self.runs if other.path.resolve() == where), None)
        told = (there or {}).get(given.get("checkpoint", "last"))
        told = told or (run.results.get("teacher") or {}).get("last") or {}
        return told.get(f"peer{given.get('peer', 1)}/top1", _top1(told))

    def _setting(self) -> list[str]:
        networks = [self.configs[run.path]["network"] for run in self.runs]
        shapes = dict.fromkeys("x".join(map(str, network["image_shape"])) for network in networks)
        trained = sorted({r.results["train_images"] for r in self.runs if "train_images" in r.results})
        words = f"{len(self.runs)} {'run' if len(self.runs) == 1 else 'runs'} on {self.dataset}: "
        words += f"{' or '.join(f'{n:,}' for n in trained)} training images, " if trained else ""
        images = self.subject.runs[0].results.get("test_images")
        words += f"{images:,} test images, " if images else ""
        words += f"{networks[0]['num_classes']} classes, images of {' or '.join(shapes)}. "
        done: dict[str, list[str]] = {}
        for g in self.groups:
            titles = done.setdefault(words_of(g.runs[0].recipe), [])
            titles += [title for title in [title_of(g.runs[0].recipe)] if title not in titles]
        # Titles may hold commas.
        bold = {what: ", ".join(f"<b>{escape(title)}</b>" for title in titles) for what, titles in done.items()}
        said = [f"{titles} {what}" for what, titles in bold.items() if what]
        chosen = {str(r.results["best"].get("chosen_by", "?")) for r in self.runs}
        notes = "Top-1: share of the test images that are named right, in %, after the last epoch and after the best "
        notes += f"one, chosen by {' or '.join(sorted(chosen))}. Sizes are those of what is deployed"
        notes += ", of several networks the first one's." if any(network.get("peers") for network in networks) else "."
        if any(len(g.runs) > 1 for g in self.groups):
            notes += " Of several seeds: mean (standard deviation)"
            pairs = [pair for g in self.groups for pair in g.pairs]
            within = all(run.seeds[0] == alone.seeds[0] for run, alone in pairs)
            notes += "; a gain compares within each." if pairs and within else "."
        elif chance := _chance(self.subject) if len(self.groups) > 1 else 0:
            notes += f" Differences below {chance:.1f} points may be chance: one seed, {images:,} test images."
        lines = [f"<p>{escape(words)}{'; '.join(said)}.</p>", self._table(), paragraph(notes, "soft")]
        for paths, why in (
            ([run.path for run in self.repeated], "Left out, since another run has the same seed and settings"),
            (self.cut, "Not shown over time, since metrics.jsonl ends before the run did"),
        ):
            lines += [paragraph(f"{why}: {', '.join(map(str, paths))}.", "soft")] if paths else []
        return lines

    def _table(self) -> str:
        rows = []
        for g in self.groups:
            run, train = g.runs[0], self.configs[g.runs[0].path]["train"]
            label, top1 = escape(g.label), _mean(g.accuracies("last"))
            if g is self.subject:
                label, top1 = f"<b>{label}</b>", f"<b>{top1}</b>"
            rows.append(
                [
                    f'<span style="color: var(--{g.colour})">&#9679;</span> {label}',
                    top1,
                    _mean(g.accuracies("best")),
                    _mean(g.gains, "+") if g.gains and not is_alone(g) else "",
                    escape(run.results.get("arch") or run.student),
                    escape(run.teacher),
                    escape(", ".join(str(r.seeds[0]) for r in g.runs)),
                    escape(train.get("epochs", "")),
                    _count(run, "parameters"),
                    _count(run, "multiply_adds"),
                ]
            )
        header = ["run", "top-1 last", "best", "gain", "network", "taught by", "seed", "epochs", "parameters"]
        header += ["multiply-adds"]
        kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
        left = {4, 5}

        def cells(tag, row):
            return "".join(f"<{tag}{' class=left' if i in left else ''}>{row[i]}</{tag}>" for i in kept)

        lines = [f"<tr>{cells('td', row)}</tr>" for row in rows]
        table = f"<table>\n<tr>{cells('th', header)}</tr>\n" + "\n".join(lines) + "\n</table>"
        return f'<div class="wide">{table}</div>'

    def _evidence(self) -> list[str]:
        kinds: dict[tuple[str, str], list[str]] = {}
        for run in self.runs:
            found = run.results
            commit = re.sub(r"\b([0-9a-f]{12})[0-9a-f]*", r"\1", str(found.get("git") or "unknown"))
            where = f"Trained on {found.get('device', 'an unknown device')}, commit {commit}"
            versions = ", ".join(f"{name} {version}" for name, version in (found.get("versions") or {}).items())
            kinds.setdefault((where, versions), []).append(str(run.path))
        lines = ["<h2>How to repeat it</h2>"]
        for (where, versions), paths in kinds.items():
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            whose = f" ({', '.join(paths[:3])}{more})" if len(kinds) > 1 else ""
            lines += [paragraph(f"{where}, with {versions or 'unknown versions'}{whose}.", "soft")]
        lines.append("<details><summary>Commands that repeat each run</summary>")
        for run in self.runs:
            again = repeat(run, self.configs[run.path])
            why = "" if again else ": not known, since its recipe or its config file is not there any more"
            lines.append(paragraph(f"{run.path}{why}", "soft"))
            spans = "".join(f"<span>{escape(shlex.quote(word))} </span>" for word in shlex.split(again))
            lines += [f"<pre>{spans}</pre>"] if again else []
        return [*lines, "</details>"]

    def _results(self) -> list[str]:
        from hsakd_jax import figures

        if len(self.groups) < 2:
            return []
        rows = []
        for g in self.groups:
            last = g.accuracies("last")
            gain = f" ({statistics.mean(g.gains):+.2f})" if g.gains and not is_alone(g) else ""
            rows.append(
                figures.Row(
                    g.label,
                    g.colour,
                    statistics.mean(last),
                    f"{statistics.mean(last):.2f}{gain}",
                    statistics.stdev(last) if len(last) > 1 else None,
                    statistics.mean(g.accuracies("best")),
                )
            )
        caption = "Dot: last epoch. Ring: best epoch. In brackets: points gained over the student alone."
        if any(len(g.runs) > 1 for g in self.groups):
            caption += " Whisker: one standard deviation over seeds."
        return self.album.figure(
            "results",
            "Teacher, student alone, students",
            caption,
            figures.dots(rows, "top-1 on test images, %"),
        )

    def _accuracy(self) -> list[str]:
        from hsakd_jax import figures

        lines, splits = [], set()
        for g in self.groups:
            tests = [[e for e in self.records[run.path] if "score" in e] for run in g.runs]
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
        return self.album.figure(
            "accuracy",
            "Accuracy over time",
            caption,
            figures.curves([("", lines)], "epoch", f"top-1 on {' or '.join(sorted(splits))} images, %"),
        )

    def _branches(self) -> list[str]:
        from hsakd_jax import figures

        panels = []
        for kind in ("joint", "class"):
            lines = []
            for g in self.groups:
                levels = [l for l in range(1, 10) if all(_branch(run, kind, l) is not None for run in g.runs)]
                values = [[_branch(run, kind, l) or 0.0 for run in g.runs] for l in levels]
                if levels:
                    means = [statistics.mean(v) for v in values]
                    spread = [statistics.stdev(v) for v in values] if len(g.runs) > 1 else ()
                    lines.append(figures.Curve(g.label, g.colour, levels, means, spread))
            if lines:
                panels.append(({"joint": "class and rotation (joint)", "class": "class"}[kind], lines))
        if not panels:
            return [paragraph("Branches are not shown: no run was trained with any.", "soft")]
        caption = (
            "Last epoch, over all four rotations of each test image; branch l sits behind stage l of the network. "
            "Left: the likeliest pair of class and rotation is right. Right: the class is, after the logits of its "
            "four rotations are summed, which is the reference's measure and may lie below."
        )
        return self.album.figure(
            "branches",
            "What the branches know",
            caption,
            figures.curves(panels, "branch", "right, %", columns=2),
        )

    def _losses(self) -> list[str]:
        from hsakd_jax import figures

        panels, colours = [], {}
        for g in self.groups:
            logs = [[e for e in self.records[run.path] if "loss" in e] for run in g.runs]
            names = list(dict.fromkeys(k for log in logs for e in log for k in e if k not in BOOKKEEPING))
            lines = []
            # A term has one colour in all panels, none that stands for a run elsewhere, and in a panel its own.
            for name in names:
                here = [colours[other] for other in names if other in colours]
                taken = [*colours.values(), *(colour for colour in here for _ in colours)]
                colours.setdefault(name, min(("c2", "c3", "c4", "c5", "c7"), key=taken.count))
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
        return self.album.figure(
            "losses", "Loss terms", caption, figures.curves(panels, "epoch", "loss", columns, zero=True)
        )

    def _pace(self) -> list[str]:
        from hsakd_jax import figures

        found: list[figures.Curve] = []
        named: list[list[str]] = []
        for g in self.groups:
            logs = [[e for e in self.records[run.path] if "lr" in e] for run in g.runs[:1]]
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
            lines += self.album.figure(
                "schedule",
                "Learning rate",
                "",
                figures.curves([("", found)], "epoch", "learning rate", height=2.5, zero=True),
            )
        flow = [_curve(g, [self.records[r.path] for r in g.runs], lambda e: e.get("images_per_s")) for g in self.groups]
        if flow := [curve for curve in flow if curve]:
            log = max(max(curve.y) for curve in flow) > 5 * min(min(curve.y) for curve in flow)
            lines += self.album.figure(
                "throughput",
                "Throughput over time",
                "Between two lines of the log, without evaluation.",
                figures.curves([("", flow)], "epoch", "training images/s", 1, 2.5, zero=not log, log=log),
            )
        rates = [(g, [r.results["images_per_s"] for r in g.runs if r.results.get("images_per_s")]) for g in self.groups]
        rows = [figures.Row(g.label, g.colour, statistics.mean(r), f"{statistics.mean(r):,.0f}") for g, r in rates if r]
        if rows:
            devices = " or ".join(sorted({str(r.results.get("device")) for r in self.runs if "device" in r.results}))
            caption = f"Median over the run, without evaluation{f', on {devices}' if devices else ''}. "
            caption += "Runs with branches see each image in four rotations, and students ask their teacher too."
            lines += self.album.figure(
                "speed", "Speed of training", caption, figures.bars(rows, "training images a second")
            )
        return lines

    def _predictions(self, data_dir: str | None) -> list[str]:
        from hsakd_jax import mistakes, opinions
        from hsakd_jax.errors import UserError
        from hsakd_jax.rundir import beside

        run = self.subject.runs[0]  # not the luckiest one
        asked = {"student": opinions.Asked(run.path)}
        given = self.configs[run.path].get("teacher") or {}
        missing = ["of its networks the first is asked"] if self.configs[run.path]["network"].get("peers") else []
        alone = next((partner for taught, partner in self.subject.pairs if taught is run), None)
        if given:
            teacher = beside(run.path, given["workdir"])
            asked["teacher"] = opinions.Asked(teacher, given.get("checkpoint", "last"), given.get("peer", 1))
        if alone:
            asked["alone"] = opinions.Asked(alone.path)
        if is_student(self.subject) and not is_alone(self.subject):
            missing += [] if given else ["it has no teacher"]
            missing += [] if alone else ["there is no run of the student alone with its data, epochs and batch"]
        try:
            said = opinions.ask(asked, MISTAKES, data_dir)
        except UserError as error:
            return [paragraph(f"Its answers to the test images are not shown: {error}.", "soft")]
        missing += [f"its {key} is not asked ({why})" for key, why in said.silent.items()]
        who = f"{self.subject.label} (seed {run.seeds[0]})" if len(self.subject.runs) > 1 else self.subject.label
        lines = [f"<h2>What {escape(who)} is wrong about</h2>"]
        if missing:
            first, *others = missing
            lines.append(paragraph(f"{'; '.join([first[0].upper() + first[1:], *others])}.", "soft"))
        colours = {key: self._colour(who.run) for key, who in asked.items()}
        return lines + mistakes.section(said, self.names, self.subject.label, colours, self.album)

    def _colour(self, path: Path) -> str:
        """That of the group which holds a run; of a run that is not shown, one that no group has."""
        for one in self.groups:
            if path.resolve() in [run.path.resolve() for run in one.runs]:
                return one.colour
        taken = {one.colour for one in self.groups}
        return next((colour for colour in ("c6", "c7", "c4") if colour not in taken), "ink")


def _records(path: Path) -> list[dict[str, Any]]:
    from hsakd_jax.errors import UserError
    from hsakd_jax.rundir import RunDirectory

    try:
        entries = RunDirectory(path).records()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}/metrics.jsonl can't be read ({error}): leave the run out") from error
    return [e for e in entries if isinstance(e, dict) and {"step", "epoch"} <= e.keys()]


def _ends_early(run: "Run", records: list[dict[str, Any]]) -> bool:
    return bool(records) and records[-1]["epoch"] < run.results["last"].get("epoch", 0)


def _curve(one: Group, logs: list[list[dict[str, Any]]], read: Callable[[dict], float | None]) -> Any:
    """Mean and deviation where all runs that have a log have a value; None where there is none."""
    from hsakd_jax import figures

    series = [{e["epoch"]: value for e in log if (value := read(e)) is not None} for log in logs if log]
    common = sorted(set.intersection(*map(set, series))) if series else []
    if not common:
        return None
    values = [[values[x] for values in series] for x in common]
    spread = [statistics.stdev(v) for v in values] if len(series) > 1 else ()
    return figures.Curve(one.label, one.colour, common, [statistics.mean(v) for v in values], spread)


def _top1(entry: dict[str, Any]) -> float | None:
    return mean(entry, "top1")


def _best(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return max(entries, key=lambda e: (e["score"], e["step"]))


def _branch(run: "Run", kind: str, l: int) -> float | None:
    return mean(run.results["last"], f"{kind}_{l}")


def _count(run: "Run", key: str) -> str:
    found = (run.results.get(key) or {}).get("backbone")
    return "" if found is None else f"{found:,}"


def _chance(one: Group) -> float:
    """Points by which two equally good networks differ on one of 20 test sets; 0 where seeds show it better."""
    images, share = one.runs[0].results.get("test_images"), statistics.mean(one.accuracies("last")) / 100
    if len(one.runs) > 1 or not images:
        return 0.0
    return 100 * 1.96 * (2 * share * (1 - share) / images) ** 0.5


def _mean(values: Sequence[float], sign: str = "") -> str:
    deviation = f" <small>({statistics.stdev(values):.2f})</small>" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{deviation}"
