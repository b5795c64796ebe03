"""Trackers of a test's own for the interface; TensorBoard, Weights & Biases and trackio as they are, read back."""

import json
import os
import runpy
import signal
import struct
import subprocess
import sys
import time
from importlib.util import find_spec

import msgspec
import pytest
from conftest import ROOT
from run_configs import run_config

from hsakd_jax.core.errors import Stopped, UserError
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.metrics_log import Record
from hsakd_jax.training import tracking

CONFIG = run_config("teacher")
STORED = json.loads(msgspec.json.encode(CONFIG))


def records(first, last):
    """Records of steps, with an evaluation every fifth."""
    for step in range(first, last + 1):
        values = {"loss": 1 / step, "images_per_s": None if step == 1 else 100.0}
        yield Record(step=step, epoch=step / 5, values=values)
        if step % 5 == 0:
            yield Record(step=step, epoch=step / 5, values={"top1": 10.0 + step}, split="test", score=10.0 + step)


def points(entries):
    """(name, step) -> value of what a tracker must hold."""
    return {
        (f"{e.split or 'train'}/{key}", e.step): value
        for e in entries
        for key, value in {"epoch": e.epoch, **e.values, "score": e.score}.items()
        if value is not None
    }


@pytest.fixture
def directory(tmp_path):
    made = RunDirectory(tmp_path / "digits" / "teacher")
    made.acquire(CONFIG)
    return made


class Kept:
    """A tracker that keeps what it gets."""

    def __init__(self, run):
        self.run, self.points, self.closed = run, [], False
        opened.append(self)

    def log(self, scalars, step):
        self.points += [((name, step), value) for name, value in scalars.items()]

    def close(self):
        self.closed = True


opened: list[Kept] = []


@pytest.fixture(autouse=True)
def _kept(monkeypatch):
    opened.clear()
    monkeypatch.setitem(tracking.TRACKERS, "kept", ("json", Kept))


def follow(directory, entries, names=("kept",)):
    """Records entries as training does; returns what was said."""
    said = []
    with tracking.follow(names, directory, said.append) as log:
        for entry in entries:
            directory.metrics.append(entry)
            log(entry)
    return said


def test_a_tracker_gets_what_metrics_has(directory):
    assert follow(directory, records(1, 12)) == []
    (one,) = opened
    assert one.closed
    assert len(one.points) == len(dict(one.points))
    assert dict(one.points) == points(directory.metrics.read())
    assert one.run[:3] == (directory.path.resolve(), "teacher", "digits")
    assert (one.run.config, one.run.recorded) == (STORED, -1)


def test_a_continued_run_is_one_curve_wherever_it_lies(directory, tmp_path):
    follow(directory, records(1, 12))
    directory.metrics.rewind(10)
    (tmp_path / "digits").rename(tmp_path / "moved")
    moved = RunDirectory(tmp_path / "moved" / "teacher")
    follow(moved, records(11, 20))
    first, second = opened
    assert (second.run.identity, second.run.recorded, second.run.group) == (first.run.identity, 10, "moved")
    assert len(second.points) == len(dict(second.points))
    assert dict(second.points) == points(records(1, 20))


def test_nothing_is_opened_unasked_or_by_another_process(directory):
    follow(directory, records(1, 2), ())
    follow(RunDirectory(directory.path, write=False), [], ("kept",))
    assert opened == []
    assert not (directory.path / ".identity").exists()


@pytest.mark.parametrize("where", ["__init__", "log", "close"])
def test_a_tracker_that_fails_is_told_of_once_and_harms_nobody(where, directory, monkeypatch):
    def fail(*_):
        raise OSError("no space left\nat all")

    monkeypatch.setitem(tracking.TRACKERS, "broken", ("json", type("Broken", (Kept,), {where: fail})))
    said = follow(directory, records(1, 20), ("broken", "kept"))
    assert said == [f"warning: {directory.path}: tracking by broken failed (no space left); metrics.jsonl has them all"]
    assert dict(opened[-1].points) == points(directory.metrics.read()) == points(records(1, 20))


def test_a_tracker_that_hangs_holds_nobody_up(directory, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    monkeypatch.setitem(
        tracking.TRACKERS, "stuck", ("json", type("Stuck", (Kept,), {"log": lambda *_: time.sleep(1000)}))
    )
    (line,) = follow(directory, records(1, 20), ("stuck",))
    assert "tracking by stuck has not ended after 0.1 s" in line
    assert points(directory.metrics.read()) == points(records(1, 20))


def test_trackers_that_can_not_be_are_refused(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="unknown tracker 'tensorbord': choose from tensorboard, wandb, trackio"):
        tracking.check(("tensorbord",))
    monkeypatch.setitem(tracking.TRACKERS, "wandb", ("wandb_of_no_one", tracking.WandB))
    missing = r"wandb needs wandb_of_no_one \(No module .*\): pip install -e '\.\[wandb\]'"
    with pytest.raises(UserError, match=missing):
        tracking.check(("kept", "wandb"))
    (tmp_path / "wandb_of_no_one").mkdir()  # as a run in the working directory leaves one
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"wandb needs wandb_of_no_one: pip install"):
        tracking.check(("wandb",))
    monkeypatch.delitem(sys.modules, "wandb_of_no_one")


