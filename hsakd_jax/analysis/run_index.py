"""Finds finished runs in folders, and describes each by the settings that decide it."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from hsakd_jax.analysis.departures import Agreement, Departures, own_choice, published_settings
from hsakd_jax.core.console import note
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import expand
from hsakd_jax.evaluation.accuracies import mean, mean_top1
from hsakd_jax.experiments.published import dataset_of
from hsakd_jax.experiments.recipes import GIVEN, RECIPES
from hsakd_jax.runs.compare import MAY_DIFFER, differences, flatten
from hsakd_jax.runs.config import AnyConfig, RunConfig
from hsakd_jax.runs.directory import RunDirectory, is_run, resolve_path
from hsakd_jax.runs.results import Accuracies, Results, TaughtBy

# Settings that do not distinguish one training from another; the recipe implies the metric of the best epoch.
IGNORED = MAY_DIFFER | {
    "eval_batch", "evaluation.select_by", "format", "logging.every", "seed", "teacher.workdir", "training.init"
}  # fmt: skip
# Recipes that train the same network in another role.
SAME = {"backbone": "baseline", "teacher_online": "mutual", "joint": "teacher"}
_AS_TEACHER = {"baseline": "backbone", "mutual": "teacher_online"}  # of those, the names for a teacher
UNKNOWN = "?"
NOT_FOUND, NOT_FINISHED = "not found", "not finished"


class Run(NamedTuple):
    """A finished run.

    Attributes:
      path: its directory.
      config: of config.json.
      results: of results.json.
      method: the recipe that its result is compared as: of a linear probe, that of the run whose backbone it has.
      dataset: `data.name`, but 'imagenet2012' for a tree of ImageNet's images too.
      teacher: network of its teacher; None without one, `UNKNOWN` if that run is not found.
      settings: all that decides it except seeds and paths, by flat key; the classes as a hash of their names. Those of
        its teacher and of the run that it starts from have the prefixes 'teacher.' and 'init.'.
      departures: from the published settings, by the same keys.
      seeds: its own, its teacher's and those of the run that it starts from. They distinguish runs of equal settings.
    """

    path: Path
    config: RunConfig
    results: Results
    method: str
    dataset: str
    teacher: str | None
    settings: dict[str, Any]
    departures: Departures
    seeds: tuple[int, ...]

    @property
    def recipe(self) -> str:
        """Of its config; a run of another version may have one that is not in `recipes.RECIPES`."""
        return self.config.recipe

    @property
    def student(self) -> str:
        """The network that was trained; of an online run, the names of its networks joined by '+'."""
        return self.results.arch

    @property
    def epochs(self) -> int:
        """How many it was trained for."""
        return self.config.training.epochs

    def accuracies(self, when: str) -> Accuracies:
        """All accuracies of the 'last' or 'best' epoch."""
        return self.results.last if when == "last" else self.results.best

    def accuracy(self, when: str, kind: str) -> float | None:
        """Accuracy in %, the mean over the networks of an online run; None where it was not measured.

        Args:
          when: 'last' or 'best'.
          kind: 'top1' or 'top5'.
        """
        return mean(self.accuracies(when), kind)

    def top1(self, when: str) -> float:
        """`accuracy` of kind 'top1', which every run has."""
        return mean_top1(self.accuracies(when))


def find(folders: Sequence[str]) -> tuple[list[Run], list[Path]]:
    """All runs in folders, at any depth. Config files of other programs are passed over, with a warning.

    Returns:
      Finished runs, and the directories of unfinished ones. Converted checkpoints are neither.

    Raises:
      UserError: a folder does not exist or can't be read, or a file of a run is not valid.
    """
    configs: dict[Path, tuple[Path, RunConfig]] = {}
    named = []  # converted checkpoints
    for folder in folders:
        root = expand(folder)
        if not os.path.isdir(root):  # Path's raises where a name is too long or a folder is closed
            raise UserError(f"{folder} is no folder: check the path")
        seen: set[str] = set()  # links may form a circle
        for where, inside, files in os.walk(root, onerror=_refuse, followlinks=True):
            seen.add(os.path.realpath(where))
            inside[:] = sorted(name for name in inside if os.path.realpath(os.path.join(where, name)) not in seen)
            if "config.json" in files and is_run(Path(where)):
                inside.clear()
                if isinstance(config := RunDirectory(where).config(), RunConfig):
                    configs.setdefault(Path(where).resolve(), (Path(where), config))
                elif Path(where) == root:
                    named.append(folder)
    for folder in named if configs else ():
        note(f"{folder}: a converted checkpoint, which has no results")
    all_results = {path: RunDirectory(path).results() for path, _ in configs.values()}
    digests: dict[str, set[str]] = {}  # of the test images, by dataset
    for path, config in configs.values():
        if (results := all_results[path]) and results.test_digest:
            digests.setdefault(_dataset(config), set()).add(results.test_digest)
    finished, unfinished = [], []
    for path, config in configs.values():
        if results := all_results[path]:
            finished.append(_run(path, config, results, len(digests.get(_dataset(config), ())) > 1))
        else:
            unfinished.append(path)
    return finished, unfinished


def no_run_error(folders: Sequence[str]) -> UserError:
    """The error where no folder has a run."""
    return UserError(
        f"{', '.join(folders)}: no trained run there (its folder has a config.json; a converted checkpoint has no "
        "results): check the path"
    )


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} can't be read ({error.strerror}): make it readable, or choose other folders")


def by_settings(runs: Sequence[Run], by_recipe: bool = False) -> tuple[list[list[Run]], list[Run]]:
    """Groups of runs that differ in their seeds only, and the runs that repeat the seeds and settings of another.

    Args:
      runs: in the order to keep.
      by_recipe: whether recipes that train the same, such as backbone and baseline, make two groups.
    """
    groups: dict[str, list[Run]] = {}
    repeated = []
    for run in runs:
        group = groups.setdefault(repr((by_recipe and run.recipe, sorted(run.settings.items()))), [])
        (repeated if any(run.seeds == other.seeds for other in group) else group).append(run)
    return list(groups.values()), repeated


def same(recipe: str) -> str:
    """The recipe that trains the same: 'baseline' for 'backbone'."""
    return SAME.get(recipe, recipe)


def _of_teacher(recipe: str) -> str:
    return _AS_TEACHER.get(same(recipe), same(recipe))


def _read_config(path: Path) -> AnyConfig | None:
    """The config of a run or a converted checkpoint; None where there is none, or that of another program."""
    return RunDirectory(path).config() if RunDirectory(path).is_ours() else None


def _run(path: Path, config: RunConfig, results: Results, with_digest: bool) -> Run:
    """The description of a run; `with_digest`: whether its dataset has several sets of test images."""
    for accuracies in (results.last, results.best):
        if not {"epoch", "top1"} <= {name.rpartition("/")[2] for name in accuracies}:
            raise UserError(f"{path}/results.json has no top-1 accuracy or no epoch: leave the run out, or repeat it")
    found = _describe(path, config, results.teacher)
    # Folders of images have one name, and may have other images.
    found.settings.update(train_images=results.train_images, test_images=results.test_images)
    if with_digest:
        found.settings["test_digest"] = results.test_digest
    if found.settings.get("teacher") == NOT_FOUND and results.teacher:
        found.settings["teacher.recipe"] = _of_teacher(results.teacher.recipe)
    method, teacher = config.recipe, _teacher(path, config, results.teacher)
    if method == "probe" and config.training.init:
        origin = resolve_path(path, config.training.init)
        if probed := _read_config(origin):
            method, teacher = probed.recipe, _teacher(origin, probed)
    agreement = Agreement.DIFFERENT if found.differing else Agreement.EQUAL
    agreement = Agreement.UNPUBLISHED if found.differing is None else agreement
    return Run(
        path=path,
        config=config,
        results=results,
        method=method,
        dataset=_dataset(config),
        teacher=teacher,
        settings=found.settings,
        departures=Departures(agreement, found.differing or {}, found.own_choice),
        seeds=found.seeds,
    )


def _dataset(config: RunConfig) -> str:
    return dataset_of(config.data.name, config.classes) or UNKNOWN


def _teacher(path: Path, config: AnyConfig, stored: TaughtBy | None = None) -> str | None:
    """The network of a run's teacher; None without one."""
    if not isinstance(config, RunConfig) or config.teacher is None:
        return None
    if stored:
        return stored.arch
    found = _read_config(resolve_path(path, config.teacher.workdir))
    return found.network.arch if found else UNKNOWN


