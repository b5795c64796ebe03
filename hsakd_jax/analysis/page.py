"""The page that `report` writes: for each dataset its runs, their results, and the misclassified test images."""

import base64
import itertools
import os
import re
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hsakd_jax.analysis import misclassified, plots, sections
from hsakd_jax.analysis.comparing import REFERENCES, Compared
from hsakd_jax.analysis.grouping import describe, group, title_of
from hsakd_jax.analysis.run_index import Run
from hsakd_jax.analysis.sections import Section
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import read_names
from hsakd_jax.evaluation.accuracies import mean
from hsakd_jax.evaluation.predictions import Checkpoint, predict_all
from hsakd_jax.runs.directory import RunDirectory, resolve_path
from hsakd_jax.runs.metrics_log import Record

TEMPLATE = Path(__file__).with_name("report.html.jinja")
IMAGES = 24  # misclassified ones that are shown


def make(
    runs: Sequence[Run], unfinished: Sequence[Path] = (), data_dir: str | None = None, class_file: str | None = None
) -> tuple[str, dict[str, Callable[[], bytes]]]:
    """Makes the page of runs.

    Args:
      runs: finished ones.
      unfinished: directories that the page only lists.
      data_dir: folder of the data, if it has moved; None for the runs'.
      class_file: a file with the names of the classes, one per line; None for the names in the runs.

    Returns:
      The page in ASCII, and for each of its figures, by name, a function that draws it as PNG.

    Raises:
      UserError: the file of names does not exist, has another number of names or is for several datasets, or a run
        can't be read.
    """
    by_dataset: dict[tuple, list[Run]] = {}
    for run in runs:  # folders of images share a name, whatever they contain
        by_dataset.setdefault((run.dataset, run.config.classes), []).append(run)
    names = list(dict.fromkeys(name for name, _ in by_dataset))
    if class_file and len(by_dataset) > 1:
        raise UserError(f"--classes is for one dataset, and the runs have several ({', '.join(names)}): choose runs")
    figures: dict[str, Callable[[], bytes]] = {}
    datasets = [Dataset(members, class_file) for members in by_dataset.values()]
    for dataset in datasets:
        prefix = f"{re.sub('[^a-zA-Z0-9]', '_', dataset.name)}-" if len(datasets) > 1 else ""
        dataset.sections = [_keep(section, prefix, figures) for section in dataset.make_sections(data_dir)]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text()).render(
        title=f"hsakd_jax: {', '.join(names)}",
        datasets=datasets,
        unfinished=", ".join(map(str, unfinished)),
        colours=plots.COLOURS,
        svg=lambda section: Markup(plots.svg(section.figure, section.name, section.title)),
        base64=lambda content: base64.b64encode(content).decode(),
    )
    return page.encode("ascii", "xmlcharrefreplace").decode(), figures  # ASCII is the same in every encoding


def _keep(section: Section, prefix: str, figures: dict[str, Callable[[], bytes]]) -> Section:
    """Keeps the figure of a section for export; returns the section with the figure's name in the page."""
    if section.figure is None:
        return section
    first = f"{prefix}{section.name}"
    names = itertools.chain([first], (f"{first}-{i}" for i in itertools.count(2)))
    name = next(name for name in names if name not in figures)
    figures[name] = partial(plots.png, section.figure)
    return section._replace(name=name)


