"""What the benchmarks count and claim; their times are nobody's test."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, environment
from PIL import Image

from benchmarks import (
    accelerator,
    cores,
    exports,
    families,
    golden,
    int8,
    loop,
    methods,
    programs,
    scale,
    step,
    warn_if_busy,
)
from benchmarks import input as photographs
from configs import cifar100
from hsakd_jax.interop.model_files import Measured
from hsakd_jax.models import create
from hsakd_jax.runs.metrics_log import MetricsLog, Record

WITHOUT_TORCH, WITHOUT_TIMM, WITHOUT_LIBTPU = (
    importlib.util.find_spec(name) is None for name in ("torch", "timm", "libtpu")
)


def test_collectives_are_counted_from_a_programs_text():
    program = """
      %a = f32[3,2]{1,0} all-reduce(%x), replica_groups={}
      %b = (f32[4]{0}, bf16[2,2]{1,0}, /*index=2*/f64[]) all-reduce-start(%x, %y, %z)
      %c = (f32[4]{0}, bf16[2,2]{1,0}, f64[]) all-reduce-done(%b)
      %d = u8[16]{0} all-gather(%x)
      %e = f32[9] add(%all-reduce.1, %x)
    """
    assert scale.collectives(program) == {"all-reduce": (2, 24 + 16 + 8 + 8), "all-gather": (1, 16)}


def test_operations_of_a_step_are_read_from_a_programs_text():
    program = """
%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %loop_add_fusion.3 = bf16[8]{0} fusion(%x, %x), kind=kLoop, calls=%c
  %conv.1 = (f32[4]{0}, u8[2]{0}) custom-call(%loop_add_fusion.3), custom_call_target="__cudnn$convForward"
  %copy-start.1 = (f32[8]{0:T(8)S(1)}, f32[8]{0}, u32[]) copy-start(%x)
  %negate.7 = f32[8]{0:T(8)S(1)} negate(%x)
  %copy-done.1 = f32[2]{0} copy-done(%copy-start.1)
  ROOT %t = (s32[], f32[8]{0}) tuple(%x, %x)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %w = (s32[], f32[8]{0}) while(%a), condition=%cond.1, body=%body.1
  ROOT %r = f32[8]{0} negate(%a)
}
"""
    expected = [
        ("loop_add_fusion", 16 + 32 + 32),
        ("__cudnn$convForward", 18 + 16),
        ("copy-start", 32),
        ("negate", 32),
    ]
    assert programs.operations(program) == expected
    assert programs.operations(program[program.index("\nENTRY") :].replace("body=%body.1", "")) == [("negate", 64)]


@pytest.mark.slow
def test_a_program_is_compiled_from_shapes_alone():
    """Of one step: each kernel is used by the teacher once, and by the student forward and in two derivatives."""
    code = """