@pytest.mark.slow
def test_training_hands_over_its_records(monkeypatch, tmp_path):
    """A teacher and a student: stopped, continued with a tracker that was not there before."""
    import jax

    from hsakd_jax.core.console import Console
    from hsakd_jax.experiments import pipeline

    command = runpy.run_path(str(ROOT / "configs/cifar100.py"))["get_config"]("kd_tiny").to_dict()
    console, asked = Console(silent=True), []

    class Stopping(Kept):
        def log(self, scalars, step):
            super().log(scalars, step)
            if self.run.name == "kd" and scalars.get("train/epoch") and not asked:
                asked.append(step)  # a second signal would end the tests
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(tracking.TRACKERS, "stopping", ("json", Stopping))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
        with pytest.raises(Stopped):
            pipeline.execute(command | {"tracking": ("stopping",)}, str(tmp_path), console)
        assert [(one.run.name, one.run.group, one.closed) for one in opened] == [
            ("backbone", tmp_path.name, True), ("kd", tmp_path.name, True)
        ]  # fmt: skip
        pipeline.execute(command | {"tracking": ("kept",)}, str(tmp_path), console)
    whole, _, continued = opened
    assert whole.run.config["network"]["arch"] == "resnet8_half"
    for one in (whole, continued):
        assert len(one.points) == len(dict(one.points))
        assert dict(one.points) == points(RunDirectory(one.run.directory).metrics.read())
    assert {"train/loss", "train/lr", "test/top1"} <= {name for name, _ in dict(whole.points)}
    assert 0 < continued.run.recorded < max(step for _, step in dict(continued.points))


# The tools, each in a process of its own, as they read the environment when they are imported, and hang on to the end.
SESSION = """
import os, signal, sys, time
sys.path[:0] = [{root!r}, {tests!r}, {tests!r} + "/training"]
from hsakd_jax.training import tracking
from hsakd_jax.runs.directory import RunDirectory
from test_tracking import follow, records

directory, (first, last, name, killed) = RunDirectory({path!r}), sys.argv[1:]

def entries():
    yield from records(int(first), int(last))
    if killed == "killed":
        time.sleep(1.5)  # so that some of it arrives
        os.kill(os.getpid(), signal.SIGKILL)

directory.metrics.rewind(int(first) - 1)
print(*follow(directory, entries(), (name,)), sep="\\n")
"""


@pytest.fixture
def session(directory, tmp_path):
    """Trains steps `first` to `last` in a process without accounts or a network that it could reach."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO"))}
    env |= {
        "HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "none"), "TRACKIO_DIR": str(tmp_path / "trackio"),
        "WANDB_BASE_URL": "http://localhost:9", "WANDB_ERROR_REPORTING": "false", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    (tmp_path / "home").mkdir()
    code = SESSION.format(root=str(ROOT), tests=str(ROOT / "tests"), path=str(directory.path))

    def run(first, last, name, killed=""):
        line = [sys.executable, "-c", code, str(first), str(last), name, killed]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr
        assert "warning: " not in done.stdout
        return env

    return run


def tfrecords(path):
    """The messages of an event file."""
    content, at = path.read_bytes(), 0
    while at + 12 <= len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        yield content[at + 12 : at + 12 + size]
        at += 16 + size


def tensorboard_points(path, env):
    """What TensorBoard shows: a START hides what is older, from its step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found, texts = {}, []
    for file in sorted((path / "tensorboard").glob("events.out.tfevents.*")):
        for message in tfrecords(file):
            event = Event.FromString(message)
            if event.session_log.status == SessionLog.START:
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    assert (value.tag, event.step) not in found
                    found[value.tag, event.step] = value.simple_value
                else:
                    texts.append(value.tensor.string_val[0].decode())
    (config,) = texts
    assert json.loads(config.removeprefix("```json").removesuffix("```")) == STORED
    return found


def wandb_points(path, env):
    """What a later `wandb sync` sends: the records of the one offline run there is."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = path.glob("wandb/offline-run-*/run-*.wandb")
    assert not [*path.glob("wandb/run-*")]
    content, at, message, found, runs = file.read_bytes(), 7, b"", {}, []
    while at + 7 <= len(content):  # the format of LevelDB's logs, behind 7 bytes
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", content, at + 4)
        message += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            record, message = Record.FromString(message), b""
            if record.HasField("run"):
                runs.append(record.run)
            step = record.history.step.num
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    assert (name, step) not in found
                    found[name, step] = json.loads(item.value_json)
    identity = (path / ".identity").read_text()
    assert {(r.run_id, r.display_name, r.run_group, r.project) for r in runs} == {
        (identity, "teacher", "digits", "hsakd_jax")
    }
    sent = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert {key: sent[key] for key in STORED} == STORED
    return found


READ = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("hsakd_jax")
print(json.dumps([run.name, run.config, SQLiteStorage.get_logs("hsakd_jax", run.name, run_id=run.id)]))
"""


def trackio_points(path, env):
    shown = subprocess.run([sys.executable, "-c", READ], env=env, capture_output=True, text=True, timeout=100)
    assert shown.returncode == 0, shown.stderr
    name, config, logs = json.loads(shown.stdout)
    assert name == f"teacher {(path / '.identity').read_text()}"
    assert {key: config[key] for key in STORED} == STORED
    assert config["_Group"] == "digits"
    found = {}
    for log in logs:
        for key in log.keys() - {"step", "timestamp"}:
            assert (key, log["step"]) not in found
            found[key, log["step"]] = log[key]
    return found


TOOLS = {"tensorboard": tensorboard_points, "wandb": wandb_points, "trackio": trackio_points}


@pytest.mark.parametrize("name", TOOLS)
def test_killed_and_continued_a_tool_has_one_curve(name, directory, session):
    package = tracking.TRACKERS[name][0]
    if not find_spec(package):
        pytest.skip(f"needs {package}: pip install -e '.[{name}]'")
    session(1, 17, name, "killed")
    env = session(13, 25, name)  # the last checkpoint was of step 12
    found = TOOLS[name](directory.path, env)
    assert found == pytest.approx(points(records(1, 25)), rel=1e-6)