class Dataset:
    """The part of the page on one dataset; the template calls its methods.

    Args:
      runs: at least one.
      class_file: as for `make`.
    """

    def __init__(self, runs: Sequence[Run], class_file: str | None = None):
        self.name = runs[0].dataset
        self.groups, self.subject, self._repeated = group(runs)
        self._runs = [run for one in self.groups for run in one.runs]
        self.records = {run.path: _records(run.path) for run in self._runs}
        # A log that ends early would end the mean over seeds.
        self._cut = [run.path for run in self._runs if _ends_early(run, self.records[run.path])]
        self.records |= {path: [] for path in self._cut}
        config = self.subject.runs[0].config
        self._classes = read_names(class_file, config.network.num_classes) if class_file else config.classes
        self.sections: Sequence[Section] = ()

    def headline(self) -> str:
        """The result of the best student."""
        subject, run = self.subject, self.subject.runs[0]
        reached = statistics.mean(subject.top1("last"))
        line = f"{subject.label}: {run.student} reaches {reached:.2f}\N{NO-BREAK SPACE}% top-1 on {self.name}"
        line += f", {_headline(subject.with_baseline)}" if subject.with_baseline else ""
        taught = [top1 for run in subject.runs if (top1 := self._teacher_top1(run)) is not None]
        if len(taught) == len(subject.runs):
            line += f", {_compare(statistics.mean(taught) - reached, 'below', 'above')} its teacher {run.teacher}"
        return line + (f" (mean of {len(subject.runs)} seeds)" if len(subject.runs) > 1 else "")

    def _teacher_top1(self, run: Run) -> float | None:
        """Top-1 of the checkpoint and the network that taught a run; None without one, or if it is not known."""
        teacher, stored = run.config.teacher, run.results.teacher
        if teacher is None:
            return None
        where = Path(os.path.realpath(resolve_path(run.path, teacher.workdir)))
        shown = next((other for other in self._runs if other.path.resolve() == where), None)
        if shown:
            accuracies = shown.accuracies(teacher.checkpoint)
        else:
            accuracies = stored.last if stored and teacher.checkpoint == "last" else None
            if stored and stored.measured and run.results.selected_on == "test":
                accuracies = stored.measured  # of the network that taught
        return accuracies.get(f"peer{teacher.peer}/top1", mean(accuracies, "top1")) if accuracies else None

    def setup(self) -> str:
        """The number of runs, images and classes."""
        networks = [run.config.network for run in self._runs]
        shapes = dict.fromkeys("x".join(map(str, network.image_shape)) for network in networks)
        trained = sorted({run.results.train_images for run in self._runs})
        return (
            f"{len(self._runs)} {'run' if len(self._runs) == 1 else 'runs'} on {self.name}: "
            f"{' or '.join(f'{n:,}' for n in trained)} training images, "
            f"{self.subject.runs[0].results.test_images:,} test images, {networks[0].num_classes} classes, "
            f"images of {' or '.join(shapes)}."
        )

    def methods(self) -> dict[str, list[str]]:
        """Titles of the methods, by their description."""
        found: dict[str, dict[str, None]] = {}
        for one in self.groups:
            found.setdefault(describe(one.runs[0]), {})[title_of(one.recipe)] = None
        return {description: list(titles) for description, titles in found.items()}

    def table(self) -> list[dict[str, str]]:
        """A row of cells by column for each group; columns that would be empty are left out."""
        rows = []
        for one in self.groups:
            run, bold = one.runs[0], Markup("<b>{}</b>" if one is self.subject else "{}")
            dot = Markup('<span style="color: var(--{})">&#9679;</span> ').format(one.colour)
            row = {
                "run": dot + bold.format(one.label),
                "top-1 last": bold.format(_mean(one.top1("last"))),
                "best": _mean(one.top1("best")),
                "network": run.student,
                "teacher": run.teacher or "",
                "seed": ", ".join(str(r.seeds[0]) for r in one.runs),
                "epochs": str(run.epochs),
                "parameters": f"{run.results.parameters.backbone:,}",
                "multiply-adds": f"{run.results.multiply_adds.backbone:,}",
            }
            rows.append(row)
        return [{name: row[name] for name in row if any(other[name] for other in rows)} for row in rows]

    def verdicts(self) -> list[dict[str, str]]:
        """A row of cells by column for each group that is compared: a verdict against each reference."""
        compared = [{o.reference: f"{o.verdict.brief()}{o.remark}" for o in one.compared} for one in self.groups]
        references = [name for name in REFERENCES if any(name in row for row in compared)]
        return [
            {"run": one.label} | {f"against {REFERENCES[name]}": row.get(name, "") for name in references}
            for one, row in zip(self.groups, compared, strict=True)
            if row
        ]

    def notes(self) -> list[str]:
        """Remarks on the table."""
        selected = " or ".join(sorted({run.results.selected_by for run in self._runs}))
        note = "Top-1: percentage of the test images that are classified correctly, after the last epoch and after the "
        note += f"best one, selected by {selected}. Sizes are those of the network without branches"
        note += "; of several networks, the first one's." if any(r.config.network.peers for r in self._runs) else "."
        if any(len(one.runs) > 1 for one in self.groups):
            note += " Several seeds: mean (standard deviation)."
        notes = [note]
        for paths, why in (
            ([run.path for run in self._repeated], "Left out, since another run has the same seed and settings"),
            (self._cut, "Not shown over time, since metrics.jsonl ends before the run did"),
        ):
            notes += [f"{why}: {', '.join(map(str, paths))}."] if paths else []
        return notes

    def make_sections(self, data_dir: str | None) -> list[Section]:
        """The figures and remarks below the table; `data_dir` as for `make`."""
        return [
            *sections.results(self.groups),
            *self._predictions(data_dir),
            *sections.accuracy(self.groups, self.records),
            *sections.branches(self.groups),
            *sections.losses(self.groups, self.records),
            *sections.schedule(self.groups, self.records),
            *sections.throughput(self.groups, self.records),
        ]

    def _predictions(self, data_dir: str | None) -> list[Section]:
        subject, run = self.subject, self.subject.runs[0]  # not the luckiest one
        teacher, networks = run.config.teacher, {"student": Checkpoint(run.path)}
        baselines = subject.with_baseline.runs if subject.with_baseline else []
        baseline = min(baselines, key=lambda other: other.seeds[0] != run.seeds[0], default=None)
        remarks = ["Only the first of its networks is shown."] if run.config.network.peers else []
        if teacher:
            where = resolve_path(run.path, teacher.workdir)
            networks["teacher"] = Checkpoint(where, teacher.checkpoint, teacher.peer)
        if baseline:
            networks["baseline"] = Checkpoint(baseline.path)
        if subject.is_student and not subject.is_baseline:
            remarks += [] if teacher else ["It has no teacher."]
            remarks += [] if baseline else ["No run is a baseline with its data, epochs and batch."]
        try:
            predictions = predict_all(networks, IMAGES, data_dir)
        except UserError as error:
            return [Section(None, f"Predictions for the test images are not shown: {error}.")]
        remarks += [f"Its {key} is left out ({why})." for key, why in predictions.left_out.items()]
        who = f"{subject.label} (seed {run.seeds[0]})" if len(subject.runs) > 1 else subject.label
        colours = {key: self.colour_of(network.run) for key, network in networks.items()}
        return [
            Section(f"Misclassified test images: {who}", " ".join([misclassified.count(predictions), *remarks])),
            *misclassified.sections(predictions, self._classes, subject.label, colours),
        ]

    def colour_of(self, path: Path) -> str:
        """The colour of a run's group; of a run that is not shown, one that no group has."""
        for one in self.groups:
            if path.resolve() in [run.path.resolve() for run in one.runs]:
                return one.colour
        taken = {one.colour for one in self.groups}
        return next((colour for colour in ("c6", "c7", "c4") if colour not in taken), "ink")

    def environments(self) -> list[str]:
        """Devices, commits and versions; with the runs, where these differ."""
        found: dict[str, list[str]] = {}
        for run in self._runs:
            commit = re.sub(r"\b([0-9a-f]{12})[0-9a-f]*", r"\1", run.results.git or "unknown")
            versions = ", ".join(f"{name} {version}" for name, version in run.results.versions.items())
            line = f"Trained on {run.results.device}, commit {commit}, with {versions or 'unknown versions'}"
            found.setdefault(line, []).append(str(run.path))
        return [f"{line} ({', '.join(paths)})." if len(found) > 1 else f"{line}." for line, paths in found.items()]

    def commands(self) -> Mapping[tuple[str, ...], list[Path]]:
        """The paths of the runs, by the words of the command that trained them, which are empty if none is stored."""
        found: dict[tuple[str, ...], list[Path]] = {}
        for run in self._runs:
            arguments = run.config.command
            words = () if arguments is None else ("python", "-m", "hsakd_jax.main", *map(shlex.quote, arguments))
            found.setdefault(words, []).append(run.path)
        return found


def _headline(baseline: Compared) -> str:
    """The comparison with the baseline as a part of a sentence."""
    verdict = baseline.verdict
    if verdict.difference is None:
        return f"not compared with the baseline ({verdict.reason})"
    other = ", whose settings differ too" if baseline.differing else ""
    if verdict.is_shown:
        return f"{_compare(verdict.difference, 'points more than', 'points less than')} the baseline{other}"
    return f"not shown to differ from the baseline{other} ({verdict.difference:+.2f} points)"


def _compare(points: float, more: str, less: str) -> str:
    return f"{abs(points):.2f} {more if points > 0 else less}" if round(points, 2) else "level with"


def _records(path: Path) -> Sequence[Record]:
    try:
        return RunDirectory(path).metrics.read()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}/metrics.jsonl can't be read ({error}): leave the run out") from error


def _ends_early(run: Run, records: Sequence[Record]) -> bool:
    return bool(records) and records[-1].epoch < run.results.last["epoch"]


def _mean(values: Sequence[float], sign: str = "") -> str:
    """Mean, and of two or more values the standard deviation, as the content of a cell."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    if len(values) < 2:
        return mean
    return Markup("{} <small>({:.2f})</small>").format(mean, statistics.stdev(values))
