"""The commands as a person uses them: tiny recipes end to end, and every kind of bad input."""

import errno
import importlib
import json
import math
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, assert_refused, environment, write_photographs
from PIL import Image
from run_configs import run_config

import hsakd_jax
from hsakd_jax import __main__, cli
from hsakd_jax.core import files
from hsakd_jax.core.errors import UserError
from hsakd_jax.data import datasets
from hsakd_jax.experiments import pipeline as experiments_pipeline
from hsakd_jax.experiments.recipes import GIVEN, RECIPES
from hsakd_jax.interop import torch_weights
from hsakd_jax.models import profile
from hsakd_jax.runs import restore
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.metrics_log import MetricsLog, Record
from hsakd_jax.training import session, teachers

CONFIG = "--config=configs/cifar100.py"


@pytest.fixture(scope="module", autouse=True)
def _prepared():
    """So that no command has to say that it prepares the digits."""
    datasets.load("digits")


@pytest.fixture(scope="module")
def pipeline(run_command, tmp_path_factory):
    """The workdir of a finished tiny pipeline."""
    workdir = tmp_path_factory.mktemp("runs") / "pipeline"
    done = run_command("main", f"{CONFIG}:tiny", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "HSAKD*" in done.stdout
    assert "teacher on test: top-1" in done.stdout
    return workdir


def test_pipeline_results(pipeline):
    results = json.loads((pipeline / "results.json").read_text())
    assert list(results) == ["teacher", "baseline", "student"]
    assert results["student"]["teacher"]["recipe"] == "teacher"
    assert results["student"]["teacher"]["last"] == results["teacher"]["last"]
    measured = results["student"]["teacher"]["measured"]
    assert measured == {key: results["teacher"]["last"][key] for key in ("top1", "top5")}
    for recipe, result in results.items():
        own = json.loads((pipeline / recipe / "results.json").read_text())
        assert result == {key: value for key, value in own.items() if key != "crc32"}
        if recipe == "baseline":
            continue
        assert set(result["last"]) == {"epoch", "top1", "top5"} | {
            f"{kind}_{l}" for kind in ("joint", "class") for l in (1, 2, 3)
        }
        assert result["last"]["epoch"] == 2
        assert result["test_images"] == 896
        assert result["images_per_s"] > 0
        assert {"jax", "flax", "hsakd_jax"} <= set(result["versions"])
        assert result["parameters"]["backbone"] < result["parameters"]["with_branches"]
    assert results["teacher"]["selected_by"] == "greatest branch joint accuracy on test"
    assert results["student"]["selected_by"] == "top-1 on test"
    records = [json.loads(line) for line in (pipeline / "student" / "metrics.jsonl").read_text().splitlines()]
    metrics = {"task", "kl_aux", "kl_final", "loss", "grad_norm", "top1", "lr", "images_per_s"}
    assert records[0].keys() == {"step", "epoch", *metrics, "crc32"}
    assert [r["score"] for r in records if "score" in r] == [r["top1"] for r in records if "score" in r]
    lines = (pipeline / "teacher" / "metrics.jsonl").read_text().splitlines()
    evaluations = [record for record in map(json.loads, lines) if "score" in record]
    assert [r["score"] for r in evaluations] == [max(r[f"joint_{l}"] for l in (1, 2, 3)) for r in evaluations]


def test_a_finished_pipeline_is_recognised(pipeline, call_command):
    again = call_command("main", f"{CONFIG}:tiny", f"--workdir={pipeline}")
    assert again.returncode == 0
    assert again.stdout.count(": done, ") == 3
    assert "epoch" not in again.stdout.split("run  ")[0]


def test_evaluate_restores_on_other_devices(pipeline, call_command):
    """Trained on one device, measured on eight, to the same counts."""
    shown = call_command("evaluate", f"--workdir={pipeline}/teacher", "--json")
    assert shown.returncode == 0, shown.stderr
    result = json.loads((pipeline / "teacher" / "results.json").read_text())
    found = json.loads(shown.stdout)
    assert {k: found[k] for k in ("top1", "top5", "joint_2", "class_3")} == {
        k: result["last"][k] for k in ("top1", "top5", "joint_2", "class_3")
    }
    text = call_command("evaluate", f"--workdir={pipeline}", "--checkpoint=best").stdout
    assert text.count("top-5") == 3
    assert text.index("teacher: resnet8_half") < text.index("student: resnet8_quarter")
    assert re.search(rf"branch 3 +{result['best']['joint_3']:.2f} ", text)


def test_evaluate_names_runs_without_a_checkpoint(pipeline, call_command, tmp_path):
    (tmp_path / "student").symlink_to(pipeline / "student")
    (tmp_path / "late").mkdir()
    shutil.copy(pipeline / "teacher" / "config.json", tmp_path / "late")
    shown = call_command("evaluate", f"--workdir={tmp_path}")
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == f"{tmp_path}/late: no checkpoint yet\n"
    assert shown.stdout.startswith(f"{tmp_path}/student: resnet8_quarter, last checkpoint")


def test_evaluate_measures_the_others_where_a_run_fails(pipeline, call_command, tmp_path):
    for name in ("student", "teacher"):
        shutil.copytree(pipeline / name, tmp_path / name)
    config = json.loads((tmp_path / "teacher/config.json").read_text())
    for section, key, value, reason in (
        ("data", "dir", "/nowhere", "the data of {run} should be in /nowhere, which is no folder: set --data_dir=DIR"),
        ("training", "lr", 7.0, "{run}/config.json was changed after checkpoint"),
    ):
        changed = {**config, section: {**config[section], key: value}}
        (tmp_path / "teacher/config.json").write_text(json.dumps(changed))
        for words in ([], ["--json"]):
            shown = call_command("evaluate", f"--workdir={tmp_path}", *words)
            assert shown.returncode == 2
            first, last = shown.stderr.splitlines()
            assert first.startswith(reason.format(run=tmp_path / "teacher"))
            assert last.startswith(f"error: {tmp_path}/teacher: not measured, for the reasons above")
            assert list(json.loads(shown.stdout)) == [f"{tmp_path}/student"] if words else "top-1" in shown.stdout
    shown = call_command("evaluate", f"--workdir={tmp_path}", "--data_dir=/nowhere")
    assert_refused(shown, "the data should be in /nowhere, which is no folder: set --data_dir=DIR")


def test_restore(pipeline):
    network, variables = hsakd_jax.restore(pipeline / "student")
    assert network.branches
    assert hsakd_jax.restore(pipeline / "student", dtype="bfloat16")[0].dtype == jax.numpy.bfloat16
    assert {type(leaf) for leaf in jax.tree.leaves(variables)} == {np.ndarray}
    outputs = network.apply(variables, np.zeros((2, 8, 8, 1), np.float32))
    assert outputs.logits.shape == (2, 10)
    assert [q.shape for q in outputs.aux_logits] == [(2, 40)] * 3


@pytest.mark.parametrize("recipe", ["kd", "student", "mutual"])
def test_tiny_recipes(recipe, pipeline, run_command, call_command, tmp_path):
    """In a workdir that is a path through the folder above."""
    args = [f"--config.teacher.workdir={pipeline}/teacher"] if recipe in ("kd", "student") else []
    other = ["--config.teacher.inference_dtype=bfloat16", "--config.data.mean=(0.9,)", "--config.data.std=(0.1,)"]
    args += {"kd": other, "mutual": ["--config.student.remat=True"]}.get(recipe, [])
    done = run_command("main", f"{CONFIG}:{recipe}_tiny", f"--workdir={tmp_path}/../{tmp_path.name}/run", *args)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["recipe"] == recipe
    if recipe == "student":
        # The same command inside the pipeline and alone is the same run.
        assert results["last"] == json.loads((pipeline / "student" / "results.json").read_text())["last"]
    if recipe == "kd":
        config = RunDirectory(tmp_path / "run").config()
        taught = teachers.load(config, config.teacher, RunDirectory(pipeline / "teacher"))
        assert taught.network.network.dtype == jax.numpy.bfloat16
        # The teacher's images are normalised as its own were.
        own = json.loads((pipeline / "teacher" / "results.json").read_text())["last"]["top1"]
        shown = float(re.search(r"teacher on test: top-1 ([\d.]+) %", done.stdout)[1])
        assert shown == pytest.approx(own, abs=0.5)
        assert "warning: " not in done.stdout
    if recipe == "mutual":
        assert {"peer1/top1", "peer2/joint_3"} <= set(results["last"])
        network, variables = hsakd_jax.restore(tmp_path / "run")
        assert network.apply(variables, np.zeros((1, 8, 8, 1), np.float32)).logits.shape == (1, 10)
        args = [f"--workdir={tmp_path}/run", "--format=safetensors", f"--output={tmp_path}/file"]
        assert "contains 2 networks: the first one is exported" in call_command("export", *args).stderr


def test_methods_that_compare_further_maps(call_command, tmp_path):
    """ReviewKD, and SimKD, whose deployed student has a projector and its teacher's last layer."""
    workdir = f"--workdir={tmp_path}/runs"
    done = call_command("main", f"{CONFIG}:tiny", workdir, "--config.runs=('reviewkd', 'simkd')")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    for recipe, heads_params in (("reviewkd", 16 * 10 + 10), ("simkd", 3_200 + 32 * 10 + 10)):
        assert results[recipe]["parameters"]["backbone"] == 4_972 + heads_params
        shown = json.loads(call_command("evaluate", f"--workdir={tmp_path}/runs/{recipe}", "--json").stdout)
        assert {key: shown[key] for key in ("top1", "top5")} == {
            key: results[recipe]["last"][key] for key in ("top1", "top5")
        }
        args = [f"--workdir={tmp_path}/runs/{recipe}", f"--output={tmp_path}/{recipe}"]
        assert call_command("export", *args, "--format=stablehlo").returncode == 0
        assert f"{4_972 + heads_params:,}" in call_command("summary", f"{tmp_path}/runs/{recipe}").stdout
    refused = call_command("export", f"--workdir={tmp_path}/runs/simkd", f"--output={tmp_path}/x", "--format=torch")
    assert_refused(refused, "no projector", "stablehlo or onnx")
    layers = [hsakd_jax.restore(tmp_path / "runs" / run)[1]["params"]["head"]["fc"] for run in ("backbone", "simkd")]
    jax.tree.map(np.testing.assert_array_equal, *layers)


@pytest.mark.thorough
def test_recipes_with_what_they_need(run_command, tmp_path):
    """An objective with memory, one that takes a part over from its teacher's run, unlike peers, and a probe."""
    runs = "('crd_25', 'sskd', 'student_frozen', 'mutual')"
    done = run_command(
        "main", f"{CONFIG}:tiny", f"--workdir={tmp_path}/runs", f"--config.runs={runs}",
        "--config.peers=('', 'resnet8_half')", "--config.batch_norm_groups=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    order = ["backbone", "crd_25", "sskd_teacher", "sskd", "teacher_frozen", "student_frozen", "mutual"]
    assert list(results) == order
    assert results["crd_25"]["train_images"] == round(results["backbone"]["train_images"] / 4, -1)
    assert results["backbone"]["last"]["top1"] == results["sskd_teacher"]["last"]["top1"]
    heads = [
        Checkpoints(tmp_path / "runs" / run / "checkpoints", write=False).restore(22)["params"]["objective"]["sskd"]
        for run in ("sskd_teacher", "sskd")
    ]
    jax.tree.map(np.testing.assert_array_equal, heads[0]["teacher_head"], heads[1]["teacher_head"])
    _, variables = hsakd_jax.restore(tmp_path / "runs" / "sskd")
    assert "objective" not in variables["params"]
    second, _ = hsakd_jax.restore(tmp_path / "runs" / "mutual", peer=2)
    assert profile.totals(second.clone(branches=False), (8, 8, 1))["parameters"] == 19_810
    probe = run_command(
        "main", f"{CONFIG}:probe_tiny", f"--workdir={tmp_path}/probe", f"--config.student.init={tmp_path}/runs/sskd",
        "--config.data.crop=resized", "--config.data.image_size=8",
    )  # fmt: skip
    assert probe.returncode == 0, probe.stderr
    _, probed = hsakd_jax.restore(tmp_path / "probe")
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["stage3"], probed["params"]["stage3"])
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], probed["batch_stats"])


