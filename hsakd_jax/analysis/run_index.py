"""Run directories -> runs, each with its settings and where these are not the paper's."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hsakd_jax.analysis.paper import SETTINGS, SLOW_LR
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import read_json
from hsakd_jax.evaluation.accuracies import mean
from hsakd_jax.experiments.recipes import GIVEN, RECIPES, SLOW
from hsakd_jax.runs.directory import beside, flat

# These say nothing of what was trained.
IGNORED = {
    "seed", "data.dir", "train.init", "train.remat", "teacher.workdir", "log_every", "eval_batch", "tracking"
}  # fmt: skip
# The same training in another role.
SAME = {"backbone": "baseline", "teacher_online": "mutual", "joint": "teacher"}
UNKNOWN = "?"
FIRST_IMAGENET_CLASS = "n01440764"


class Run(NamedTuple):
    """A finished run.

    Attributes:
      path: its directory.
      recipe: a key of `recipes.RECIPES`; a run of a later or an earlier version may have another.
      row: the recipe that its result stands for: of a probe, that of the run whose backbone it has.
      dataset: `data.name`.
      teacher: network of its teacher; '' for none, '?' where that run is not found.
      student: its own network.
      settings: what decides it but for seeds and paths, flat, classes as a hash of their names; those of its teacher
        and of its start included.
      departures: by key what it has and what the paper has, where they differ, of its teacher and start too; None where
        the paper says nothing of such runs.
      seeds: its own and those of its teacher and start, which tell two runs of the same settings apart.
      results: of results.json.
    """

    path: Path
    recipe: str
    row: str
    dataset: str
    teacher: str
    student: str
    settings: dict[str, Any]
    departures: dict[str, tuple[Any, Any]] | None
    seeds: tuple[int, ...]
    results: dict[str, Any]

    def accuracy(self, when: str, kind: str) -> float | None:
        """Accuracy in %, the mean over the networks of a mutual run.

        Args:
          when: 'last' or 'best'.
          kind: 'top1' or 'top5'.
        """
        return mean(self.results[when], kind)


def find(folders: Sequence[str]) -> tuple[list[Run], list[Path]]:
    """All runs in folders, in depth.

    Returns:
      Finished runs, and the directories of unfinished ones; converted checkpoints are neither.

    Raises:
      UserError: a folder is not there or can't be read, or a file in it is damaged.
    """
    found: dict[Path, tuple[Path, dict[str, Any]]] = {}
    for folder in folders:
        root = Path(folder).expanduser()
        if not os.path.isdir(root):  # Path's raises where a name is too long or a folder is closed
            raise UserError(f"{folder} is no folder: check the path")
        seen: set[str] = set()  # links may lead round in a circle
        for where, inside, files in os.walk(root, onerror=_refuse, followlinks=True):
            seen.add(os.path.realpath(where))
            inside[:] = sorted(name for name in inside if os.path.realpath(os.path.join(where, name)) not in seen)
            if "config.json" in files and (config := _config(Path(where))):
                inside.clear()
                if "train" in config:
                    found.setdefault(Path(where).resolve(), (Path(where), config))
    finished, unfinished = [], []
    for path, config in found.values():
        results = _read(path / "results.json")
        if results is None:
            unfinished.append(path)
            continue
        try:
            run = _run(path, config, results)
            accuracies = [run.accuracy(when, "top1") for when in ("last", "best")]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} holds no results of this package ({error!r}): leave it out") from error
        if None in accuracies:
            raise UserError(f"{path}/results.json has no top-1 accuracy: leave the run out, or train it again")
        finished.append(run)
    return finished, unfinished


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} can't be read ({error.strerror}): make it readable, or name other folders")


def by_settings(runs: Sequence[Run], also: Callable[[Run], str] = lambda run: "") -> tuple[list[list[Run]], list[Run]]:
    """Runs that differ in their seeds alone, and runs left out, since another one has their seeds and settings.

    Args:
      runs: in the order to keep.
      also: what keeps runs apart besides.
    """
    groups: dict[str, list[Run]] = {}
    repeated = []
    for run in runs:
        group = groups.setdefault(also(run) + repr(sorted(run.settings.items())), [])
        (repeated if any(run.seeds == other.seeds for other in group) else group).append(run)
    return list(groups.values()), repeated


def same(recipe: str) -> str:
    """The recipe that trains the same: 'baseline' for 'backbone'."""
    return SAME.get(recipe, recipe)


def _run(path: Path, config: dict[str, Any], results: dict[str, Any]) -> Run:
    settings, departures, seeds = _describe(path, config)
    if "teacher" in settings and (told := results.get("teacher")):  # not found, but its recipe is known
        settings["teacher.recipe"] = same(told["recipe"])
    # A probe is the result of what it probes.
    source, where = config, path
    if config["recipe"] == "probe":
        origin = beside(path, config["train"]["init"])
        if found := _config(origin):
            source, where = found, origin
    return Run(
        path=path,
        recipe=config["recipe"],
        row=source["recipe"],
        dataset=_dataset(config),
        teacher=_teacher(where, source, results if source is config else {}),
        student=results.get("arch", config["network"]["arch"]),
        settings=settings,
        departures=departures,
        seeds=seeds,
        results=results,
    )


def _dataset(config: dict[str, Any]) -> str:
    name, classes = config["data"]["name"], config.get("classes") or [""]
    return "imagenet2012" if (name, classes[0], len(classes)) == ("image_tree", FIRST_IMAGENET_CLASS, 1000) else name


def _teacher(path: Path, config: dict[str, Any], results: dict[str, Any]) -> str:
    if not config.get("teacher"):
        return ""
    found = _config(beside(path, config["teacher"]["workdir"]))
    return found["network"]["arch"] if found else (results.get("teacher") or {}).get("arch", UNKNOWN)


def _describe(path: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None, tuple[int, ...]]:
    """(settings, departures, seeds) of a run and of those that it needs."""
    recipe = config["recipe"]
    names = hashlib.sha256(json.dumps(config.get("classes")).encode()).hexdigest()[:8]
    everything = {**flat(config), "recipe": same(recipe), "classes": names}
    settings = {key: value for key, value in everything.items() if key not in IGNORED}
    reference = _reference(config)
    departures = None if reference is None else _differing(settings, reference)
    seeds = [config.get("seed", 0)]
    kind = RECIPES.get(recipe)
    for role, where in (
        ("teacher", (config.get("teacher") or {}).get("workdir")),
        ("init", config.get("train", {}).get("init")),
    ):
        expected = getattr(kind, role, "")
        if not where:
            continue
        parent = beside(path, where)
        other = _config(parent)
        theirs: dict[str, Any] = {}
        wrong: dict[str, tuple[Any, Any]] | None = {"": ("not found", None)}
        more: tuple[int, ...] = ()
        if other is not None:
            theirs, wrong, more = _describe(parent, other)
            if expected != GIVEN and theirs["recipe"] != same(expected):
                # Other recipes have other settings: to name them all would hide what matters.
                wrong = {"recipe": (other["recipe"], expected or "none")}
            elif wrong is None:
                key = "data.name" if other["recipe"] in RECIPES else "recipe"
                wrong = {key: (theirs[key], None)}
            if "train" in other and not (parent / "results.json").exists():
                wrong = {**wrong, "results": ("not finished", None)}
        prefix = {key: f"{role}.{key}" if key else role for key in (*theirs, *wrong)}
        settings |= {prefix[key]: value for key, value in theirs.items()}
        settings |= {prefix[key]: wrong[key][0] for key in wrong if key not in theirs}
        if departures is not None:
            departures |= {prefix[key]: value for key, value in wrong.items()}
        seeds += more
    return settings, departures, tuple(seeds)


def _reference(config: dict[str, Any]) -> dict[str, Any] | None:
    """The paper's settings for a run, flat; None where the paper says nothing of such a run."""
    kind, arch = RECIPES.get(config["recipe"]), config["network"]["arch"]
    dataset = _dataset(config)
    schedule = "probe" if kind is RECIPES["probe"] else kind.schedule if kind else ""
    if kind is None or (dataset, schedule) not in SETTINGS:
        return None
    reference = {
        **SETTINGS[dataset, schedule],
        "data.fraction": kind.share,
        "train.trainable": kind.trainable,
        **flat(kind.terms, "objective."),
    }
    if dataset == "cifar100" and arch.startswith(SLOW) and not kind.schedule:
        reference["train.lr"] = SLOW_LR
    if kind.objective == "mutual":
        reference["network.peers"] = [arch, arch]
    return reference


def _differing(settings: dict[str, Any], reference: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs. A key that an older run does not have is an option that there was not."""
    reference = json.loads(json.dumps(reference))  # tuples as lists, as in a file
    return {
        key: (settings[key], value) for key, value in reference.items() if key in settings and settings[key] != value
    }


def _config(path: Path) -> dict[str, Any] | None:
    """The config of a run; None where there is none, or another program's."""
    found = _read(path / "config.json")
    return found if isinstance(found, dict) and {"recipe", "network", "data"} <= found.keys() else None


def _read(path: Path) -> Any:
    try:
        return read_json(path) if path.exists() else None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
