"""From a command's config to its runs, which are checked and then trained one after the other."""

import math
import os
import shlex
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from hsakd_jax.core.console import Console, duration, table
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.extras import install, report_is_installed
from hsakd_jax.core.files import InvalidContent, expand, read_json, write_json
from hsakd_jax.core.sharding import Devices, is_first_process
from hsakd_jax.data import sampling
from hsakd_jax.data.datasets import Splits, load_source
from hsakd_jax.evaluation.accuracy import other_test_images
from hsakd_jax.experiments.cautions import cautions
from hsakd_jax.experiments.other_networks import settings_of_other_networks
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.experiments.resolve import recipes_of, resolve, run_config, section_of, teacher_recipe
from hsakd_jax.experiments.results_table import summary
from hsakd_jax.experiments.validate import check, check_types
from hsakd_jax.runs import manifest
from hsakd_jax.runs.checkpoint import check as check_checkpoint
from hsakd_jax.runs.compare import normalisation_difference
from hsakd_jax.runs.config import Config, RunConfig
from hsakd_jax.runs.directory import RunDirectory, checkpoints_of, resolve_path, runs_inside, seed_folder
from hsakd_jax.runs.results import Accuracies, Results
from hsakd_jax.training import loop
from hsakd_jax.training.build import Program
from hsakd_jax.training.build import dry_run as trace
from hsakd_jax.training.estimate import measure_run


class _Planned(NamedTuple):
    """A run that was checked, and is to train: the arguments of `loop.run`, except the console."""

    config: RunConfig
    path: Path
    splits: Splits
    traced: Program | None  # None of a finished run


def execute(
    config: dict[str, Any],
    workdir: str,
    console: Console,
    command: Sequence[str] | None = None,
    *,
    dry_run: bool = False,
) -> dict[int, dict[str, Results]]:
    """Runs all recipes of a config and those that they need with each seed, skips finished runs, and shows the table.

    Args:
      config: as `make_config` makes it.
      workdir: of the run; with several runs, or where it contains some, each has a subdirectory of its name. With
        `seeds`, these are in the subdirectory seed_N of the seed N.
      console: where progress is shown.
      command: arguments of the command, which each run records. Keys that they set must have an effect.
      dry_run: whether to check the runs, show their time and memory, and train nothing.

    Returns:
      Results by recipe, by seed; none of a dry run.

    Raises:
      UserError, Stopped: as `loop.run`.
    """
    check_types(config)
    names = recipes_of(config)
    check(config, {name: section_of(config, name) for name in names}, command or ())
    folders = _folders(expand(workdir), config)
    paths = {seed: _directories(folder, names, bool(config["seeds"])) for seed, folder in folders.items()}
    shared = {seed: folder for seed, folder in folders.items() if folder not in paths[seed].values()}
    for folder in shared.values():
        _earlier_results(folder)  # refuses another program's before anything trains
    _check_teacher(config, paths)
    splits = _load(config, list(folders))
    # All are checked before the first one trains: a mistake in the student is found before the teacher's hours.
    plans = {seed: _plan({**config, "seed": seed}, paths[seed], splits.pop(seed), command, console) for seed in folders}
    _check_checkpoints([run for plan in plans.values() for run in plan.values() if run.traced])
    if dry_run:
        console.line("\n" + plan_table(plans, console))
        return {}
    results: dict[int, dict[str, Results]] = {}
    measured: dict[Hashable, Accuracies] = {}  # of teachers
    for seed, plan in plans.items():
        results[seed] = {name: _train(plan.pop(name), console, measured) for name in names}
        if seed in shared and is_first_process():
            _write_results(shared[seed], results[seed])
    console.line("\n" + summary(results))
    console.line("\n" + next_commands(workdir, next(iter(paths.values()))[names[-1]]))
    return results


def next_commands(workdir: str, run: Path) -> str:
    """Three commands for the runs of a folder, the last one of which is `run`."""
    folder, last = shlex.quote(str(workdir)), shlex.quote(str(run))
    needs = "" if report_is_installed() else f"  # needs: {install('report')}"
    return (
        "next:\n"
        f"  python -m hsakd_jax.evaluate --workdir={folder}\n"
        f"  python -m hsakd_jax.report {folder} --output=report.html{needs}\n"
        f"  python -m hsakd_jax.export --workdir={last} --format=stablehlo --preprocess --output=network.stablehlo"
    )


