"""configs/own.py: photographs, a pretrained teacher, its branches and a student of it."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import assert_refused, write_photographs

from hsakd_jax import create, restore
from hsakd_jax.interop import torch_weights
from hsakd_jax.runs.restore import initialise, start_from

CONFIG = "--config=configs/own.py"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SMALL = (
    "--config.data.image_size=16",
    "--config.student.arch=resnet8_quarter",
    *(f"--config.{section}.{key}" for section in ("teacher", "frozen", "student") for key in ("epochs=2", "batch=8")),
    "--config.teacher.warmup=0",
    "--config.frozen.warmup=0",
    "--config.student.warmup=0",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder, {"train": 20, "test": 5}, ("cat", "dog"), "png")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, call_command):
    """A converted checkpoint of 100 classes, with a normalisation of its own."""
    folder = tmp_path_factory.mktemp("pretrained")
    network = create("resnet8", 100, branches=False)
    variables = initialise(network, (32, 32, 3), 7)
    tensors = torch_weights.to_state_dict("resnet8", network, variables)
    safetensors.numpy.save_file(tensors, folder / "x.safetensors")
    words = [f"--{key}={','.join(map(str, numbers))}" for key, numbers in (("mean", MEAN), ("std", STD))]
    done = call_command("convert", folder / "x.safetensors", f"--output={folder}/run", *words)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_from_a_pretrained_network_to_a_student(photos, pretrained, call_command, tmp_path):
    given = (f"--workdir={tmp_path}/own", f"--config.data.dir={photos}", f"--config.teacher.init={pretrained}")
    done = call_command("main", CONFIG, *given, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout + done.stderr
    before = restore(pretrained)[1]["params"]
    tuned, taught = (restore(tmp_path / "own" / name)[1]["params"] for name in ("backbone", "teacher_frozen"))
    jax.tree.map(np.testing.assert_array_equal, tuned["stage3"], before["stage3"])
    assert tuned["head"]["fc"]["kernel"].shape[-1] == 2
    jax.tree.map(np.testing.assert_array_equal, {key: taught[key] for key in tuned}, tuned)
    assert {key for key in taught if key.startswith("branch")} == {"branch1", "branch2", "branch3"}
    results = json.loads((tmp_path / "own/results.json").read_text())
    assert list(results) == ["backbone", "teacher_frozen", "baseline", "student_frozen"]
    assert {name: one["arch"] for name, one in results.items()} == {
        "backbone": "resnet8", "teacher_frozen": "resnet8", "baseline": "resnet8_quarter",
        "student_frozen": "resnet8_quarter",
    }  # fmt: skip
    for name in results:
        data = json.loads((tmp_path / "own" / name / "config.json").read_text())["data"]
        assert (tuple(data["mean"]), tuple(data["std"]), data["crop"]) == (MEAN, STD, "resized")
    shown = json.loads(call_command("evaluate", f"--workdir={tmp_path}/own/student_frozen", "--json").stdout)
    assert shown["top1"] == results["student_frozen"]["last"]["top1"]


def test_copied_branches(pretrained):
    """Layers of equal shape are copies; the last layers, and those that a stride changes, are random."""
    network = create("resnet8", 2)
    fresh = initialise(network, (16, 16, 3), 0)
    start = start_from(pretrained, fresh, ("cat", "dog"), copy_branches=True).variables
    params, random, given = start["params"], fresh["params"], restore(pretrained)[1]["params"]
    for l in (1, 2):
        for m in range(l + 1, 4):
            jax.tree.map(np.testing.assert_array_equal, params[f"branch{l}"][f"stage{m}"], given[f"stage{m}"])
    last, own = params["branch3"]["stage"], given["stage3"]
    first = last["block0"]["conv1"]["kernel"]
    assert first.shape != own["block0"]["conv1"]["kernel"].shape
    np.testing.assert_array_equal(first, random["branch3"]["stage"]["block0"]["conv1"]["kernel"])
    np.testing.assert_array_equal(last["block0"]["conv2"]["kernel"], own["block0"]["conv2"]["kernel"])
    for l in (1, 2, 3):
        jax.tree.map(np.testing.assert_array_equal, params[f"branch{l}"]["head"], random[f"branch{l}"]["head"])
    statistics = restore(pretrained)[1]["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, start["batch_stats"]["branch1"]["stage2"], statistics["stage2"])
    untouched = start_from(pretrained, fresh, ("cat", "dog")).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, untouched["branch1"], random["branch1"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ("teacher.arch is not set", "--config.teacher.init=RUN")),
        (("--config.teacher.arch=resnet8",), ("the other layers would stay random", "--config.teacher.init=RUN")),
        (("--config.teacher.init={pretrained}", "--config.runs=('teacher_frozen','student')"),
         ("teacher: trainable is '^head/fc/', and the branches would stay", "--config.teacher.copy_branches=True")),
        (("--config.data.mean=(0.5,)", "--config.teacher.arch=resnet8", "--config.teacher.trainable="),
         ("data.mean is (0.5,) and data.std ()", "set both, or neither")),
        (("--config.student.copy_branches=True", "--config.teacher.arch=resnet8", "--config.teacher.trainable="),
         ("student.copy_branches is True", "--config.student.init=RUN")),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(args, words, photos, pretrained, call_command, tmp_path):
    args = [arg.format(pretrained=pretrained) for arg in args]
    given = (f"--workdir={tmp_path}/own", f"--config.data.dir={photos}")
    assert_refused(call_command("main", CONFIG, *given, *SMALL, *args), *words)
    assert not (tmp_path / "own").exists()


def test_a_start_that_saw_other_numbers_is_named(photos, pretrained, call_command, tmp_path):
    given = (f"--workdir={tmp_path}/own", f"--config.data.dir={photos}", f"--config.student.init={pretrained}")
    changed = ("--config.data.mean=(0.5,)", "--config.data.std=(0.5,)", "--config.student.arch=resnet8")
    done = call_command("main", f"{CONFIG}:baseline", *given, "--config.data.image_size=16",
                        "--config.student.epochs=1", "--config.student.warmup=0", *changed)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "was trained on images normalised by mean [0.5, 0.4, 0.3]" in done.stdout + done.stderr


def test_adamw_trains_and_its_unused_keys_are_refused(photos, call_command, tmp_path):
    given = (f"--workdir={tmp_path}/own", f"--config.data.dir={photos}", "--config.student.optimizer=adamw",
             "--config.student.arch=resnet8_quarter", "--config.student.lr=1e-3", "--config.data.image_size=16",
             "--config.student.warmup=0")  # fmt: skip
    refused = call_command("main", f"{CONFIG}:baseline", *given, "--config.student.momentum=0.5")
    assert_refused(refused, "student.momentum has no effect with student.optimizer=adamw")
    done = call_command("main", f"{CONFIG}:baseline", *given, "--config.student.epochs=2")
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line) for line in (tmp_path / "own/metrics.jsonl").read_text().splitlines()]
    assert losses


def test_photographs_that_change_sides_are_told(call_command, tmp_path):
    """Of a folder without test images every fifth is one, so that a new file moves the others."""
    write_photographs(tmp_path / "all", {"flat": 10}, ("cat", "dog"), "png")
    photos, run = tmp_path / "all/flat", tmp_path / "run"
    small = [arg for arg in SMALL if "teacher" not in arg and "frozen" not in arg]
    data = [f"--config.data.{key}" for key in (f"dir={photos}", "validation=0", f"mean={MEAN}", f"std={STD}")]
    command = ("main", f"{CONFIG}:baseline", f"--workdir={run}", *data, *small)
    assert call_command(*command).returncode == 0
    same = call_command("evaluate", f"--workdir={run}")
    assert (same.returncode, same.stderr.count("warning")) == (0, 0), same.stderr
    for name in ("cat", "dog"):
        (photos / name / "9.png").rename(photos / name / "0a.png")
    changed = call_command("evaluate", f"--workdir={run}")
    assert changed.returncode == 0
    assert f"warning: {run} was tested on other images when its training ended" in changed.stderr
    start = call_command(
        "main",
        f"{CONFIG}:baseline",
        f"--workdir={tmp_path}/b",
        *data,
        *small,
        f"--config.student.init={run}",
        "--dry_run",
    )
    assert f"{tmp_path}/b: {run} was tested on other images" in start.stdout, start.stderr
    refused = call_command(*command)
    assert refused.returncode == 2
    assert f"error: {run} was tested on other images: restore the data" in refused.stderr


def test_few_photographs_have_one_line_about_all_batches(pretrained, call_command, tmp_path):
    write_photographs(tmp_path / "all", {"flat": 15}, ("cat", "dog"), "png")
    given = (f"--workdir={tmp_path}/own", f"--config.data.dir={tmp_path}/all/flat", "--config.data.image_size=16")
    networks = (f"--config.teacher.init={pretrained}", "--config.student.arch=resnet8_quarter")
    done = call_command("main", CONFIG, *given, *networks)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: teacher.batch is 32, more than the 22 training images of backbone: set ")
    words = line.partition(" set ")[2].split()
    # Of the tests' 8 devices.
    assert words == [f"--config.{section}.batch=16" for section in ("teacher", "frozen", "student")]
    assert call_command("main", CONFIG, *given, *networks, *words, "--dry_run").returncode == 0
