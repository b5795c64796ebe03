"""The page that `report` writes: sections of HTML around figures, for the runs of each dataset."""

import re
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsakd_jax.analysis.grouping import Group, group, is_alone, is_student, repeat, subject_of, title_of, words_of
from hsakd_jax.analysis.html import Album, document, escape, paragraph
from hsakd_jax.evaluation.accuracies import mean

if TYPE_CHECKING:
    from hsakd_jax.analysis.run_index import Run

MISTAKES = 24  # that are shown


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
    from hsakd_jax.core.errors import UserError

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
        from hsakd_jax.core.files import read_names
        from hsakd_jax.runs.directory import RunDirectory

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
        from hsakd_jax.analysis import sections

        return [
            f"<h1>{escape(self._headline()).replace('top-1', '<span>top-1</span>')}</h1>",
            *self._setting(),
            *sections.results(self.groups, self.album),
            *self._predictions(data_dir),
            *sections.accuracy(self.groups, self.records, self.album),
            *sections.branches(self.groups, self.album),
            *sections.losses(self.groups, self.records, self.album),
            *sections.pace(self.groups, self.records, self.album),
            *self._evidence(),
        ]

    def _headline(self) -> str:
        subject = self.subject
        run, reached = subject.runs[0], statistics.mean(subject.accuracies("last"))
        line = f"{subject.label}: {run.student} reaches {reached:.2f}\N{NO-BREAK SPACE}% top-1 on {self.dataset}"
        if subject.gains and not is_alone(subject):
            change = statistics.mean(subject.gains)
            line += f", {_beside(change, 'points more than', 'points less than', 'no more than')} alone"
            line += " (may be chance)" if abs(change) < _chance(subject) else ""
        taught = [top1 for r in subject.runs if (top1 := self._teachers_top1(r)) is not None]
        if len(taught) == len(subject.runs):
            gap = statistics.mean(taught) - reached
            line += f", {_beside(gap, 'below', 'above', 'level with')} its teacher {run.teacher}"
        return line + (f" (mean of {len(subject.runs)} seeds)" if len(subject.runs) > 1 else "")

    def _teachers_top1(self, run: "Run") -> float | None:
        from hsakd_jax.runs.directory import beside

        given = self.configs[run.path].get("teacher") or {}
        where = beside(run.path, given["workdir"]).resolve() if given else None
        there = next((other.results for other in self.runs if other.path.resolve() == where), None)
        told = (there or {}).get(given.get("checkpoint", "last"))
        told = told or (run.results.get("teacher") or {}).get("last") or {}
        return told.get(f"peer{given.get('peer', 1)}/top1", mean(told, "top1"))

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

    def _predictions(self, data_dir: str | None) -> list[str]:
        from hsakd_jax.analysis import misclassified
        from hsakd_jax.core.errors import UserError
        from hsakd_jax.evaluation import predictions
        from hsakd_jax.runs.directory import beside

        run = self.subject.runs[0]  # not the luckiest one
        asked = {"student": predictions.Asked(run.path)}
        given = self.configs[run.path].get("teacher") or {}
        missing = ["of its networks the first is asked"] if self.configs[run.path]["network"].get("peers") else []
        alone = next((partner for taught, partner in self.subject.pairs if taught is run), None)
        if given:
            teacher = beside(run.path, given["workdir"])
            asked["teacher"] = predictions.Asked(teacher, given.get("checkpoint", "last"), given.get("peer", 1))
        if alone:
            asked["alone"] = predictions.Asked(alone.path)
        if is_student(self.subject) and not is_alone(self.subject):
            missing += [] if given else ["it has no teacher"]
            missing += [] if alone else ["there is no run of the student alone with its data, epochs and batch"]
        try:
            said = predictions.ask(asked, MISTAKES, data_dir)
        except UserError as error:
            return [paragraph(f"Its answers to the test images are not shown: {error}.", "soft")]
        missing += [f"its {key} is not asked ({why})" for key, why in said.silent.items()]
        who = f"{self.subject.label} (seed {run.seeds[0]})" if len(self.subject.runs) > 1 else self.subject.label
        lines = [f"<h2>What {escape(who)} is wrong about</h2>"]
        if missing:
            first, *others = missing
            lines.append(paragraph(f"{'; '.join([first[0].upper() + first[1:], *others])}.", "soft"))
        colours = {key: self._colour(who.run) for key, who in asked.items()}
        return lines + misclassified.section(said, self.names, self.subject.label, colours, self.album)

    def _colour(self, path: Path) -> str:
        """That of the group which holds a run; of a run that is not shown, one that no group has."""
        for one in self.groups:
            if path.resolve() in [run.path.resolve() for run in one.runs]:
                return one.colour
        taken = {one.colour for one in self.groups}
        return next((colour for colour in ("c6", "c7", "c4") if colour not in taken), "ink")


def _beside(points: float, more: str, less: str, level: str) -> str:
    return f"{abs(points):.2f} {more if points > 0 else less}" if round(points, 2) else level


def _records(path: Path) -> list[dict[str, Any]]:
    from hsakd_jax.core.errors import UserError
    from hsakd_jax.runs.directory import RunDirectory

    try:
        entries = RunDirectory(path).records()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}/metrics.jsonl can't be read ({error}): leave the run out") from error
    return [e for e in entries if isinstance(e, dict) and {"step", "epoch"} <= e.keys()]


def _ends_early(run: "Run", records: list[dict[str, Any]]) -> bool:
    return bool(records) and records[-1]["epoch"] < run.results["last"].get("epoch", 0)


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