def plan_table(plans: Mapping[int, Mapping[str, _Planned]], console: Console) -> str:
    """A table of the runs to train, with time and memory of one seed, and the time that all seeds still need.

    Args:
      plans: runs by recipe, by seed.
      console: where progress is shown.
    """
    header = ["run", "network", "images", "epochs", "steps", "s per step", "time", "MiB", "compile s"]
    rows, total, fits = [], 0.0, True
    for name in next(iter(plans.values())):
        runs = [plan[name] for plan in plans.values()]
        # Of the seeds that are not done, the first one is timed.
        run = next((run for run in runs if run.traced), runs[0])
        training, images = run.config.training, len(run.splits.train.labels)
        steps = training.epochs * training.steps_per_epoch(images)
        cells = [name, run.config.network.arch, f"{images:,}", str(training.epochs), f"{steps:,}"]
        if run.traced is None:
            rows.append([*cells, "", "done", "", ""])
            continue
        console.line(f"{name}: compiling and timing the step")
        needs = measure_run(run.config, run.traced, run.splits.train, Devices())
        total += needs.seconds * sum(steps - RunDirectory(one.path).newest_step() for one in runs if one.traced)
        fits = fits and needs.fits
        memory = f"{needs.bytes / 2**20:,.0f}" + ("" if needs.fits else " (too much)")
        measured = [f"{needs.seconds:.3g}", duration(steps * needs.seconds), memory, f"{needs.compile_seconds:.0f}"]
        rows.append([*cells, *measured])
    seeds = f" for {len(plans)} seeds" if len(plans) > 1 else ""
    lines = [table(header, rows), f"about {duration(total)}{seeds}, without evaluations"]
    if not fits:
        lines.append("set a smaller batch, or accumulate=2 in the section of a run with too much memory")
    return "\n\n".join(lines)


def _train(run: _Planned, console: Console, measured: dict[Hashable, Accuracies]) -> Results:
    return loop.run(run.config, run.path, run.splits, console, run.traced, measured)


def _folders(root: Path, config: dict[str, Any]) -> dict[int, Path]:
    """The folder of the runs of each seed.

    Raises:
      UserError: the folder of several seeds is a run.
    """
    if not config["seeds"]:
        return {config["seed"]: root}
    if (root / "config.json").exists():
        raise UserError(f"{root} is a run, and seeds needs a folder for several: choose another directory")
    return {seed: seed_folder(root, seed) for seed in config["seeds"]}


def _directories(root: Path, names: Sequence[str], apart: bool) -> dict[str, Path]:
    """The directory of each run; a folder that contains runs gets another one.

    Args:
      root: the folder.
      names: the recipes.
      apart: whether a single run has a subdirectory too.

    Raises:
      UserError: the folder of several runs is a run.
    """
    if len(names) == 1 and not apart and not runs_inside(root):
        return {names[0]: root}
    if (root / "config.json").exists():
        needs = "needs" if len(names) == 1 else "need"
        raise UserError(
            f"{root} is a run, and {', '.join(names)} {needs} a folder for several: choose another directory"
        )
    return {name: root / name for name in names}


def _check_teacher(config: dict[str, Any], paths: Mapping[int, Mapping[str, Path]]) -> None:
    """Refuses a teacher that is no run, before the data is read; a finished run does not need its teacher.

    Args:
      config: of the command.
      paths: of the runs by recipe, by seed.
    """
    runs = [(name, path) for plan in paths.values() for name, path in plan.items()]
    if (given := config["teacher"]["workdir"]) and any(
        RECIPES[name].teacher and not RunDirectory(path).is_finished() for name, path in runs
    ):
        run_config(given, "teacher.workdir")


def _load(config: dict[str, Any], seeds: Sequence[int]) -> dict[int, Splits]:
    """The data of each seed; loaded once where no seed selects images."""
    source: Any = SimpleNamespace(**config["data"])  # plain values, which `resolve` makes a `runs.config.Data`
    if source.fraction == 1 and not source.validation:
        return dict.fromkeys(seeds, load_source(source, seed=seeds[0]))
    return {seed: load_source(source, seed=seed) for seed in seeds}


def _plan(
    config: dict[str, Any],
    paths: dict[str, Path],
    splits: Splits,
    command: Sequence[str] | None,
    console: Console,
) -> dict[str, _Planned]:
    """The runs of a seed, by recipe, each checked and traced."""
    parts = {name: few_shot(splits, RECIPES[name].fraction, config["seed"]) for name in paths}
    resolved = {name: resolve(config, name, splits, command) for name in paths}
    plan = {name: _Planned(run, paths[name], parts[name], None) for name, run in resolved.items()}
    to_train = {name: one for name, one in plan.items() if not _is_finished(one)}
    _check_batches(to_train)
    for name, one in to_train.items():
        teacher = _teacher_config(config, resolved, name)
        plan[name] = one._replace(traced=_check_run(one, paths, name, teacher, console, command or ()))
        for line in settings_of_other_networks(config, one.config, teacher, command or ()):
            console.line(f"warning: {one.path}: {line}")
    return plan


def _check_batches(runs: Mapping[str, _Planned]) -> None:
    """Refuses batches of more images than there are: one line has the remedies of all runs."""
    large = {name: one for name, one in runs.items() if one.config.training.batch > len(one.splits.train.labels)}
    if not large:
        return
    batches: dict[str, int] = {}  # by section, which several runs may share
    for name, one in large.items():
        batches[_section(name)] = min(
            _greatest_batch(name, one), batches.get(_section(name), one.config.training.batch)
        )
    flags = " ".join(f"--config.{section}.batch={batch}" for section, batch in batches.items())
    name, first = next(iter(large.items()))
    more = ", or a greater --config.data.fraction" if first.config.data.fraction < RECIPES[name].fraction else ""
    raise UserError(
        f"{_section(name)}.batch is {first.config.training.batch}, more than the {len(first.splits.train.labels)} "
        f"training images of {name}: set {flags}{more}"
    )


