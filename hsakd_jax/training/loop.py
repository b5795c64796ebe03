"""The training loop of one run: config, directory and data in, trained network and results out."""

import hashlib
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from flax import serialization

from hsakd_jax.core.console import Clock, Console
from hsakd_jax.core.errors import Stopped, UserError
from hsakd_jax.core.preemption import catch_stop_signals
from hsakd_jax.core.sharding import (
    Devices,
    all_reduce_max,
    broadcast_from_first,
    is_first_process,
    run_in_first_process,
)
from hsakd_jax.data.datasets import Splits
from hsakd_jax.evaluation import accuracies
from hsakd_jax.evaluation.accuracy import make_evaluate, make_measure, other_test_images
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.config import RunConfig, Teacher
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.results import Accuracies, Results
from hsakd_jax.training import profiling, tracking
from hsakd_jax.training.build import Program, build
from hsakd_jax.training.class_costs import with_class_costs
from hsakd_jax.training.multi_step import make_multi_step
from hsakd_jax.training.session import Session, check_finite, evaluate_and_save, final_results, record_metrics
from hsakd_jax.training.step import State

# Points between a teacher's accuracy here and that of its own results, above which a line warns.
TOLERANCE = 1.0


def run(
    config: RunConfig,
    workdir: str | Path,
    splits: Splits,
    console: Console,
    traced: Program | None = None,
    measured: dict[Hashable, Accuracies] | None = None,
) -> Results:
    """Trains one network, resumes where an earlier call ended, or returns the results of a finished run.

    Args:
      config: of the run.
      workdir: the run's directory.
      splits: its data.
      console: where progress is shown.
      traced: the program that `build.dry_run` returned for the same config, images and devices.
      measured: accuracies of teachers that earlier runs of the command measured; this run adds its own.

    Returns:
      The content of results.json.

    Raises:
      UserError: bad input, a directory of another config, a loss that is not finite, or a full disk.
      Stopped: after a signal, when the state is saved.
    """
    directory = RunDirectory(workdir, write=is_first_process())
    if results := _finished(directory, config, console):
        return results
    devices = Devices()
    used = directory.sources(config)
    built = build(config, directory.path, splits.train, devices, traced)
    _check_read(directory, config, used)
    run_in_first_process(lambda: directory.acquire(config), str(directory.path))
    for line in built.notes:
        console.line(f"{directory.path}: {line}")
    network = built.program.network
    measure = make_measure(network, devices, config, config.eval_batch)
    select = measure
    if config.evaluation.select_by == "top1":  # without branches, which take most of the time
        select = make_measure(network.clone(branches=False), devices, config, config.eval_batch)
    # Each step draws its images by position: with other images, a resumed run could not be repeated.
    sources = {**used, **images_of(splits)}
    checkpoints = Checkpoints(directory.checkpoints, config=config, sources=sources)
    for line in checkpoints.damaged:
        console.line(f"warning: {line}")
    # Only now is the newest checkpoint a whole one, which can be compared.
    run_in_first_process(lambda: _check(directory, config, sources), str(directory.path))
    per_epoch = config.training.steps_per_epoch(len(splits.train.labels))
    clock = Clock(config.training.batch, config.training.epochs * per_epoch, config.evaluation.every * per_epoch)
    session = Session(config, directory, devices, splits, console, built, checkpoints, measure, select, clock)
    taught_with = _report_teacher(session, sources.get("teacher"), {} if measured is None else measured)
    session = replace(session, teacher_accuracies=taught_with)
    state, teacher_variables = _resume(session)
    with catch_stop_signals() as requests:
        with (
            tracking.follow(config.logging.tracking, directory, console.line) as track,
            profiling.follow(config.logging.profile, directory, console) as trace,
        ):
            state = _train(replace(session, track=track), state, teacher_variables, requests, trace)
        # A signal may have come while the trackers ended.
        _stop_if_requested(session, state, session.steps, requests, saved=True)
    return final_results(session, state)


