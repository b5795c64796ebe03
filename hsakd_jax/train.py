"""One run: a resolved config and a directory in, a trained network and its results out."""

import os
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization

from hsakd_jax import data, evaluation, facts, objectives, optim
from hsakd_jax.augment import augment, normalise
from hsakd_jax.checkpoint import Checkpoints
from hsakd_jax.devices import Devices
from hsakd_jax.dispatch import make_advance
from hsakd_jax.errors import Stopped, UserError
from hsakd_jax.progress import Clock, Console
from hsakd_jax.recipes import RECIPES
from hsakd_jax.rotations import rotate
from hsakd_jax.rundir import RunDirectory
from hsakd_jax.signals import stop_requests
from hsakd_jax.step import NEVER, State, Window, make_step
from hsakd_jax.variables import build, read_variables, restore, start


def run(config: dict[str, Any], workdir: str | Path, splits: data.Splits, console: Console) -> dict[str, Any]:
    """Trains one network, or continues where an earlier call ended, or finds the run done.

    Args:
      config: resolved, as `pipeline.resolve` makes it.
      workdir: the run's directory.
      splits: its data.
      console: where progress is shown.

    Returns:
      What results.json holds.

    Raises:
      UserError: bad input, a directory of another config, a loss that is not finite, or a full disk.
      Stopped: after a signal, when the state is saved.
    """
    directory, devices, settings = RunDirectory(workdir), Devices(), config["train"]
    if (results := directory.results()) is not None:
        directory.claim(config)  # refuses another config
        console.line(f"{directory.path}: done, {evaluation.describe(results['last'])}")
        return results
    images = len(splits.train.labels)
    data.order(images, settings["batch"], config["seed"], 0)  # refuses a batch larger than the training set
    steps_per_epoch = images // settings["batch"]
    total = settings["epochs"] * steps_per_epoch
    eval_steps = config["eval_every"] * steps_per_epoch
    network = build(config["network"], settings["remat"])
    variables = start(network, config["network"]["image_shape"], config["seed"], settings["init"])
    taught_by = _teacher_directory(config, directory)
    teacher, teacher_variables = _load_teacher(config, taught_by)
    schedule = _schedule(settings, steps_per_epoch)
    init, step = compile_step(config, network, teacher, devices, schedule)
    state = init(variables)
    rows = [jax.ShapeDtypeStruct((settings["batch"], *x.shape[1:]), x.dtype) for x in splits.train]
    try:
        step.eval_shape(state, teacher_variables, *rows)
    except ValueError as error:  # such as branches that do not exist
        raise UserError(str(error)) from error

    directory.claim(config)
    if late := [epoch for epoch in settings["milestones"] if epoch >= settings["epochs"]]:
        console.line(
            f"warning: {directory.path}: no step comes after the milestones {', '.join(map(str, late))}, "
            f"the run has {settings['epochs']} epochs"
        )
    normal = {"mean": config["data"]["mean"], "std": config["data"]["std"], "batch": config["eval_batch"]}
    dataset, split = (splits.validation, "validation") if splits.validation else (splits.test, "test")
    if teacher is not None and taught_by is not None:
        accuracy = evaluation.make_evaluate(teacher, devices, **normal)(devices.replicate(teacher_variables), dataset)
        unfinished = "" if taught_by.results() else " (its run is not finished)"
        console.line(f"{taught_by.path}: teacher on {split}: {evaluation.describe(accuracy)}{unfinished}")
    # The reference chooses a teacher by its branches; other networks are judged without theirs, which saves the work.
    if config["recipe"] == "teacher":
        judged, score, judgement = network, evaluation.best_branch, "greatest branch joint accuracy"
    else:
        judged, score, judgement = network.clone(branches=False), evaluation.mean_top1, "top-1"
    measure = evaluation.make_evaluate(network, devices, **normal)
    judge = measure if judged is network else evaluation.make_evaluate(judged, devices, **normal)

    checkpoints = Checkpoints(directory.checkpoints)
    for line in checkpoints.damaged:
        console.line(f"warning: {line}; going on from the one before it")
    done = (checkpoints.steps() or [0])[-1]
    if done:
        state = serialization.from_state_dict(state, checkpoints.restore(done))
        console.line(f"{directory.path}: continuing at step {done} of {total}")
    directory.rewind(done)
    state, teacher_variables = devices.replicate((state, teacher_variables))
    advance = make_advance(step, splits.train, devices, settings["batch"], config["seed"])
    clock = Clock(settings["batch"], total)
    with stop_requests() as asked:
        while done < total:
            until = min(total, *(every * (done // every + 1) for every in (eval_steps, config["log_every"])))
            state, done = advance(state, teacher_variables, done, until)
            if not clock.started:
                jax.block_until_ready(state.step)  # later steps are not waited for
                clock.start(done)
            at_eval = done % eval_steps == 0 or done == total
            if at_eval or done % config["log_every"] == 0:
                entry, state = _read(state, devices)
                rates = {"lr": float(jnp.asarray(schedule(done - 1))), "images_per_s": clock.rate(done)}
                entry = {"step": done, "epoch": done / steps_per_epoch, **entry, **rates}
                directory.record(entry)
                console.progress(f"{directory.path}: {_describe(entry, total, settings['epochs'], clock)}")
            if at_eval:
                accuracy = judge(state.variables, dataset)
                entry = {"step": done, "epoch": done / steps_per_epoch, "split": split, **accuracy}
                directory.record({**entry, "score": score(accuracy)})
                console.line(
                    f"{directory.path}: epoch {entry['epoch']:g}/{settings['epochs']}, {split} "
                    f"{evaluation.describe(accuracy)}, {clock.left(done)} left"
                )
                checkpoints.save(done, state, score(accuracy))
                clock.skip(done)
            if asked:
                if not at_eval:
                    _check_finite(jax.device_get(state.window))
                    checkpoints.save(done, state)
                raise Stopped(
                    f"{directory.path}: saved at step {done} of {total}; the same command continues", asked[0]
                )
    checkpoints.close()

    best = directory.best()
    variables = state.variables if best["step"] == done else devices.replicate(read_variables(directory, "best"))
    results = {
        "last": {"epoch": settings["epochs"], **measure(state.variables, splits.test)},
        "best": {
            "epoch": round(best["epoch"]),
            "chosen_by": f"{judgement} on {split}",
            **measure(variables, splits.test),
        },
        "recipe": config["recipe"],
        "arch": config["network"]["arch"],
        "seed": config["seed"],
        "train_images": images,
        "test_images": len(splits.test.labels),
        **facts.sizes(network, config["network"]["image_shape"]),
        "images_per_s": _typical_rate(directory),
        **facts.environment(),
    }
    directory.finish(results)
    console.line(f"{directory.path}: done, {evaluation.describe(results['last'])}")
    return results


def _teacher_directory(config, directory: RunDirectory) -> RunDirectory | None:
    """Where the teacher's run lies, told from the run's own directory if its path is relative."""
    if config["teacher"] is None:
        return None
    return RunDirectory(os.path.normpath(directory.path / config["teacher"]["workdir"]))


def _load_teacher(config, directory: RunDirectory | None):
    """(network, variables) of the teacher, or (None, None)."""
    if directory is None:
        return None, None
    path = directory.path
    teacher, variables = restore(path, config["teacher"]["checkpoint"], config["teacher"].get("dtype", ""))
    if teacher.num_classes != config["network"]["num_classes"]:
        raise UserError(
            f"the teacher {path} knows {teacher.num_classes} classes and the dataset has "
            f"{config['network']['num_classes']}: choose a teacher of the same dataset"
        )
    reads_branches = bool(config["objective"].get("kl_aux", {}).get("weight"))
    if reads_branches and not teacher.branches:
        raise UserError(f"the teacher {path} has no branches, which kl_aux needs: train it with the recipe 'teacher'")
    # Branches that no term reads are not computed.
    return teacher.clone(branches=reads_branches), variables


def _schedule(settings, steps_per_epoch):
    """Learning rate by step; the config counts epochs."""
    return optim.schedule(
        settings["schedule"],
        settings["lr"],
        settings["epochs"] * steps_per_epoch,
        warmup=settings["warmup"] * steps_per_epoch,
        milestones=[epoch * steps_per_epoch for epoch in settings["milestones"]],
        gamma=settings["gamma"],
    )


def compile_step(config, network, teacher, devices, schedule):
    """(init, step): what starts a state, and the whole jitted step from uint8 images on.

    Args:
      config: of a run, as `pipeline.resolve` makes it.
      network: Linen module.
      teacher: Linen module, or None.
      devices: where it runs.
      schedule: learning rate by step.

    Returns:
      `init(variables) -> State` and `step(state, teacher's variables, uint8 [B, H, W, C], labels [B]) -> State`, which
      takes the state's memory.

    Raises:
      UserError: every term has weight 0.
    """
    settings, terms = config["train"], config["objective"]
    weights = {name: term["weight"] for name, term in terms.items() if term["weight"]}
    if not weights:
        raise UserError("every term of the objective has weight 0: give one a weight")
    options = {n: {k: v for k, v in t.items() if k != "weight"} if n in weights else None for n, t in terms.items()}
    sgd = optim.sgd(schedule, settings["momentum"], settings["weight_decay"], settings["nesterov"])
    objective = partial(objectives.OBJECTIVES[config["recipe"]], **options)
    init, update = make_step(network, objective, weights, sgd, settings["trainable"], teacher, settings["accumulate"])
    source = config["data"]
    # Not the key of the initialisers.
    seed = jax.random.fold_in(jax.random.key(config["seed"]), 1)

    def step(state, teacher_variables, images, labels):
        images = augment(jax.random.fold_in(seed, state.step), images, pad=source["pad"], flip=source["flip"])
        images = normalise(images, source["mean"], source["std"])
        images = rotate(images) if RECIPES[config["recipe"]].rotated else images
        return update(state, teacher_variables, images, labels)

    return init, devices.jit(step, replicated=2, donate=True)


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


def _describe(entry, total, epochs, clock) -> str:
    terms = ", ".join(f"{k} {v:.3f}" for k, v in entry.items() if k in objectives.TERMS)
    return (
        f"epoch {entry['epoch']:.2f}/{epochs}, step {entry['step']}/{total}, loss {entry['loss']:.3f} ({terms}), "
        f"top-1 {100 * entry['top1']:.1f} %, {entry['images_per_s'] or 0:,.0f} images/s, "
        f"{clock.left(entry['step'])} left"
    )


def _typical_rate(directory) -> float | None:
    """Training images a second, the median of the run's log."""
    rates = [e["images_per_s"] for e in directory.records() if e.get("images_per_s")]
    return statistics.median(rates) if rates else None