def _greatest_batch(name: str, run: _Planned) -> int:
    """The greatest batch that the images fill and that devices, micro-batches and BatchNorm groups divide evenly.

    Raises:
      UserError: there is none.
    """
    images, training, devices = len(run.splits.train.labels), run.config.training, len(Devices())
    unit = math.lcm(devices * training.accumulate, training.accumulate * training.batch_norm_groups)
    if images < unit:
        raise UserError(
            f"{name} has {images} training images, and {devices} devices with accumulate {training.accumulate} and "
            f"batch_norm_groups {training.batch_norm_groups} need {unit}: add images, or lower one of the three"
        )
    return images - images % unit


def _section(recipe: str) -> str:
    """The section with the schedule of a recipe."""
    return RECIPES[recipe].schedule or RECIPES[recipe].network


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
    return run_config(given, "teacher.workdir") if given else resolved[teacher]


def _is_finished(run: _Planned) -> bool:
    """Whether a run has ended.

    Raises:
      UserError: the directory is that of another config, or the run ended with other images.
    """
    directory, splits = RunDirectory(run.path), run.splits
    directory.check(run.config)
    results = directory.results()
    if results is None:
        return False
    then, now = (results.train_images, results.test_images), (len(splits.train.labels), len(splits.test.labels))
    if then != now:
        raise UserError(
            f"{run.path} was trained on {then[0]} images and tested on {then[1]}, and the data has {now[0]} and "
            f"{now[1]} now: restore the data, or choose another directory"
        )
    if not results.same_test_images(now[1], splits.test.digest):
        raise UserError(f"{run.path} was tested on other images: restore the data, or choose another directory")
    trained_on = {role: digest for role, digest in loop.images_of(splits).items() if role.startswith("data")}
    directory.check_sources(trained_on)
    return True


def _check_run(
    run: _Planned,
    paths: dict[str, Path],
    name: str,
    teacher: Config | None,
    console: Console,
    command: Sequence[str] = (),
) -> Program:
    """Refuses a run that can't train, or returns its traced program."""
    config, training, section = run.config, run.config.training, _section(name)
    try:
        if training.init:
            start = resolve_path(run.path, training.init)
            if os.path.realpath(start) not in map(os.path.realpath, paths.values()):  # Path.resolve refuses loops
                theirs = RunDirectory(start).config()  # refuses a folder that is no run
                _check_start(start, theirs, config, section, RECIPES[name].network)
                difference = normalisation_difference(theirs.data, config.data)
                if difference and not training.fresh_last_layer:  # a probe's data has its own
                    console.line(f"warning: {run.path}: {start} {difference}")
                if line := other_test_images(RunDirectory(start), config, run.splits.test):
                    console.line(f"warning: {run.path}: {line}")
        program = trace(config, run.path, teacher, run.splits.train, Devices())
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    for line in cautions(config, section, teacher, command):
        console.line(f"warning: {run.path}: {line}")
    return program


def _check_checkpoints(to_train: Sequence[_Planned]) -> None:
    """Refuses runs that need the checkpoint of another one, which is absent or damaged, and not to be made first.

    Raises:
      UserError: the line begins with the recipe.
    """
    made = {os.path.realpath(run.path) for run in to_train}
    needed: dict[tuple[str, str], str] = {}  # the recipe, by run and checkpoint
    for run in to_train:
        for where, checkpoint in checkpoints_of(run.config).values():
            needed.setdefault((os.path.realpath(resolve_path(run.path, where)), checkpoint), run.config.recipe)
    for (where, checkpoint), recipe in needed.items():
        if where in made:
            continue
        directory = RunDirectory(where)
        try:
            step = manifest.select(directory.checkpoints, checkpoint)
            if directory.is_finished():  # another one may delete this checkpoint while it trains
                check_checkpoint(directory.checkpoints, step)
        except UserError as error:
            raise UserError(f"{recipe}: {error}") from error


def _check_start(start: Path, theirs: Config, config: RunConfig, section: str, network_section: str) -> None:
    given, needed = ("+".join(one.network.peers) or one.network.arch for one in (theirs, config))
    if given != needed:
        raise UserError(
            f"{start} is not a run of this network: it has {given}, not {needed}; set --config.{section}.init to a run "
            f"of {needed}, or --config.{network_section}.arch={given}"
        )
    channels, expected = (one.network.image_shape[-1] for one in (theirs, config))
    if channels != expected:
        raise UserError(
            f"{start} takes images of {list(theirs.network.image_shape)}, and those of this run have {expected} "
            f"channels: set --config.{section}.init to a run of such images"
        )


def _earlier_results(root: Path) -> dict[str, Results]:
    """The results that earlier commands wrote next to their runs, by recipe.

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
