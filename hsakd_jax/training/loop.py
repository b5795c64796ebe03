"""One run: a resolved config and a directory in, a trained network and its results out; the loop."""

import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization

from hsakd_jax.core.console import Clock, Console
from hsakd_jax.core.errors import Stopped, UserError
from hsakd_jax.core.preemption import stop_requests
from hsakd_jax.core.sharding import Devices, agree, greatest, is_first_process
from hsakd_jax.data import datasets
from hsakd_jax.evaluation import accuracies
from hsakd_jax.evaluation import accuracy as evaluation
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.models import profile
from hsakd_jax.runs import provenance
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import chosen, peers
from hsakd_jax.training import tracking
from hsakd_jax.training.build import Rehearsed, assemble
from hsakd_jax.training.multi_step import make_advance
from hsakd_jax.training.step import NEVER, State, Window


def run(
    config: dict[str, Any],
    workdir: str | Path,
    splits: datasets.Splits,
    console: Console,
    rehearsed: Rehearsed | None = None,
) -> dict[str, Any]:
    """Trains one network, or continues where an earlier call ended, or finds the run done.

    Args:
      config: resolved, as `pipeline.resolve` makes it.
      workdir: the run's directory.
      splits: its data.
      console: where progress is shown.
      rehearsed: what `assemble.rehearse` gave for the same config, images and devices.

    Returns:
      What results.json holds.

    Raises:
      UserError: bad input, a directory of another config, a loss that is not finite, or a full disk.
      Stopped: after a signal, when the state is saved.
    """
    directory, devices, settings = RunDirectory(workdir, write=is_first_process()), Devices(), config["train"]
    results = directory.results()
    if agree(results is not None):
        if results is None:
            raise UserError(f"{directory.path} is not the same for all processes: give a folder that they share")
        _claim(directory, config)  # refuses another config
        console.line(f"{directory.path}: done, {accuracies.describe(results['last'])}")
        return results
    images = len(splits.train.labels)
    steps_per_epoch = images // settings["batch"]
    total = settings["epochs"] * steps_per_epoch
    eval_steps = config["eval_every"] * steps_per_epoch
    network, teacher, teacher_variables, taught_by, schedule, state, step = assemble(
        config, directory.path, splits.train, devices, rehearsed
    )

    _claim(directory, config)
    measure_with = evaluation.options(config)
    dataset, split = (splits.validation, "validation") if splits.validation else (splits.test, "test")
    if teacher is not None and taught_by is not None:
        accuracy = evaluation.make_evaluate(teacher, devices, **measure_with)(
            devices.replicate(teacher_variables), dataset
        )
        unfinished = "" if taught_by.results() else " (its run is not finished)"
        several = len(peers(taught_by.config()["network"]))
        which = f" (network {config['teacher'].get('peer', 1)} of {several})" if several else ""
        console.line(f"{taught_by.path}: teacher{which} on {split}: {accuracies.describe(accuracy)}{unfinished}")
    # The reference chooses a teacher by its branches; other networks are judged without theirs, which saves the work.
    kind = RECIPES[config["recipe"]]
    if (kind.network, kind.objective) == ("teacher", "teacher"):
        judged, score, judgement = network, accuracies.best_branch, "greatest branch joint accuracy"
    else:
        judged, score, judgement = network.clone(branches=False), accuracies.mean_top1, "top-1"
    measure = evaluation.make_evaluate(network, devices, **measure_with)
    judge = measure if judged is network else evaluation.make_evaluate(judged, devices, **measure_with)

    checkpoints = Checkpoints(directory.checkpoints)
    for line in checkpoints.damaged:
        console.line(f"warning: {line}; going on from the one before it")
    done = agree((checkpoints.steps() or [0])[-1])
    if done:
        state = serialization.from_state_dict(state, checkpoints.restore(done))
        console.line(f"{directory.path}: continuing at step {done} of {total}")
    directory.rewind(done)
    state, teacher_variables = devices.replicate((state, teacher_variables))
    advance = make_advance(step, splits.train, devices, settings["batch"], config["seed"], size=measure_with["size"])
    clock = Clock(settings["batch"], total)
    with stop_requests() as asked, tracking.track(config["tracking"], directory, console.line) as follow:

        def record(entry: dict[str, Any]) -> None:
            directory.record(entry)
            follow(entry)

        console.wait(f"{directory.path}: compiling the step, or loading it where it was compiled before")
        while done < total:
            until = min(total, *(every * (done // every + 1) for every in (eval_steps, config["log_every"])))
            state, done = advance(state, teacher_variables, done, until)
            if not clock.started:
                jax.block_until_ready(state.step)  # later steps are not waited for
                clock.start(done)
            at_eval = done % eval_steps == 0 or done == total
            at_log = at_eval or done % config["log_every"] == 0
            if at_log:
                entry, state = _read(state, devices)
                rates = {"lr": float(jnp.asarray(schedule(done - 1))), "images_per_s": clock.rate(done)}
                entry = {"step": done, "epoch": done / steps_per_epoch, **entry, **rates}
                record(entry)
                console.progress(f"{directory.path}: {_describe(entry, config, total, clock)}")
            if at_eval:
                try:
                    accuracy = judge(state.variables, dataset)
                except UserError:  # such as an image that can't be read: the epoch shall not be lost
                    checkpoints.save(done, state)
                    raise
                entry = {"step": done, "epoch": done / steps_per_epoch, "split": split, **accuracy}
                record({**entry, "score": score(accuracy)})
                checkpoints.save(done, state, score(accuracy))
                console.line(
                    f"{directory.path}: epoch {entry['epoch']:g}/{settings['epochs']}, {split} "
                    f"{accuracies.describe(accuracy)}, "
                    f"{clock.epoch(done, steps_per_epoch)} an epoch, {clock.left(done)} left"
                )
                clock.skip(done)
            # Several processes talk of it at the lines of the log only.
            if (at_log or jax.process_count() == 1) and (signal := greatest(asked[0] if asked else 0)):
                if not at_eval:
                    _check_finite(jax.device_get(state.window))
                    checkpoints.save(done, state)
                raise Stopped(f"{directory.path}: saved at step {done} of {total}; the same command continues", signal)
    best = directory.best()
    best_step = agree(best["step"])
    best_state = state.variables
    if best_step != done:
        saved = checkpoints.restore(best_step)
        best_state = devices.replicate({name: saved[name] for name in best_state})
    checkpoints.close()
    results = {
        "last": {"epoch": settings["epochs"], **measure(state.variables, splits.test)},
        "best": {
            "epoch": round(best["epoch"]),
            "chosen_by": f"{judgement} on {split}",
            **measure(best_state, splits.test),
        },
        "recipe": config["recipe"],
        "arch": "+".join(dict.fromkeys(peers(config["network"]) or [config["network"]["arch"]])),
        "seed": config["seed"],
        "teacher": _describe_teacher(taught_by, config["teacher"]),
        "train_images": images,
        "test_images": len(splits.test.labels),
        **profile.sizes(network, config["network"]["image_shape"]),
        "images_per_s": _typical_rate(directory),
        **provenance.environment(),
    }
    directory.finish(results)
    console.line(f"{directory.path}: done, {accuracies.describe(results['last'])}")
    return results


def _claim(directory: RunDirectory, config: dict[str, Any]) -> None:
    """The first process makes the directory that of `config`; where it can't, all end."""
    error = None
    if is_first_process():
        try:
            directory.claim(config)
        except UserError as found:
            error = found
    if agree(error is not None):
        raise error or UserError(f"{directory.path} is refused by the first process, which says why")


def _describe_teacher(directory: RunDirectory | None, options: dict[str, Any] | None) -> dict[str, Any] | None:
    """Which network the teacher is, how it was trained and what it reached."""
    if directory is None or options is None:
        return None
    config, results = directory.config(), directory.results() or {}
    arch = chosen(config["network"], directory.path, peer=options.get("peer", 1))["arch"]
    return {"arch": arch, "recipe": config["recipe"], "last": results.get("last")}


def _read(state: State, devices: Devices) -> tuple[dict[str, float], State]:
    """Means of the window's measurements, and the state with an empty window."""
    window = jax.device_get(state.window)
    _check_finite(window)
    empty = Window(
        steps=jnp.zeros_like(window.steps),
        sums=jax.tree.map(jnp.zeros_like, window.sums),
        first_bad=window.first_bad,
    )
    means = {name: float(total / window.steps) for name, total in window.sums.items()}
    return means, state.replace(window=devices.replicate(empty))


def _check_finite(window: Window) -> None:
    first = min(int(step) for step in window.first_bad.values())
    if first != NEVER:
        names = sorted(name for name, step in window.first_bad.items() if step == first)
        raise UserError(
            f"step {first}: {', '.join(names)} is not finite; lower the learning rate or add warm-up "
            "(checkpoints before that step are kept)"
        )


def _describe(entry, config, total, clock) -> str:
    terms = ", ".join(f"{k} {v:.3f}" for k, v in entry.items() if k in config["objective"])
    return (
        f"epoch {entry['epoch']:.2f}/{config['train']['epochs']}, step {entry['step']}/{total}, "
        f"loss {entry['loss']:.3f} ({terms}), top-1 {100 * entry['top1']:.1f} %, "
        f"{entry['images_per_s'] or 0:,.0f} images/s, {clock.left(entry['step'])} left"
    )


def _typical_rate(directory) -> float | None:
    """Training images a second, the median of the run's log."""
    rates = [e["images_per_s"] for e in directory.records() if e.get("images_per_s")]
    return statistics.median(rates) if rates else None
