"""Runs of one command, one after the other."""

import runpy

import jax
from conftest import ROOT

from hsakd_jax.core.console import Console
from hsakd_jax.experiments import pipeline


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
