"""A run directory: whose it is, what it refuses, and what damage to its files costs."""

import errno
import os
import shutil

import numpy as np
import pytest
from msgspec import structs
from run_configs import run_config
from test_checkpoint import STATE, flip

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import write_json
from hsakd_jax.runs import directory as module
from hsakd_jax.runs import manifest, restore
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory, runs_inside
from hsakd_jax.runs.metrics_log import Record
from hsakd_jax.runs.results import Results, Sizes

RESULTS = Results(
    recipe="baseline", arch="resnet8", seed=0, last={"epoch": 1, "top1": 50.0}, best={"epoch": 1, "top1": 50.0},
    selected_by="top-1 on test", teacher=None, train_images=1, test_images=1, parameters=Sizes(1, 1),
    multiply_adds=Sizes(1, 1), images_per_s=None, versions={}, device="", git=None,
)  # fmt: skip


def files(folder):
    """The content of all files in a folder, by path."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def save(directory, config, *steps, sources=None, score=1.0):
    checkpoints = Checkpoints(directory.checkpoints, config=config, sources=sources or {})
    for step in steps:
        checkpoints.save(step, {**STATE, "step": np.int32(step)}, score)
    checkpoints.close()


@pytest.mark.parametrize("name", ["metrics.jsonl", ".identity", "config.json", "results.json"])
def test_a_device_in_a_run_is_not_read(name, tmp_path):
    run = RunDirectory(tmp_path)
    (tmp_path / name).symlink_to("/dev/zero")
    read = {"metrics.jsonl": run.metrics.read, ".identity": run.identity, "config.json": run.config}
    if name == "results.json":
        assert run.results() is None
        return
    with pytest.raises(UserError, match=rf"{name} is not valid: it is no file of at most \d+ MiB"):
        read[name]()


@pytest.mark.parametrize(
    "theirs",
    [
        {"config.json": '{"lr": 1}', "metrics.jsonl": '{"loss": 1}\n'},
        {"config.json": "[]"},
        {"config.json": '{"format": "zarr"}', "checkpoints/5/x": ""},
        {"config.json": "{not JSON", ".x.draft": "mine"},
        {"metrics.jsonl": '{"loss": 1}\n'},
        {"checkpoints/5/x": "", ".x.draft": "mine"},
        {"results.json": "{}"},
    ],
    ids=lambda theirs: " ".join(theirs),
)
def test_another_programs_folder_stays_as_it_is(theirs, tmp_path):
    for name, content in theirs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    before = files(tmp_path)
    with pytest.raises(UserError, match="is not a run directory|is not valid") as error:
        RunDirectory(tmp_path).acquire(run_config())
    assert "\n" not in str(error.value)
    assert files(tmp_path) == before


def test_only_our_runs_are_found_in_a_folder(tmp_path):
    RunDirectory(tmp_path / "ours").acquire(run_config())
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"format": "zarr"}')
    assert runs_inside(tmp_path) == [tmp_path / "ours"]
    for place in ("seed_3/kd", "elsewhere/kd"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(tmp_path / "ours/config.json", tmp_path / place)
    assert runs_inside(tmp_path) == [tmp_path / "ours", tmp_path / "seed_3/kd"]
    with pytest.raises(UserError, match="it contains the runs ours, seed_3/kd: choose one"):
        RunDirectory(tmp_path).config()


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket", "hdfs:/x"])
def test_a_remote_place_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not a path of this machine"):
        RunDirectory(path)
    RunDirectory("a:b/c").check(run_config())


def test_a_refused_command_leaves_the_drafts_of_the_first(tmp_path):
    first = RunDirectory(tmp_path)
    first.acquire(run_config())
    draft = tmp_path / ".metrics.jsonl.1.draft"
    draft.touch()
    with pytest.raises(UserError, match="another process trains in"):
        RunDirectory(tmp_path).acquire(run_config())
    assert draft.exists()
    first.acquire(run_config())
    assert not draft.exists()


def test_a_lock_that_was_refused_is_asked_for_again(tmp_path):
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    first.acquire(run_config())
    for _ in range(2):
        with pytest.raises(UserError, match="another process trains in"):
            second.acquire(run_config())


def test_a_config_that_was_changed_after_its_checkpoint_is_refused(tmp_path):
    directory, config = RunDirectory(tmp_path), run_config()
    directory.acquire(config)
    save(directory, config, 1)
    path = tmp_path / "config.json"
    content = path.read_text()
    path.write_text(content.replace('"lr": 0.05', '"lr": 0.5').replace('"seed": 0', '"seed": 7'))
    with pytest.raises(UserError, match=r"changed after checkpoint 1 was written: seed \(0 then, 7 now\), training.lr"):
        directory.config()
    path.write_text(
        content.replace('"dir": null', '"dir": "/moved"').replace('"tracking": []', '"tracking": ["wandb"]')
    )
    assert directory.config().data.dir == "/moved"
    flip(directory.checkpoints / "1" / manifest.NAME)  # nothing to compare with
    assert directory.config().data.dir == "/moved"


def taught(path):
    """A config of a run with a teacher at a path."""
    config = run_config("student")
    return structs.replace(config, teacher=structs.replace(config.teacher, workdir=str(path)))


@pytest.mark.parametrize("role", ["teacher", "init"])
def test_another_run_that_moved_is_the_same_and_another_one_is_refused(role, tmp_path):
    def config_of(path):
        if role == "teacher":
            return taught(path)
        config = run_config()
        return structs.replace(config, training=structs.replace(config.training, init=str(path)))

    other = RunDirectory(tmp_path / "a")
    other.acquire(run_config("teacher"))
    save(other, run_config("teacher"), 5)
    other.finish(RESULTS)
    del other
    run, config = RunDirectory(tmp_path / "run"), config_of("../a")
    run.acquire(config)
    sources = run.sources(config)
    assert sources.keys() == {role}
    save(run, config, 1, sources=sources)
    for path in ("a", "b"):  # moved together with its student, and alone
        moved = config_of(tmp_path / path)
        (tmp_path / "a").rename(tmp_path / path)
        run.acquire(moved)
        assert run.sources(moved) == sources
        assert run.config() == moved
        run.check_sources(sources)
    key = {"teacher": "teacher.workdir", "init": "training.init"}[role]
    with pytest.raises(UserError, match=f"belongs to another config: .*{key}"):
        run.check(config_of(tmp_path / "none"))
    with pytest.raises(UserError, match="belongs to another config: .*"):
        run.check(config_of(None) if role == "init" else run_config())
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    save(RunDirectory(tmp_path / "b"), run_config("teacher"), 6)
    with pytest.raises(UserError, match=rf"belongs to another config: the network of its {role} \("):
        run.acquire(moved)
    (tmp_path / "b" / "results.json").unlink()
    run.check(moved)  # that run trains again
    with pytest.raises(UserError, match=f"run began with another {role}"):
        run.check_sources(run.sources(moved))


def test_damaged_results_cost_the_file(tmp_path, capsys):
    directory = RunDirectory(tmp_path)
    directory.acquire(run_config())
    directory.finish(RESULTS)
    assert directory.results() == RESULTS
    path = tmp_path / "results.json"
    for content in (b"{", b"[]", b'{"\x84": 1}'):
        path.write_bytes(content)
        assert directory.results() is None
        assert not directory.is_finished()
        assert capsys.readouterr().err.startswith(f"warning: {path} is not valid: ")
    directory.finish(RESULTS)
    path.write_text(path.read_text().replace("50.0", "51.0", 1))
    assert directory.results() is None
    assert "its content and its checksum do not agree" in capsys.readouterr().err
    with pytest.raises(UserError, match="another config: seed"):  # it may be a finished one
        directory.check(run_config(seed=1))
    path.unlink()
    path.mkdir()
    assert directory.results() is None


def test_a_finished_run_that_can_not_be_written_is_done(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path)
    directory.acquire(run_config())
    opened = os.open

    def refuse(path, *rest, **options):
        if str(path).startswith(str(tmp_path)):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, *rest, **options)

    (tmp_path / "results.json").write_bytes(b"")
    directory.finish(RESULTS)
    monkeypatch.setattr(module.os, "open", refuse)
    RunDirectory(tmp_path).acquire(run_config())
    with pytest.raises(UserError, match="belongs to another config"):
        RunDirectory(tmp_path).acquire(run_config(seed=1))
    (tmp_path / "results.json").unlink()
    with pytest.raises(UserError, match="can't write to .*: Read-only file system"):
        RunDirectory(tmp_path).acquire(run_config())


def test_a_directory_that_is_deleted_while_it_trains(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.acquire(run_config())
    shutil.rmtree(directory.path)
    for write in (
        lambda: directory.metrics.append(Record(step=1, epoch=1.0, values={})),
        lambda: directory.finish(RESULTS),
    ):
        with pytest.raises(UserError, match="run was moved or deleted while it was used: nothing more is written"):
            write()
    assert not directory.path.exists()


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_checkpoint_that_is_deleted_while_it_is_read(which, tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path)
    save(directory, None, 1, 2)
    restored, tries = Checkpoints.restore, []

    def late(self, step):
        tries.append(step)
        if step == 2:  # the run saved 3, 4 and 5, and deleted 2
            shutil.rmtree(self._directory / "2")
            save(directory, None, 3, 4)
        return restored(self, step)

    monkeypatch.setattr(Checkpoints, "restore", late)
    variables = restore.read_variables(directory, which)
    assert tries == [2, 4]
    assert variables.keys() == {"params", "batch_stats"}

    def never(self, step):
        shutil.rmtree(self._directory / str(step))
        save(directory, None, step + 1, step + 2)
        raise UserError("gone")

    monkeypatch.setattr(Checkpoints, "restore", never)
    with pytest.raises(UserError, match="deletes its checkpoints before they are read: wait until it ends"):
        restore.read_variables(directory, which)


def test_another_process_that_comes_first(tmp_path, monkeypatch):
    """Between the first look at the directory and the lock."""
    lock = module.lock

    def lock_late(path):
        write_json(tmp_path / "config.json", run_config(seed=1))
        save(RunDirectory(tmp_path), run_config(seed=1), 1)
        (tmp_path / "metrics.jsonl").write_text("theirs")
        return lock(path)

    monkeypatch.setattr(module, "lock", lock_late)
    with pytest.raises(UserError, match=r"belongs to another config: seed \(1 there, 0 here\)"):
        RunDirectory(tmp_path).acquire(run_config(seed=0))
    assert (tmp_path / "metrics.jsonl").read_text() == "theirs"
