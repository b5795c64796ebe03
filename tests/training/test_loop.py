"""The training loop in process: which variables give the results, and records of a run that is stopped and resumed."""

import contextlib
import itertools
import os
import signal
from types import SimpleNamespace

import jax
import msgspec
import numpy as np
import pytest
from run_configs import run_config

from hsakd_jax.core.console import Console
from hsakd_jax.core.errors import Stopped, UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.datasets import Splits
from hsakd_jax.evaluation import accuracies
from hsakd_jax.evaluation.accuracy import Measured
from hsakd_jax.runs import manifest
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.training import loop, session

EPOCHS, STEPS_PER_EPOCH = 2, 4


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    """Programs for eight take longer to compile."""
    monkeypatch.setattr(loop, "Devices", lambda: Devices(jax.devices()[:1]))


def train(workdir, fewer_tests=0, changed=(), **keys):
    """Trains on eight images a step; the run's directory and results.

    It is tested on the same images, or on fewer. `changed` are the splits with another digest.
    """
    g = np.random.default_rng(0)
    images = g.integers(0, 256, (8 * STEPS_PER_EPOCH, 8, 8, 1)).astype(np.uint8)
    data = Dataset(images, g.integers(0, 2, len(images)).astype(np.int32), "one")
    keys |= {"student__arch": "resnet8_quarter", "student__epochs": EPOCHS, "student__batch": 8, "eval_every": 1}
    config = run_config("baseline", shape=(8, 8, 1), tests=data, eval_batch=8, **keys)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
        splits = {"train": data, "test": data.take(np.arange(len(data.labels) - fewer_tests))}
        for split in changed:
            splits[split] = splits[split]._replace(digest="another")
        splits = Splits(**splits, validation=None, class_names=config.classes)
        results = loop.run(config, workdir, splits, Console(silent=True))
    return RunDirectory(workdir), results


def fingerprint(variables):
    """A number of the parameters and one of the running statistics, under names of accuracies."""
    sums = {
        kind: float(sum(np.asarray(x, np.float64).sum() for x in jax.tree.leaves(variables[kind])))
        for kind in ("params", "batch_stats")
    }
    return {"top1": sums["batch_stats"], "top5": sums["params"]}


def test_results_are_of_the_variables_and_statistics_of_their_epochs(tmp_path, monkeypatch):
    """The first epoch is the best one; neither its parameters nor its running statistics are those of the last."""
    falling = itertools.count(100, -1)
    monkeypatch.setattr(loop, "make_measure", lambda *_: lambda variables, *_: Measured(fingerprint(variables), None))
    monkeypatch.setattr(accuracies, "mean_top1", lambda _: float(next(falling)))
    directory, results = train(tmp_path / "run")
    checkpoints = Checkpoints(directory.checkpoints, write=False)
    best, last = (fingerprint(checkpoints.restore(epoch * STEPS_PER_EPOCH)) for epoch in (1, EPOCHS))
    assert results.best == {"epoch": 1, **best}
    assert results.last == {"epoch": EPOCHS, **last}
    assert all(best[name] != last[name] for name in best)


def test_a_best_epoch_that_is_the_last_is_measured_once(tmp_path, monkeypatch):
    measured = []

    def measure(variables, *_):
        measured.append(fingerprint(variables))
        return Measured(measured[-1], None)

    rising = itertools.count(1)
    monkeypatch.setattr(loop, "make_measure", lambda *_: measure)
    monkeypatch.setattr(accuracies, "mean_top1", lambda _: float(next(rising)))
    _, results = train(tmp_path / "run")
    assert results.best == results.last == {"epoch": EPOCHS, **measured[-1]}
    assert len(measured) == EPOCHS + 1  # to select the best one after each epoch, then on the test images


def stop_at(step):
    """`make_multi_step` whose process gets SIGTERM after a step."""

    def make(*args, made=loop.make_multi_step, **options):
        multi_step = made(*args, **options)

        def stopping(state, teacher_variables, done, until):
            state, done = multi_step(state, teacher_variables, done, until)
            if done == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return state, done

        return stopping

    return make


