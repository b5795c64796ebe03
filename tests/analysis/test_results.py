"""The paper's tables beside ours, from made-up run folders with the configs that real ones have."""

import csv
import functools
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

import msgspec
import pytest
from conftest import ROOT
from msgspec import structs

from hsakd_jax.analysis import rendering, run_index, tables
from hsakd_jax.analysis.departures import Agreement, Departures
from hsakd_jax.analysis.paper import TABLES, Column, Number
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import read_json, read_sealed, write_json, write_sealed
from hsakd_jax.experiments.recipes import RECIPES, needed
from hsakd_jax.experiments.resolve import resolve
from hsakd_jax.models import NETWORKS
from hsakd_jax.runs.config import Config, ConvertedConfig, RunConfig
from hsakd_jax.runs.results import Results, Sizes, TaughtBy

PAIR = Column("cifar100", "resnet56", "resnet20")
CLASSES = {"cifar100": 100, "imagenet2012": 1000, "stl10": 10, "tiny_imagenet": 200, "digits": 10}


@functools.cache
def config_file(name):
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]


def change(config, **values):
    """A config with other values; keys are those of config.json, such as 'training__epochs'."""
    tree = msgspec.to_builtins(config)
    for key, value in values.items():
        *sections, name = key.split("__")
        functools.reduce(dict.__getitem__, sections, tree)[name] = value
    return msgspec.convert(tree, RunConfig)


def make(path, words, last, best=None, *, seed=0, config="cifar100", finished=True, init="", **values):
    """A run folder as training leaves it, without checkpoints; `values` as for `change`."""
    command = config_file(config)(words).to_dict() | {"seed": seed}
    (recipe,) = command["runs"]
    command["student"]["init"] = str(init)
    shape = (224, 224, 3) if config == "imagenet" else (32, 32, 3)
    classes = [str(i) for i in range(CLASSES[command["data"]["name"]])]
    images = SimpleNamespace(image_shape=shape, labels=())
    splits = SimpleNamespace(train=images, test=images, class_names=classes)
    resolved = change(resolve(command, recipe, splits), **values)
    path.mkdir(parents=True)
    write_json(path / "config.json", resolved)
    if not finished:
        return path
    epochs = resolved.training.epochs
    peers = ("peer1/", "peer2/") if resolved.network.peers else ("",)

    def measured(top1):
        top1 = top1 if isinstance(top1, tuple) else (top1,) * len(peers)
        return {f"{peer}top{k}": value + (k - 1) for peer, value in zip(peers, top1, strict=True) for k in (1, 5)}

    taught_by = TaughtBy(arch=command["teacher"]["arch"], recipe=RECIPES[recipe].teacher, last=None)
    results = Results(
        last={"epoch": epochs, **measured(last)},
        best={"epoch": epochs - 7, **measured(last if best is None else best)},
        selected_by="top-1 on test",
        recipe=recipe,
        arch=resolved.network.arch,
        seed=seed,
        teacher=taught_by if RECIPES[recipe].teacher else None,
        train_images=50000,
        test_images=10000,
        parameters=Sizes(with_branches=9999, backbone=5142),
        multiply_adds=Sizes(with_branches=99999, backbone=49568),
        images_per_s=None,
        versions={"hsakd_jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
        device="1 x NVIDIA H100 80GB HBM3",
        git="7ff53584",
    )
    write_sealed(path / "results.json", results)
    return path


@pytest.fixture
def run_tables(tmp_path):
    """The tables of all runs of the folder, by key."""

    def compare(everything=False):
        return {table.key: table for table in tables.compare(run_index.find([tmp_path])[0], everything)}

    return compare


def entries(table, recipe, column=PAIR):
    return [entry for entry in table.entries if (entry.recipe, entry.column) == (recipe, column)]


def pair(root, seeds=(0, 1, 2)):
    """Runs of ResNet-56 -> ResNet-20 as `tables.command` lays them out."""
    for seed, shift in zip(seeds, (-0.3, 0.0, 0.6), strict=False):
        make(root / f"seed{seed}/teacher", "teacher/resnet56", 77.0 + shift, seed=seed)
        make(root / f"seed{seed}/student", "student/resnet56/resnet20", 73.0 + shift, 73.5 + shift, seed=seed)


def test_published_numbers():
    """Typed again from the paper; one of each table."""
    cifar = TABLES["cifar100"].numbers
    assert cifar["student"][Column("cifar100", "wrn_40_2", "wrn_16_2")] == Number(78.67, 0.20)
    assert cifar["AB"][Column("cifar100", "wrn_40_2", "wrn_16_2")] == Number(71.26, 1.32)
    assert cifar["sskd"][Column("cifar100", "ResNet50", "mobilenetV2")] == Number(78.21, 0.16)
    assert cifar["teacher"][Column("cifar100", "resnet32x4", "ShuffleV2")] == Number(83.73)
    assert cifar["student_frozen"][Column("cifar100", "vgg13_bn", "mobilenetV2")] == Number(77.45, 0.21)
    imagenet = Column("imagenet2012", "resnet34_imagenet", "resnet18_imagenet")
    assert TABLES["imagenet2012"].numbers["student"][imagenet] == Number(72.39, top5=91.00)
    assert TABLES["online"].numbers["mutual"][Column("cifar100", None, "resnet32x4")] == Number(84.91, 0.19)
    assert TABLES["few_shot"].numbers["crd_50"][PAIR] == Number(69.91)
    assert TABLES["ablation"].numbers["ablation_upright"][Column("cifar100", "wrn_40_2", "ShuffleV1")] == Number(79.06)
    assert TABLES["labels"].numbers["rotated"][Column("tiny_imagenet", None, "ResNet18")] == Number(62.66)
    assert TABLES["probe"].numbers["kd"][Column("tiny_imagenet", "vgg13_bn", "mobilenetV2")] == Number(34.15)
    assert {len(cells) for cells in cifar.values()} == {8}


def test_published_names_exist():
    methods = {method for table in TABLES.values() for method in table.numbers}
    assert methods - RECIPES.keys() == {"AB"}
    columns = {column for table in TABLES.values() for cells in table.numbers.values() for column in cells}
    assert {name for column in columns for name in column[1:]} - NETWORKS.keys() == {None}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        *(("cifar100", f"{recipe}/resnet56/resnet20") for recipe in RECIPES if recipe not in ("probe", "mutual")),
        ("cifar100", "mutual/resnet56"),
        ("cifar100", "student/vgg13_bn/mobilenetV2"),
        *(("imagenet", recipe) for recipe in TABLES["imagenet2012"].numbers),
        ("stl10", "probe"),
        ("tiny_imagenet", "probe"),
    ],
)
def test_the_settings_of_the_configs_are_the_papers(config, words, tmp_path):
    """So that they are typed once more, and a change of a config shows."""
    start = make(tmp_path / "start", "baseline/mobilenetV2", 70.0) if words == "probe" else ""
    make(tmp_path / "run", words, 70.0, config=config, init=start)
    (run,), _ = run_index.find([tmp_path / "run"])
    assert {key for key in run.departures.settings if key not in ("teacher", "init")} == set()
    assert run.departures.agreement is not Agreement.UNPUBLISHED


