"""The training loop of one run: config, directory and data in, trained network and results out."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization

from hsakd_jax.core.console import Clock, Console
from hsakd_jax.core.errors import Stopped, UserError
from hsakd_jax.core.preemption import catch_stop_signals
from hsakd_jax.core.sharding import Devices, all_reduce_max, broadcast_from_first, is_first_process
from hsakd_jax.data.datasets import Splits
from hsakd_jax.evaluation import accuracies
from hsakd_jax.evaluation.accuracy import make_evaluate
from hsakd_jax.models import profile
from hsakd_jax.runs import provenance
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.config import RunConfig
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import peer_config
from hsakd_jax.runs.results import Accuracies, Record, Results, Sizes, TaughtBy
from hsakd_jax.training import tracking
from hsakd_jax.training.build import Built, Program, build
from hsakd_jax.training.multi_step import make_multi_step
from hsakd_jax.training.step import NEVER, MetricAccumulator, State

Evaluate = Callable[[Any, Any], Accuracies]


@dataclass(frozen=True)
class Session:
    """A run while it trains.

    Attributes:
      config: of the run.
      directory: of the run, acquired.
      devices: where it runs.
      splits: its data.
      console: where progress is shown.
      built: what it trains.
      checkpoints: of the run.
      evaluate: accuracies of all that is trained, of variables and images.
      evaluate_selection: those that select the best epoch; without branches where these do not count.
      clock: rate and time left.
      track: passes a record to the trackers.
    """

    config: RunConfig
    directory: RunDirectory
    devices: Devices
    splits: Splits
    console: Console
    built: Built
    checkpoints: Checkpoints
    evaluate: Evaluate
    evaluate_selection: Evaluate
    clock: Clock
    track: Callable[[Record], None] = lambda record: None

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; images that do not fill a batch are left out."""
        return len(self.splits.train.labels) // self.config.training.batch

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.training.epochs * self.steps_per_epoch

    @property
    def selection(self) -> tuple[Any, str]:
        """The images that select the best epoch, and the name of their split."""
        return (self.splits.validation, "validation") if self.splits.validation else (self.splits.test, "test")

    def record(self, entry: Record) -> None:
        """Writes a record to metrics.jsonl and to the trackers."""
        self.directory.record(entry)
        self.track(entry)


def run(
    config: RunConfig, workdir: str | Path, splits: Splits, console: Console, traced: Program | None = None
) -> Results:
    """Trains one network, resumes where an earlier call ended, or returns the results of a finished run.

    Args:
      config: of the run.
      workdir: the run's directory.
      splits: its data.
      console: where progress is shown.
      traced: the program that `build.dry_run` returned for the same config, images and devices.

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
    built = build(config, directory.path, splits.train, devices, traced)
    _acquire(directory, config)
    network = built.program.network
    evaluate = make_evaluate(network, devices, config, config.eval_batch)
    select = evaluate
    if config.evaluation.select_by == "top1":  # without branches, which take most of the time
        select = make_evaluate(network.clone(branches=False), devices, config, config.eval_batch)
    checkpoints = Checkpoints(directory.checkpoints)
    for line in checkpoints.damaged:
        console.line(f"warning: {line}; resuming from the one before it")
    clock = Clock(config.training.batch, config.training.epochs * (len(splits.train.labels) // config.training.batch))
    session = Session(config, directory, devices, splits, console, built, checkpoints, evaluate, select, clock)
    _report_teacher(session)
    state, teacher_variables = _resume(session)
    with catch_stop_signals() as requests, tracking.follow(config.logging.tracking, directory, console.line) as track:
        state = _train(replace(session, track=track), state, teacher_variables, requests)
    return _finish(session, state)


def _train(session: Session, state: State, teacher_variables: Any, requests: list[int]) -> State:
    """The loop: steps, records, evaluations and checkpoints until the last step."""
    config, clock, total = session.config, session.clock, session.steps
    done = int(state.step)
    eval_steps = config.evaluation.every * session.steps_per_epoch
    program, train, size = session.built.program, session.splits.train, config.network.image_shape[0]
    multi_step = make_multi_step(program.step, train, session.devices, config.training.batch, config.seed, size=size)
    session.console.wait(f"{session.directory.path}: compiling the step, or loading it from the compilation cache")
    while done < total:
        until = min(total, *(every * (done // every + 1) for every in (eval_steps, config.logging.every)))
        state, done = multi_step(state, teacher_variables, done, until)
        if not clock.started:
            jax.block_until_ready(state.step)  # later steps are not waited for
            clock.start(done)
        at_eval = done % eval_steps == 0 or done == total
        at_log = at_eval or done % config.logging.every == 0
        if at_log:
            state = _record_metrics(session, state, done)
        if at_eval:
            _evaluate_and_save(session, state, done)
        # Several processes exchange their requests at the lines of the log only.
        if (at_log or jax.process_count() == 1) and (signal := all_reduce_max(requests[0] if requests else 0)):
            _save_and_stop(session, state, done, signal, saved=at_eval)
    return state


def _finished(directory: RunDirectory, config: RunConfig, console: Console) -> Results | None:
    """The results of a run that has ended; None of one that has not."""
    results = directory.results()
    if not broadcast_from_first(results is not None):
        return None
    if results is None:
        raise UserError(f"{directory.path} is not the same for all processes: use a folder that they share")
    _acquire(directory, config)  # refuses another config
    console.line(f"{directory.path}: done, {accuracies.describe(results.last)}")
    return results


def _acquire(directory: RunDirectory, config: RunConfig) -> None:
    """The first process makes the directory that of `config`; where it can't, all processes end."""
    error = None
    if is_first_process():
        try:
            directory.acquire(config)
        except UserError as found:
            error = found
    if broadcast_from_first(error is not None):
        raise error or UserError(f"{directory.path} is refused by the first process, which names the reason")