def test_means_of_a_run_that_is_stopped_between_records_are_those_of_one_that_is_not(tmp_path, monkeypatch):
    """The sums of the steps before the stop, from step 4 to 5, count in the first record after it, that of step 6."""
    directory, _ = train(tmp_path / "whole", log_every=3)
    expected = timeless(directory)
    assert [record.step for record in expected if record.split is None] == [3, 4, 6, 8]
    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_multi_step", stop_at(5))
        with pytest.raises(Stopped, match="saved at step 5 of 8"):
            train(tmp_path / "run", log_every=3)
    assert timeless(RunDirectory(tmp_path / "run"))[-1].step == 4
    directory, _ = train(tmp_path / "run", log_every=3)
    assert timeless(directory) == expected


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_a_run_that_is_stopped_in_an_evaluation_repeats_it(epoch, tmp_path, monkeypatch):
    """Records, scores and results are those of a run that is not stopped; the last epoch has its evaluation too."""
    directory, expected = train(tmp_path / "whole")
    step, evaluations = epoch * STEPS_PER_EPOCH, itertools.count(1)

    def make(*args, made=loop.make_measure):
        measure = made(*args)

        def stopping(variables, dataset, stop=lambda: False):
            if next(evaluations) == epoch:
                os.kill(os.getpid(), signal.SIGTERM)
            return measure(variables, dataset, stop)

        return stopping

    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_measure", make)
        with pytest.raises(Stopped, match=f"saved at step {step} of 8"):
            train(tmp_path / "run")
    stopped = RunDirectory(tmp_path / "run")
    assert not Checkpoints(stopped.checkpoints, write=False).is_scored(step)
    assert [record.step for record in stopped.metrics.read() if record.split] == [4] * (epoch - 1)
    # As if the process was killed after the record of the repeated evaluation, and before its checkpoint.
    stopped.metrics.append(timeless(directory)[2 * epoch - 1])
    _, results = train(tmp_path / "run")
    assert timeless(stopped) == timeless(directory)
    assert (results.last, results.best) == (expected.last, expected.best)
    scores = [[manifest.read(one.checkpoints, step).score for step in (4, 8)] for one in (stopped, directory)]
    assert scores[0] == scores[1]


def test_a_run_that_is_stopped_in_the_repeated_evaluation_stops(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_multi_step", stop_at(4))
        with pytest.raises(Stopped, match="saved at step 4 of 8"):
            train(tmp_path / "run")
    monkeypatch.setattr(loop, "catch_stop_signals", lambda: contextlib.nullcontext([signal.SIGTERM]))
    with pytest.raises(Stopped, match="saved at step 4 of 8"):
        train(tmp_path / "run")


def timeless(directory):
    """All records, without the rate."""
    return [
        msgspec.structs.replace(record, values={k: v for k, v in record.values.items() if k != "images_per_s"})
        for record in directory.metrics.read()
    ]


def test_a_signal_while_trackers_end_stops_the_command(tmp_path, monkeypatch):
    """A pipeline would begin its next run."""

    @contextlib.contextmanager
    def follow(*_):
        yield lambda record: None
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(loop.tracking, "follow", follow)
        with pytest.raises(Stopped, match="saved at step 8 of 8"):
            train(tmp_path / "run")
    _, results = train(tmp_path / "run")
    assert results.last["epoch"] == EPOCHS


@pytest.mark.parametrize("step", [0, 4, 6])
def test_a_training_image_that_cannot_be_read_saves_the_steps_before_it(step, tmp_path, monkeypatch):
    """Between two evaluations, which save at steps 4 and 8."""
    made = loop.make_multi_step

    def make(*args, **options):
        multi_step = made(*args, **options)

        def run(state, teacher_variables, done, until):
            if done == step:
                raise UserError("image 7 can't be read")
            return multi_step(state, teacher_variables, done, until)

        return run

    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_multi_step", make)
        with pytest.raises(UserError, match="image 7"):
            train(tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", write=False)
    assert checkpoints.steps() == {0: [], 4: [4], 6: [4, 6]}[step]
    resumed, whole = (train(tmp_path / name)[0] for name in ("run", "whole"))
    contents = [manifest.read(one.checkpoints, 8).content for one in (resumed, whole)]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_that_cannot_be_read_saves_the_epoch_of_one_process(processes, monkeypatch):
    """With two, the other one waits in the computation: what the first would do together with it never ends."""

    def measure(*_):
        raise UserError("image 7 can't be read")

    saved = []
    fake = SimpleNamespace(
        splits=SimpleNamespace(selection=(None, "test")),
        clock=None,
        measure_selection=measure,
        checkpoints=SimpleNamespace(save=lambda done, state: saved.append(done)),
    )
    monkeypatch.setattr(session.jax, "process_count", lambda: processes)
    with pytest.raises(UserError, match="image 7"):
        session.evaluate_and_save(fake, SimpleNamespace(variables={}), 4, [])
    assert saved == ([4] if processes == 1 else [])


def test_a_teacher_that_trains_on_while_it_is_read(tmp_path, monkeypatch):
    contents = iter(["a" * 64, "b" * 64])
    monkeypatch.setattr(loop.RunDirectory, "sources", lambda *_: {"teacher": next(contents)})
    with pytest.raises(UserError, match="a run that it needs saved a checkpoint while it was read"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_images_that_select_the_best_epoch_are_told(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_multi_step", stop_at(5))
        with pytest.raises(Stopped):
            train(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_multi_step", stop_at(6))
        with pytest.raises(Stopped):
            train(tmp_path / "run")
    assert "have changed" not in capsys.readouterr().err
    train(tmp_path / "run", fewer_tests=1)
    assert "the images that select the best epoch have changed" in capsys.readouterr().err


def test_other_images_with_the_same_labels(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_multi_step", stop_at(5))
        with pytest.raises(Stopped):
            train(tmp_path / "run")
    with pytest.raises(UserError, match="run began with other training images: restore the data"):
        train(tmp_path / "run", changed=("train", "test"))
    assert "have changed" not in capsys.readouterr().err
    train(tmp_path / "run", changed=("test",))
    assert capsys.readouterr().err.count("the images that select the best epoch have changed") == 1