@pytest.fixture(scope="module")
def seeds(pipeline, run_command, tmp_path_factory):
    """The command of two recipes with two seeds and a given teacher, and its finished workdir."""
    workdir = tmp_path_factory.mktemp("runs") / "seeds"
    args = [
        f"{CONFIG}:tiny", f"--workdir={workdir}", "--config.runs=('baseline','kd')", "--config.seeds=(0,1)",
        f"--config.teacher.workdir={pipeline}/teacher",
    ]  # fmt: skip
    done = run_command("main", *args)
    assert done.returncode == 0, done.stderr
    return args, workdir, done.stdout


def test_each_recipe_is_trained_with_each_seed(seeds, pipeline, call_command):
    args, workdir, shown = seeds
    paths = [workdir / f"seed_{seed}" / recipe for seed in (0, 1) for recipe in ("baseline", "kd")]
    configs = [RunDirectory(path).config() for path in paths]
    assert [config.seed for config in configs] == [0, 0, 1, 1]
    assert {config.teacher.workdir for config in configs[1::2]} == {f"{pipeline}/teacher"}
    results = [RunDirectory(path).results() for path in paths]
    assert results[0].last == json.loads((pipeline / "results.json").read_text())["baseline"]["last"]
    assert results[0].last["top1"] != results[2].last["top1"]
    assert list(json.loads((workdir / "seed_1" / "results.json").read_text())) == ["baseline", "kd"]
    values = [result.last["top1"] for result in results]
    for recipe, (first, second) in {"baseline": values[::2], "KD": values[1::2]}.items():
        cell = f"{(first + second) / 2:.2f} ({abs(first - second) / math.sqrt(2):.2f})"
        assert re.search(rf"\n{recipe} +resnet8_quarter +5,142 +{re.escape(cell)} ", shown)
    gain = (values[1] - values[0] + values[3] - values[2]) / 2
    words = rf"(not shown: {re.escape(f'{gain:+.2f}')}|(better|worse) by {abs(gain):.2f}) \(95 % interval .*, 2 seeds\)"
    assert re.search(rf"\ncompared with baseline, last epoch, points of top-1:\nKD  {words}\n", shown)
    assert "% of 896 test images, mean (standard deviation) of 2 seeds; the best epoch" in shown
    again = call_command("main", *args)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": done, ") == 4
    assert again.stdout.endswith(shown[shown.index("\nrun ") :])
    shown = call_command("evaluate", f"--workdir={workdir}").stdout
    assert shown.count("top-1") == 4
    assert all(f"{path}: resnet8_quarter, last checkpoint" in shown for path in paths)
    text = call_command("results", workdir).stdout
    assert re.search(r"\nKD +kd .* 2 +2\n", text)


def test_which_images_are_correct_is_in_the_results(seeds):
    """As the network that is restored classifies them."""
    _, workdir, _ = seeds
    result = RunDirectory(workdir / "seed_1" / "kd").results()
    images, labels, _ = datasets.load("digits").test
    network, variables = hsakd_jax.restore(workdir / "seed_1" / "kd")
    config = RunDirectory(workdir / "seed_1" / "kd").config()
    pixels = ((images / 255 - config.data.mean) / config.data.std).astype(np.float32)
    right = np.asarray(network.apply(variables, pixels).logits).argmax(-1) == labels
    assert (result.correct.unpack(len(labels)) == right).mean() > 0.995  # rounding decides few
    assert 100 * result.correct.unpack(len(labels)).mean() == pytest.approx(result.last["top1"])


def test_all_seeds_are_checked_before_the_first_one_trains(seeds, call_command, tmp_path):
    args, workdir, _ = seeds
    shutil.copytree(workdir / "seed_1", tmp_path / "runs" / "seed_1")
    done = call_command("main", *args, f"--workdir={tmp_path}/runs", "--config.student.epochs=3")
    assert_refused(done, "seed_1/baseline belongs to another config: training.epochs (2 there, 3 here)")
    assert not (tmp_path / "runs" / "seed_0").exists()


def test_a_start_of_another_network_is_refused_before_anything_trains(pipeline, call_command, tmp_path):
    start = f"--config.student.init={pipeline}/teacher"
    done = call_command("main", f"{CONFIG}:tiny", f"--workdir={tmp_path}/runs", start, "--dry_run")
    remedy = "set --config.student.init to a run of resnet8_quarter, or --config.student.arch=resnet8_half"
    assert_refused(done, "is not a run of this network: it has resnet8_half, not resnet8_quarter; " + remedy)


def test_a_run_is_no_workdir_of_several_seeds(pipeline, call_command):
    done = call_command("main", f"{CONFIG}:tiny", f"--workdir={pipeline}/baseline", "--config.seeds=(0,1)")
    assert_refused(done, "baseline is a run, and seeds needs a folder for several: choose another directory")


def test_data_is_loaded_once_where_the_seed_selects_no_images(monkeypatch):
    loaded = []
    monkeypatch.setattr(experiments_pipeline, "load_source", lambda source, seed: loaded.append(seed) or seed)
    for data, found in (({}, [0]), ({"validation": 0.2}, [0, 1]), ({"fraction": 0.5}, [0, 1])):
        loaded.clear()
        splits = experiments_pipeline._load({"data": {"fraction": 1.0, "validation": 0.0, **data}}, [0, 1])
        assert loaded == found
        assert list(splits) == [0, 1]


def test_a_finished_run_needs_no_teacher(pipeline, call_command, tmp_path):
    shutil.copytree(pipeline / "teacher", tmp_path / "teacher")
    args = [f"{CONFIG}:kd_tiny", f"--workdir={tmp_path}/run", f"--config.teacher.workdir={tmp_path}/teacher"]
    assert call_command("main", *args).returncode == 0
    shutil.rmtree(tmp_path / "teacher")
    again = call_command("main", *args)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": done, ") == 1


def test_a_few_shot_run_has_the_images_of_its_seed(pipeline, call_command, tmp_path, monkeypatch):
    def few_shot(splits, fraction, seed):
        raise UserError(f"a fraction of {fraction} by seed {seed}")

    monkeypatch.setattr(experiments_pipeline, "few_shot", few_shot)
    args = [
        f"{CONFIG}:kd_25_tiny",
        f"--workdir={tmp_path}/run",
        f"--config.teacher.workdir={pipeline}/teacher",
        "--config.seed=3",
    ]
    assert_refused(call_command("main", *args), "a fraction of 0.25 by seed 3")