def test_settings_that_are_published_by_pair(tmp_path):
    make(tmp_path / "backbone", "backbone/resnet56", 73.0)
    make(tmp_path / "two", "dkd/resnet56/resnet20", 71.0)
    make(tmp_path / "eight", "dkd/resnet56/resnet20", 71.0, objective__terms__dkd__options__beta=8.0)
    runs, _ = run_index.find([tmp_path])
    found = {run.path.name: run.departures.settings for run in runs}
    assert (found["two"], found["eight"]) == ({}, {"objective.dkd.beta": (8.0, 2.0)})


def test_a_setting_that_nobody_published_is_told(tmp_path, run_tables):
    make(tmp_path / "backbone", "backbone/resnet56", 73.0)
    make(tmp_path / "kd", "kd/resnet56/resnet20", 71.0)
    make(tmp_path / "at", "at/resnet56/resnet20", 71.0)
    make(tmp_path / "ttm", "ttm/resnet56/resnet20", 71.0)
    make(tmp_path / "teacher", "teacher/resnet56", 77.0)
    make(tmp_path / "student_ls", "student_ls/resnet56/resnet20", 71.0)
    table = run_tables()["cifar100"]
    found = {recipe: entries(table, recipe)[0].departures for recipe in ("kd", "at", "ttm", "student_ls")}
    assert {departures.agreement for departures in found.values()} == {Agreement.EQUAL}
    assert found["kd"].own_choice == {}
    assert found["at"].own_choice == {"kl.temperature": 4.0, "kl.weight": 1.0}
    assert found["ttm"].own_choice == {"task.weight": 1.0, "ttm.gamma": 0.1, "ttm.weight": 45.0}
    assert {"kl_aux.weight", "kl_final.standardise", "task.weight"} <= found["student_ls"].own_choice.keys()
    text = " ".join(rendering.as_text([table]).split())
    assert "our choice: kl.weight 1.0, kl.temperature 4.0" in text
    assert re.search(r"AT \[(\d)\] at ", text)
    row = next(row for row in json.loads(rendering.as_json([table])) if row["recipe"] == "at")
    assert row["own_choice"] == {"kl.weight": 1.0, "kl.temperature": 4.0}


