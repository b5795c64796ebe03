"""Runs of one command, one after the other."""

import runpy
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT
from run_configs import run_config

from hsakd_jax.core.console import Console
from hsakd_jax.core.errors import UserError
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.datasets import Splits
from hsakd_jax.experiments import pipeline

IMAGE = Dataset(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int32))


def test_runs_of_a_command_share_the_accuracies_of_teachers(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(pipeline.loop, "run", lambda *args: given.append(args[-1]))
    monkeypatch.setattr(pipeline, "_write_results", lambda *_: None)
    monkeypatch.setattr(pipeline, "summary", lambda _: "")
    config = runpy.run_path(str(ROOT / "configs/digits.py"))["get_config"]("kd_tiny").to_dict()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
        pipeline.execute({**config, "seeds": (0, 1)}, str(tmp_path), Console(silent=True))
    assert given[0] == {}
    assert len(given) == 4  # teacher and student of each seed
    assert all(one is given[0] for one in given)


@pytest.mark.parametrize(
    ("changes", "words"), [({"warmup": 3}, "warmup is 3 epochs"), ({"decay": 2}, "decay begins at epoch 2")]
)
def test_a_term_that_does_not_fit_the_length_of_the_run_is_told(changes, words, monkeypatch, tmp_path):
    """As a milestone or a warm-up of the learning rate."""
    shown = []
    monkeypatch.setattr(pipeline, "trace", lambda *_: "a program")
    console = SimpleNamespace(line=shown.append)
    for options in ({}, changes):
        keys = {f"objective__dkd__dkd__{key}": value for key, value in {"warmup": 2, **options}.items()}
        run = run_config("dkd", student__epochs=2, student__batch=1, student__milestones=(), student__warmup=0, **keys)
        splits = Splits(IMAGE, None, IMAGE, run.classes)
        planned = pipeline._Planned(run, tmp_path / "run", splits, None)
        pipeline._check_run(planned, {"dkd": tmp_path / "run"}, "dkd", None, console)
        assert len(shown) == bool(options)
    assert words in shown[0]
    assert "set --config.objective.dkd.dkd." in shown[0]


def test_a_start_of_images_with_other_channels(tmp_path):
    grey, colour = (run_config(shape=(8, 8, channels)) for channels in (1, 3))
    pipeline._check_start(tmp_path, grey, grey, "student", "student")
    with pytest.raises(UserError, match=r"takes images of \[8, 8, 1\], and those of this run have 3 channels: set"):
        pipeline._check_start(tmp_path, grey, colour, "student", "student")


@pytest.mark.parametrize(
    ("images", "devices", "keys", "batch"),
    [
        (22, 1, {}, 22),
        (22, 8, {}, 16),
        (22, 1, {"student__accumulate": 4}, 20),
        (25, 4, {"student__accumulate": 2, "batch_norm_groups": 3}, 24),
    ],
)
def test_the_batch_of_few_images_can_be_split(images, devices, keys, batch, monkeypatch, tmp_path):
    run = run_config(student__batch=48, **keys)
    data = Dataset(np.zeros((images, 8, 8, 1), np.uint8), np.zeros(images, np.int32))
    planned = {"baseline": pipeline._Planned(run, tmp_path, Splits(data, None, data, run.classes), None)}
    monkeypatch.setattr(pipeline, "Devices", lambda: range(devices))
    with pytest.raises(
        UserError, match=f"more than the {images} .* of baseline: set --config.student.batch={batch}, or"
    ):
        pipeline._check_batches(planned)
    enough = data.take(np.arange(48) % images)
    pipeline._check_batches(
        {"baseline": planned["baseline"]._replace(splits=planned["baseline"].splits._replace(train=enough))}
    )
    monkeypatch.setattr(pipeline, "Devices", lambda: range(32))
    with pytest.raises(UserError, match=rf"baseline has {images} training images, and 32 devices .* need \d+: add"):
        pipeline._check_batches(planned)