def test_the_log_names_every_term():
    """Also those of other methods, whose names the loop does not know."""
    values = {"crd": 1.0, "task": 2.0, "kl": 4.0, "loss": 3.0, "top1": 0.5, "images_per_s": 10.0}
    line = session.progress_line(run_config("crd"), 8, Record(step=2, epoch=1.0, values=values), "5 s")
    assert line.startswith("epoch 1.00/120, step 2/8, loss 3.000 (")
    assert set(line.partition("(")[2].partition(")")[0].split(", ")) == {"crd 1.000", "task 2.000", "kl 4.000"}
    assert line.endswith("), top-1 50.0 %, 10 images/s, 5 s left")
    values["images_per_s"] = None  # of the first steps of a run, or after a resume
    line = session.progress_line(run_config("crd"), 8, Record(step=2, epoch=1.0, values=values), "?")
    assert line.endswith("), top-1 50.0 %")


def test_the_commands_are_named(run_command):
    done = run_command("__main__")
    commands = {path.stem for path in (ROOT / "hsakd_jax").glob("*.py") if "\nCOMMAND = " in path.read_text()}
    assert set(re.findall(r"^hsakd (\w+) +\S", done.stdout, re.MULTILINE)) == commands - {"main"} | {"train"}


def test_the_command_hsakd(run_command, tmp_path):
    """A subcommand is the command of the long form, in the same process; another word is refused in one line."""
    code = "import sys; sys.argv[0] = 'hsakd'; from hsakd_jax.__main__ import main; main()"

    def hsakd(*words):
        line = [sys.executable, "-c", code, *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment())

    assert hsakd("train", "--help").stdout == run_command("main", "--help").stdout
    assert hsakd("--version").stdout == f"hsakd_jax {metadata.version('hsakd_jax')}\n"
    assert_refused(hsakd("evalute"), "unknown subcommand 'evalute'", "evaluate")
    assert_refused(hsakd("evaluate", f"--workdir={tmp_path}/none"), "is not a run directory")
    done = hsakd("summary", "resnet8")
    assert (done.returncode, done.stdout) == (0, run_command("summary", "resnet8").stdout)


@pytest.mark.slow
def test_photographs(run_command, call_command, tmp_path):
    """ImageNet's recipe on a tree of JPEGs, which is read where it lies."""
    write_photographs(tmp_path / "tree", {"train": 9, "val": 4}, ("n01", "n02", "n03"), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (tmp_path / "tree/val").glob("*/[01].JPEG"):  # as a phone held upright writes them
        Image.open(path).save(path, exif=exif)
    before = sorted((tmp_path / "tree").rglob("*"))
    sizes = [f"--config.{n}.{k}={v}" for n in ("teacher", "student") for k, v in (("batch", 8), ("epochs", 2))]
    done = run_command(
        "main", "--config=configs/imagenet.py:student/resnet8_half/resnet8_quarter", f"--workdir={tmp_path}/runs",
        "--config.data.name=image_tree", f"--config.data.dir={tmp_path}/tree", "--config.data.image_size=32",
        "--config.data.resize=36", "--config.eval_batch=5", "--config.student.lr_batch=256", *sizes,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / "tree").rglob("*")) == before
    result = json.loads((tmp_path / "runs/student/results.json").read_text())
    assert (result["train_images"], result["test_images"]) == (27, 12)
    records = [json.loads(line) for line in (tmp_path / "runs/student/metrics.jsonl").read_text().splitlines()]
    assert next(r["lr"] for r in records if "lr" in r) == pytest.approx(0.1 * 8 / 256)
    found = json.loads(call_command("evaluate", f"--workdir={tmp_path}/runs/student", "--json").stdout)
    assert found["top1"] == result["last"]["top1"]
    args = [f"--workdir={tmp_path}/runs/student", f"{tmp_path}/tree/val", "--format=json", "--top=1"]
    predicted = json.loads(call_command("predict", *args).stdout)
    right = [one["classes"] == [Path(one["image"]).parent.name] for one in predicted]
    assert found["top1"] == pytest.approx(100 * np.mean(right))


@pytest.mark.thorough
def test_every_recipe(run_command, tmp_path):
    names = tuple(name for name, kind in RECIPES.items() if kind.init != GIVEN)
    done = run_command("main", f"{CONFIG}:tiny", f"--workdir={tmp_path}/runs", f"--config.runs={names}", timeout=1200)
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "runs" / "results.json").read_text())) == list(names)
    assert all(kind.title in done.stdout for kind in RECIPES.values() if kind.init != GIVEN)


@pytest.fixture(scope="module")
def alone(run_command, tmp_path_factory):
    """A finished baseline run of the tiny teacher's network."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    done = run_command("main", f"{CONFIG}:baseline_tiny", f"--workdir={workdir}", "--config.student.arch=resnet8_half")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_frozen_teacher_starts_from_a_baseline_and_keeps_its_backbone(
    alone, pipeline, run_command, call_command, tmp_path
):
    """PAPER's "Teacher": the backbone of a baseline run, only the branches trained."""
    frozen = run_command(
        "main",
        f"{CONFIG}:teacher_tiny",
        f"--workdir={tmp_path / 'frozen'}",
        f"--config.teacher.init={alone}",
        "--config.teacher.trainable=^branch",
    )
    assert frozen.returncode == 0, frozen.stderr
    before, after = (hsakd_jax.restore(path)[1] for path in (alone, tmp_path / "frozen"))
    for collection in before:
        for part, tree in before[collection].items():
            jax.tree.map(np.testing.assert_array_equal, tree, after[collection][part])
    results = [json.loads((path / "results.json").read_text()) for path in (alone, tmp_path / "frozen")]
    accuracy = [result["last"]["top1"] for result in results]
    assert accuracy[0] == accuracy[1]
    wrong = call_command(
        "main", f"{CONFIG}:teacher_tiny", f"--workdir={tmp_path / 'x'}", f"--config.teacher.init={pipeline / 'student'}"
    )
    assert_refused(wrong, "is not a run of this network")
    arch = json.loads((alone / "config.json").read_text())["network"]["arch"]
    four = hsakd_jax.create(arch, 4)
    variables = restore.initialise(four, (8, 8, 1), 0)
    start = restore.start_from(alone, variables, list("0123"))  # a fresh last layer, which learns
    assert start.note == f"{alone} has 10 classes, not 4: the last layer starts at random"
    with pytest.raises(UserError, match="has 10 classes, not 4, and its last layer stays as it is"):
        restore.start_from(alone, variables, list("0123"), fixed_last_layer=True)