def test_seeds_of_equal_settings_are_averaged(tmp_path, run_tables):
    pair(tmp_path)
    # Where the data lay, and a smaller memory, are no settings.
    path = tmp_path / "seed1/student/config.json"
    write_json(path, change(read_json(path, RunConfig), data__dir="/elsewhere", training__remat=True))
    table = run_tables()["cifar100"]
    (student,), (teacher,) = entries(table, "student"), entries(table, "teacher")
    assert len(student.runs) == 3
    assert student.ours("last") == pytest.approx((73.1, 0.4582576))
    assert student.ours("best") == pytest.approx((73.6, 0.4582576))
    assert student.difference() == pytest.approx(73.6 - 73.73)
    assert teacher.ours("best")[0] == pytest.approx(77.1)
    assert student.departures == Departures(Agreement.EQUAL)
    assert student.differing == {}
    assert table.columns == [PAIR]


def verdicts(entry):
    return {one.reference: str(one.verdict) for one in entry.compared}


def test_students_are_compared_within_each_seed(tmp_path, run_tables):
    """KD misses a seed; differences from the baseline are 4.2, 4.0, 4.1 for HSAKD*, whose t(0.975, 2) is 4.3027."""
    pair(tmp_path)
    for seed, top1 in enumerate((68.5, 69.0, 69.5)):
        make(tmp_path / f"seed{seed}/baseline", "baseline/resnet20", top1, seed=seed)
    for seed, top1 in ((0, 71.0), (2, 71.0), (5, 40.0)):
        make(tmp_path / f"seed{seed}/backbone", "backbone/resnet56", 74.0, seed=seed)
        make(tmp_path / f"seed{seed}/kd", "kd/resnet56/resnet20", top1, seed=seed)
    shown = list(run_tables().values())
    (baseline,), (kd,), (student,) = (entries(shown[0], recipe) for recipe in ("baseline", "kd", "student"))
    assert verdicts(baseline) == {}
    assert verdicts(kd) == {"baseline": "not shown: +2.00 (95 % interval -4.35 to 8.35, 2 seeds)"}
    assert verdicts(student) == {
        "baseline": "better by 4.10 (95 % interval 3.85 to 4.35, 3 seeds)",
        "kd": "not shown: +2.15 (95 % interval -3.57 to 7.87, 2 seeds)",
    }
    assert verdicts(entries(shown[0], "teacher")[0]) == {}
    text = rendering.as_text(shown)
    assert "\n  KD against the baseline:     not shown: +2.00 (95 % interval -4.35 to 8.35, 2 seeds)\n" in text
    assert "\n  HSAKD* against the baseline: better by 4.10 (95 % interval 3.85 to 4.35, 3 seeds)\n" in text
    line = "\n- resnet56 -> resnet20: HSAKD* against KD: not shown: +2.15 (95 % interval -3.57 to 7.87, 2 seeds)\n"
    assert line in rendering.as_markdown(shown)
    (found,) = (row for row in json.loads(rendering.as_json(shown)) if row["recipe"] == "student")
    assert found["compared"]["baseline"]["difference"] == pytest.approx(4.1)
    assert found["compared"]["baseline"]["interval"] == pytest.approx([3.851586, 4.348414])
    assert found["compared"]["kd"]["seeds"] == 2


def test_what_differs_is_not_compared(tmp_path, run_tables):
    """Another network, teacher, number of images or epochs; of several baselines, the most similar one counts."""
    make(tmp_path / "a", "baseline/resnet20", 69.0)
    make(tmp_path / "b", "baseline/resnet20", 60.0, training__lr=0.1)
    make(tmp_path / "short", "baseline/resnet20", 50.0, training__epochs=60)
    make(tmp_path / "backbone", "backbone/resnet56", 73.0)
    make(tmp_path / "kd", "kd/resnet56/resnet20", 71.0)
    make(tmp_path / "kd_25", "kd_25/resnet56/resnet20", 61.0)
    make(tmp_path / "crd_25", "crd_25/resnet56/resnet20", 62.0)
    make(tmp_path / "other/backbone", "backbone/wrn_40_2", 76.0)
    make(tmp_path / "other/crd", "crd/wrn_40_2/resnet20", 72.0)
    found = run_tables()
    reason = "(one seed, and results.json does not store which test images are correct)"
    (kd,), (crd_25,) = entries(found["cifar100"], "kd"), entries(found["few_shot"], "crd_25")
    assert verdicts(kd) == {"baseline": f"not tested: +2.00 {reason}"}
    assert [one.runs[0].path for one in kd.compared] == [tmp_path / "a"]
    assert [one.remark for one in kd.compared] == [""]
    assert verdicts(crd_25) == {"kd": f"not tested: +1.00 {reason}"}
    (crd,) = entries(found["cifar100"], "crd", Column("cifar100", "wrn_40_2", "resnet20"))
    assert verdicts(crd) == {"baseline": f"not tested: +3.00 {reason}"}
    text = rendering.as_text(list(found.values()))
    assert max(map(len, text.splitlines())) <= 120


