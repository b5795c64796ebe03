import errno
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from msgspec import structs
from run_configs import run_config

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.experiments.make_config import make_config
from hsakd_jax.runs import checkpoint, manifest, restore
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.metrics_log import Record

STATE = {
    "params": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "batch_stats": {},
    "step": np.int32(7),
}


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


def test_a_best_checkpoint_that_one_read_fails_on_is_kept(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, score in ((1, 90), (2, 50), (3, 40)):
        checkpoints.save(step, STATE, score)
    with monkeypatch.context() as patched:
        read = manifest.read
        patched.setattr(manifest, "read", lambda folder, step: None if step == 1 else read(folder, step))
        checkpoints.save(4, STATE, 30)
    assert checkpoints.steps() == [1, 2, 3, 4]  # of those that can be read, 2 is the best
    checkpoints.save(5, STATE, 20)
    checkpoints.close()
    assert checkpoints.steps() == [1, 4, 5]
    assert checkpoints.best() == 1


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    folder = pair(tmp_path)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(UserError, match="checkpoints can't be read: Input/output error"):
        RunDirectory(tmp_path).has_checkpoint()
    monkeypatch.undo()
    shutil.rmtree(folder)
    assert not RunDirectory(tmp_path).has_checkpoint()
    folder.symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="checkpoints can't be read: No such file"):
        RunDirectory(tmp_path).has_checkpoint()
    assert manifest.newest(folder) is None  # config and results of a finished run need none


def test_a_checkpoint_that_is_saved_again_stays_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    folder = pair(tmp_path)
    checkpoints = Checkpoints(folder)

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "sync_tree", fail)
        with pytest.raises(UserError, match="could not save checkpoint 2"):
            checkpoints.save(2, {**STATE, "step": np.int32(2)}, 5.0)
    assert same(checkpoints.restore(2), {**STATE, "step": np.int32(2)})
    checkpoints.close()


def test_all_files_are_on_the_disk_before_a_checkpoint_has_its_name(tmp_path, monkeypatch):
    checkpoints, synced, named = Checkpoints(tmp_path / "checkpoints"), set(), []
    fsync, rename = os.fsync, os.rename

    def record(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def publish(source, target):
        named.append({path.stat().st_ino for path in [source, *source.rglob("*")]} - synced)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "rename", publish)
    checkpoints.save(1, STATE)
    checkpoints.close()
    assert named == [set()]


def test_a_path_through_the_folder_above(tmp_path):
    for name in ("other", "run"):
        (tmp_path / name).mkdir()
    folder = tmp_path / "other" / ".." / "run" / "checkpoints"
    for step in (1, 2):
        checkpoints = Checkpoints(folder)
        assert not checkpoints.damaged
        checkpoints.save(step, {**STATE, "step": np.int32(step)}, 1.0)
        checkpoints.close()
    assert Checkpoints(folder, write=False).steps() == [1, 2]
    assert manifest.read_whole(folder, 2)


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


def pair(folder, **options):
    """The folder of two checkpoints of a run, 1 and 2, of different arrays, the first the best."""
    checkpoints = Checkpoints(folder / "checkpoints", **options)
    for step in (1, 2):
        checkpoints.save(step, {**STATE, "step": np.int32(step)}, -step)
    checkpoints.close()
    return folder / "checkpoints"


def flip(path, at=None, text=False):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    if text:
        content[content.index(b"content")] = 0x84
    path.write_bytes(content)