from benchmarks import programs
from hsakd_jax.core.sharding import Devices
found = programs.operations(programs.compiled("resnet8:resnet8", 16, "float32", Devices()).as_text())
print(sum(kind in ("convolution", "dot") for kind, _ in found))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(8), capture_output=True, text=True)
    products = int(done.stdout)
    shapes = jax.eval_shape(create("resnet8", 100).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    kernels = sum(path[-1].key == "kernel" for path, _ in jax.tree_util.tree_leaves_with_path(shapes["params"]))
    assert products >= 4 * kernels - 1  # the images have no derivative


@pytest.mark.parametrize("groups", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_step_on_eight_devices_sends_no_more_than_it_must(groups):
    """Gradients once, and BatchNorm's sums, both together in each direction.

    What is above are the loss terms and the crop's corners. A group a device keeps its sums to itself, but for the
    running statistics, which are sent once.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
        found = scale.compiled("resnet8:resnet8", 16, groups)
    least = scale.minimum(create("resnet8", 100), (32, 32, 3))
    sent = sum(size for _, size in found.values())
    assert sum(least.values()) <= sent <= 1.02 * sum(least.values())
    shapes = jax.eval_shape(create("resnet8", 100).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    layers = len(jax.tree.leaves(shapes["batch_stats"])) // 2
    count = sum(count for count, _ in found.values())
    assert count <= (2 * layers if groups == 1 else 0) + 4, found


@pytest.mark.parametrize(
    ("pair", "petaflops"),
    [
        ("wrn_40_2:wrn_16_2", 143),
        ("resnet56:resnet20", 55),
        ("resnet32x4:resnet8x4", 368),
        ("ResNet50:mobilenetV2", 371),
    ],
)
def test_work_of_a_run_is_the_papers(pair, petaflops):
    """PAPER section 6: of 240 epochs of 50,000 images."""
    assert step.flops(pair) * 50_000 * 240 / 1e15 == pytest.approx(petaflops, rel=0.01)


def test_ratios_compare_times_beside_each_other(monkeypatch):
    """KD is timed before and after each recipe, while the clock of a slowing machine goes on."""
    clock, slowness = [0.0], [1.0]

    def run(cost):
        def several(steps):
            clock[0] += cost * steps * slowness[0]
            slowness[0] *= 1.0 if steps != 2 else 1.1

        return methods.Method(several, 0, 0.0)

    monkeypatch.setattr(methods.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(methods, "warn_if_busy", lambda: "")
    times, others = methods.measure({"kd": run(1.0), "crd": run(3.0)}, 2, 3)
    assert others == []
    for name, ratio in (("kd", 1), ("crd", 3)):
        assert len(times[name].seconds) == len(times[name].ratios) == 3
        np.testing.assert_allclose(times[name].ratios, 2 * ratio * 1.1 / (1 + 1.1**2))
    assert methods.quartiles([2.0, 3.0, 4.0]) == (2.5, 3, 3.5)


def test_methods_that_are_measured():
    names = methods.default_recipes()
    assert names[:2] == ["kd", "baseline"]
    assert {"dkd", "crd", "sskd", "wkd_l", "student", "student_dist"} <= set(names)
    assert not {"student_frozen", "kd_25", "ablation_joint", "backbone", "probe"} & set(names)


@pytest.mark.thorough
def test_cost_of_methods_beside_kd(monkeypatch, tmp_path, capsys):
    """Of the whole step of each, as the command measures it: four rotations and branches cost time and memory."""
    monkeypatch.setattr(step, "RESULTS", tmp_path)
    words = "--pair resnet8:resnet8 --recipes wkd_l,student_dist --batch 16 --images 2000 --steps 1 --rounds 3"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
        methods.main([*words.split(), "--output", "found"])
    shown = capsys.readouterr().out
    assert shown.strip() in (tmp_path / "found.md").read_text()
    found = json.loads((tmp_path / "found.json").read_text())["recipes"]
    assert list(found) == ["kd", "wkd_l", "student_dist"]
    low, middle, high = found["kd"]["relative"]
    assert 0 < low <= middle <= high
    assert all(len(one["seconds"]) == 3 and min(one["seconds"]) > 0 for one in found.values())
    of_kd, of_hsakd = (found[name]["program_bytes"] for name in ("kd", "student_dist"))
    assert of_hsakd > 2 * of_kd > 0
    assert shown.count("\n| `") == 3


def test_exports_go_on_where_they_were_interrupted(monkeypatch, tmp_path, capsys):
    computed = []

    def cells(name, side, branches, formats):
        computed.append((name, side, branches))
        return [f"{len(computed)}e-07", "1.0"] * len(formats)

    monkeypatch.setattr(exports, "cells", cells)
    words = ["--output", str(tmp_path / "exports.md")]
    exports.main(["mobilenet_v2", *words])
    exports.main(["resnet8", "mobilenet_v2", *words])
    assert computed == [
        (name, side, on) for name, side in (("mobilenet_v2", 64), ("resnet8", 32)) for on in (False, True)
    ]
    rows = [line.split()[1:8:2] for line in (tmp_path / "exports.md").read_text().splitlines() if "e-07" in line]
    networks = [("resnet8", "32"), ("mobilenet_v2", "64")]
    assert [row[:3] for row in rows] == [[name, on, side] for name, side in networks for on in ("no", "yes")]
    assert [row[3] for row in rows] == ["3e-07", "4e-07", "1e-07", "2e-07"]
    assert capsys.readouterr().out.count("1e-07") == 2 * (1 + ("onnx" in (tmp_path / "exports.md").read_text()))
    # Rows of other versions are computed again.
    (tmp_path / "exports.md").write_text((tmp_path / "exports.md").read_text().replace("CPU, jax", "CPU, jax 0.1, jax"))
    exports.main(["resnet8", *words])
    assert len(computed) == 6


def test_times_of_the_families_are_compared_by_round():
    seconds = {families.OURS: [1.0, 2.0, 4.0], families.TORCH: [3.0, 4.0, 16.0]}
    assert families.ratios(seconds) == [2.5, 3, 3.5]
    sides = {families.OURS: {"peak_bytes": 2**30, "compile_s": 9.6}, families.TORCH: {"peak_bytes": 2**29}}
    found = families.row("densenet121", {"seconds": seconds, "sides": sides}, steps=2)
    assert found == "| densenet121 | 1.000 | 2.000 | 3.00 | 2.50 to 3.50 | 1,024 | 512 | 10 |"


@pytest.mark.slow
def test_each_side_of_a_familys_step_has_a_process_of_its_own():
    if not importlib.util.find_spec("timm"):  # not imported: some builds of torchvision need the benchmark's remedy
        pytest.skip("torchvision and timm are not installed; .ci/run does it")
    words = ["mobilenet_v3_small", "--batch", "2", "--pixels", "32", "--rounds", "1"]
    line = [sys.executable, "-m", "benchmarks.families", *words]
    found = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert not found.returncode, found.stderr
    assert found.stdout.count("| mobilenet_v3_small | 0.") == 1


def test_table_of_int8():
    wide, narrow = (
        Measured(file, "", size, 448, top1, 100.0, {1: speed, 64: speed}, np.zeros(448, bool))
        for file, size, top1, speed in (("x", 4_000_000, 90.5, 200.0), ("y", 1_000_000, 90.0, 500.0))
    )
    expected = "| resnet8 | 448 | 90.50 | 90.00 | -0.50 | 4.00 | 1.00 | 4.00 | 5.00 | 2.00 | 2.50 |"
    assert int8.row("resnet8", [wide, narrow]) == expected
    assert int8.HEADER.count("|") == expected.count("|")


def test_evaluation_beside_a_forward_pass():
    dataset, _ = step.make_data("resnet56:resnet8", 64)
    found = loop.evaluation_share("resnet8", dataset, rounds=1)
    assert found.keys() == {"evaluation", "forward"}
    assert min(found.values()) > 0


def test_cores_that_exchange_a_byte(monkeypatch):
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        monkeypatch.chdir(ROOT)
        assert 1 < cores.exchange_ns() < 1e6
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert cores.exchange_ns() is None


@pytest.mark.parametrize(
    ("used", "warning"), [(3, ""), (50, "other work took 50% of the processors: what is measured beside it is wrong")]
)
def test_a_busy_machine_is_told(used, warning, tmp_path, monkeypatch, capsys):
    """Ticks of /proc/stat: user, nice, system, idle, waiting, interrupts (2), stolen, guests' (user's too)."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  900 0 90 9000 10 0 0 0 500 0\ncpu0 1 1 1 1\n")
    later = f"cpu  {900 + used - 2} 0 91 {9000 + 100 - used} 10 0 0 1 999 0\ncpu0 1 1 1 1\n"
    monkeypatch.setattr(time, "sleep", lambda _: stat.write_text(later))
    assert warn_if_busy(stat) == warning
    assert capsys.readouterr().err == (f"warning: {warning}\n" if warning else "")
    assert not warn_if_busy(tmp_path / "none")
    assert not capsys.readouterr().err