def test_settings_that_differ_are_a_part_of_the_verdict(tmp_path, run_tables):
    """But those that a method decides are not: branches, rotated images, a second view."""
    make(tmp_path / "a", "baseline/resnet20", 69.0)
    make(tmp_path / "teacher", "teacher/resnet56", 77.0)
    make(tmp_path / "kd", "kd/resnet56/resnet20", 71.0, training__lr=0.1)
    for recipe in ("student", "crld", "simkd"):
        make(tmp_path / recipe, f"{recipe}/resnet56/resnet20", 72.0)
    table = run_tables()["cifar100"]
    (kd,), *others = (entries(table, recipe) for recipe in ("kd", "student", "crld", "simkd"))
    assert [one.differing for one in kd.compared] == [{"training.lr": (0.1, 0.05)}]
    for (entry,) in others:
        assert {one.reference: dict(one.differing) for one in entry.compared} == {
            "baseline": {},
            "kd": {"training.lr": (0.05, 0.1)},
        }
    text = " ".join(rendering.as_text([table]).split())
    assert "are correct); settings differ too: training.lr (0.1 here, 0.05 there)" in text
    (row,) = (row for row in json.loads(rendering.as_json([table])) if row["recipe"] == "kd")
    assert row["compared"]["baseline"]["differing"] == {"training.lr": [0.1, 0.05]}


def test_the_start_and_the_trained_layers_are_settings_of_a_verdict(tmp_path, run_tables):
    """And a baseline that trains its last layer only is not the reference where there is a whole one."""
    make(tmp_path / "probe", "baseline/wrn_16_2", 60.0)
    make(tmp_path / "a", "baseline/resnet20", 69.0)
    for seed in (0, 1):
        make(tmp_path / f"head{seed}", "baseline/resnet20", 40.0, seed=seed, training__trainable="^head/fc/")
        make(tmp_path / f"kd{seed}", "kd/resnet56/resnet20", 71.0, seed=seed)
    make(tmp_path / "start", "crd/resnet56/resnet20", 72.0, init=tmp_path / "probe")
    (kd,), (crd,) = (entries(run_tables()["cifar100"], recipe) for recipe in ("kd", "crd"))
    assert [(one.runs[0].path, dict(one.differing)) for one in kd.compared] == [(tmp_path / "a", {})]
    baseline, _ = crd.compared
    assert dict(baseline.differing) == {"training.init": (str(tmp_path / "probe"), None)}


def test_a_teacher_without_a_row_is_named(tmp_path, run_tables):
    """A row of its network is then another run's."""
    make(tmp_path / "backbone", "backbone/resnet56", 74.0)
    make(tmp_path / "own/teacher", "teacher/resnet56", 77.0)
    make(tmp_path / "own/student", "student/resnet56/resnet20", 73.0)
    for name in ("kd", "crd"):
        make(tmp_path / name, f"{name}/resnet56/resnet20", 71.0, teacher__workdir=str(tmp_path / "published"))
    make(tmp_path / "kd_25", "kd_25/resnet56/resnet20", 61.0, teacher__workdir="../backbone")
    path = tmp_path / "crd/results.json"
    results = read_sealed(path, Results)
    taught = structs.replace(results.teacher, measured={"top1": 72.61, "top5": 91.9})
    write_sealed(path, structs.replace(results, teacher=taught))
    found = run_tables()
    (line,) = (note for note in found["cifar100"].notes if "teachers" in note)
    assert line == (
        f"teachers that are not among these finished runs: {tmp_path}/published, top-1 72.61 % on test (of KD, CRD)"
    )
    assert line in " ".join(rendering.as_text([found["cifar100"]]).split())
    assert not any("teachers" in note for note in found["few_shot"].notes)