def images_of(splits: Splits) -> dict[str, str]:
    """The images that a run depends on, see `manifest.Manifest.sources`."""
    used = {"data": splits.train, "selection": splits.selection[0]}
    found = {role: hashlib.sha256(images.labels.tobytes()).hexdigest() for role, images in used.items()}
    digests = {f"{role}_images": images.digest for role, images in used.items()}
    return found | {role: digest for role, digest in digests.items() if digest is not None}


def _check_read(directory: RunDirectory, config: RunConfig, used: dict[str, str]) -> None:
    """Refuses a teacher or a start that saved a checkpoint while this run read it, or that processes read differently.

    Raises:
      UserError: in all processes.
    """
    number = int(hashlib.sha256(repr(used).encode()).hexdigest()[:7], 16)
    differs = broadcast_from_first(number) != number
    try:
        changed = directory.sources(config) != used
    except UserError:  # its checkpoints are being replaced
        changed = True
    if all_reduce_max(changed or differs):
        raise UserError(
            f"{directory.path}: a run that it needs saved a checkpoint while it was read: run the same command again"
        )


def _check(directory: RunDirectory, config: RunConfig, sources: dict[str, str]) -> None:
    """Refuses to go on with another config, other runs or other images than the newest checkpoint's."""
    directory.check(config)
    directory.check_sources(sources)