def _report_teacher(session: Session) -> None:
    """Prints the teacher's accuracy on the images that select the best epoch."""
    built, teacher = session.built, session.config.teacher
    if teacher is None or built.taught_by is None:
        return
    dataset, split = session.selection
    evaluate = make_evaluate(built.program.teacher, session.devices, session.config, session.config.eval_batch)
    found = evaluate(session.devices.replicate(built.teacher_variables), dataset)
    unfinished = "" if built.taught_by.is_finished() else " (its run is not finished)"
    peers = built.taught_by.config().network.peers
    which = f" (network {teacher.peer} of {len(peers)})" if peers else ""
    session.console.line(f"{built.taught_by.path}: teacher{which} on {split}: {accuracies.describe(found)}{unfinished}")


def _resume(session: Session) -> tuple[State, Any]:
    """State and teacher's variables on all devices, from the newest checkpoint where there is one."""
    built, directory = session.built, session.directory
    state = built.state
    done = broadcast_from_first((session.checkpoints.steps() or [0])[-1])
    if done:
        state = serialization.from_state_dict(state, session.checkpoints.restore(done))
        session.console.line(f"{directory.path}: resuming at step {done} of {session.steps}")
    directory.rewind(done)
    return session.devices.replicate((state, built.teacher_variables))


def _record_metrics(session: Session, state: State, done: int) -> State:
    """Records the means since the last record; returns the state with empty sums."""
    metrics = jax.device_get(state.metrics)
    _check_finite(metrics)
    means = {name: float(total / metrics.steps) for name, total in metrics.sums.items()}
    lr = float(jnp.asarray(session.built.program.schedule(done - 1)))
    values = {**means, "lr": lr, "images_per_s": session.clock.rate(done)}
    entry = Record(step=done, epoch=done / session.steps_per_epoch, values=values)
    session.record(entry)
    line = _progress_line(session.config, session.steps, entry, session.clock.left(done))
    session.console.progress(f"{session.directory.path}: {line}")
    empty = metrics.replace(steps=jnp.zeros_like(metrics.steps), sums=jax.tree.map(jnp.zeros_like, metrics.sums))
    return state.replace(metrics=session.devices.replicate(empty))