class _Description(NamedTuple):
    """The settings and seeds of a run, and how it differs from the published settings.

    Attributes:
      settings: by flat key.
      differing: (the run's, the published one) by key; None where there are no published settings.
      seeds: see `Run.seeds`.
      own_choice: see `Departures.own_choice`.
    """

    settings: dict[str, Any]
    differing: dict[str, tuple[Any, Any]] | None
    seeds: tuple[int, ...]
    own_choice: Mapping[str, Any] = MappingProxyType({})


def _describe(path: Path, config: AnyConfig, stored: TaughtBy | None = None) -> _Description:
    """Describes a run together with its teacher, which its results store, and the run that it starts from."""
    names = hashlib.sha256(json.dumps(config.classes).encode()).hexdigest()[:8]
    everything = {**flatten(config), "recipe": same(config.recipe), "classes": names}
    settings = {key: value for key, value in everything.items() if key not in IGNORED}
    if not isinstance(config, RunConfig):
        return _Description(settings, None, ())
    reference = published_settings(config, _dataset(config), _teacher(path, config, stored))
    differing = None if reference is None else differences({key: settings.get(key) for key in reference}, reference)
    chosen = {} if reference is None else own_choice(config, settings, reference)
    seeds = (config.seed,)
    others = {"teacher": config.teacher and config.teacher.workdir, "init": config.training.init}
    for role, where in others.items():
        if where:
            expected = getattr(RECIPES.get(config.recipe), role, None) or "none"
            other = _describe_other(role, resolve_path(path, where), expected)
            if other.settings.get(role) == NOT_FOUND:  # two that are not there need not be the same
                other.settings[f"{role}.workdir"] = where
            settings |= other.settings
            differing = None if differing is None else differing | (other.differing or {})
            seeds += other.seeds
    return _Description(settings, differing, seeds, chosen)