def largest(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != manifest.NAME]
    return max(files, key=lambda p: p.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap(folder):
    (folder / "1").rename(folder / "x")
    (folder / "2").rename(folder / "1")
    (folder / "x").rename(folder / "2")


DAMAGES = {
    "a flipped bit": lambda folder: flip(largest(folder / "2")),
    "a cut file": lambda folder: truncate(largest(folder / "2")),
    "a missing file": lambda folder: largest(folder / "2").unlink(),
    "a flipped bit of the manifest": lambda folder: flip(folder / "2" / manifest.NAME),
    "a flipped bit of the score": lambda folder: flip(
        folder / "2" / manifest.NAME, (folder / "2" / manifest.NAME).read_bytes().index(b"-2.0") + 1
    ),
    "bytes that are no text in the manifest": lambda folder: flip(folder / "2" / manifest.NAME, text=True),
    "no manifest": lambda folder: (folder / "2" / manifest.NAME).unlink(),
    "an empty folder": lambda folder: (shutil.rmtree(folder / "2"), (folder / "2").mkdir()),
    "the folder of another step": lambda folder: (
        shutil.rmtree(folder / "2"),
        shutil.copytree(folder / "1", folder / "2"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_set_aside(damage, tmp_path):
    folder = pair(tmp_path)
    DAMAGES[damage](folder)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="checkpoint .*2 is damaged or absent"):
        Checkpoints(folder, write=False).restore(2)
    if manifest.read(folder, 2) is None:  # it could be the best
        with pytest.raises(UserError, match="checkpoint .*2 is damaged, and may be the best: use the last"):
            manifest.select(folder, "best")
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == [1]
    assert checkpoints.damaged == [f"checkpoint 2 is damaged and was moved to {tmp_path / 'damaged' / '2'}"]
    assert int(checkpoints.restore(1)["step"]) == 1
    checkpoints.save(2, STATE, 2)
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_swapped_checkpoints_are_noticed(tmp_path):
    folder = pair(tmp_path)
    swap(folder)
    assert len(Checkpoints(folder).damaged) == 2


def test_the_loss_of_the_best_checkpoint_is_said(tmp_path):
    folder = pair(tmp_path)
    flip(largest(folder / "1"))
    assert Checkpoints(folder).damaged == [
        f"checkpoint 1 is damaged and was moved to {tmp_path / 'damaged' / '1'}; it was the best"
    ]


def test_foreign_files_do_not_matter_and_leftovers_of_a_kill_are_deleted(tmp_path):
    folder = pair(tmp_path)
    (folder / ".DS_Store").touch()
    (folder / "2" / "Thumbs.db").write_text("x")
    (folder / "2" / "d" / ".DS_Store").touch()
    (folder / "00").mkdir()  # no step has this name
    (folder / "7").touch()
    for left in (".3.draft", ".0.old"):
        (folder / left).mkdir()
        (folder / left / "x").touch()
    checkpoints = Checkpoints(folder, write=False)
    assert int(checkpoints.restore(2)["step"]) == 2
    assert checkpoints.steps() == [1, 2]
    checkpoints = Checkpoints(folder)
    assert checkpoints.damaged == []
    assert sorted(p.name for p in folder.iterdir()) == [".DS_Store", "00", "1", "2", "7"]


def test_a_checkpoint_that_a_kill_kept_is_deleted(tmp_path):
    """Between the last one's name and the deletion of what it makes superfluous."""
    folder = pair(tmp_path)
    shutil.copytree(folder / "1", tmp_path / "1")
    checkpoints = Checkpoints(folder)
    for step in (3, 4):
        checkpoints.save(step, {**STATE, "step": np.int32(step)}, 100.0)
    checkpoints.close()
    kept = checkpoints.steps()
    assert kept == [3, 4]
    shutil.move(tmp_path / "1", folder / "1")
    assert Checkpoints(folder, write=False).steps() == [1, 3, 4]
    assert Checkpoints(folder).steps() == kept


def test_only_files_that_were_written_are_read(tmp_path, monkeypatch):
    """Those of others may be large or closed; a link or a device that a forged manifest hides is not opened."""
    folder = pair(tmp_path)
    (folder / "2" / "theirs").write_text("x")
    read, opened = manifest._crc32, []
    monkeypatch.setattr(manifest, "_crc32", lambda path: opened.append(path.name) or read(path))
    assert manifest.read_whole(folder, 2)
    assert opened
    assert "theirs" not in opened
    found = manifest.read(folder, 2)
    outside = structs.replace(found, files={"../1/manifest.json": read(folder / "1" / "manifest.json")})
    manifest.write(folder / "2", outside)
    assert manifest.read_whole(folder, 2) is None
    manifest.write(folder / "2", structs.replace(found, files={}))
    os.mkfifo(folder / "2" / "d" / "fifo")
    with pytest.raises(UserError, match=r"checkpoint .*2 .*fifo is no regular file"):
        Checkpoints(folder, write=False).restore(2)
    (folder / "2" / "manifest.json").unlink()
    (folder / "2" / "manifest.json").symlink_to("/dev/zero")
    assert manifest.read(folder, 2) is None


@pytest.mark.parametrize("name", ["[x]", "a*b?", "back\\slash", "line\nbreak", "ü %20 #&'\""])
def test_any_path_keeps_its_checkpoints(name, tmp_path):
    (tmp_path / name).mkdir()
    folder = pair(tmp_path / name)
    checkpoints = Checkpoints(folder)
    assert checkpoints.damaged == []
    assert [int(checkpoints.restore(step)["step"]) for step in checkpoints.steps()] == [1, 2]


def test_other_bytes_than_were_written_are_noticed(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints, "_read", lambda path: {**STATE, "step": np.int32(0)})
    with pytest.raises(UserError, match="could not save checkpoint 5 .* other bytes than were written"):
        checkpoints.save(5, STATE)
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_are_there_to_fill_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL", 2**20)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"its arrays take 0.0 GiB, its files"):
        checkpoints.save(1, {"x": np.zeros(2**23, np.float32)})


def test_the_end_of_another_process_is_not_a_full_disk(tmp_path, monkeypatch):
    def lost(tree):
        raise jax.errors.JaxRuntimeError("Gloo: connection closed by peer")

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(jax, "device_get", lost)
    with pytest.raises(jax.errors.JaxRuntimeError, match="closed by peer"):
        checkpoints.save(1, STATE)


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(UserError, match="could not save checkpoint 5 .*No space left on device; free some space"):
        checkpoints.save(5, STATE)
    with pytest.raises(UserError, match="can't write to .*: No space left on device; free some space"):
        Checkpoints(tmp_path / "other")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_directory_that_is_deleted_is_not_made_again(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    checkpoints = Checkpoints(run / "checkpoints")
    shutil.rmtree(run)
    with pytest.raises(UserError, match="run was moved or deleted while it was used: step 5 is not saved"):
        checkpoints.save(5, STATE)
    assert not run.exists()
    run.mkdir()
    checkpoints = Checkpoints(run / "checkpoints")
    save = checkpoints._handler.save

    def late(*args, **options):
        shutil.rmtree(run)
        save(*args, **options)
        assert run.exists()

    monkeypatch.setattr(checkpoints._handler, "save", late)
    with pytest.raises(UserError, match="run was moved or deleted while it was used: step 6 is not saved"):
        checkpoints.save(6, STATE)
    assert not run.exists()


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
    differing = r"training.lr \(0.1 there, 0.2 here\), training.trainable \(None there, fc here\)"
    with pytest.raises(UserError, match=differing):
        directory.acquire(run_config(data__dir="/a", student__lr=0.2, student__trainable="fc"))


def test_a_kill_while_acquiring_leaves_a_directory_that_can_be_acquired(tmp_path):
    (tmp_path / ".config.json.123.draft").write_text("{")
    RunDirectory(tmp_path).acquire(CONFIG)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.json"]


def test_the_best_checkpoint_is_the_latest_of_those_with_the_greatest_score(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, score in ((1, 7.0), (2, 7.0), (3, 5.0), (4, None)):
        checkpoints.save(step, STATE, score)
    checkpoints.close()
    assert [manifest.select(tmp_path / "checkpoints", which) for which in ("last", "best")] == [4, 2]
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    assert checkpoints.best() == 3
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    for which, reason in (("best", "has no best checkpoint .* use the last"), ("newest", "choose last or best")):
        with pytest.raises(UserError, match=reason):
            manifest.select(tmp_path / "checkpoints", which)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        manifest.select(tmp_path / "none" / "checkpoints", "last")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "results.json").touch()
    with pytest.raises(UserError, match="done is finished, and its checkpoints are gone: delete .*json and run the"):
        manifest.select(tmp_path / "done" / "checkpoints", "last")


def test_recipes_share_no_terms():
    section = {"arch": "resnet8", "epochs": 1}
    config = make_config("hsakd", data={}, teacher=section, student=section, frozen={})
    config.objective.teacher.task.weight = 7.0
    assert config.objective.student.task.weight == config.objective.rkd.task.weight == 1.0
    # Nor do the terms of a recipe.
    for terms in config.to_dict()["objective"].values():
        assert len({id(options) for options in terms.values()}) == len(terms)
    config.objective.crld.task.weight = 0.5
    assert config.objective.crld.strong_task.weight == 1.0


def test_a_run_without_a_checkpoint_gives_its_folder_up(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    first, second, third = (run_config(seed=seed) for seed in range(3))
    directory.acquire(first)
    record = Record(step=1, epoch=0.5, values={"loss": 1.5})
    directory.metrics.append(record)
    identity = directory.identity()
    directory.acquire(first)
    assert directory.identity() == identity
    assert directory.metrics.read() == [record]
    directory.acquire(second)
    assert directory.config() == second
    assert directory.metrics.read() == []
    assert directory.identity() != identity
    (directory.path / "results.json").touch()
    with pytest.raises(UserError, match=r"another config: seed \(1 there, 2 here\)"):
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
        ('"format": "hsakd_jax run 1"', '"format": "another program"', r"is of another program"),
        ('"format": "hsakd_jax run 1"', '"format": "hsakd_jax run 9"', r"format: Invalid value 'hsakd_jax run 9'"),
        ('"format": "hsakd_jax run 1",', "", r"is of another program"),
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
