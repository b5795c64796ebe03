import json

import jax
import numpy as np
import pytest
from run_configs import run_config

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.experiments.recipes import make
from hsakd_jax.runs import restore
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.results import Record

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


CONFIG = run_config(data__dir="/a", student__lr=0.1)


def test_a_run_directory_belongs_to_its_config(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.acquire(CONFIG)
    (directory.checkpoints / "5").mkdir(parents=True)
    directory.acquire(run_config(data__dir="/b", student__lr=0.1))  # the data may have moved
    differing = r"training.lr \(0.1 there, 0.2 asked for\), training.trainable \(None there, fc asked for\)"
    with pytest.raises(UserError, match=differing):
        directory.acquire(run_config(data__dir="/a", student__lr=0.2, student__trainable="fc"))


def test_a_kill_while_acquiring_leaves_a_directory_that_can_be_acquired(tmp_path):
    (tmp_path / ".config.json.123.draft").write_text("{")
    RunDirectory(tmp_path).acquire(CONFIG)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.json"]


def test_records_are_rewound_to_the_checkpoint(tmp_path):
    directory = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        directory.record(Record(step=step, epoch=0.5, values={"loss": 1.5}))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [e.step for e in directory.records()] == [1, 2, 3]
    directory.rewind(2)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(
        f'{{"step":{step},"epoch":0.5,"loss":1.5}}\n' for step in (1, 2)
    )


def test_the_best_record_is_one_that_can_be_restored(tmp_path):
    directory = RunDirectory(tmp_path)
    for step, score in ((1, 5.0), (2, 7.0), (3, 5.0)):
        directory.record(Record(step=step, epoch=1.0, values={"top1": score}, split="test", score=score))
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    assert directory.best().step == 2
    (tmp_path / "checkpoints" / "2").rmdir()
    assert directory.best().step == 3
    with pytest.raises(UserError, match="has no best checkpoint .* use the last"):
        RunDirectory(tmp_path / "new").best()


def test_recipes_share_no_terms():
    section = {"arch": "resnet8", "epochs": 1}
    config = make("hsakd", data={}, teacher=section, student=section, frozen={}, runs=("teacher", "student", "kd"))
    config.objective.teacher.task.weight = 7.0
    assert config.objective.student.task.weight == config.objective.kd.task.weight == 1.0


def test_a_run_without_a_checkpoint_gives_its_folder_up(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    first, second, third = (run_config(seed=seed) for seed in range(3))
    directory.acquire(first)
    record = Record(step=1, epoch=0.5, values={"loss": 1.5})
    directory.record(record)
    identity = directory.identity()
    directory.acquire(first)
    assert directory.identity() == identity
    assert directory.records() == [record]
    directory.acquire(second)
    assert directory.config() == second
    assert directory.records() == []
    assert directory.identity() != identity
    (directory.path / "results.json").touch()
    with pytest.raises(UserError, match=r"another config: seed \(1 there, 2 asked for\)"):
        directory.acquire(third)


@pytest.mark.parametrize("recipe", ["teacher", "student", "mutual", "crd", "probe"])
def test_a_config_is_read_back_as_it_was_written(recipe, tmp_path):
    given = run_config("baseline", student__milestones=(1, 2.5), student__warmup=1, seed=2**32 - 1)
    if recipe != "probe":
        given = run_config(recipe)
    directory = RunDirectory(tmp_path)
    directory.acquire(given)
    assert directory.config() == given


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"lr": 0.05', '"lr": "fast"', r"training.lr: Expected `float`, got `str`"),
        ('"lr": 0.05', '"lr": -0.05', r"training.lr: Expected `float` >= 0.0"),
        ('"lr": 0.05', '"lr": 1e999', r"Number out of range"),
        ('"batch": 20', '"batch": 0', r"training.batch: Expected `int` >= 1"),
        ('"batch": 20', '"batch": 20, "turbo": true', r"training: Object contains unknown field `turbo`"),
        ('"batch": 20,', "", r"training: Object missing required field `batch`"),
        ('"num_classes": 2', '"num_classes": 1e12', r"network.num_classes: Expected `int`"),
        ('"seed": 0', '"seed": 4294967296', r"seed: Expected `int` <= 4294967295"),
        ('"schedule": "cosine"', '"schedule": "exponential"', r"training.schedule: Invalid enum value 'exponential'"),
        ('"format": "hsakd_jax run 1"', '"format": "another program"', r"format: Invalid value 'another program'"),
        ('"format": "hsakd_jax run 1",', "", r"missing required field `format`"),
        ("{", "[" * 100_000, r"is not valid"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key(old, new, message, tmp_path):
    directory = RunDirectory(tmp_path)
    directory.acquire(run_config())
    path = tmp_path / "config.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        directory.config()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": ("a", "b", "c")}, r"classes has 3 names, not network.num_classes, 2"),
        ({"data": {"mean": (0.1, 0.2, 0.3)}}, r"data.mean is \(0.1, 0.2, 0.3\), and the images have 1 channels"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(keys, message, tmp_path):
    directory = RunDirectory(tmp_path)
    directory.acquire(run_config())
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in keys.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        directory.config()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"arch": "resnet8_quarter"', '"arch": "resnet8"', r"is \[.*\] there, and \[.*\] by the config"),
        ('"branches": false', '"branches": true', r"branch1/.* is absent there"),
        ('"peers": []', '"peers": ["resnet8", "resnet8"]', r"peer1/.* is absent there"),
    ],
)
def test_a_config_of_another_network_is_refused(old, new, message, tmp_path):
    directory, config = RunDirectory(tmp_path), run_config("baseline")
    directory.acquire(config)
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(1, restore.initialise(restore.build_network(config.network), (8, 8, 1), 0))
    checkpoints.close()
    assert restore.restore(tmp_path)[0].num_classes == 2
    path = tmp_path / "config.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=rf"does not describe the network of the checkpoint: .*{message}"):
        restore.restore(tmp_path)