def _describe_other(role: str, path: Path, expected: str) -> _Description:
    """Describes the teacher of a run, or the run that it starts from; all keys begin with the role.

    Args:
      role: 'teacher' or 'init'.
      path: its directory.
      expected: the recipe that it should have; `GIVEN` for any, 'none' where the paper has no such run.
    """
    config = _read_config(path)
    if config is None:
        return _Description({role: NOT_FOUND}, {role: (NOT_FOUND, None)}, ())
    settings, differing, seeds, _ = _describe(path, config)
    if expected != GIVEN and settings["recipe"] != same(expected):
        # Another recipe has other settings: if all were listed, they would hide the reason.
        differing = {"recipe": (_of_teacher(config.recipe) if role == "teacher" else config.recipe, expected)}
    elif differing is None:
        key = "data.name" if config.recipe in RECIPES else "recipe"
        differing = {key: (settings[key], None)}
    if role == "teacher":
        settings = {**settings, "recipe": _of_teacher(config.recipe)}
    if not RunDirectory(path).is_finished():
        settings = {**settings, "results": NOT_FINISHED}
        differing = {**differing, "results": (NOT_FINISHED, None)}
    return _Description(_prefixed(role, settings), _prefixed(role, differing), seeds)


def _prefixed(role: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{role}.{key}": value for key, value in values.items()}