def test_validation_images_choose_the_best_epoch(run_command, tmp_path):
    done = run_command(
        "main", f"{CONFIG}:kd_tiny", f"--workdir={tmp_path}", "--config.data.validation=0.2",
        "--config.student.accumulate=2", "--config.student.milestones=(1,2,3)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    warned = done.stdout.index(f"{tmp_path}/kd: student.milestones has 2, 3, and the run ends at epoch 2: set")
    assert warned < done.stdout.index("epoch ")  # before its teacher is trained
    results = json.loads((tmp_path / "kd" / "results.json").read_text())
    assert results["selected_by"] == "top-1 on validation"
    assert results["train_images"] < 180
    assert results["test_images"] == 896


BAD = {
    "unknown section": (["--config.studnet.arch=resnet20"], ["unknown config key 'studnet': did you mean 'student'?"]),
    "unknown key": (["--config.student.eposh=2"], ["key 'student.eposh': did you mean 'student.epochs'?"]),
    "unknown top key": (["--config.sed=1"], ["unknown config key 'sed': did you mean 'seed'?"]),
    "student of a pipeline": ([f"{CONFIG}:tiny", "--config.student.arch=resnet_20"], ["did you mean 'resnet20'"]),
    "unknown recipe": ([f"{CONFIG}:studnet"], ["unknown recipe 'studnet'", "did you mean 'student'"]),
    "unknown tiny recipe": ([f"{CONFIG}:studnet_tiny"], ["did you mean 'student_tiny'"]),
    "mistyped tiny recipe": ([f"{CONFIG}:kd_tinny"], ["did you mean 'kd_tiny'"]),
    "like no recipe": ([f"{CONFIG}:foo"], ["unknown recipe 'foo': known: "]),
    "like no network": (["--config.student.arch=foo"], ["unknown network 'foo': known: "]),
    "unknown recipe among several": (
        ["--config.runs=('baseline','kdd')"],
        ["unknown recipe 'kdd'", "did you mean 'kd'"],
    ),
    "tiny recipe among several": (["--config.runs=('student_tiny',)"], ["did you mean 'student'?"]),
    "mistyped tiny recipe among several": (["--config.runs=('kdd_tiny',)"], ["did you mean 'kd'?"]),
    "unknown config": (["--config=configs/cifar1000.py"], ["configs/cifar1000.py"]),
    "wrong type": (["--config.student.epochs=many"], ["epochs"]),
    "unknown flag": (["--confg=x"], ["confg"]),
    "unknown network": (["--config.student.arch=resnet_20"], ["resnet_20", "did you mean 'resnet20'"]),
    "unknown dataset": (["--config.data.name=cifar"], ["no dataset 'cifar'", "did you mean"]),
    "unknown schedule": (["--config.student.schedule=step"], ["student.schedule is 'step'", "cosine or multi_step"]),
    "unknown dtype of the teacher": (["--config.teacher.inference_dtype=int8"], ["int8", "bfloat16"]),
    "unknown dtype": (["--config.student.dtype=float16"], ["float16", "bfloat16"]),
    "seed of 33 bits": (["--config.seed=4294967296"], ["seed is 4294967296: set a whole number from 0 to 4294967295"]),
    "one seed of several": (["--config.seeds=0"], ["seeds is (0,): set at least 2, or one by --config.seed=0"]),
    "a seed twice": (["--config.seeds=(0,1,0)"], ["seeds is (0, 1, 0), which contains 0 twice: set each seed once"]),
    "a negative seed of several": (["--config.seeds=(0,-1)"], ["seeds is (0, -1): set values in brackets, or none"]),
    "seeds that are no numbers": (["--config.seeds=x"], ["seeds is ('x',): set values", "each a whole number from 0"]),
    "a seed and seeds": (
        ["--config.seed=0", "--config.seeds=(0,1)"],
        ["seed and seeds are both set: add the seed to --config.seeds, and leave --config.seed out"],
    ),
    "batch and devices": (["--config.student.batch=12"], ["student.batch is 12", "8 devices"]),
    "batch and dataset": (
        ["--config.student.batch=800"],
        ["800, more than the 179 training images of baseline: set --config.student.batch=176, or a greater"],
    ),
    "no epochs": (["--config.student.epochs=0"], ["student.epochs is 0"]),
    "momentum": (["--config.student.momentum=1"], ["student.momentum is 1.0: set a number from 0 to below 1"]),
    "temperature": (
        [f"{CONFIG}:kd_tiny", "--config.objective.kd.kl.temperature=0"],
        ["objective.kd.kl.temperature is 0.0: set a number from 0.001 to 10000"],
    ),
    "weight": (
        [f"{CONFIG}:student_tiny", "--config.objective.student.kl_aux.weight=-1"],
        ["objective.student.kl_aux.weight is -1.0: set a number from 0 to 1e+30"],
    ),
    "a key given twice": (
        ["--config.data.std=(1,)", "--config.data.std=(0,)"],
        ["data.std is (0,): set values in brackets, or none, each a number from 1e-06"],
    ),
    "image too small": (["--config.student.arch=resnet18_imagenet"], ["image too small for the network"]),
    "peers": ([f"{CONFIG}:mutual_tiny", "--config.peers=('',)"], ["a mutual run needs at least 2 networks"]),
    "unknown peer": ([f"{CONFIG}:mutual_tiny", "--config.peers=('', 'resnet9')"], ["unknown network 'resnet9'"]),
    "tracker": (["--config.tracking=('tensorbord',)"], ["unknown tracker 'tensorbord'", "tensorboard, wandb, trackio"]),
    "groups": (["--config.batch_norm_groups=5"], ["batch_norm_groups is 5", "a batch of 16"]),
    "crop": (["--config.data.crop=random"], ["data.crop is 'random': choose pad or resized"]),
    "side": (["--config.data.crop=resized"], ["data.image_size is 0"]),
    "networks of a row": ([f"{CONFIG}:kd/a/b/c"], ["name teacher and student"]),
    "network of a row": ([f"{CONFIG}:kd/resnet20/resnet_8"], ["unknown network 'resnet_8'"]),
    "flags of processes": (
        [f"{CONFIG}:baseline_tiny", "--coordinator=localhost:1"],
        ["--coordinator=HOST:PORT, --processes=N and --process=I"],
    ),
    "layer of the teacher": (
        [f"{CONFIG}:simkd_tiny", "--config.student.trainable=stage|head"],
        ["simkd takes head/fc/kernel from the teacher: set a pattern that does not match it"],
    ),
    "head of SSKD's teacher": (
        [f"{CONFIG}:sskd_tiny", "--config.student.trainable=objective|stage|head"],
        ["sskd takes objective/sskd/teacher_head/fc1/kernel from the teacher"],
    ),
    "two networks of mutual": (
        [f"{CONFIG}:mutual_tiny/resnet8/resnet14"],
        ["mutual trains one network several times", "--config.peers=\"('resnet8','resnet14')\""],
    ),
    "pattern": (["--config.student.trainable=("], ["not a regular expression"]),
    "channels": (["--config.data.mean=(0.5,0.5,0.5)"], ["data.mean is (0.5, 0.5, 0.5)", "1 channels"]),
    "mean of 0 to 255": (
        ["--config.data.mean=(125.,)", "--config.data.std=(60.,)"],
        ["data.mean is (125.0,)", "each a number from 0 to 1, as a fraction of 255"],
    ),
    "fraction": (["--config.data.fraction=1.5"], ["data.fraction is 1.5: set a number above 0 and at most 1"]),
    "validation": (["--config.data.validation=1"], ["data.validation is 1.0: set a number from 0 to below 1"]),
    "branches": (
        [f"{CONFIG}:student_tiny", "--config.objective.student.kl_aux.branches=(4,)"],
        ["student: kl_aux: branches (4,) are not all among 1..3: choose"],
    ),
    "trainable": (["--config.student.trainable=^heda"], ["trainable is '^heda'", "would stay random"]),
    "all weights zero": (["--config.objective.baseline.task.weight=0."], ["weight 0"]),
    "workdir under a file": (["--workdir=/dev/null/run"], ["/dev/null/run"]),
    "no start": ([f"{CONFIG}:probe_tiny"], ["probe needs a run to start from", "--config.student.init=RUN"]),
    "missing start": (
        [f"{CONFIG}:student_tiny", "--config.student.init=/nowhere"],
        ["student: /nowhere is not a run directory"],
    ),
    "checkpoint of a teacher": (
        [f"{CONFIG}:tiny", "--config.teacher.checkpoint=worst"],
        ["teacher.checkpoint is 'worst': choose best or last"],
    ),
    "missing teacher": (
        [f"{CONFIG}:kd_tiny", "--config.teacher.workdir=/nowhere"],
        ["teacher.workdir: /nowhere is not a run directory"],
    ),
    "file as a teacher": (
        [f"{CONFIG}:kd_tiny", f"--config.teacher.workdir={__file__}"],
        [f"teacher.workdir: {__file__} is not a run directory", f"hsakd_jax.convert {__file__} --output=RUN`"],
    ),
    "folder of data": (
        [f"{CONFIG}:kd_tiny", "--config.data.dir=/nowhere"],
        ["data.dir is /nowhere, which is no folder: check the path, or make it first"],
    ),
    "image size": (["--config.data.image_size=32"], ["data.image_size is 32", "leave it 0"]),
    "resize": (
        ["--config.data.crop=resized", "--config.data.image_size=8", "--config.data.resize=7"],
        ["data.resize is 7"],
    ),
    "resize of an image folder": (
        [
            "--config.data.name=image_folder",
            "--config.data.crop=resized",
            "--config.data.image_size=8",
            "--config.data.resize=9",
        ],
        ["data.resize is 9, and an image_folder has whole squares", "set --config.data.resize=0"],
    ),
    "peers of before": ([f"{CONFIG}:mutual_tiny", "--config.peers=2"], ["peers"]),
    "network of a probe": ([f"{CONFIG}:probe/resnet20"], ["a probe has the network of"]),
    "term of a student": (
        [f"{CONFIG}:fitnet_tiny", "--config.objective.fitnet.fitnet.stage=4"],
        ["fitnet: choose a stage that has a partner"],
    ),
    "schedule of a student": ([f"{CONFIG}:tiny", "--config.student.schedule=step"], ["student.schedule is 'step'"]),
    "missing teacher of one run": (
        [f"{CONFIG}:tiny", "--config.teacher.workdir=/nowhere", "--config.runs=('baseline','student')"],
        ["/nowhere is not a run directory"],
    ),
    "learning rate": (["--config.student.lr=nan"], ["student.lr is nan"]),
    "milestones": (
        ["--config.student.milestones=abc"],
        ["student.milestones is ('abc',): set values in brackets, or none, each a number from 0"],
    ),
    "fraction of infinity": (["--config.data.fraction=inf"], ["data.fraction is inf: set a number above 0"]),
    "no runs": ([f"{CONFIG}:tiny", "--config.runs=()"], ["runs is (): set values in brackets, at least 1"]),
    "run that is no name": ([f"{CONFIG}:tiny", "--config.runs=(0,)"], ["runs is (0,): set values in brackets"]),
    "seed above 32 bits": (["--config.seed=9223372036854775808"], ["seed is 9223372036854775808: set", "4294967295"]),
    "negative seed": (["--config.seed=-1"], ["seed is -1: set a whole number from 0"]),
    "std that is no number": (["--config.data.std=x"], ["data.std is ('x',): set values", "each a number"]),
    "no std": (["--config.data.std=()"], ["data.mean is (0.31,) and data.std (): set both, or neither"]),
    "infinite std": (["--config.data.std=(1e999,)"], ["data.std is (inf,): set"]),
    "infinite mean": (["--config.data.mean=(1e999,)"], ["data.mean is (inf,): set"]),
    "negative negatives": (
        [f"{CONFIG}:crd_tiny", "--config.objective.crd.crd.negatives=-1"],
        ["objective.crd.crd.negatives is -1: set a whole number from 1 to 1048576"],
    ),
    "many negatives": (
        [f"{CONFIG}:crd_tiny", "--config.objective.crd.crd.negatives=1000000000"],
        ["objective.crd.crd.negatives is 1000000000: set"],
    ),
    "great temperature": (
        [f"{CONFIG}:kd_tiny", "--config.objective.kd.kl.temperature=1e300"],
        ["objective.kd.kl.temperature is 1e+300: set a number"],
    ),
    "temperature that is no number": (
        [f"{CONFIG}:kd_tiny", "--config.objective.kd.kl.temperature=nan"],
        ["objective.kd.kl.temperature is nan: set a number"],
    ),
    "beta": ([f"{CONFIG}:dkd_tiny", "--config.objective.dkd.dkd.beta=-1"], ["objective.dkd.dkd.beta is -1.0: set"]),
    "warm-up of a term": (
        [f"{CONFIG}:dkd_tiny", "--config.objective.dkd.dkd.warmup=-1"],
        ["objective.dkd.dkd.warmup is -1: set a whole number from 0"],
    ),
    "kept": (
        [f"{CONFIG}:sskd_tiny", "--config.objective.sskd.sskd_kl.kept=1.5"],
        ["objective.sskd.sskd_kl.kept is 1.5: set a number from 0 to 1"],
    ),
    "branch 0": (
        [f"{CONFIG}:student_tiny", "--config.objective.student.kl_aux.branches=(0,)"],
        ["objective.student.kl_aux.branches is (0,): set values in brackets, or none, each a whole number from 1"],
    ),
    "maps": (
        [f"{CONFIG}:at_tiny", "--config.objective.at.at.maps=hint"],
        ["objective.at.at.maps is 'hint': choose features or hints"],
    ),
    "stage 0": ([f"{CONFIG}:fitnet_tiny", "--config.objective.fitnet.fitnet.stage=0"], ["fitnet.stage is 0: set"]),
    "negative warm-up": (["--config.student.warmup=-1"], ["student.warmup is -1: set a whole number from 0"]),
    "long warm-up": (["--config.student.warmup=100000000000000000000"], ["student.warmup is 1000", "to 1000000"]),
    "great eval_batch": (["--config.eval_batch=1000000000"], ["eval_batch is 1000000000: set", "to 65536"]),
    "no eval_batch": (["--config.eval_batch=0"], ["eval_batch is 0: set a whole number from 1"]),
    "eval_every": (["--config.eval_every=0"], ["eval_every is 0: set a whole number from 1"]),
    "log_every": (["--config.log_every=-5"], ["log_every is -5: set a whole number from 1"]),
    "great batch": (["--config.student.batch=1000000000"], ["student.batch is 1000000000: set"]),
    "many epochs": (["--config.student.epochs=2147483648"], ["student.epochs is 2147483648: set", "to 1000000"]),
    "side below 1": (["--config.data.image_size=-1"], ["data.image_size is -1: set a whole number from 1 to"]),
    "pad above the image": (["--config.data.pad=9"], ["data.pad is 9, more than the side of the images, 8"]),
    "negative pad": (["--config.data.pad=-1"], ["data.pad is -1: set a whole number from 0"]),
    "negative milestone": (["--config.student.milestones=(-1, 1)"], ["student.milestones is (-1, 1): set"]),
    "infinite milestone": (["--config.student.milestones=(1e999,)"], ["student.milestones is (inf,): set"]),
    "unsorted milestones": (["--config.student.milestones=(2, 1)"], ["student.milestones is (2, 1)", "ascending"]),
    "equal milestones": (["--config.student.milestones=(1, 1)"], ["student.milestones is (1, 1)", "ascending"]),
    "milestones of a cosine": (
        ["--config.student.schedule=cosine", "--config.student.milestones=(1,)"],
        ["student.milestones has no effect with student.schedule=cosine: leave it out, or set"],
    ),
    "gamma of a cosine": (
        ["--config.student.gamma=0.5", "--config.student.schedule=cosine"],
        ["student.gamma has no effect with student.schedule=cosine"],
    ),
    "infinite learning rate": (["--config.student.lr=inf"], ["student.lr is inf: set a number from 0"]),
    "negative learning rate": (["--config.student.lr=-0.1"], ["student.lr is -0.1: set a number from 0"]),
    "infinite decay": (["--config.student.weight_decay=inf"], ["student.weight_decay is inf: set"]),
    "negative gamma": (["--config.student.gamma=-1"], ["student.gamma is -1.0: set"]),
    "lr_batch": (["--config.student.lr_batch=-1"], ["student.lr_batch is -1: set a whole number from 1"]),
    "accumulate": (["--config.student.accumulate=0"], ["student.accumulate is 0: set a whole number from 1"]),
    "section that is not used": (["--config.frozen.epochs=0"], ["frozen.epochs is 0: set"]),
    "peer of a teacher": (["--config.teacher.peer=0"], ["teacher.peer is 0: set a whole number from 1"]),
    "peers that are no names": (
        [f"{CONFIG}:mutual_tiny", "--config.peers=(1, 2)"],
        ["peers is (1, 2): set", "a name"],
    ),
    "teacher that is taught": (
        [f"{CONFIG}:student_tiny", "--config.teacher.run=student"],
        ["teacher.run is 'student', which needs a teacher itself: train it first"],
    ),
    "recipe as a key": (["--config.recipe=student"], ["--config.recipe can't be set", "--config=FILE:RECIPE"]),
    "objective as a whole": (["--config.objective=x"], ["--config.objective can't be set as a whole"]),
    "unknown option": (
        [f"{CONFIG}:kd_tiny", "--config.objective.kd.kl.temprature=2"],
        ["unknown config key 'objective.kd.kl.temprature': did you mean 'objective.kd.kl.temperature'?"],
    ),
    "section of no trained network": (
        [f"{CONFIG}:baseline_tiny", "--config.teacher.lr=0.1"],
        ["teacher.lr has no effect, since no recipe of baseline uses it: leave it out"],
    ),
    "epochs of a teacher that is not trained": (
        [f"{CONFIG}:kd_tiny", "--config.teacher.workdir=elsewhere", "--config.teacher.epochs=1"],
        ["teacher.epochs has no effect, since the teacher of teacher.workdir is not trained: leave it out"],
    ),
    "teacher of a recipe without one": (
        [f"{CONFIG}:teacher_tiny", "--config.teacher.workdir=elsewhere"],
        ["teacher.workdir has no effect, since no recipe of teacher uses it"],
    ),
    "schedule of a backbone that is kept": (
        [f"{CONFIG}:teacher_frozen_tiny", "--config.frozen.init=elsewhere", "--config.teacher.epochs=3"],
        ["teacher.epochs has no effect, since no recipe of teacher_frozen uses it"],
    ),
    "arch of a probe": (
        [f"{CONFIG}:probe_tiny", "--config.student.arch=resnet20"],
        ["student.arch has no effect, since no recipe of probe uses it"],
    ),
    "teachers of a given teacher": (
        ["--config.runs=('teacher', 'backbone')", "--config.teacher.workdir=elsewhere"],
        ["runs has teachers only, and teacher.workdir sets a trained one: leave one of the two out"],
    ),
    "recipes without brackets": (
        ["--config.runs=kd,baseline"],
        ["runs is 'kd,baseline': set several recipes in brackets, --config.runs=\"('kd', 'baseline')\""],
    ),
    "recipes in bare brackets": (
        ["--config.runs=(kd,baseline)"],
        ["set several recipes in brackets, --config.runs=\"('kd', 'baseline')\""],
    ),
    "open bracket": (["--config.student.milestones=(1, 2"], ["--config.student.milestones=(1, 2: set values in brack"]),
    "folder as config": (["--config=configs"], ["the config file configs can't be loaded (it is a folder): set one"]),
    "like no key": (["--config.student.foobar=2"], ["'student.foobar': known: accumulate, arch, "]),
    "key of a value": (["--config.seed.x=2"], ["unknown config key 'seed.x': seed is a value, not a section"]),
    "yes or no": (["--config.student.remat=maybe"], ["--config.student.remat=maybe"]),
    "no number": (["--config.student.epochs=three"], ["--config.student.epochs=three: set a whole number"]),
    "term of another recipe": (
        ["--config.objective.student.kl_aux.weight=0.5"],
        ["objective.student.kl_aux.weight is changed, but student is not to run", "change objective.baseline"],
    ),
    "peers of a lone network": (["--config.peers=('resnet8','resnet14')"], ["peers are named"]),
    "no port": (
        [f"{CONFIG}:baseline_tiny", "--coordinator=localhost", "--processes=2", "--process=0"],
        ["--coordinator=localhost: set it to HOST:PORT, such as localhost:1234"],
    ),
    "stray word": (["now"], ["unexpected argument 'now'"]),
}


def refuse(what, run, folder, **options):
    args, words = BAD[what]
    first = [] if args[0].startswith("--config=") or ":" in args[0] else [f"{CONFIG}:baseline_tiny"]
    where = [] if args[0].startswith("--workdir") else [f"--workdir={folder}/run"]
    assert_refused(run("main", *first, *where, *args, **options), *words)
    assert not (folder / "run").exists()


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what, call_command, tmp_path):
    refuse(what, call_command, tmp_path)