def _progress_line(config: RunConfig, steps: int, entry: Record, left: str) -> str:
    """A record of training in a line, with all terms of the objective."""
    values = entry.values
    terms = ", ".join(f"{name} {values[name]:.3f}" for name in config.objective.terms if name in values)
    return (
        f"epoch {entry.epoch:.2f}/{config.training.epochs}, step {entry.step}/{steps}, "
        f"loss {values['loss']:.3f} ({terms}), top-1 {100 * (values['top1'] or 0):.1f} %, "
        f"{values['images_per_s'] or 0:,.0f} images/s, {left} left"
    )


def _evaluate_and_save(session: Session, state: State, done: int) -> None:
    """Measures the network on the images that select the best epoch, and saves a checkpoint."""
    (dataset, split), clock = session.selection, session.clock
    try:
        found = session.evaluate_selection(state.variables, dataset)
    except UserError:  # such as an image that can't be read: the epoch is saved first
        session.checkpoints.save(done, state)
        raise
    joint = session.config.evaluation.select_by == "joint"
    score = accuracies.best_branch(found) if joint else accuracies.mean_top1(found)
    epoch = done / session.steps_per_epoch
    session.record(Record(step=done, epoch=epoch, values=dict(found), split=split, score=score))
    session.checkpoints.save(done, state, score)
    session.console.line(
        f"{session.directory.path}: epoch {epoch:g}/{session.config.training.epochs}, {split} "
        f"{accuracies.describe(found)}, {clock.epoch(done, session.steps_per_epoch)} per epoch, "
        f"{clock.left(done)} left"
    )
    clock.skip(done)


def _save_and_stop(session: Session, state: State, done: int, signal: int, saved: bool) -> None:
    """Saves the state unless that is done, and ends the run.

    Raises:
      Stopped: always.
    """
    if not saved:
        _check_finite(jax.device_get(state.metrics))
        session.checkpoints.save(done, state)
    raise Stopped(
        f"{session.directory.path}: saved at step {done} of {session.steps}; run the same command to resume", signal
    )


def _check_finite(metrics: MetricAccumulator) -> None:
    first = min(int(step) for step in metrics.first_non_finite.values())
    if first != NEVER:
        names = sorted(name for name, step in metrics.first_non_finite.items() if step == first)
        raise UserError(
            f"step {first}: {', '.join(names)} is not finite; lower the learning rate or add warm-up "
            "(checkpoints before that step are kept)"
        )


def _finish(session: Session, state: State) -> Results:
    """Measures the last and the best epoch on the test images, and writes results.json."""
    config, directory, splits = session.config, session.directory, session.splits
    best = directory.best()
    best_step = broadcast_from_first(best.step)
    best_variables = state.variables
    if best_step != int(state.step):
        saved = session.checkpoints.restore(best_step)
        best_variables = session.devices.replicate({name: saved[name] for name in best_variables})
    session.checkpoints.close()
    metric = {"joint": "greatest branch joint accuracy", "top1": "top-1"}[config.evaluation.select_by]
    rates = [rate for entry in directory.records() if (rate := entry.values.get("images_per_s"))]
    sizes = profile.sizes(session.built.program.network, config.network.image_shape)
    results = Results(
        last={"epoch": config.training.epochs, **session.evaluate(state.variables, splits.test)},
        best={"epoch": round(best.epoch), **session.evaluate(best_variables, splits.test)},
        selected_by=f"{metric} on {session.selection[1]}",
        recipe=config.recipe,
        arch="+".join(dict.fromkeys(config.network.peers or [config.network.arch])),
        seed=config.seed,
        teacher=_describe_teacher(session),
        train_images=len(splits.train.labels),
        test_images=len(splits.test.labels),
        images_per_s=statistics.median(rates) if rates else None,
        parameters=Sizes(**sizes["parameters"]),
        multiply_adds=Sizes(**sizes["multiply_adds"]),
        **provenance.environment(),
    )
    directory.finish(results)
    session.console.line(f"{directory.path}: done, {accuracies.describe(results.last)}")
    return results


def _describe_teacher(session: Session) -> TaughtBy | None:
    """Network, recipe and accuracies of the teacher."""
    directory, teacher = session.built.taught_by, session.config.teacher
    if directory is None or teacher is None:
        return None
    config, results = directory.config(), directory.results()
    arch = peer_config(config.network, directory.path, peer=teacher.peer).arch
    return TaughtBy(arch, config.recipe, results.last if results else None)