def test_other_settings_make_entries_of_their_own(tmp_path, run_tables):
    pair(tmp_path, (0, 1))
    make(tmp_path / "short/teacher", "teacher/resnet56", 77.0, seed=5)
    short = {"training__epochs": 60, "training__milestones": [37, 45, 52]}
    make(tmp_path / "short/student", "student/resnet56/resnet20", 68.0, seed=5, **short)
    make(tmp_path / "seed0/heavy", "student/resnet56/resnet20", 90.0, objective__terms__kl_aux__weight=2.0)
    first, *others = entries(run_tables()["cifar100"], "student")
    assert len(first.runs) == 2
    assert first.difference() is not None
    by_keys = {tuple(entry.differing): entry for entry in others}
    assert set(by_keys) == {("objective.kl_aux.weight",), ("training.epochs", "training.milestones")}
    assert all(entry.difference() is None for entry in others)
    heavy = Departures(Agreement.DIFFERENT, {"objective.kl_aux.weight": (2.0, 1.0)})
    assert by_keys["objective.kl_aux.weight",].departures == heavy
    text = rendering.as_text(list(run_tables().values()))
    assert re.search(r"\n  epochs 60, 1 more \[\d\] +68.00 +68.00 +1 +60  73.73 \(0.10\) +\[\d\]\n", text)
    assert max(map(len, text.splitlines())) <= 120
    remark = "not the published settings: training.epochs 60 (published: 240), training.milestones [37, 45, 52] (pub"
    assert remark in " ".join(text.split())


@pytest.mark.parametrize(
    ("teacher", "changes", "key"),
    [
        ("teacher/resnet56", {"training__epochs": 2}, "teacher.training.epochs"),
        ("teacher_frozen/resnet56", {}, "teacher.recipe"),
        ("teacher/resnet56", {"finished": False}, "teacher.results"),
        (None, {}, "teacher"),
    ],
)
def test_a_teacher_with_other_settings_is_shown(teacher, changes, key, tmp_path, run_tables):
    if teacher:
        make(tmp_path / "teacher", teacher, 77.0, **changes)
    make(tmp_path / "student", "student/resnet56/resnet20", 73.0)
    (student,) = entries(run_tables()["cifar100"], "student")
    assert set(student.departures.settings) == {key}
    assert student.difference() is None
    assert f"not the published settings: {key} " in rendering.as_text(list(run_tables().values()))


def test_a_seed_counts_once(tmp_path, run_tables):
    pair(tmp_path / "a", (0, 1))
    shutil.copytree(tmp_path / "a/seed0", tmp_path / "b/seed0")
    table = run_tables()["cifar100"]
    assert len(entries(table, "student")[0].runs) == 2
    assert {run.path.relative_to(tmp_path).as_posix() for run in table.repeated} == {
        "b/seed0/teacher",
        "b/seed0/student",
    }
    assert "left out, since another run has the same seed and settings" in rendering.as_markdown([table])


def test_runs_of_other_images_are_not_averaged(tmp_path, run_tables):
    """Folders of images have one name, also when images were added."""
    pair(tmp_path, (0, 1))
    for name in ("teacher", "student"):
        path = tmp_path / f"seed1/{name}/results.json"
        write_sealed(path, msgspec.structs.replace(read_sealed(path, Results), train_images=49000))
    assert [len(entry.runs) for entry in entries(run_tables()["cifar100"], "student")] == [1, 1]


def test_runs_of_other_photographs_are_not_averaged(tmp_path, run_tables):
    """As many of each class. Runs of before there was a digest are averaged with others where all have one digest."""
    for name, digests, groups in (("image_folder", "aab", 2), ("image_tree", ("a", None, "a"), 1)):
        for seed, digest in enumerate(digests):
            made = make(tmp_path / f"{name}{seed}", "baseline/resnet20", 70.0, seed=seed, data__name=name)
            path = made / "results.json"
            write_sealed(path, msgspec.structs.replace(read_sealed(path, Results), test_digest=digest))
        assert sum(one.recipe == "baseline" and bool(one.runs) for one in run_tables()[name].entries) == groups


def test_runs_of_teachers_that_are_gone_are_not_averaged(tmp_path, run_tables):
    """They may be different ones; those of a pipeline's seeds have one path."""
    gone = {"teacher__workdir": "/gone/a"}
    make(tmp_path / "a", "student/resnet56/resnet20", 73.0, **gone)
    make(tmp_path / "b", "student/resnet56/resnet20", 75.0, seed=1, **gone)
    make(tmp_path / "c", "student/resnet56/resnet20", 70.0, teacher__workdir="/gone/b")
    table = run_tables()["cifar100"]
    assert sorted(len(entry.runs) for entry in entries(table, "student")) == [1, 2]
    assert not table.repeated