# One of each kind: flags, the config file, its keys, its values, devices, folders.
@pytest.mark.parametrize(
    "what", ["unknown flag", "unknown config", "unknown key", "wrong type", "batch and devices", "workdir under a file"]
)
def test_bad_input_ends_a_process_with_status_2(what, run_command, tmp_path):
    refuse(what, run_command, tmp_path, devices=8)


def test_a_workdir_of_another_config_is_refused(pipeline, call_command):
    done = call_command(
        "main", f"{CONFIG}:teacher_tiny", f"--workdir={pipeline}/teacher", "--config.teacher.lr=0.1", "--config.seed=1"
    )
    assert_refused(done, "belongs to another config", "seed (0 there, 1 here)", "training.lr (0.05 there, 0.1")


def test_all_workdirs_are_looked_at_before_anything_trains(pipeline, call_command, tmp_path):
    shutil.copytree(pipeline / "student", tmp_path / "student")
    done = call_command("main", f"{CONFIG}:tiny", f"--workdir={tmp_path}", "--config.student.epochs=3")
    assert_refused(done, "student belongs to another config: ", "training.epochs (2 there, 3 here)")
    assert not (tmp_path / "teacher").exists()


def test_a_workdir_in_use_is_refused(pipeline, run_command, tmp_path):
    shutil.copytree(pipeline / "teacher", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    directory = RunDirectory(tmp_path / "run")
    directory.acquire(directory.config())
    args = ["main", f"{CONFIG}:teacher_tiny", f"--workdir={tmp_path}/run"]
    assert_refused(run_command(*args), "another process trains in")
    del directory
    assert run_command(*args).returncode == 0


def test_a_foreign_workdir_is_refused(call_command, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    done = call_command("main", f"{CONFIG}:baseline_tiny", f"--workdir={tmp_path}")
    assert_refused(done, "is not a run directory")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_teacher_of_other_classes_is_refused(pipeline, call_command, tmp_path):
    foreign = tmp_path / "teacher"
    # Without checkpoints, since one would say that the config was changed.
    shutil.copytree(pipeline / "teacher", foreign, ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((foreign / "config.json").read_text())
    names = config["classes"]
    config["network"]["num_classes"], config["classes"] = 100, [str(i) for i in range(100)]
    (foreign / "config.json").write_text(json.dumps(config))
    args = [f"--config.teacher.workdir={foreign}", f"--workdir={tmp_path}/run"]
    assert_refused(call_command("main", f"{CONFIG}:student_tiny", *args), "has 100 classes, not 10")
    config["network"]["num_classes"], config["classes"] = 10, [*names[:3], "zebra", *names[4:]]
    (foreign / "config.json").write_text(json.dumps(config))
    assert_refused(
        call_command("main", f"{CONFIG}:student_tiny", *args), "has other classes: 'zebra' where '3' is expected"
    )
    args = [f"--config.teacher.workdir={pipeline}/teacher", "--config.teacher.peer=2", f"--workdir={tmp_path}/run"]
    assert_refused(call_command("main", f"{CONFIG}:student_tiny", *args), "has no network 2: choose one from 1 to 1")


def test_a_teacher_without_a_checkpoint_is_refused_before_anything_trains(alone, call_command, tmp_path):
    (tmp_path / "teacher").mkdir()
    shutil.copy(alone / "config.json", tmp_path / "teacher")
    runs = "--config.runs=('baseline','kd')"
    args = [f"--config.teacher.workdir={tmp_path}/teacher", f"--workdir={tmp_path}/runs", runs]
    done = call_command("main", f"{CONFIG}:hsakd_tiny", *args)
    assert_refused(done, "kd: ", "teacher has no checkpoint yet: run the command that made it again")
    assert not (tmp_path / "runs").exists()


def test_a_key_without_effect_is_told(call_command, tmp_path):
    done = call_command(
        "main", f"{CONFIG}:baseline_tiny", f"--workdir={tmp_path}/run", "--config.data.resize=9", "--dry_run"
    )
    assert done.returncode == 0, done.stderr
    assert "warning: " in done.stdout
    assert "run: data.resize has no effect with data.crop=pad: leave it out of a new run" in done.stdout


@pytest.mark.parametrize(("recipe", "term"), [("student", "kl_aux"), ("student_dist", "dist_aux")])
def test_a_teacher_without_branches_is_refused(recipe, term, alone, call_command, tmp_path):
    args = [f"--config.teacher.workdir={alone}", f"--workdir={tmp_path}/run"]
    done = call_command("main", f"{CONFIG}:{recipe}_tiny", *args)
    assert_refused(done, f"has no branches, which {term} needs", "recipe 'teacher'")


def test_a_pipeline_named_as_teacher_is_refused(pipeline, call_command, tmp_path):
    args = [f"--config.teacher.workdir={pipeline}", f"--workdir={tmp_path}/run"]
    assert_refused(
        call_command("main", f"{CONFIG}:student_tiny", *args),
        "contains the runs baseline, student, teacher: choose one",
    )


def test_a_loss_that_is_not_finite_stops_the_run(run_command, tmp_path):
    done = run_command("main", f"{CONFIG}:baseline_tiny", f"--workdir={tmp_path}/run", "--config.student.lr=1e30")
    assert_refused(done, "step ", "task", "not finite", "lower the learning rate")


def test_a_full_disk_is_reported(run_command, tmp_path, pipeline):
    """A limit on the size of files stands for the disk; the dataset is prepared already."""
    line = f"ulimit -f 24; exec {sys.executable} -m hsakd_jax.main {CONFIG}:baseline_tiny --workdir={tmp_path}/run"
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}  # which meets the limit too
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)
    assert_refused(done, "could not save checkpoint", "free some space")
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]