def _train(
    session: Session, state: State, teacher_variables: Any, requests: list[int], trace: profiling.Trace
) -> State:
    """The loop: steps, records, evaluations and checkpoints until the last step."""
    config, clock, total = session.config, session.clock, session.steps
    done = int(state.step)
    eval_steps = config.evaluation.every * session.steps_per_epoch
    program, train, size = session.built.program, session.splits.train, config.network.image_shape[0]
    multi_step = make_multi_step(program.step, train, session.devices, config.training.batch, config.seed, size=size)
    if done and (done % eval_steps == 0 or done == total) and not session.checkpoints.is_scored(done):
        # The call before this one was stopped in the evaluation, or killed between its record and its checkpoint.
        session.directory.metrics.rewind(done, evaluated=False)
        evaluate_and_save(session, state, done, requests)
        _stop_if_requested(session, state, done, requests, saved=True)
    if done < total:
        session.console.line(f"{session.directory.path}: compiling the step, or loading it from the compilation cache")
    while done < total:
        trace.begin(done, state)
        until = min(total, *(every * (done // every + 1) for every in (eval_steps, config.logging.every)))
        try:
            state, done = multi_step(state, teacher_variables, done, trace.limit(done, until))
        except UserError:  # a photograph can't be read, before the step; other processes wait for this one's
            if done and jax.process_count() == 1 and done != session.directory.newest_step():
                _save(session, state, done)
                session.console.line(f"{session.directory.path}: saved at step {done} of {total}")
            raise
        trace.end(done, state)  # an evaluation is not in the trace
        if not clock.started:
            jax.block_until_ready(state.step)  # later steps are not waited for
            clock.start(done)
        at_eval = done % eval_steps == 0 or done == total
        at_log = at_eval or done % config.logging.every == 0
        if at_log:
            state = record_metrics(session, state, done)
        if at_eval:
            evaluate_and_save(session, state, done, requests)
        # Several processes exchange their requests at the lines of the log only.
        if at_log or jax.process_count() == 1:
            _stop_if_requested(session, state, done, requests, saved=at_eval)
    return state


def _finished(directory: RunDirectory, config: RunConfig, console: Console) -> Results | None:
    """The results of a run that has ended; None of one that has not."""
    results = directory.results()
    if not broadcast_from_first(results is not None):
        return None
    if results is None:
        raise UserError(f"{directory.path} is not the same for all processes: use a folder that they share")
    # Refuses another config.
    run_in_first_process(lambda: directory.acquire(config), str(directory.path))
    console.line(f"{directory.path}: done, test {accuracies.describe(results.last)}")
    return results


def _report_teacher(session: Session, content: str | None, measured: dict[Hashable, Accuracies]) -> Accuracies | None:
    """Prints the teacher's accuracy on the images that select the best epoch; warns if its own results differ.

    Args:
      session: of the run.
      content: of the teacher's checkpoint, see `RunDirectory.sources`.
      measured: see `run`.

    Returns:
      The accuracies; None without a teacher.
    """
    built, config, teacher = session.built, session.config, session.config.teacher
    if teacher is None or built.taught_by is None:
        return None
    dataset, split = session.splits.selection
    seed = config.seed if split == "validation" else None  # which selects these images
    key = (content, teacher.peer, teacher.dtype, config.data, config.network.image_shape, config.classes, split, seed)
    if key not in measured:
        network = built.program.teacher.clone(branches=False)  # which take most of the time, before the first step
        evaluate = make_evaluate(network, session.devices, config, config.eval_batch)
        measured[key] = evaluate(session.devices.replicate(built.teacher_variables), dataset)
    found = measured[key]
    unfinished = "" if built.taught_by.is_finished() else " (its run is not finished)"
    peers = built.taught_by.config().network.peers
    which = f" (network {teacher.peer} of {len(peers)})" if peers else ""
    session.console.line(f"{built.taught_by.path}: teacher{which} on {split}: {accuracies.describe(found)}{unfinished}")
    own = _own_accuracy(session, built.taught_by, teacher)
    if own is not None and abs(found["top1"] - own) > TOLERANCE:
        session.console.line(
            f"warning: {built.taught_by.path}: the teacher reaches {found['top1']:.2f} % here and {own:.2f} % in its "
            "own results: compare data, data.mean, data.std and data.image_size of both runs"
        )
    if line := other_test_images(built.taught_by, session.config, session.splits.test):
        session.console.line(f"warning: {line}")
    return found


def _own_accuracy(session: Session, taught_by: RunDirectory, teacher: Teacher) -> float | None:
    """The teacher's top-1 accuracy in its own results; None if these are of other images."""
    results, theirs = taught_by.results(), taught_by.config()
    dataset, split = session.splits.selection
    if results is None or split != "test" or theirs.data.name != session.config.data.name:
        return None
    if not results.same_test_images(len(dataset.labels), dataset.digest):
        return None
    own = results.best if teacher.checkpoint == "best" else results.last
    return own.get(f"peer{teacher.peer}/top1" if theirs.network.peers else "top1")


def _resume(session: Session) -> tuple[State, Any]:
    """State and teacher's variables on all devices, from the newest checkpoint where there is one."""
    built, directory = session.built, session.directory
    state = built.state
    done = broadcast_from_first((session.checkpoints.steps() or [0])[-1])
    if done:
        saved = session.checkpoints.restore(done)
        if int(saved["step"]) != done:
            raise UserError(f"checkpoint {done} of {directory.path} is of step {saved['step']}: restore the folder")
        state = serialization.from_state_dict(state, saved)
        session.console.line(f"{directory.path}: resuming at step {done} of {session.steps}")
    else:
        if session.checkpoints.damaged:
            session.console.line(f"{directory.path}: no whole checkpoint is left, starting from the beginning")
        teacher, train = built.program.teacher, session.splits.train
        state = with_class_costs(state, session.config, teacher, built.teacher_variables, train, session.devices)
    directory.metrics.rewind(done)
    return session.devices.replicate((state, built.teacher_variables))


def _stop_if_requested(session: Session, state: State, done: int, requests: list[int], saved: bool) -> None:
    """Saves the state unless that is done, and ends the run, if a process received a stop signal.

    Raises:
      Stopped: one did.
    """
    if not (signal := all_reduce_max(requests[0] if requests else 0)):
        return
    if not saved:
        _save(session, state, done)
    raise Stopped(
        f"{session.directory.path}: saved at step {done} of {session.steps}; run the same command to resume", signal
    )


def _save(session: Session, state: State, done: int) -> None:
    """Saves the state between two evaluations.

    Raises:
      UserError: a loss that is not finite, or a full disk.
    """
    check_finite(jax.device_get(state.metrics))
    session.checkpoints.save(done, state)