@pytest.mark.parametrize(
    ("config", "words", "key", "value"),
    [
        ("imagenet", "baseline", "data.interpolation", "bicubic"),
        ("cifar100", "baseline/resnet20", "training.optimizer", "adamw"),
        ("cifar100", "teacher_frozen/resnet56", "training.copy_branches", True),
    ],
)
def test_other_settings_than_the_papers_are_shown(config, words, key, value, tmp_path):
    make(tmp_path / "run", words, 70.0, config=config, **{key.replace(".", "__"): value})
    (run,), _ = run_index.find([tmp_path / "run"])
    assert run.departures.settings[key][0] == value


def test_a_teacher_that_nothing_names(tmp_path, run_tables):
    """Its run is found as long as it is there, without 'teacher' in results.json."""
    pair(tmp_path, (0,))
    path = tmp_path / "seed0/student/results.json"
    write_sealed(path, msgspec.structs.replace(read_sealed(path, Results), teacher=None))
    (student,) = entries(run_tables()["cifar100"], "student")
    assert student.difference() == pytest.approx(73.2 - 73.73)
    shutil.rmtree(tmp_path / "seed0/teacher")
    (unknown,) = run_tables()["cifar100"].columns
    assert unknown == Column("cifar100", "?", "resnet20")


def test_a_short_run_is_told_from_a_long_one(tmp_path, run_tables):
    """Where the paper has no numbers, nothing else tells that two methods were not trained alike."""
    make(tmp_path / "baseline", "baseline", 89.0, config="digits")
    make(tmp_path / "teacher", "backbone", 94.0, config="digits")
    make(tmp_path / "kd", "kd", 22.0, config="digits", training__epochs=2)
    shown = list(run_tables().values())
    text = rendering.as_text(shown)
    assert re.search(r"\nmethod +recipe +last, top-1 % +best +runs +epochs\n", text)
    assert re.search(r"\nbaseline +baseline +89.00 +89.00 +1 +120\n", text)
    assert re.search(r"\nKD +kd +22.00 +22.00 +1 +2\n", text)
    assert "1 run to epoch 2" in rendering.as_markdown(shown)
    assert {row["epochs"] for row in json.loads(rendering.as_json(shown))} >= {2, 120}
    reason = "not tested (settings differ: training.epochs (2 here, 120 there))"
    assert re.search(rf"\n  KD against the baseline: +{re.escape(reason)}\n", text)
    (kd,) = (entry for entry in shown[0].entries if entry.recipe == "kd")
    assert [(one.runs, one.differing) for one in kd.compared] == [((), {"training.epochs": (2, 120)})]
    (row,) = (row for row in json.loads(rendering.as_json(shown)) if row["recipe"] == "kd")
    assert (row["compared"]["baseline"]["seeds"], row["compared"]["baseline"]["p"]) == (1, None)


def test_recipes_that_train_the_same_are_one_entry(tmp_path, run_tables):
    make(tmp_path / "backbone", "backbone/wrn_40_2", 76.0, seed=0)
    make(tmp_path / "baseline", "baseline/wrn_40_2", 77.0, seed=1)
    make(tmp_path / "online", "teacher_online/wrn_40_2", (82.0, 83.0), seed=1)
    online = run_tables()["online"]
    column = Column("cifar100", None, "wrn_40_2")
    (alone,), (mutual,) = entries(online, "baseline", column), entries(online, "mutual", column)
    assert alone.ours("best")[0] == 76.5
    assert mutual.ours("best") == (82.5, None)
    assert mutual.difference() == pytest.approx(82.5 - 82.58)