@pytest.mark.thorough
def test_each_side_of_a_step_has_a_process_of_its_own(monkeypatch):
    """The table of two processes, and a side that cannot start ends the benchmark with its own words."""
    words = ["--pair", "resnet56:resnet20", "--against", "none", "--batch", "8", "--processes", "2", "--rounds", "1"]
    line = [sys.executable, "-m", "benchmarks.step", *words]
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not found.returncode, found.stderr
    assert found.stdout.count("| resnet56:resnet20 | hsakd_jax |") == 1
    assert "2 processes of each side, 1 rounds of 1" in found.stdout
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        step.Side("step", ["--pair", "resnet56:nothing", "--side", "torch eager"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        *([(["step", "--device", "tpu", "--against", "none"], "pip install 'jax[tpu]==")] if WITHOUT_LIBTPU else []),
        (["step", "--device", "tpu"], "PyTorch is not measured on a TPU"),
        (["loop", "--epochs", "1"], "--epochs 2"),
        *([(["step"], "pip install -e '.[torch]'"), (["loop"], "pip install -e '.[torch]'")] if WITHOUT_TORCH else []),
        (["ways", "resnet57"], "unknown network 'resnet57'"),
        (["exports", "resnet57"], "unknown network 'resnet57'"),
        (["families", "resnet57"], "unknown network 'resnet57'"),
        (["families", "--rounds", "0"], "--rounds must be at least 1"),
        *([(["families"], "not installed: pip install")] if WITHOUT_TIMM else []),
        (["int8"], "the following arguments are required: RUN"),
        (["int8", "nowhere"], "nowhere"),
        (["step", "--pair", "resnet56"], "argument --pair: invalid choice"),
        (["step", "--output", "a/b"], "--output: 'a/b' is no name of a file"),
        (["methods", "--recipes", "kd,probe"], "argument --recipes: 'probe' is no recipe that can be measured"),
        (["methods", "--pair", "resnet56"], "argument --pair: 'resnet56' is no pair of networks"),
        (["methods", "--images", "8"], "--images must be at least --batch"),
        (["cores", "now"], "unrecognized arguments: now"),
        (["programs", "--target", "h201"], "h201 is not known: take h200, h100"),
        *([(["programs", "--target", "v5e:2x2"], "it needs pip install 'jax[tpu]==")] if WITHOUT_LIBTPU else []),
        (["input", "--images", "nowhere"], "no images in nowhere"),
        (["golden", "--pair", "resnet56"], "argument --pair: invalid choice"),
        (["accelerator", "--output", "x", "--parts", "rows"], "--data=None: contains no folder cifar100"),
        (["accelerator", "--output", "x", "--parts", "step", "--minutes", "0"], "--minutes must be at least 1"),
        (["accelerator", "--output", "x", "--parts", "step", "--earlier", "x"], "contains no visit.tar.00"),
    ],
)
def test_mistakes_are_told_in_a_line(words, reason):
    line = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:]]
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ")
    assert reason in line


