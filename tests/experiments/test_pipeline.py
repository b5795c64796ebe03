"""Runs of one command, one after the other."""

import runpy
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT
from run_configs import run_config, run_results

from hsakd_jax import main
from hsakd_jax.core.console import Console
from hsakd_jax.core.errors import UserError
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.datasets import Splits
from hsakd_jax.experiments import pipeline
from hsakd_jax.experiments.cautions import cautions
from hsakd_jax.experiments.make_config import make_config
from hsakd_jax.runs import manifest
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory

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
    ("changes", "words"),
    [
        ({"warmup": 3}, "warmup is 3 epochs, and the run ends"),
        ({"decay": 2}, "decay begins at epoch 2"),
        ({"milestones": (1,)}, "warmup is 2 epochs, the learning rate falls at epoch 1, and the run ends at epoch 2"),
    ],
)
def test_a_term_that_does_not_fit_the_length_of_the_run_is_told(changes, words, monkeypatch, tmp_path):
    """As a milestone or a warm-up of the learning rate."""
    shown = []
    monkeypatch.setattr(pipeline, "trace", lambda *_: "a program")
    console = SimpleNamespace(line=shown.append)
    for options in ({}, changes):
        term = {"warmup": 2, **options}
        milestones = term.pop("milestones", ())
        keys = {f"objective__dkd__dkd__{key}": value for key, value in term.items()}
        keys |= {"student__epochs": 2, "student__batch": 1, "student__milestones": milestones, "student__warmup": 0}
        run = run_config("dkd", student__schedule="multi_step", **keys)
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


def lines(config, teacher=None, flags=()):
    return list(cautions(config, "student", teacher, [f"--config.{flag}=x" for flag in flags]))


def test_terms_that_relate_images_relate_those_of_a_micro_batch():
    few = {"student__batch": 64, "student__accumulate": 2}
    (line,) = lines(run_config("sp", **few))
    assert line == (
        "student.accumulate is 2: the loss of sp relates the images of a micro-batch of 32, not of the batch of 64; "
        "--config.student.accumulate=1 relates all"
    )
    assert not [*lines(run_config("sp")), *lines(run_config("dkd", **few))]


def test_branches_without_a_partner_are_told():
    keys = {"student__arch": "mobilenetV2", "shape": (32, 32, 3), "data__mean": (0.5,), "data__std": (0.5,)}
    teacher = run_config("teacher", teacher__arch="resnet8_half")
    key = "--config.objective.student.joint"
    assert lines(run_config("student", **keys), teacher) == [
        "branch 1 has no partner among the 3 stages of resnet8_half, paired from the deepest, and no term trains it; "
        f'{key}.weight=1 and {key}.branches="(1,)" do'
    ]
    (line,) = lines(run_config("student_dist", **keys), teacher)  # which has no term for joint labels
    assert line.endswith("and no term trains it")
    for branches, advised in (((), None), ((1,), None), ((2, 4), "(1,2,4,)")):
        joint = {"objective__student__joint__weight": 2.0, "objective__student__joint__branches": branches}
        found = lines(run_config("student", **keys, **joint), teacher)
        assert [line.rpartition("; ")[2] for line in found] == [f'{key}.branches="{advised}" does'] * bool(advised)
    assert not lines(teacher)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"data__resize": 10}, "data.resize has no effect with data.crop=pad: leave it out of a new run"),
        (
            {"data__crop": "resized", "data__image_size": 8, "data__pad": 1},
            "data.pad has no effect with data.crop=resized: leave it out of a new run",
        ),
        ({"data__crop": "resized", "data__image_size": 7, "data__resize": 8, "data__pad": 0}, None),
        ({"data__pad": 2, "data__resize": 0}, None),
    ],
)
def test_keys_of_another_crop_are_told(keys, words):
    config, flags = run_config(**keys), [key.replace("__", ".") for key in keys]
    assert lines(config, flags=flags) == ([words] if words else [])
    assert not lines(config)  # a config file may set them for other runs


def test_a_milestone_in_the_warm_up_is_told():
    keys = {"student__schedule": "multi_step", "student__warmup": 2, "student__epochs": 9}
    (line,) = lines(run_config(student__milestones=(1, 3), **keys))
    assert line.startswith("student.milestones is (1, 3), and the learning rate falls only after student.warmup, 2")
    assert not lines(run_config(student__milestones=(2, 3), **keys))


@pytest.mark.parametrize("damage", ["none", "no checkpoint", "a changed file", "a changed file of a run that trains"])
@pytest.mark.parametrize("role", ["teacher", "init"])
def test_checkpoints_of_other_runs_are_checked_before_anything_trains(role, damage, tmp_path, monkeypatch):
    path = tmp_path / "needed"
    needed = run_config("backbone", teacher__arch="resnet8_quarter")
    keys = {"teacher": {"recipe": "kd", "teacher__workdir": str(path)}, "init": {"student__init": str(path)}}[role]
    directory = RunDirectory(path)
    directory.acquire(needed)
    if damage != "no checkpoint":
        checkpoints = Checkpoints(directory.checkpoints)
        checkpoints.save(1, {"params": {"x": np.ones(3)}})
        checkpoints.close()
    monkeypatch.setattr(RunDirectory, "is_finished", lambda _: damage == "a changed file")
    if damage.startswith("a changed"):
        file = next(iter(manifest.read(directory.checkpoints, 1).files))
        (directory.checkpoints / "1" / file).write_bytes(b"other")
    config = run_config(student__arch="resnet8_quarter", **keys)
    planned = pipeline._Planned(config, tmp_path / "run", None, "a program")
    words = {"no checkpoint": "needed has no checkpoint", "a changed file": "needed/checkpoints/1 is damaged or absent"}
    with pytest.raises(UserError, match=f"^{config.recipe}: .*{words[damage]}") if damage in words else nullcontext():
        pipeline._check_checkpoints([planned])
    made_first = pipeline._Planned(needed, path, None, "a program")
    pipeline._check_checkpoints([made_first, planned])