def test_every_kind_of_table(tmp_path, run_tables):
    at = tmp_path / "a"
    make(at / "teacher", "teacher/resnet56", 77.0)
    make(at / "student_25", "student_25/resnet56/resnet20", 68.0)
    make(at / "ablation_joint", "ablation_joint/resnet56/resnet20", 70.0)
    make(tmp_path / "b/backbone", "backbone/vgg13_bn", 74.0)
    make(tmp_path / "b/kd", "kd/vgg13_bn/mobilenetV2", 75.0)
    make(tmp_path / "probe", "probe", 67.0, config="stl10", init=tmp_path / "b/kd")
    make(tmp_path / "lost", "probe", 66.0, config="stl10", init=tmp_path / "b/kd", training__init="../gone")
    make(tmp_path / "rotated", "rotated", 62.0, config="tiny_imagenet")
    make(tmp_path / "imagenet", "baseline", 70.0, config="imagenet")
    make(tmp_path / "crd/teacher", "teacher/wrn_40_2", 80.0)
    make(tmp_path / "crd/student", "student/wrn_40_2/mobilenetV2_crd", 70.0)
    make(tmp_path / "digits/baseline", "baseline", 90.0, config="digits")
    found = run_tables()
    assert list(found) == ["cifar100", "imagenet2012", "few_shot", "ablation", "labels", "probe", "digits"]
    assert entries(found["few_shot"], "student_25")[0].difference() == pytest.approx(-0.5)
    assert entries(found["ablation"], "ablation_joint")[0].paper is None
    stl = Column("stl10", "vgg13_bn", "mobilenetV2")
    assert entries(found["probe"], "kd", stl)[0].difference() == pytest.approx(67.0 - 67.90)
    (lost,) = [entry for entry in found["probe"].entries if entry.recipe == "probe"]
    assert lost.departures.settings == {"init": ("not found", None)}
    tiny = Column("tiny_imagenet", None, "ResNet18")
    assert entries(found["labels"], "rotated", tiny)[0].difference() is None
    text = rendering.as_text(list(found.values()))
    assert "not compared: its settings are not published" in text
    assert re.search(r"baseline +70.00 / 74.00 +70.00 / 74.00 +1 +100  69.75 / 89.07 +\+0.25 / -15.07\n", text)
    assert "mobilenetV2 is HSAKD's" in text
    assert "mobilenetV2_crd is CRD's" in text
    assert max(map(len, text.splitlines())) <= 120


def test_formats_say_the_same(tmp_path, run_tables):
    pair(tmp_path)
    shown = list(run_tables().values())
    text, markdown = rendering.as_text(shown), rendering.as_markdown(shown)
    line = r"\nHSAKD\* +student +73.10 \(0.46\)  73.60 \(0.46\) +3 +240  73.73 \(0.10\) +-0.13\n"
    assert re.search(line, text)
    assert (
        "| HSAKD* | **73.10 (0.46)** last, 73.60 (0.46) best, 3 runs to epoch 240<br>paper 73.73 (0.10): -0.13 |"
        in markdown
    )
    evidence = "evidence: 6 runs of 240 epochs; hsakd_jax 0.1.0, jax 0.10.2, flax 0.12.8; 1 x NVIDIA H100 80GB HBM3"
    assert evidence in text
    assert evidence in markdown
    rows = list(csv.DictReader(io.StringIO(rendering.as_csv(shown))))
    assert len(rows) == 15
    objects = json.loads(rendering.as_json(shown))
    for row, found in zip(rows, objects, strict=True):
        assert row["recipe"] == found["recipe"]
        assert row["difference_top1"] == ("" if found["difference_top1"] is None else str(found["difference_top1"]))
    assert objects[-1]["seeds"] == [0, 1, 2]
    assert max(map(len, text.splitlines())) <= 120


def test_commands_of_missing_entries_are_commands(run_tables):
    """Each is for a config that exists, and gives the run of its entry; none takes a directory that holds others."""
    found = run_tables(everything=True)
    assert list(found) == list(TABLES)
    runs, given = {}, 0
    for table in found.values():
        for entry in table.entries:
            if not entry.command:
                assert entry.recipe == "AB" or table.key == "voc"
                continue
            file, words, workdir = re.search(r"--config=configs/(\w+).py:(\S+) --workdir=(\S+)", entry.command).groups()
            config = config_file(file)(words)
            recipe, *_ = words.split("/")
            assert recipe == ("probe" if table.key == "probe" else entry.recipe)
            assert config.data.name == entry.column.dataset
            if RECIPES[recipe].network == "student":
                assert config.student.arch == entry.column.student
            if RECIPES[recipe].teacher or RECIPES[recipe].network == "teacher":
                assert config.teacher.arch == entry.column.teacher
            names = needed([recipe])
            for name in names:
                place = workdir if len(names) == 1 else f"{workdir}/{name}"
                arch = config[RECIPES[name].network].arch
                probed = entry.recipe if recipe == "probe" else ""
                assert runs.setdefault(place, (name, arch, probed)) == (name, arch, probed)
            given += 1
    assert given > 130
    assert not [a for a in runs for b in runs if b.startswith(f"{a}/")]


def test_a_teacher_that_is_there_is_not_trained_again(tmp_path, run_tables):
    make(tmp_path / "mine", "teacher/resnet56", 77.0)
    (student,) = entries(run_tables()["cifar100"], "student")
    assert student.command.endswith(f"seed0/student --config.teacher.workdir={tmp_path / 'mine'}")


