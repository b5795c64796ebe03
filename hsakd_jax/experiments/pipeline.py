"""From a command's config to its runs, one after the other, and the table that compares them."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hsakd_jax.core.console import Console, table
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import InvalidContent, expand, read_json, write_json
from hsakd_jax.core.sharding import Devices, is_first_process
from hsakd_jax.data import sampling
from hsakd_jax.data.datasets import Splits, load_source
from hsakd_jax.evaluation.accuracies import best_branch, mean_top1
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.experiments.resolve import recipes_of, resolve, section_of, teacher_recipe
from hsakd_jax.experiments.validate import check, check_types
from hsakd_jax.runs.config import Config, RunConfig
from hsakd_jax.runs.directory import RunDirectory, resolve_path, runs_inside
from hsakd_jax.runs.results import Results
from hsakd_jax.training import loop
from hsakd_jax.training.build import Program, dry_run


def execute(
    config: dict[str, Any], workdir: str, console: Console, command: Sequence[str] | None = None
) -> dict[str, Results]:
    """Runs all recipes of a config and those that they need, skips finished runs, and shows the table.

    Args:
      config: as `make_config` makes it.
      workdir: of the run; with several runs, or where it contains some, each has a subdirectory of its name.
      console: where progress is shown.
      command: arguments of the command, which each run records. Keys that they set must have an effect.

    Returns:
      Results by recipe.

    Raises:
      UserError, Stopped: as `loop.run`.
    """
    check_types(config)
    names = recipes_of(config)
    check(config, {name: section_of(config, name) for name in names}, command or ())
    root = expand(workdir)
    paths = _directories(root, names)
    if root not in paths.values():
        _earlier_results(root)  # refuses another program's before anything trains
    source: Any = SimpleNamespace(**config["data"])  # what a person typed, which `resolve` makes a `runs.config.Data`
    splits = load_source(source, seed=config["seed"])
    parts = {name: few_shot(splits, RECIPES[name].fraction, config["seed"]) for name in names}
    # All are checked before the first one trains: a mistake in the student is found before the teacher's hours.
    resolved = {name: resolve(config, name, splits, command) for name in names}
    taught_by = {name: _teacher_config(config, resolved, name) for name in names}
    traced = {
        name: _check_run(run, paths, name, taught_by[name], parts[name], console) for name, run in resolved.items()
    }
    results = {
        name: loop.run(run, paths[name], parts[name], console, traced.pop(name)) for name, run in resolved.items()
    }
    console.line("\n" + summary(results))
    if root not in paths.values() and is_first_process():
        _write_results(root, results)
    return results


def _directories(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """The directory of each run; a folder that contains runs gets another one.

    Raises:
      UserError: the folder of several runs is a run.
    """
    if len(names) == 1 and not runs_inside(root):
        return {names[0]: root}
    if (root / "config.json").exists():
        raise UserError(f"{root} is a run, and {', '.join(names)} need a folder for several: choose another directory")
    return {name: root / name for name in names}


def few_shot(splits: Splits, fraction: float, seed: int) -> Splits:
    """The splits with a fraction of the training images of each class."""
    if fraction == 1:
        return splits
    chosen = sampling.stratified(splits.train.labels, fraction, seed)
    return splits._replace(train=splits.train.take(chosen))


def _teacher_config(config: dict[str, Any], resolved: dict[str, RunConfig], name: str) -> Config | None:
    """The config of the run that teaches a recipe."""
    if not (teacher := teacher_recipe(config, name)):
        return None
    given = config["teacher"]["workdir"]
    return RunDirectory(given).config() if given else resolved[teacher]


def _check_run(
    config: RunConfig, paths: dict[str, Path], name: str, teacher: Config | None, splits: Splits, console: Console
) -> Program | None:
    """Refuses a run that can't train, or returns its traced program; None of a finished run."""
    directory = RunDirectory(paths[name])
    directory.check(config)
    if directory.results():
        return None
    training, images = config.training, len(splits.train.labels)
    section = RECIPES[name].schedule or RECIPES[name].network
    if training.batch > images:
        fraction = config.data.fraction / RECIPES[name].fraction
        more = f", or --config.data.fraction above {fraction:g}" if fraction < 1 else ""
        raise UserError(
            f"{section}.batch is {training.batch}, more than the {images} training images of {name}: set "
            f"--config.{section}.batch to at most {images}{more}"
        )
    try:
        if training.init:
            start = resolve_path(directory.path, training.init)
            if os.path.realpath(start) not in map(os.path.realpath, paths.values()):  # Path.resolve refuses loops
                RunDirectory(start).config()  # refuses a folder that is no run
        program = dry_run(config, directory.path, teacher, splits.train, Devices())
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    late = {"milestones": [epoch for epoch in training.milestones if epoch >= training.epochs]}
    late["warmup"] = [training.warmup] if training.warmup >= training.epochs else []
    for key, epochs in late.items():
        if epochs:
            console.line(
                f"warning: {directory.path}: {section}.{key} has {', '.join(map(str, epochs))}, and the run ends at "
                f"epoch {training.epochs}: set --config.{section}.{key} to less"
            )
    return program


def _earlier_results(root: Path) -> dict[str, Results]:
    """The results that earlier commands wrote beside their runs, by recipe.

    Raises:
      UserError: the file is another program's, or damaged.
    """
    path = root / "results.json"
    try:
        return read_json(path, dict[str, Results]) if path.exists() else {}
    except InvalidContent as error:
        raise UserError(
            f"{path} is damaged or of another program: move it away, then run the same command again"
        ) from error


def _write_results(root: Path, results: dict[str, Results]) -> None:
    before = _earlier_results(root)
    if {**before, **results} == before:  # of finished runs, in a folder that may be read-only
        return
    try:
        write_json(root / "results.json", {**before, **results})
    except OSError as error:
        raise UserError(f"can't write to {root}: {error.strerror}; free some space") from error


def summary(results: dict[str, Results]) -> str:
    """A table of runs: last epoch, best epoch, and the gain by distillation."""
    baseline = results.get("baseline")
    header = ["run", "network", "parameters", "top-1 last", "top-1 best", "gain", "best branch joint"]
    rows = []
    for recipe, result in results.items():
        top1, best = mean_top1(result.last), mean_top1(result.best)
        student = RECIPES[recipe].network == "student" and recipe != "baseline"
        gain = f"{top1 - mean_top1(baseline.last):+.2f}" if baseline and student else ""
        joint = f"{best_branch(result.last):.2f}" if any("joint_" in name for name in result.last) else ""
        # Of several different networks the size is the first one's, and the accuracy their mean.
        size = "" if "+" in result.arch else f"{result.parameters.backbone:,}"
        rows.append([RECIPES[recipe].title, result.arch, size, f"{top1:.2f}", f"{best:.2f}", gain, joint])
    shown = [i for i in range(len(header)) if any(row[i] for row in rows)]
    first = next(iter(results.values()))
    selected_on = first.selected_by.rpartition(" ")[2]
    note = f"% of {first.test_images} test images; the best epoch was selected on the {selected_on} images"
    kinds = {RECIPES[recipe].select_by for recipe in results}
    note += ", a teacher's by its branches" if "joint" in kinds else ""
    return f"{table([header[i] for i in shown], [[row[i] for i in shown] for row in rows])}\n\n{note}"
