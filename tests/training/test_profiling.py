"""Traces of some steps, and the time and memory of runs before they train."""

import gzip
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from conftest import assert_refused

from hsakd_jax.core import sharding
from hsakd_jax.core.console import Console
from hsakd_jax.training import estimate, profiling
from hsakd_jax.training.estimate import program_bytes
from hsakd_jax.training.profiling import Trace

CONFIG = "--config=configs/digits.py:kd_tiny"


def test_a_trace_changes_no_result(call_command, tmp_path):
    for name, words in (("plain", []), ("traced", ["--config.profile=(4,6)"])):
        done = call_command("main", CONFIG, f"--workdir={tmp_path}/{name}", *words)
        assert done.returncode == 0, done.stderr
    (trace,) = tmp_path.glob("traced/kd/profile/plugins/profile/*/perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    plain, traced = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("plain", "traced"))
    assert traced["kd"]["last"] == plain["kd"]["last"]
    assert "steps 4 to 5 (" in done.stdout + done.stderr
    # A finished run is that of the command without the trace too.
    assert call_command("main", CONFIG, f"--workdir={tmp_path}/traced").returncode == 0


def test_a_trace_that_no_step_reaches_is_named(call_command, tmp_path):
    given = (CONFIG, f"--workdir={tmp_path}/runs")
    done = call_command("main", *given, "--config.profile=(100,105)")
    assert "no trace, since this command made the steps 0 to 21 and profile is (100, 105)" in done.stdout
    assert not (tmp_path / "runs" / "kd" / "profile").exists()
    done = call_command("main", *given, "--config.profile=(20,105)", f"--workdir={tmp_path}/partly")
    assert "trace of the steps 20 to 21 (" in done.stdout
    assert "no trace" not in done.stdout


def test_a_summary_measures_the_step(call_command, monkeypatch):
    words = ("summary", "resnet8_quarter", "--image_size=8", "--batch=4")
    for flags in ((), ("--time",)):
        shown = call_command(*words, *flags).stdout
        assert shown.count("fits in the") == 1 + len(flags)
    assert re.search(r"measured: [0-9.e-]+ s per step, [0-9,]+ images/s, [0-9]+ MiB", shown)
    for module in (sharding, estimate):
        monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    assert "measure it with --time, it may not fit in the 0 MiB of this device" in call_command(*words).stdout
    assert "set a smaller --batch, it is more than the 0 MiB" in call_command(*words, "--time").stdout


def test_a_trace_ends_with_the_steps_that_were_made(tmp_path, monkeypatch, capsys):
    """Also in a run that is stopped; one that resumes behind the trace does not miss it."""
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path, **_: (tmp_path / "profile").mkdir())
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    directory = SimpleNamespace(path=tmp_path)
    with profiling.follow((20, 50), directory, Console()) as trace:
        for done in (10, 20):
            trace.begin(done, None)
            trace.end(done + 10, None)
    assert capsys.readouterr().out == f"{tmp_path}/profile: trace of the steps 20 to 29 (docs/profile.md)\n"
    with profiling.follow((20, 50), directory, Console()) as trace:
        trace.begin(60, None)
        trace.end(70, None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("steps", ["(4,4)", "(4,)", "(-1,3)", "(5,2)"])
def test_a_trace_has_two_steps(steps, call_command, tmp_path):
    refused = call_command("main", CONFIG, f"--workdir={tmp_path}/x", f"--config.profile={steps}")
    assert_refused(refused, "profile is", "such as (20, 25)")


def test_steps_stop_where_a_trace_begins_and_ends(tmp_path):
    trace = Trace((4, 8), SimpleNamespace(path=tmp_path), None)
    assert [trace.limit(done, 10) for done in (0, 3, 4, 7, 8, 9)] == [4, 4, 8, 8, 10, 10]
    assert Trace(None, SimpleNamespace(path=tmp_path), None).limit(0, 10) == 10


def test_a_dry_run_trains_nothing(call_command, tmp_path):
    done = call_command("main", CONFIG, f"--workdir={tmp_path}/runs", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith(("backbone", "kd"))}
    assert rows["kd"][1:5] == ["resnet8_quarter", "179", "2", "22"]
    assert float(rows["kd"][5]) > 0
    assert "without evaluations" in done.stdout
    assert_refused(
        call_command("main", CONFIG, f"--workdir={tmp_path}/runs", "--dry_run", "--config.student.batch=500")
    )


def test_bytes_of_a_program():
    """Arguments and result, of which the first argument's memory is reused."""
    x = jnp.ones((256, 256))
    plain = jax.jit(lambda a, b: a + b).lower(x, x).compile()
    reused = jax.jit(lambda a, b: a + b, donate_argnums=0).lower(x, x).compile()
    assert program_bytes(plain.memory_analysis()) - program_bytes(reused.memory_analysis()) == x.nbytes