def test_a_run_leaves_as_safetensors_and_comes_back_as_a_teacher(pipeline, run_command, call_command, tmp_path):
    file, back = tmp_path / "teacher.safetensors", tmp_path / "back"
    out = call_command(
        "export", f"--workdir={pipeline}/teacher", "--format=safetensors", f"--output={file}", "--with-branches"
    )
    assert out.returncode == 0, out.stderr
    assert "read back, its outputs differ by at most 0.0e+00" in out.stdout
    again = call_command("export", f"--workdir={pipeline}/teacher", "--format=stablehlo", f"--output={file}")
    assert_refused(again, "exists: name another --output")
    wrong = call_command("convert", file, f"--output={back}", "--data=cifar100")
    assert_refused(wrong, "the network has 10 classes and cifar100 has 100")
    assert not back.exists()
    made = call_command("convert", file, f"--output={back}")
    assert made.returncode == 0, made.stderr
    assert "resnet8_half, with branches, 10 classes\nimages of 8x8x1, mean [0.31], std [0.38], data dig" in made.stdout
    args = ["--data=digits", "--image_size=8", "--mean=0.31", "--std=0.38"]
    assert call_command("convert", file, f"--output={back}", *args).returncode == 0  # the same once more
    other = call_command("convert", file, f"--output={back}", "--mean=0.31", "--std=0.5")
    assert_refused(other, "belongs to another config", "data.std")
    measured = json.loads(call_command("evaluate", f"--workdir={back}", "--json").stdout)
    result = json.loads((pipeline / "teacher" / "results.json").read_text())
    assert {k: measured[k] for k in ("top1", "joint_1", "class_3")} == {
        k: result["last"][k] for k in ("top1", "joint_1", "class_3")
    }
    taught = run_command(
        "main", f"{CONFIG}:student_tiny", f"--workdir={tmp_path}/run", f"--config.teacher.workdir={back}"
    )
    assert taught.returncode == 0, taught.stderr
    student = json.loads((tmp_path / "run" / "results.json").read_text())
    assert student["last"] == json.loads((pipeline / "student" / "results.json").read_text())["last"]


def test_a_converted_backbone_is_a_start_for_a_frozen_teacher(alone, run_command, call_command, tmp_path):
    file, back = tmp_path / "backbone.safetensors", tmp_path / "back"
    assert call_command("export", f"--workdir={alone}", "--format=safetensors", f"--output={file}").returncode == 0
    made = call_command(
        "convert", file, f"--output={back}", "--arch=resnet8_half", "--image_size=8", "--mean=0.31", "--std=0.38"
    )
    assert made.returncode == 0, made.stderr
    before, after = (hsakd_jax.restore(path)[1] for path in (alone, back))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    done = run_command(
        "main", f"{CONFIG}:teacher_tiny", f"--workdir={tmp_path}/run", f"--config.teacher.init={back}",
        "--config.teacher.trainable=^branch",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_convert_bad_input_writes_nothing(call_command, tmp_path):
    (tmp_path / "x.safetensors").write_bytes((8).to_bytes(8, "little") + b"{broken}")
    args = [tmp_path / "x.safetensors", f"--output={tmp_path}/run"]
    assert_refused(call_command("convert", *args), "x.safetensors is a damaged safetensors file")
    assert_refused(call_command("convert", *args, "--arch=resnet_20"), "unknown network 'resnet_20'")
    assert_refused(call_command("convert", *args, "--mean=a,b,c"), "--mean and --std are numbers")
    assert_refused(call_command("convert", *args, "--data=cifra100"), "no dataset 'cifra100'", "mean 'cifar100'? If")
    assert_refused(call_command("convert", f"--output={tmp_path}/run"), "CHECKPOINT is missing")
    greys = call_command("convert", *args, "--mean=123.7,116.3,103.5", "--std=58,57,57")
    assert_refused(greys, "divide those of images from 0 to 255 by 255")
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "1.png")
    meant = f"set --data=image_folder --data_dir={tmp_path}/photos"
    assert_refused(call_command("convert", *args, f"--data={tmp_path}/photos"), "is a tree of images: " + meant)
    network = hsakd_jax.create("resnet8_half", 10, branches=False)
    variables = restore.initialise(network, (8, 8, 3), 0)
    tensors = torch_weights.to_state_dict("resnet8_half", network, jax.device_get(variables))
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    other = call_command("convert", *args, "--data=image_folder", f"--data_dir={tmp_path}/photos")
    assert_refused(other, "the network has 10 classes and", "photos has 2: leave --data and --data_dir out")
    assert not (tmp_path / "run").exists()