def test_time_of_several_seeds_is_that_which_is_left(monkeypatch, tmp_path):
    """Of seed 0, the first of two runs is done; of seed 1, half of the first."""
    monkeypatch.setattr(
        pipeline, "measure_run", lambda *_: SimpleNamespace(seconds=60.0, bytes=1, fits=True, compile_seconds=1)
    )
    console = SimpleNamespace(line=lambda _: None)
    images = Dataset(np.zeros((8, 8, 8, 1), np.uint8), np.zeros(8, np.int32))
    config = run_config(student__epochs=10, student__batch=8)
    (tmp_path / "1/first/checkpoints/5").mkdir(parents=True)
    plans = {
        seed: {
            name: pipeline._Planned(
                config,
                tmp_path / f"{seed}/{name}",
                Splits(images, None, images, ()),
                None if name in done else "program",
            )
            for name in ("first", "second")
        }
        for seed, done in ((0, ["first"]), (1, []))
    }
    text = pipeline.plan_table(plans, console)
    assert "about 25 min" in text.replace(" 0 s", "")
    assert text.count("done") == 0
    del plans[1]
    text = pipeline.plan_table(plans, console)
    assert "about 10 min" in text.replace(" 0 s", "")
    assert text.count("done") == 1


def test_a_finished_run_of_other_training_images_is_refused(tmp_path):
    """With as many of them, and the same test images."""
    g = np.random.default_rng(0)
    data = Dataset(g.integers(0, 256, (8, 8, 8, 1)).astype(np.uint8), np.arange(8, dtype=np.int32) % 2)
    config = run_config(student__arch="resnet8_quarter", student__epochs=1, student__batch=8, tests=data)
    splits = Splits(data, None, data, config.classes)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        pipeline.loop.run(config, tmp_path / "run", splits, Console(silent=True))
    planned = pipeline._Planned(config, tmp_path / "run", splits, None)
    assert pipeline._is_finished(planned)
    other = splits._replace(train=data._replace(labels=1 - data.labels))
    with pytest.raises(UserError, match="run began with other training images: restore the data, or choose another"):
        pipeline._is_finished(planned._replace(splits=other))


def test_the_command_is_recorded_without_dry_run_alone(monkeypatch, tmp_path):
    recorded = []
    monkeypatch.setattr(pipeline, "execute", lambda *args, **_: recorded.append(args[3]))
    words = ["--config=a.py", "--dry-run", "--workdir", "my-dry-run", "--nodry_run", "--dry_run=true"]
    values = SimpleNamespace(
        config=SimpleNamespace(to_dict=dict), workdir="my-dry-run", dry_run=False, coordinator=None, processes=None,
        process=None,
    )  # fmt: skip
    main.main(values, words)
    assert recorded == [["--config=a.py", "--workdir", "my-dry-run"]]


def test_a_config_file_sets_start_and_trained_layers_of_each_section():
    given = {"init": "runs/a", "trainable": "head", "arch": "resnet8_quarter", "lr": 0.1}
    sections = {name: dict(given) for name in ("teacher", "student", "frozen", "head")}
    config = make_config("baseline", data={"name": "digits"}, **sections)
    for name in sections:
        assert (config[name].init, config[name].trainable) == ("runs/a", "head")


def test_milestones_of_another_schedule_are_not_told():
    keys = {"student__epochs": 2, "student__milestones": (3,), "student__warmup": 0}
    assert "student.milestones has 3" in lines(run_config(student__schedule="multi_step", **keys))[0]
    assert not lines(run_config(student__schedule="cosine", **keys))


def test_the_table_compares_with_the_baseline_or_else_with_kd():
    """Of two seeds, whose differences are 2 and 4."""

    def table(*recipes):
        return pipeline.summary({seed: {name: of(name, i, seed) for i, name in enumerate(recipes)} for seed in (0, 1)})

    def of(recipe, i, seed):
        arch = "resnet8+resnet8" if recipe == "mutual" else "resnet8"
        return run_results(recipe, 50 + i * (2 + 2 * seed), arch=arch, seed=seed)

    assert "\ncompared with baseline, last epoch, points of top-1:\nDKD  not shown: +3.00 (" in table("baseline", "dkd")
    assert "\ncompared with KD, last epoch, points of top-1:\nDKD  not shown: +3.00 (" in table("kd", "dkd")
    line = "no run to compare with: for verdicts, add the baseline, --config.runs=\"('baseline', 'dkd', 'dist')\"\n"
    assert line in table("dkd", "dist")
    assert "compare" not in table("dkd")
    assert "compared with KD, 25 %" in table("kd_25", "crd_25")
    assert "compare" not in table("crd_25", "sskd_25")  # the baseline has all images
    assert "compared with KD, last" in table("mutual", "kd", "dkd")
