import jax
import numpy as np
import pytest

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.experiments.recipes import make
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory

STATE = {"params": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "step": np.int32(7)}


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y) and x.dtype == y.dtype, a, b)))


def test_the_two_latest_and_the_best_are_kept_across_processes(tmp_path):
    for scores in ([3, 9, 1], [2, 4], [4, None, 4]):
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        first = (checkpoints.steps() or [-1])[-1] + 1
        for i, score in enumerate(scores):
            checkpoints.save(first + i, STATE, score)
        checkpoints.close()
    assert checkpoints.steps() == [1, 6, 7]
    assert same(Checkpoints(tmp_path / "checkpoints", write=False).restore(1), STATE)


@pytest.mark.parametrize("saved_on", [1, 8])
def test_saved_on_some_devices_restored_on_others(saved_on, tmp_path):
    few, many = Devices(jax.devices()[:1]), Devices()
    writer, reader = (few, many) if saved_on == 1 else (many, few)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, writer.replicate(STATE))
    state = reader.replicate(checkpoints.restore(1))
    assert same(jax.device_get(state), STATE)
    assert state["params"]["kernel"].sharding.device_set == set(reader.mesh.devices.flat)
    checkpoints.close()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "metrics"])
def test_damage_is_noticed_and_set_aside(damage, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, STATE, step)
    checkpoints.close()
    files = [p for p in (tmp_path / "checkpoints" / "2" / "default").rglob("*") if p.is_file()]
    target = max(files, key=lambda p: p.stat().st_size)
    if damage == "metrics":
        target = next(p for p in (tmp_path / "checkpoints" / "2" / "metrics").iterdir() if p.stat().st_size)
    content = target.read_bytes()
    if damage == "remove":
        target.unlink()
    else:
        half = len(content) // 2
        target.write_bytes(content[:half] + (bytes([content[half] ^ 1]) + content[half + 1 :]) * (damage == "flip"))
    if damage != "metrics":
        with pytest.raises(UserError, match="checkpoint .*2 is damaged or absent"):
            Checkpoints(tmp_path / "checkpoints", write=False).restore(2)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == [1]
    assert checkpoints.damaged == [f"checkpoint 2 is damaged and was moved to {tmp_path / 'damaged' / '2'}"]
    assert same(checkpoints.restore(1), STATE)
    checkpoints.save(2, STATE, 2)
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_a_missing_checkpoint_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match="damaged or absent"):
        checkpoints.restore(3)
    checkpoints.close()


CONFIG = {"data": {"dir": "a", "pad": 4}, "train": {"lr": 0.1, "milestones": (1, 2)}}


def test_a_run_directory_belongs_to_its_config(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.claim(CONFIG)
    (directory.checkpoints / "5").mkdir(parents=True)
    directory.claim({**CONFIG, "data": {"dir": "b", "pad": 4}})  # the data may lie elsewhere now
    with pytest.raises(
        UserError, match=r"train.lr \(0.1 there, 0.2 asked for\), train.new \(None there, 1 asked for\)"
    ):
        directory.claim({**CONFIG, "train": {"lr": 0.2, "milestones": (1, 2), "new": 1}})


def test_a_kill_while_claiming_leaves_a_directory_that_can_be_claimed(tmp_path):
    (tmp_path / ".config.json.123.draft").write_text("{")
    RunDirectory(tmp_path).claim(CONFIG)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.json"]


def test_records_are_rewound_to_the_checkpoint(tmp_path):
    directory = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        directory.record({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [e["step"] for e in directory.records()] == [1, 2, 3]
    directory.rewind(2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_best_record_is_one_that_can_be_restored(tmp_path):
    directory = RunDirectory(tmp_path)
    for step, score in ((1, 5.0), (2, 7.0), (3, 5.0)):
        directory.record({"step": step, "score": score})
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    assert directory.best()["step"] == 2
    (tmp_path / "checkpoints" / "2").rmdir()
    assert directory.best()["step"] == 3
    with pytest.raises(UserError, match="has no best checkpoint .* take the last"):
        RunDirectory(tmp_path / "new").best()


def test_recipes_share_no_terms():
    section = {"arch": "resnet8", "epochs": 1}
    config = make("hsakd", data={}, teacher=section, student=section, frozen={}, runs=("teacher", "student", "kd"))
    config.objective.teacher.task.weight = 7.0
    assert config.objective.student.task.weight == config.objective.kd.task.weight == 1.0


def test_a_run_without_a_checkpoint_gives_its_folder_up(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.claim({"seed": 0})
    directory.record({"step": 1})
    identity = directory.identity()
    directory.claim({"seed": 0})
    assert directory.identity() == identity
    assert directory.records() == [{"step": 1}]
    directory.claim({"seed": 1})
    assert directory.config() == {"seed": 1}
    assert directory.records() == []
    assert directory.identity() != identity
    directory.finish({"last": {}})
    with pytest.raises(UserError, match=r"another config: seed \(1 there, 2 asked for\)"):
        directory.claim({"seed": 2})