def test_a_device_that_is_not_there_is_told_in_a_line():
    line = [sys.executable, "-m", "benchmarks.step", "--pair", "resnet56:resnet20", "--side", step.OURS]
    env = {**os.environ, "JAX_PLATFORMS": "none_such"}
    found = subprocess.run([*line, "--against", "none"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith("error: --device: JAX finds no device on this machine (")
    assert found.stderr.count("\n") == 1


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The working folder of a visit, with a run that has two checkpoints and one that is done."""
    monkeypatch.setattr(accelerator, "WORK", tmp_path / "work")
    for name, steps in (("first", ("7", "12", "20")), ("second", ("9",))):
        for number in steps:
            (tmp_path / "work" / "runs" / name / "checkpoints" / number).mkdir(parents=True)
            (tmp_path / "work" / "runs" / name / "checkpoints" / number / "arrays").write_bytes(os.urandom(3000))
        (tmp_path / "work" / "runs" / name / "config.json").write_text("{}")
        log = MetricsLog(tmp_path / "work" / "runs" / name / "metrics.jsonl")
        log.append(Record(step=7, epoch=0.5, values={"images_per_s": 3.0}))
        log.append(Record(step=12, epoch=1, values={"top1": 4.0}, split="test"))
    (tmp_path / "work" / "runs" / "second" / "results.json").write_text('{"last": {"top1": 4.0}}')
    return tmp_path / "work"


def test_runs_of_a_visit_go_on_in_the_next_one(work, tmp_path, monkeypatch):
    """Its files are small enough to be brought back, and contain the newest and the best checkpoint of each run."""
    monkeypatch.setattr(accelerator, "PART_BYTES", 4096)
    (tmp_path / "output").mkdir()
    monkeypatch.setattr(accelerator.manifest, "best", lambda folder: 12 if folder.parent.name == "first" else None)
    files = accelerator.pack(tmp_path / "output")
    assert len(files) > 3
    assert all((tmp_path / "output" / name).stat().st_size <= 4096 for name in files)
    content = {step: (work / f"runs/first/checkpoints/{step}/arrays").read_bytes() for step in (12, 20)}
    shutil.rmtree(work / "runs")
    accelerator.unpack(tmp_path / "output")
    assert sorted(path.name for path in (work / "runs/first/checkpoints").iterdir()) == ["12", "20"]
    assert content == {step: (work / f"runs/first/checkpoints/{step}/arrays").read_bytes() for step in (12, 20)}


def test_progress_of_a_run(work):
    """Also of one without a log, and of one whose last line was cut."""
    found = {"run": "second", "step": 7, "epoch": 0.5, "images_per_s": 3.0, "last": {"top1": 4.0}}
    assert accelerator.progress(work / "runs" / "second") == found
    (work / "runs" / "first" / "metrics.jsonl").unlink()
    empty = {"step": None, "epoch": None, "images_per_s": None}
    assert accelerator.progress(work / "runs" / "first") == {"run": "first", **empty}
    (work / "runs" / "first" / "metrics.jsonl").write_text('{"step": 7, "ima')
    assert accelerator.progress(work / "runs" / "first") == {"run": "first", **empty}


def test_a_part_of_a_visit_ends_with_its_share(tmp_path, capsys):
    """One that has ended by itself, one that is stopped, one that fails, and one for which no time is left."""
    visit = accelerator.Visit(1, tmp_path, "cpu")
    assert visit.env["JAX_PLATFORMS"] == os.environ.get("JAX_PLATFORMS", "cpu")
    assert visit.run("done", ["timeit", "-n1", "-r1", "pass"], 60)
    # Its child ignores SIGTERM, as a compiler may.
    ignoring = "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = f"p = subprocess.Popen(['sleep', '600']); open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))"
    assert not visit.run("long", ["timeit", "-n1", "-r1", "-s", ignoring, f"{child}; time.sleep(600)"], 5, grace=1)
    found = subprocess.run(["ps", "-o", "stat=", (tmp_path / "pid").read_text()], capture_output=True, text=True)
    assert found.stdout.strip() in ("", "Z")  # gone, or not yet reaped
    assert not visit.run("failing", ["timeit", "-n1", "-r1", "1 / 0"], 60)
    visit.seconds = 0
    assert not visit.run("late", ["timeit", "pass"], 60)
    visit.log.close()
    assert [part["ended"] for part in visit.parts] == ["status 0", "stopped", "status 1", "no time was left"]
    assert "ZeroDivisionError" in (tmp_path / "log.txt").read_text()
    assert "long: stopped after" in capsys.readouterr().out


def test_rows_of_a_visit_are_recipes_at_full_length(work):
    """The branches on the published ResNet-56, and HSAKD's student from them."""
    for name, words in accelerator.rows(quick=False).items():
        recipe = words[1].removeprefix("--config=configs/cifar100.py:")
        config = cifar100.get_config(recipe)
        for word in words[2:]:
            *sections, key = word.partition("=")[0].removeprefix("--config.").split(".")
            assert key == "--workdir" or key in (config[sections[0]] if sections else config)
        assert list(config.runs) == [name]
        assert not [word for word in words if "epochs" in word or "fraction" in word]
    assert f"--config.teacher.workdir={work / 'runs' / 'teacher_frozen'}" in words


@pytest.mark.slow
def test_golden_figures_of_a_pair():
    errors = golden.compare(golden.PAIRS[1], "float32")
    assert {name: error <= golden.PRECISIONS["float32"][2][name] for name, error in errors.items()} == dict.fromkeys(
        ("task, loss", "KL terms", "grad_norm", "outputs"), True
    )
    assert np.isnan(golden.greatest((1e-7, float("nan"), 1e-8)))


@pytest.mark.parametrize(("error", "status"), [(1e-6, 0), (1e-1, 1), (float("nan"), 1)])
def test_a_golden_figure_outside_its_tolerance_fails(error, status, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["golden", "--pair", golden.PAIRS[1]])
    monkeypatch.setattr(golden, "compare", lambda *given: {"outputs": error, "grad_norm": 0.0})
    assert golden.main() == status
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"6 comparisons, {3 * status} outside their tolerance"
    assert shown.count("**outside**") == 3 * status


@pytest.fixture
def images(tmp_path):
    """Two photographs, one class each."""
    for i, wnid in enumerate(("n01440764", "n01443537")):
        (tmp_path / wnid).mkdir()
        values = np.random.default_rng(i).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(values).resize((512, 384), Image.Resampling.BICUBIC).save(tmp_path / wnid / f"{wnid}_1.JPEG")
    return tmp_path


def test_both_sides_read_photographs(images):
    pytest.importorskip("torch", reason="the extra 'torch' is not installed; .ci/run does it")
    words = ["--images", str(images), "--workers", "1", "--batch", "2", "--batches", "9", "--rounds", "1"]
    line = [sys.executable, "-m", "benchmarks.input", *words]
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not found.returncode, found.stderr
    assert found.stdout.count("| 1 | images/s") == 2


def test_crops_are_compared_with_the_references(images, tmp_path):
    truth = {}
    for path in photographs.find(str(images)):
        image = Image.open(path).resize((341, 256), Image.Resampling.BILINEAR)
        crop = np.asarray(image)[16 : 16 + 224, 58 : 58 + 224]
        truth[path.parent.name] = {
            "channel_means": crop.mean((0, 1)).tolist(),
            "block_means": crop.reshape(7, 32, 7, 32, 3).mean((1, 3)).tolist(),
            "sha256": hashlib.sha256(crop.tobytes()).hexdigest(),
        }
    (tmp_path / "golden.json").write_text(json.dumps({"images": truth}))
    found = photographs.compare(str(images), str(tmp_path / "golden.json"))
    assert found == {"images": 2, "worst_difference": pytest.approx(0, abs=1e-9), "equal": 2}
    truth["n01440764"]["channel_means"][1] += 3
    (tmp_path / "golden.json").write_text(json.dumps({"images": truth}))
    found = photographs.compare(str(images), str(tmp_path / "golden.json"))
    assert found["worst_difference"] == pytest.approx(3)