def test_predict(pipeline, run_command, call_command, tmp_path):
    test = datasets.load("digits", splits=("test",)).test
    for i, kind in enumerate(("png", "jpg", "webp")):
        side = 8 if kind == "png" else 64
        Image.fromarray(test.images[i, ..., 0]).resize((side, side)).save(tmp_path / f"{i}.{kind}")
    args = [f"--workdir={pipeline}/student", tmp_path]
    shown = call_command("predict", *args, "--format=json", "--top=20")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert [Path(p["image"]).name for p in found] == ["0.png", "1.jpg", "2.webp"]
    network, variables = hsakd_jax.restore(pipeline / "student")
    normalised = (test.images[:1] / np.float32(255) - np.float32(0.31)) / np.float32(0.38)
    expected = jax.nn.softmax(network.apply(variables, normalised).logits)[0]
    assert found[0]["classes"] == [str(i) for i in np.argsort(-expected)]
    np.testing.assert_allclose(found[0]["probabilities"], np.sort(expected)[::-1], rtol=1e-4)
    text = call_command("predict", *args, "--format=csv", "--top=2").stdout
    assert text.splitlines()[0] == "image,rank,class,probability"
    assert len(text.splitlines()) == 1 + 3 * 2
    (tmp_path / "broken.png").write_text("")
    partly = run_command("predict", *args, tmp_path / "absent.jpg")
    assert partly.returncode == 2
    assert partly.stdout.count(".jpg") == 1
    assert "skipped: " in partly.stderr
    assert "broken.png can't be read as an image" in partly.stderr
    assert "absent.jpg is no file: check the path" in partly.stderr
    assert partly.stderr.endswith("error: skipped 2 of 5 files, those named above\n")


def test_summary(pipeline, call_command):
    shown = call_command("summary", "wrn_16_2").stdout
    assert re.search(r"deployed +703,284 +101,118,464\n", shown)
    assert re.search(r"with branches +2,631,588 +239,684,096\n", shown)
    result = json.loads((pipeline / "student" / "results.json").read_text())
    shown = call_command("summary", pipeline / "student").stdout
    assert f"{result['parameters']['with_branches']:,}" in shown
    assert_refused(call_command("summary", "wrn_16_3"), "unknown network 'wrn_16_3'")
    assert_refused(call_command("summary", "wrn_16_2", "--image_size=2"), "image too small")
    assert_refused(call_command("summary", "runs/typo"), "runs/typo is not a run directory")