def test_the_command(tmp_path, run_command):
    pair(tmp_path / "runs", (0,))
    make(tmp_path / "runs/seed0/kd", "kd/resnet56/resnet20", 0.0, finished=False)
    file = make(tmp_path / "runs/seed0/converted", "teacher/resnet56", 0.0, finished=False) / "config.json"
    parts = {key: getattr(read_json(file, RunConfig), key) for key in Config.__struct_fields__}
    write_json(file, ConvertedConfig(**parts, source="net.pth", sha256="00", part=None))
    (tmp_path / "runs/foreign").mkdir()
    (tmp_path / "runs/foreign/config.json").write_text('{"format": "of another program"}')
    shown = run_command("results", tmp_path / "runs")
    assert shown.returncode == 0, shown.stderr
    passed = "is left out: its config.json is damaged or of another program"
    assert shown.stderr == f"warning: {tmp_path}/runs/foreign {passed}\n"
    assert shown.stdout.endswith(f"1 unfinished and not shown: {tmp_path}/runs/seed0/kd\n")
    assert "configs/cifar100.py:RECIPE/resnet56/resnet20" in shown.stdout
    only = run_command("results", tmp_path / "runs/seed0/kd", tmp_path / "runs/seed0", "--json")
    assert len(json.loads(only.stdout)) == 15
    assert "1 unfinished" in only.stderr
    named = run_command("results", tmp_path / "runs/seed0/converted", tmp_path / "runs/seed0/student")
    assert named.stderr == f"{tmp_path}/runs/seed0/converted: a converted checkpoint, which has no results\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "RUNS... is missing"),
        (["none"], "none: no trained run there (its folder has a config.json; a converted checkpoint has no results)"),
        (["absent"], "absent is no folder: check the path"),
        (["none", "--csv", "--json"], "--csv and --json: set only one of them"),
    ],
)
def test_bad_input(words, message, tmp_path):
    (tmp_path / "none").mkdir()
    line = [sys.executable, "-m", "hsakd_jax.results", *words]
    done = subprocess.run(line, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message.replace("RUNS...", "RUNS") in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("config.json", '"lr": 0.05', '"lr": "fast"', "is not valid: training.lr: Expected `float`, got `str`"),
        ("config.json", "hsakd_jax run 1", "hsakd_jax run 9", "is not valid: format: Invalid value 'hsakd_jax run 9'"),
    ],
)
def test_a_damaged_run_is_named(file, old, new, message, tmp_path):
    path = make(tmp_path / "run", "baseline/resnet20", 70.0) / file
    path.write_text(re.sub(old, new, path.read_text(), count=1))
    with pytest.raises(UserError, match=re.escape(f"{path} {message}")):
        run_index.find([tmp_path])


def test_results_without_an_accuracy_are_named(tmp_path):
    path = make(tmp_path / "run", "baseline/resnet20", 70.0) / "results.json"
    write_sealed(path, msgspec.structs.replace(read_sealed(path, Results), last={"epoch": 240}))
    with pytest.raises(UserError, match=re.escape(f"{path} has no top-1 accuracy")):
        run_index.find([tmp_path])


def test_a_config_that_is_not_even_json_is_left_out(tmp_path, capsys):
    path = make(tmp_path / "run", "baseline/resnet20", 70.0)
    (path / "config.json").write_text("{")
    assert run_index.find([tmp_path]) == ([], [])
    reason = "its config.json is damaged or of another program"
    assert capsys.readouterr().err == f"warning: {path} is left out: {reason}\n"


@pytest.mark.parametrize(
    ("old", "new"), [(r"(?s).*", "{"), (r"(?s).*", "[]"), ('"seed": 0', '"seed": 1'), ("crc32", "crc")]
)
def test_damaged_results_are_those_of_an_unfinished_run(old, new, tmp_path, capsys):
    path = make(tmp_path / "run", "baseline/resnet20", 70.0) / "results.json"
    path.write_text(re.sub(old, new, path.read_text(), count=1))
    assert run_index.find([tmp_path]) == ([], [tmp_path / "run"])
    assert f"warning: {path} is not valid: " in capsys.readouterr().err


def test_it_needs_no_jax(tmp_path):
    make(tmp_path / "run", "baseline/resnet20", 70.0)
    code = (
        "import sys; from hsakd_jax.analysis import rendering, run_index, tables; "
        f"rendering.as_text(tables.compare(run_index.find([{str(tmp_path)!r}])[0], True)); "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    shown = subprocess.run(
        [sys.executable, "-m", "hsakd_jax.results", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python -m hsakd_jax.results RUNS..." in shown.stdout
