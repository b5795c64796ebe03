"""A run while it trains: its records, evaluations, checkpoints and results."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hsakd_jax.core.console import Clock, Console
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices, broadcast_from_first, is_first_process
from hsakd_jax.data.datasets import Splits
from hsakd_jax.evaluation import accuracies
from hsakd_jax.evaluation.accuracy import Interrupted, Measured
from hsakd_jax.models import profile
from hsakd_jax.runs import provenance
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.config import RunConfig
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.metrics_log import Record
from hsakd_jax.runs.restore import peer_config
from hsakd_jax.runs.results import Accuracies, Correct, Results, Sizes, TaughtBy
from hsakd_jax.training.build import Built
from hsakd_jax.training.step import NEVER, MetricAccumulator, State

Measure = Callable[..., Measured]  # see `make_measure`


@dataclass(frozen=True)
class Session:
    """A run while it trains.

    Attributes:
      config: of the run.
      directory: of the run, acquired.
      devices: where it runs.
      splits: its data.
      console: where progress is shown.
      built: the run's program and first state.
      checkpoints: of the run.
      measure: accuracies of all that is trained, of variables and images.
      measure_selection: those that select the best epoch; without branches where these do not count.
      clock: rate and time left.
      teacher_accuracies: of the teacher on the images that select the best epoch; None without one.
      track: passes a record to the trackers.
    """

    config: RunConfig
    directory: RunDirectory
    devices: Devices
    splits: Splits
    console: Console
    built: Built
    checkpoints: Checkpoints
    measure: Measure
    measure_selection: Measure
    clock: Clock
    teacher_accuracies: Accuracies | None = None
    track: Callable[[Record], None] = lambda record: None

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return self.config.training.steps_per_epoch(len(self.splits.train.labels))

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.training.epochs * self.steps_per_epoch

    def record(self, entry: Record) -> None:
        """Writes a record to metrics.jsonl and to the trackers."""
        self.directory.metrics.append(entry)
        self.track(entry)


def record_metrics(session: Session, state: State, done: int) -> State:
    """Records the means since the last record; returns the state with empty sums."""
    metrics = jax.device_get(state.metrics)
    check_finite(metrics)
    means = {name: float(total / metrics.steps) for name, total in metrics.sums.items()}
    lr = float(jnp.asarray(session.built.program.schedule(done - 1)))
    values = {**means, "lr": lr, "images_per_s": session.clock.rate(done)}
    entry = Record(step=done, epoch=done / session.steps_per_epoch, values=values)
    session.record(entry)
    line = progress_line(session.config, session.steps, entry, session.clock.left(done))
    session.console.progress(f"{session.directory.path}: {line}")
    empty = metrics.replace(steps=jnp.zeros_like(metrics.steps), sums=jax.tree.map(jnp.zeros_like, metrics.sums))
    return state.replace(metrics=session.devices.replicate(empty))


def progress_line(config: RunConfig, steps: int, entry: Record, left: str) -> str:
    """A record of training in a line, with all terms of the objective."""
    values = entry.values
    terms = ", ".join(f"{name} {values[name]:.3f}" for name in config.objective.terms if name in values)
    return (
        f"epoch {entry.epoch:.2f}/{config.training.epochs}, step {entry.step}/{steps}, "
        f"loss {values['loss']:.3f} ({terms}), top-1 {100 * (values['top1'] or 0):.1f} %"
        # The first steps, which compile, have no rate.
        + (f", {rate:,.0f} images/s, {left} left" if (rate := values["images_per_s"]) else "")
    )


def evaluate_and_save(session: Session, state: State, done: int, requests: list[int]) -> None:
    """Measures the network on the images that select the best epoch, and saves a checkpoint.

    A stop signal ends the measurement, which may take longer than the time until the process is killed. Then the
    checkpoint has no score, and the run measures the network when it resumes.

    Args:
      session: of the run.
      state: after step `done`.
      done: the step.
      requests: the stop signals, see `catch_stop_signals`.
    """
    (dataset, split), clock = session.splits.selection, session.clock
    single = jax.process_count() == 1  # several processes compute each batch together
    try:
        found = session.measure_selection(state.variables, dataset, lambda: single and bool(requests)).accuracies
    except Interrupted:
        return session.checkpoints.save(done, state)
    except UserError:  # such as an image that can't be read: the epoch is saved first
        if single:  # the others wait for this process in the computation, and not for a checkpoint
            session.checkpoints.save(done, state)
        raise
    joint = session.config.evaluation.select_by == "joint"
    score = accuracies.best_branch(found) if joint else accuracies.mean_top1(found)
    epoch = done / session.steps_per_epoch
    session.record(Record(step=done, epoch=epoch, values=dict(found), split=split, score=score))
    session.checkpoints.save(done, state, score)
    clock.skip(done)
    session.console.line(
        f"{session.directory.path}: epoch {epoch:g}/{session.config.training.epochs}, {split} "
        f"{accuracies.describe(found)}, {clock.epoch(session.steps_per_epoch)}, "
        f"{clock.left(done)} left"
    )


def check_finite(metrics: MetricAccumulator) -> None:
    """Ends a run whose loss, terms or gradient are no longer finite.

    Raises:
      UserError: they are not; the line names the step and the metrics.
    """
    first = min(int(step) for step in metrics.first_non_finite.values())
    if first != NEVER:
        names = sorted(name for name, step in metrics.first_non_finite.items() if step == first)
        raise UserError(
            f"step {first}: {', '.join(names)} is not finite; lower the learning rate or a weight, or add warm-up "
            "(checkpoints before that step are kept)"
        )


def final_results(session: Session, state: State) -> Results:
    """Measures the last and the best epoch on the test images, and writes results.json."""
    config, directory, splits = session.config, session.directory, session.splits
    best_step = broadcast_from_first(session.checkpoints.best() if is_first_process() else 0)
    last = best = session.measure(state.variables, splits.test)
    if best_step != int(state.step):
        saved = session.checkpoints.restore(best_step)
        variables = session.devices.replicate({name: saved[name] for name in state.variables})
        best = session.measure(variables, splits.test)
    session.checkpoints.close()
    metric = {"joint": "greatest branch joint accuracy", "top1": "top-1"}[config.evaluation.select_by]
    rates = [rate for entry in directory.metrics.read() if (rate := entry.values.get("images_per_s"))]
    sizes = profile.sizes(session.built.program.network, config.network.image_shape)
    results = Results(
        last={"epoch": config.training.epochs, **last.accuracies},
        best={"epoch": round(best_step / session.steps_per_epoch), **best.accuracies},
        selected_by=f"{metric} on {session.splits.selection[1]}",
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
        correct=None if last.correct is None else Correct.pack(last.correct, splits.test.labels),
        test_digest=splits.test.digest,
    )
    directory.finish(results)
    session.console.line(f"{directory.path}: done, test {accuracies.describe(results.last)}")
    return results


def _describe_teacher(session: Session) -> TaughtBy | None:
    """Network, recipe and accuracies of the teacher."""
    directory, teacher = session.built.taught_by, session.config.teacher
    if directory is None or teacher is None:
        return None
    config, results = directory.config(), directory.results()
    arch = peer_config(config.network, directory.path, peer=teacher.peer).arch
    return TaughtBy(arch, config.recipe, results.last if results else None, session.teacher_accuracies)