def test_evaluate_bad_input(pipeline, call_command, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(pipeline / "student", moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["dir"] = "/nowhere"
    (moved / "config.json").write_text(json.dumps(config))
    assert_refused(
        call_command("evaluate", f"--workdir={moved}"), "in /nowhere, which is no folder: set --data_dir=DIR"
    )
    missing = call_command("evaluate", f"--workdir={moved}", f"--data_dir={tmp_path}/none")
    assert_refused(missing, "/none, which is no folder: set --data_dir=DIR")
    assert not (tmp_path / "none").exists()
    config["network"]["image_shape"] = [9, 9, 1]
    (moved / "config.json").write_text(json.dumps(config))
    changed = call_command("evaluate", f"--workdir={moved}", f"--data_dir={os.environ['TFDS_DATA_DIR']}")
    assert_refused(
        changed, "config.json was changed after checkpoint", "network.image_shape ([8, 8, 1] then, [9, 9, 1]"
    )
    shutil.rmtree(moved / "checkpoints")
    other = call_command("evaluate", f"--workdir={moved}", f"--data_dir={os.environ['TFDS_DATA_DIR']}")
    assert_refused(other, "takes images of [9, 9, 1], those of digits are [8, 8, 1]")
    assert_refused(call_command("evaluate", f"--workdir={tmp_path}/none"), "is not a run directory")
    assert_refused(call_command("evaluate"), "--workdir is missing")


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_help_needs_no_slow_package(command):
    """Which each take longer to import than a person waits for a line of help."""
    code = f"""
import runpy, sys
sys.argv = ["{command}", "--help"]
try:
    runpy.run_module("hsakd_jax.{command}", run_name="__main__")
except SystemExit as end:
    assert not end.code
assert not {{"jax", "matplotlib", "ml_collections", "numpy"}} & set(sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert f"python -m hsakd_jax.{command} " in shown.stdout


def test_every_module_can_be_imported_in_one_process():
    names = [module.name for module in pkgutil.walk_packages(hsakd_jax.__path__, "hsakd_jax.")]
    assert {f"hsakd_jax.{name}" for name in __main__.COMMANDS} < set(names)
    for name in names:
        importlib.import_module(name)


def test_commands_run_in_one_process(call_command, capfd):
    """Each with its own flags, and none keeps those of the call before."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for flag, size in (["--image-size=28"], 28), ([], 32):
        shown = call_command("summary", "resnet8_quarter", *flag)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert f"images of {size}x{size}x3" in shown.stdout
    assert "python -m hsakd_jax.evaluate" in call_command("evaluate", "--help").stdout
    assert_refused(call_command("evaluate", "--workdir=runs/typo", "--image-size=32"), "image_size")
    assert_refused(call_command("convert", "runs/typo", "--output=x", "--image-size=many"), "set a whole number")
    for seed in (1, 2):
        argv = [f"{CONFIG}:tiny", "--workdir=x", f"--config.seed={seed}"]
        values, _ = cli.parse(importlib.import_module("hsakd_jax.main").COMMAND, argv)
        assert values.config.seed == seed
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert capfd.readouterr() == ("", "")


def test_a_key_of_a_config_has_every_form_of_a_flag():
    def config(*words):
        argv = [*words, "--config", "configs/digits.py", "--workdir=x"]
        return cli.parse(importlib.import_module("hsakd_jax.main").COMMAND, argv)[0].config

    changed = config("--config.student.remat", "--noconfig.student.nesterov", "--config.student.lr", "1e-3")
    assert (changed.student.remat, changed.student.nesterov, changed.student.lr) == (True, False, 1e-3)
    assert config("--config.peers=('', 'vgg8')").peers == ("", "vgg8")
    assert config("--config.student.schedule=cosine", "--config.student.milestones=()").student.milestones == ()
    assert config("--config.tracking=wandb").tracking == ("wandb",)
    assert config("--config.seed=3", "--config.seed=4").seed == 4
    with pytest.raises(UserError, match=r"--config\.data can't be set as a whole: set the keys in it"):
        config("--config.data={}")


@pytest.mark.parametrize("flag", [["--config=configs/digits.py:kdd"], ["--config", "configs/digits.py:kdd"]])
def test_configs_come_with_the_package(flag, tmp_path):
    """Where there is no checkout; a file of that name in the working directory goes first."""

    def main():
        line = [sys.executable, "-m", "hsakd_jax.main", *flag, "--workdir=run"]
        return subprocess.run(line, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)

    assert b"did you mean 'kd'" in main().stderr
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/digits.py").write_text("def get_config(recipe):\n    raise ValueError('mine')\n")
    assert b"error: mine" in main().stderr


def test_configs_know_no_jax():
    for path in Path(ROOT, "configs").glob("*.py"):
        code = f"import sys, runpy; runpy.run_path({str(path)!r})['get_config'](); assert 'jax' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "command", ["main", "evaluate", "predict", "export", "convert", "summary", "results", "report"]
)
def test_a_remote_workdir_is_refused(command, call_command, tmp_path):
    (tmp_path / "x.png").touch()
    words = {
        "main": [f"{CONFIG}:tiny", "--workdir=gs://bucket/run"],
        "evaluate": ["--workdir=gs://bucket/run"],
        "predict": ["--workdir=gs://bucket/run", tmp_path / "x.png"],
        "export": ["--workdir=gs://bucket/run", "--format=torch", f"--output={tmp_path}/x"],
        "convert": [tmp_path / "x.pth", "--output=gs://bucket/run"],
        "summary": ["gs://bucket/run"],
        "results": ["gs://bucket/run"],
        "report": ["gs://bucket/run", f"--output={tmp_path}/x.html"],
    }
    assert_refused(call_command(command, *words[command]), "gs:/", "is not a path of this machine")
    assert not (ROOT / "gs:").exists()


def test_a_moved_teacher_is_the_same_and_another_one_is_refused(pipeline, call_command, tmp_path):
    for run in ("teacher", "student"):
        shutil.copytree(pipeline / run, tmp_path / "moved" / run)
    args = ["main", f"{CONFIG}:student_tiny", f"--workdir={tmp_path}/moved/student"]
    for name in ("teacher", "renamed"):
        (tmp_path / "moved" / "teacher").rename(tmp_path / "moved" / name)
        done = call_command(*args, f"--config.teacher.workdir={tmp_path}/moved/{name}")
        assert done.returncode == 0, done.stderr
        assert "student: done, test top-1" in done.stdout
        stored = json.loads((tmp_path / "moved" / "student" / "config.json").read_text())
        assert stored["teacher"]["workdir"] == f"{tmp_path}/moved/{name}"
    (tmp_path / "moved" / "renamed").rename(tmp_path / "moved" / "away")
    shutil.copytree(pipeline / "student", tmp_path / "moved" / "renamed")
    other = call_command(*args, f"--config.teacher.workdir={tmp_path}/moved/renamed")
    assert_refused(other, "student belongs to another config: the network of its teacher (")


def test_damage_costs_the_damaged_file(pipeline, call_command, tmp_path):
    """Results are measured again; the best epoch stays the same one, though its record is lost."""
    shutil.copytree(pipeline / "baseline", tmp_path / "run")
    before = json.loads((tmp_path / "run" / "results.json").read_text())
    (tmp_path / "run" / "results.json").write_text("{")
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    best = max((json.loads(line) for line in lines if "score" in line), key=lambda r: (r["score"], r["step"]))
    damaged = [line for line in lines if json.loads(line) == best]
    metrics.write_text("".join(line.replace("{", "[") if line in damaged else line for line in lines))
    again = call_command("main", f"{CONFIG}:baseline_tiny", f"--workdir={tmp_path}/run")
    assert again.returncode == 0, again.stderr
    assert "results.json is not valid" in again.stderr
    assert "metrics.jsonl has 1 damaged line, moved to metrics.damaged.jsonl" in again.stderr
    after = json.loads((tmp_path / "run" / "results.json").read_text())
    same = ("last", "best", "images_per_s", "parameters", "test_images")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert metrics.read_text() == "".join(line for line in lines if line not in damaged)


def test_a_run_says_where_it_goes_on(pipeline, call_command, tmp_path):
    shutil.copytree(pipeline / "baseline", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    for path in (tmp_path / "run" / "checkpoints").glob("*/manifest.json"):
        path.write_text("{}")
    again = call_command("main", f"{CONFIG}:baseline_tiny", f"--workdir={tmp_path}/run")
    assert again.returncode == 0, again.stderr
    assert "checkpoint 22 is damaged and was moved to" in again.stdout
    assert "run: no whole checkpoint is left, starting from the beginning" in again.stdout
    assert "resuming" not in again.stdout


def test_a_finished_pipeline_in_a_read_only_folder_is_done(pipeline, call_command, monkeypatch):
    opened = os.open

    def refuse(path, *rest, **options):
        if str(path).startswith(str(pipeline)):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, *rest, **options)

    def write(contents):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(files, "write_files", write)
    again = call_command("main", f"{CONFIG}:tiny", f"--workdir={pipeline}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": done, ") == 3


def test_other_programs_folders_beside_runs(pipeline, call_command, tmp_path):
    shutil.copytree(pipeline, tmp_path / "runs")
    (tmp_path / "runs" / "theirs").mkdir()
    (tmp_path / "runs" / "theirs" / "config.json").write_text('{"model_type": "bert"}')
    shown = call_command("evaluate", f"--workdir={tmp_path}/runs")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("last checkpoint") == 3
    left_out = f"warning: {tmp_path}/runs/theirs is left out: its config.json is damaged or of another program\n"
    assert shown.stderr == left_out
    shown = call_command("results", tmp_path / "runs")
    assert shown.returncode == 0
    assert shown.stderr in ("", left_out)  # a warning is written once by each process
    (tmp_path / "runs" / "results.json").write_text('{"accuracy": 1}')
    again = call_command("main", f"{CONFIG}:tiny", f"--workdir={tmp_path}/runs")
    assert_refused(again, "runs/results.json is damaged or of another program: move it away")
    assert (tmp_path / "runs" / "results.json").read_text() == '{"accuracy": 1}'


def test_a_workdir_that_is_deleted_while_it_trains(call_command, tmp_path, monkeypatch):
    append = MetricsLog.append

    def append_to_nothing(self, entry):
        if entry.split:
            shutil.rmtree(tmp_path / "run")
        append(self, entry)

    monkeypatch.setattr(MetricsLog, "append", append_to_nothing)
    done = call_command("main", f"{CONFIG}:baseline_tiny", f"--workdir={tmp_path}/run")
    assert_refused(done, "run was moved or deleted while it was used: nothing more is written")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_images_only(pipeline, call_command, tmp_path, monkeypatch):
    shutil.copytree(pipeline / "baseline", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    stratified = datasets.stratified

    def without_the_last(labels, fraction, seed):
        return stratified(labels, fraction, seed)[:-1]

    monkeypatch.setattr(datasets, "stratified", without_the_last)
    done = call_command("main", f"{CONFIG}:baseline_tiny", f"--workdir={tmp_path}/run")
    assert_refused(done, "run began with other training images: restore the data")


def test_a_changed_config_is_found_behind_a_damaged_checkpoint(pipeline, call_command, tmp_path):
    shutil.copytree(pipeline / "baseline", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "checkpoints" / "22" / "manifest.json").write_text("{}")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    done = call_command("main", f"{CONFIG}:baseline_tiny", f"--workdir={tmp_path}/run", "--config.seed=1")
    assert_refused(done, "config.json was changed after checkpoint 11 was written: seed (0 then, 1 now)")


def run_python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(("argv", "usual"), [(["-m"], False), (["script.py"], True), ([], True)])
def test_ctrl_c_ends_a_command_without_a_traceback_from_its_first_import_on(argv, usual):
    """Where others import the package, Ctrl-C stays as it is."""
    # A job in a shell's background ignores Ctrl-C, and so do all that it starts.
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = {argv}
import hsakd_jax
assert (signal.getsignal(signal.SIGINT) is signal.default_int_handler) == {usual}
"""
    assert run_python(code).returncode == 0


@pytest.mark.parametrize("close", ["", "sys.stdout = sys.stderr = None"])
def test_names_that_a_terminal_lacks_are_escaped(close):
    code = f"""
import sys
from hsakd_jax import cli
from hsakd_jax.core.console import Console, note, show
{close}
cli.set_up_process()
show("Käfer")
note("甲虫")
Console().line("\\udcff")  # of a file name that is not UTF-8
"""
    done = run_python(code, PYTHONIOENCODING="ascii")
    shown = "" if close else "K\\xe4fer\n\\udcff\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, "" if close else "\\u7532\\u866b\n")


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied: change the permissions, or"),
        (MemoryError(), "error: not enough memory: set a smaller batch or eval_batch, or close other programs"),
        (UserError("class 'a\x1b[2J\nb' is unknown"), "error: class 'a\\x1b[2J\\nb' is unknown"),
    ],
)
def test_what_a_machine_raises_is_one_line(raised, line, monkeypatch, call_command):
    def fail(*_):
        raise raised

    monkeypatch.setattr("hsakd_jax.summary.describe", fail)
    assert_refused(call_command("summary", "resnet20"), line)


def test_a_programming_error_has_a_traceback(monkeypatch, call_command):
    monkeypatch.setattr("hsakd_jax.summary.describe", lambda *_: {}["x"])
    with pytest.raises(KeyError):
        call_command("summary", "resnet20")


def test_a_config_file_that_makes_no_config(call_command, tmp_path):
    for text, line in (
        ("x = 1", "is no config file: define get_config(recipe)"),
        ("def get_config():\n    return {}", "is no config file: define get_config(recipe)"),
        ("def get_config(", "fails (SyntaxError: "),
        ("def get_config():\n    assert False", "fails (AssertionError: ): fix it"),
        ("raise SystemExit", "fails (SystemExit: ): fix it"),
        ("\0", "fails ("),
    ):
        (tmp_path / "mine.py").write_text(text)
        assert_refused(call_command("main", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/x"), line)


def test_a_config_of_ones_own_has_every_key_and_no_other(call_command, tmp_path):
    for change, line in (
        ("config.student.wramup = 3", "unknown config key 'student.wramup': did you mean 'student.warmup'?"),
        ("config.sedd = 3", "unknown config key 'sedd': did you mean 'seed'?"),
        ("del config.student.epochs", "student.epochs is missing: add it to the config file"),
        ("config.data = 3", "data is 3: it must be a section"),
        ("config.objective.kd.kl.temperature = 'hot'", "objective.kd.kl.temperature is 'hot': set a number from"),
        ("config.teacher.workdir = 3", "teacher.workdir is 3: set a name"),
    ):
        source = f"""
import runpy
def get_config():
    config = runpy.run_path({str(ROOT / "configs/cifar100.py")!r})["get_config"]("kd_tiny").unlock()
    with config.ignore_type():
        {change}
    return config
"""
        (tmp_path / "mine.py").write_text(source)
        assert_refused(call_command("main", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/x"), line)


def test_flags_that_a_run_would_ignore_are_refused(call_command, tmp_path):
    assert_refused(call_command("summary", "resnet20", "--image_size=0"), "image_size")
    assert_refused(call_command("summary", "resnet20", "--num_classes=1"), "num_classes")
    for flag in ("--image_size=8", "--num_classes=9", "--channels=1", "--dtype=bfloat16"):
        done = call_command("summary", f"{tmp_path}/", flag)
        assert_refused(done, f"{flag.partition('=')[0]} is for the name of a network, a run has its own: leave it out")


@pytest.mark.parametrize(
    "flag", ["image_size=100000", "image_size=-1", "num_classes=100000000000", "channels=0", "batch=1e6", "batch=0"]
)
def test_numbers_of_a_summary_have_a_range(flag, call_command):
    assert_refused(call_command("summary", "resnet20", f"--{flag}"), f"--{flag.partition('=')[0]}")


@pytest.mark.parametrize(
    ("key", "number"), [("std", n) for n in (math.nan, math.inf, -1, 0, 1e-300)] + [("mean", math.nan)]
)
def test_a_normalisation_out_of_range_is_refused(key, number):
    with pytest.raises(UserError, match=rf"data\.{key}"):
        run_config(**{f"data__{key}": (number,)})
