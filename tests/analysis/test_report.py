"""The page of runs: made-up run folders for words and figures, small networks and a real run for what they answer."""

import ast
import functools
import html
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the extra 'report'")

from hsakd_jax import create, restore
from hsakd_jax.analysis import grouping, misclassified, plots, run_index, sections
from hsakd_jax.analysis import page as room
from hsakd_jax.analysis.html import Album, document
from hsakd_jax.core.errors import UserError
from hsakd_jax.data import datasets
from hsakd_jax.data.augment import normalise
from hsakd_jax.evaluation import predictions
from hsakd_jax.experiments import pipeline
from hsakd_jax.models import profile
from hsakd_jax.models.network import Network, Peers
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.restore import start

CLASSES = [str(i) for i in range(10)]


def make(path, recipe, top1, seed=0, config="digits", classes=CLASSES, trained=False, log=True, **options):
    """A finished run of digits as training leaves it, by default without checkpoints; `options`: 'student__lr'."""
    command = runpy.run_path(str(ROOT / "configs" / f"{config}.py"))["get_config"](recipe).to_dict() | {"seed": seed}
    command["data"]["name"] = "digits"
    for key, value in options.items():
        *sections, name = key.split("__")
        functools.reduce(dict.__getitem__, sections, command)[name] = value
    splits = SimpleNamespace(train=SimpleNamespace(image_shape=(8, 8, 1)), class_names=classes)
    resolved = pipeline.resolve(command, recipe, splits)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(resolved))
    branches = {f"{kind}_{l}": 10.0 * l + seed for kind in ("joint", "class") for l in (1, 2, 3)}
    last = {"epoch": 4, "top1": top1, "top5": 99.0, **(branches if resolved["network"]["branches"] else {})}
    results = {
        "last": last,
        "best": {**last, "epoch": 2, "top1": top1 + 1, "chosen_by": "top-1 on test"},
        "recipe": recipe,
        "arch": resolved["network"]["arch"],
        "seed": seed,
        "train_images": 100,
        "test_images": 896,
        "parameters": {"with_branches": 9999, "backbone": 5142},
        "multiply_adds": {"with_branches": 99999, "backbone": 49568},
        "images_per_s": 1234.5,
        "versions": {"jax": "0.10.2"},
        "device": "1 x cpu",
        "git": "0123456789abcdef0123456789abcdef01234567",
    }
    (path / "results.json").write_text(json.dumps(results))
    terms = [name for name, options in resolved["objective"].items() if options["weight"]]
    with (path / "metrics.jsonl").open("w") as file:
        for epoch in range(1, 5) if log else ():
            entry = {"step": 5 * epoch, "epoch": float(epoch)}
            rates = {"loss": 3 / epoch, "top1": 0.1, "lr": 0.05 / epoch, "images_per_s": 1200.0, "grad_norm": 1.0}
            file.write(json.dumps({**entry, **rates, **{name: (1 + seed) / epoch for name in terms}}) + "\n")
            score = top1 + 1 if epoch == 2 else top1
            file.write(json.dumps({**entry, "split": "test", "top1": score, "score": score}) + "\n")
    if trained:
        network = create(resolved["network"]["arch"], len(classes), False)  # without branches, which are not asked
        variables = start(network, (8, 8, 1), seed=len(path.name))
        checkpoints = Checkpoints(path / "checkpoints")
        checkpoints.save(20, {"params": variables["params"], "batch_stats": variables["batch_stats"]})
        checkpoints.close()
    return path


def page_of(*folders):
    """The page of all runs in folders and the names of its figures, after a look at what makes every page whole."""
    page, pictures = room.make(*run_index.find([str(folder) for folder in folders]))
    check(page)
    return page, pictures


class Reader(HTMLParser):
    """Reads a page, in which every element must be closed."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.refs, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.note(attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.note(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def note(self, attrs):
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value)
            if name.endswith("href") or (value and "url(#" in value):
                self.refs.append(re.search(r"#([^)]*)", value)[1])
            if name == "src":
                assert value.startswith("data:image/png;base64,")


def check(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert len(set(reader.ids)) == len(reader.ids)
    assert set(reader.refs) <= set(reader.ids)
    assert "script" not in reader.tags
    assert "http" not in page
    # No colour that the dark page would not change.
    assert not re.search(r"#[0-9a-f]{6}\b", page[page.index("</style>") :])


def text(page):
    """What a person reads of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(svg|style).*?</\1>", "", page))).split())


def test_a_pipeline_of_two_seeds(tmp_path):
    for seed in (0, 1):
        for recipe, top1 in (("teacher", 94.0), ("baseline", 80.0 + seed), ("kd", 82.0), ("student", 90.0 + 3 * seed)):
            make(tmp_path / str(seed) / recipe, recipe, top1, seed)
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "config.json").write_text((tmp_path / "0" / "kd" / "config.json").read_text())
    page, pictures = page_of(tmp_path)
    said = text(page)
    assert "HSAKD*: resnet8_quarter reaches 91.50 % top-1 on digits, 11.00 points more than alone" in said
    assert "2.50 below its teacher resnet8 (mean of 2 seeds)" in said
    assert "8 runs on digits: 100 training images, 896 test images, 10 classes, images of 8x8x1." in said
    assert re.search(r"HSAKD\* 91\.50 \(2\.12\) 92\.50 \(2\.12\) \+11\.00 \(1\.41\) resnet8_quarter resnet8 0, 1", said)
    assert "5,142 49,568" in said
    assert "Trained on 1 x cpu, commit 0123456789ab, with jax 0.10.2." in said
    assert "Band: one standard deviation over seeds" in said
    assert f"python -m hsakd_jax.main --config=configs/digits.py:kd --workdir={tmp_path}/1/kd-again" in said
    assert f"are not shown: {tmp_path}/0/student has no checkpoint yet" in said
    assert f"Not finished, and not shown: {tmp_path}/later." in said
    assert set(pictures) == {"results", "accuracy", "branches", "losses", "schedule", "throughput", "speed"}
    for draw in pictures.values():
        assert draw().startswith(b"\x89PNG")


def test_what_is_missing_is_named(tmp_path):
    make(tmp_path / "run", "baseline", 80.0, log=False)
    page, pictures = page_of(tmp_path)
    said = text(page)
    assert "student alone: resnet8_quarter reaches 80.00 % top-1 on digits" in said
    assert "than alone" not in said
    for part in ("Accuracy over time is", "Branches are", "Losses are", "Its answers to the test images are"):
        assert f"{part} not shown" in said
    assert set(pictures) == {"speed"}


def test_runs_of_several_settings_and_datasets(tmp_path):
    make(tmp_path / "a", "kd", 80.0)
    make(tmp_path / "b", "kd", 81.0, student__lr=0.1)
    make(tmp_path / "c", "kd", 82.0, student__arch="resnet8")
    make(tmp_path / "d", "kd", 83.0, data__name="mnist")
    with (tmp_path / "c" / "metrics.jsonl").open("a") as file:
        file.write('7\n{"step": 25}\n{"step": 30, "ep')  # cut off by a kill
    runs, _ = run_index.find([tmp_path])
    made, repeated = grouping.group(runs[:3])
    assert not repeated
    assert [g.label for g in made] == ["KD (a)", "KD (b)", "KD (resnet8)"]
    assert len({g.colour for g in made}) == 3
    make(tmp_path / "e" / "alone", "baseline", 70.0)
    make(tmp_path / "f" / "alone", "baseline", 60.0, student__epochs=7)  # nothing to compare with
    page, pictures = page_of(tmp_path)
    assert page.count("<h1>") == 2
    assert re.search(r"KD \(a\) 80\.00 81\.00 \+10\.00 resnet8_quarter \? 0 120", text(page))
    assert "KD (resnet8) 82.00 83.00 resnet8 ? 0 120" in text(page)
    assert {"digits-accuracy", "mnist-speed"} <= set(pictures)


def test_names_are_untrusted(tmp_path):
    name = "<script>x & $\\frac{"
    make(tmp_path / name, "kd", 80.0)
    make(tmp_path / "other", "kd", 80.0, student__lr=0.1)
    page, _ = page_of(tmp_path)
    assert page.count(html.escape(f"KD ({name})")) > 1


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("baseline", {}),
        ("student", {"student__lr": 0.1, "student__milestones": (2, 3), "data__mean": (0.25,), "seed": 7}),
        ("student", {"objective__student__kl_aux__branches": (1, 3), "teacher__checkpoint": "best", "eval_every": 3}),
        ("teacher_frozen", {"frozen__epochs": 5, "batch_norm_groups": 4, "student__epochs": 3}),
        ("teacher_frozen", {"frozen__dtype": "bfloat16"}),
        ("mutual", {"peers": ("", "resnet8"), "student__dtype": "bfloat16"}),
        ("mutual", {"peers": ("", "", "")}),
        ("kd_25", {"data__fraction": 0.5, "teacher__inference_dtype": "bfloat16", "student__nesterov": False}),
        ("sskd", {"student__schedule": "multi_step", "data__dir": "/my data"}),
    ],
)
def test_the_command_repeats_the_run(recipe, options, tmp_path):
    path = make(tmp_path / "a run", recipe, 80.0, **{"seed": 0, **options})
    (run,), _ = run_index.find([tmp_path])
    wanted = json.loads((path / "config.json").read_text())
    line = shlex.split(grouping.repeat(run, wanted))
    assert line[:4] == ["python", "-m", "hsakd_jax.main", f"--config=configs/digits.py:{recipe}"]
    assert line[4] == f"--workdir={path}-again"
    command = runpy.run_path(str(ROOT / "configs/digits.py"))["get_config"](recipe)
    for word in line[5:]:
        key, value = re.fullmatch(r"--config\.([\w.]+)=(.*)", word).groups()
        old = command.to_dict()
        for part in key.split("."):
            old = old[part]
        new = value if isinstance(old, str) else ast.literal_eval(value)
        command.update_from_flattened_dict({key: new})
    splits = SimpleNamespace(train=SimpleNamespace(image_shape=(8, 8, 1)), class_names=CLASSES)
    found = json.loads(json.dumps(pipeline.resolve(command.to_dict(), recipe, splits)))
    for config in (found, wanted):  # by another way to the same place
        for section, key in (("teacher", "workdir"), ("train", "init")):
            if config[section]:
                config[section][key] = (path / config[section][key]).resolve()
    assert found == wanted


def test_the_file_that_a_run_names_as_its_data_is_not_run(tmp_path):
    stranger = tmp_path / "stranger.py"
    stranger.write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    for name in (str(stranger)[:-3], f"../{'../' * 20}{str(stranger)[1:-3]}"):
        make(tmp_path / f"run{len(name)}", "kd", 80.0, data__name=name)
    assert "configs/cifar100.py:kd" in page_of(tmp_path)[0]
    assert not (tmp_path / "mark").exists()


def test_no_configs_no_command(tmp_path, monkeypatch):
    make(tmp_path / "run", "kd", 80.0)
    monkeypatch.setattr(grouping, "CONFIGS", tmp_path / "none")
    assert "not known, since its recipe or its config file is not there any more" in page_of(tmp_path)[0]


def test_the_same_run_twice_is_no_second_seed(tmp_path):
    make(tmp_path / "kd", "kd", 80.0)
    make(tmp_path / "kd-again", "kd", 80.5)
    make(tmp_path / "kd1", "kd", 82.0, seed=1)
    said = text(page_of(tmp_path)[0])
    assert "KD: resnet8_quarter reaches 81.00 % top-1 on digits (mean of 2 seeds)" in said
    assert f"Left out, since another run has the same seed and settings: {tmp_path}/kd-again." in said
    assert "a gain compares within" not in said  # there is none


def test_folders_of_other_classes_are_other_datasets(tmp_path):
    """All have the name 'image_folder', whatever they hold."""
    make(tmp_path / "cats", "kd", 80.0, data__name="image_folder", data__dir="/cats")
    make(tmp_path / "cars", "baseline", 50.0, classes=list("abcdefghij"), data__name="image_folder")
    page, pictures = page_of(tmp_path)
    assert page.count("<h1>") == 2
    assert "than alone" not in page
    assert {"image_folder-speed", "image_folder-speed-2"} <= set(pictures)
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    with pytest.raises(UserError, match=r"runs have several \(image_folder\): choose among them"):
        room.make(run_index.find([tmp_path])[0], classes=str(tmp_path / "names.txt"))


def test_the_student_alone_that_was_trained_most_like_it(tmp_path):
    make(tmp_path / "a", "baseline", 70.0, student__lr=0.1)
    make(tmp_path / "elsewhere" / "b", "baseline", 75.0)
    make(tmp_path / "kd", "kd", 80.0)
    made, _ = grouping.group(run_index.find([tmp_path])[0])
    (kd,) = (one for one in made if one.label == "KD")
    assert kd.gains == [5.0]
    make(tmp_path / "kd1", "kd", 80.0, seed=1)
    said = text(page_of(tmp_path)[0])
    assert "+5.00 (0.00)" in said
    assert "a gain compares within each" not in said


def test_a_log_that_was_cut_does_not_cut_the_others(tmp_path):
    for seed in (0, 1):
        make(tmp_path / str(seed), "kd", 80.0, seed)
    log = tmp_path / "1" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]) + "x\n" + log.read_text())
    page, _ = page_of(tmp_path)
    assert f"Not shown over time, since metrics.jsonl ends before the run did: {tmp_path}/1." in text(page)
    part = room._Part(run_index.find([tmp_path])[0], {}, False, "")
    (one,) = part.groups
    curve = sections._curve(one, [part.records[run.path] for run in one.runs], lambda e: e.get("loss"))
    assert curve.x == [1.0, 2.0, 3.0, 4.0]
    assert not curve.spread


def test_the_teacher_is_the_network_that_taught(tmp_path):
    make(tmp_path / "teacher_online", "teacher_online", 90.0)
    results = json.loads((tmp_path / "teacher_online" / "results.json").read_text())
    for when, top1 in (("last", 90.0), ("best", 92.0)):
        results[when] = {**results[when], "peer1/top1": top1, "peer2/top1": top1 + 1}
        del results[when]["top1"]
    (tmp_path / "teacher_online" / "results.json").write_text(json.dumps(results))
    make(tmp_path / "student", "student_online", 85.0, teacher__checkpoint="best", teacher__peer=2)
    said = text(page_of(tmp_path)[0])
    assert "8.00 below its teacher" in said
    assert "Sizes are those of what is deployed, of several networks the first one's." in said


def test_of_several_networks_one_is_deployed():
    network = create("resnet8", 10)
    several = Peers((functools.partial(Network, network.architecture, 10),) * 3)
    one, three = profile.sizes(network, (32, 32, 3)), profile.sizes(several, (32, 32, 3))
    for key in ("parameters", "multiply_adds"):
        assert three[key] == {"with_branches": 3 * one[key]["with_branches"], "backbone": one[key]["backbone"]}


def test_a_teacher_has_no_teacher_to_miss(tmp_path, digits):
    make(tmp_path / "teacher", "teacher", 94.0, trained=True)
    said = text(page_of(tmp_path)[0])
    assert "is wrong about" in said
    assert "no teacher" not in said
    assert "student alone with" not in said


def test_colours_are_the_same_in_every_figure(tmp_path):
    for recipe in ("backbone", "teacher", "baseline", "kd", "student"):
        make(tmp_path / recipe, recipe, 80.0)
    part = room._Part(run_index.find([tmp_path])[0], {}, False, "")
    colours = {one.runs[0].recipe: one.colour for one in part.groups}
    assert len(set(colours.values())) == 5
    for recipe, colour in colours.items():
        assert part._colour(tmp_path / recipe) == colour
    assert part._colour(tmp_path / "another") not in colours.values()


def test_losses_below_zero_are_seen():
    curve = plots.Curve("vid", "c2", [1, 2, 3], [1.0, -0.5, -2.0])
    (axes,) = plots.curves([("", [curve])], "epoch", "loss", zero=True).axes
    low, high = axes.get_ylim()
    assert low < -2.0 < 1.0 < high


def test_names_of_classes_are_untrusted():
    names = ["</div><b>\"'&", "Żółw 亀", *map(str, range(8))]
    labels = np.array([0, 0, 1, 1])
    answers = {
        key: predictions.Answers(np.array(found), np.full(4, 0.5, np.float32))
        for key, found in (("student", [1, 0, 0, 0]), ("alone", [0, 0, 0, 0]), ("teacher", [0, 0, 1, 1]))
    }
    images = {i: np.zeros((8, 8, 1), np.uint8) for i in (0, 2, 3)}
    pictures = {}
    colours = {"student": "c0", "alone": "c1", "teacher": "c6"}
    lines = misclassified.section(
        predictions.Opinions(labels, answers, images, {}), names, "KD", colours, Album(pictures, "a-")
    )
    page = document("x", lines)
    check(page)
    assert page.count("<img ") == 3
    assert "<b>" not in page
    said = text(page)
    assert "wrong about 3 of 4 test images; the student alone is right about 1 of these; its teacher about 3" in said
    assert f"true: {names[0]} student: {names[1]} (50 %) teacher: {names[0]}" in said
    assert "0 classes are named right more often than by the student alone, 1 less often, 1 as often." in said
    assert set(pictures) == {"a-confusions", "a-mistakes", "a-classes"}
    for draw in pictures.values():
        assert draw().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", splits=("test",)).test


def test_opinions_and_their_figures(digits, tmp_path):
    for recipe in ("teacher", "baseline", "student"):
        make(tmp_path / recipe, recipe, 10.0, trained=True, teacher__arch="resnet8_quarter")
    asked = {key: predictions.Asked(tmp_path / key) for key in ("student", "teacher")}
    said = predictions.ask(asked | {"absent": predictions.Asked(tmp_path / "absent")}, 5)
    np.testing.assert_array_equal(said.labels, digits.labels)
    assert said.silent == {"absent": f"{tmp_path}/absent is not a run directory (no config.json): check the path"}
    for key in asked:
        network, variables = restore(tmp_path / key)
        images = normalise(jax.numpy.asarray(digits.images), (0.31,), (0.38,))
        probabilities = jax.nn.softmax(jax.jit(network.clone(branches=False).apply)(variables, images).logits)
        assert (said.answers[key].classes == probabilities.argmax(-1)).mean() > 0.99  # batches round otherwise
        np.testing.assert_allclose(said.answers[key].probabilities, probabilities.max(-1), rtol=1e-3)
    certain = np.where(said.answers["student"].classes != digits.labels, said.answers["student"].probabilities, 0)
    kept = []
    for i in np.argsort(-certain, kind="stable"):
        same = [j for j in kept if said.answers["student"].classes[j] == said.answers["student"].classes[i]]
        kept += [i] if certain[i] and len(same) < predictions.SAME else []
    assert list(said.mistakes) == kept[:5]
    for i, image in said.mistakes.items():
        np.testing.assert_array_equal(image, digits.images[i])

    page, pictures = page_of(tmp_path)
    shown = text(page)
    wrong = int((said.answers["student"].classes != digits.labels).sum())
    assert f"It is wrong about {wrong} of 896 test images; the student alone is right about" in shown
    assert re.search(r"\d+ of these; its teacher about \d+ of these\.", shown)
    assert re.search(r"true: \d student: \d \(\d+\s%\) teacher: \d \(\d+\s%\) [✓✗]", shown)
    assert page.count("<img ") == min(len(kept), room.MISTAKES)
    for name in ("confusions", "classes", "mistakes"):
        assert pictures[name]().startswith(b"\x89PNG")


def test_classes_are_called_what_a_file_says(digits, tmp_path):
    make(tmp_path / "runs" / "run", "baseline", 10.0, trained=True)
    runs, _ = run_index.find([tmp_path / "runs"])
    (tmp_path / "names.txt").write_text("\n".join(f"digit {i}" for i in range(10)) + "\n")
    assert re.search(r"true: digit \d student: digit \d", text(room.make(runs, classes=str(tmp_path / "names.txt"))[0]))
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="names.txt contains 2 class names, the network has 10 classes: fix the file"):
        room.make(runs, classes=str(tmp_path / "names.txt"))


def test_a_difference_of_one_seed_may_be_chance(tmp_path):
    """Two standard errors of a difference: 100 * 1.96 * sqrt(2 * 0.82 * 0.18 / 896) = 3.6 points."""
    make(tmp_path / "baseline", "baseline", 80.0)
    make(tmp_path / "kd", "kd", 82.0)
    said = text(page_of(tmp_path)[0])
    assert "2.00 points more than alone (may be chance)" in said
    assert "Differences below 3.6 points may be chance: one seed, 896 test images." in said
    make(tmp_path / "student", "student", 86.0)
    assert "6.00 points more than alone 3 runs" in text(page_of(tmp_path)[0])
    for recipe, top1 in (("baseline", 80.0), ("kd", 82.0), ("student", 82.0)):
        make(tmp_path / "1" / recipe, recipe, top1, seed=1)
    assert "chance" not in text(page_of(tmp_path)[0])


def test_data_that_is_gone(digits, tmp_path):
    make(tmp_path / "run", "baseline", 10.0, trained=True, data__dir="/nowhere")
    with pytest.raises(UserError, match="its data digits is not in /nowhere: give --data_dir=DIR"):
        predictions.ask({"student": predictions.Asked(tmp_path / "run")}, 5)
    assert "are not shown: its data digits is not in /nowhere" in text(page_of(tmp_path)[0])
    (tmp_path / "data" / "digits").mkdir(parents=True)
    (tmp_path / "data" / "digits" / ".lock").touch()  # of a preparation that was killed
    with pytest.raises(UserError, match="its data digits is not in"):
        predictions.ask({"student": predictions.Asked(tmp_path / "run")}, 5, str(tmp_path / "data"))
    assert len(list((tmp_path / "data").rglob("*"))) == 2
    teacher = make(tmp_path / "Teacher" / "T", "teacher", 10.0)
    make(tmp_path / "kd", "kd", 20.0, trained=True, teacher__workdir=str(teacher))
    said = text(page_of(tmp_path / "kd")[0])
    assert (
        f"There is no run of the student alone with its data, epochs and batch; its teacher is not asked ({teacher} has"
        in said
    )
    make(tmp_path / "other", "baseline", 10.0, trained=True, classes=list("abcdefghij"))
    with pytest.raises(UserError, match="has other classes than the run"):
        predictions.ask({"student": predictions.Asked(tmp_path / "other")}, 5)


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_browser_shows_it(scheme, tmp_path):
    make(tmp_path / "kd", "kd", 82.0)
    make(tmp_path / "baseline", "baseline", 80.0)
    (tmp_path / "page.html").write_text(page_of(tmp_path)[0])
    settings = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1000,3000"]
    picture = f"--screenshot={tmp_path}/page.png"
    line = ["chromium", *options, f"--user-data-dir={tmp_path}/browser", settings, picture, f"{tmp_path}/page.html"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100)
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3)
    colours = {tuple(bytes.fromhex(plots.COLOURS[key][scheme == "dark"][1:])) for key in ("ground", "c0", "c1")}
    assert colours <= set(map(tuple, pixels.tolist()))


def test_help_is_quick():
    code = "import sys, hsakd_jax.report; assert not {'jax', 'matplotlib', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    line = [sys.executable, "-m", "hsakd_jax.report", "--help"]
    assert "python -m hsakd_jax.report RUN..." in subprocess.run(line, cwd=ROOT, capture_output=True, text=True).stdout


def test_names_at_the_ends_of_lines_stay_apart():
    for places in ([0.1, 0.1, 0.1], [0.9, 0.95, 1.0], [0.0, 0.5, 1.0], [0.5] * 20):
        found = plots._spread(places, 0.1)
        assert (np.diff(found) > 0.0999).all()
        assert max(found) <= max(1.0, 0.1 * (len(places) - 1))
    assert plots._spread([0.0, 0.5, 1.0], 0.1) == [0.0, 0.5, 1.0]
    assert plots.short("abcdefghij", 5) == "ab…ij"
    assert plots.short("abcde", 5) == "abcde"


def test_the_command(digits, run_command, tmp_path):
    """A real run, from its first step to the page."""
    done = run_command("main", "--config=configs/digits.py:baseline_tiny", f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    output, pngs = tmp_path / "page.html", tmp_path / "png"
    done = run_command("report", tmp_path / "run", f"--output={output}", f"--png={pngs}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}: 1 run, 7 figures, also in {pngs}\n"
    page = output.read_text()
    check(page)
    assert "What student alone is wrong about" in page
    names = {"accuracy", "losses", "schedule", "throughput", "speed", "confusions", "mistakes"}
    assert {p.name for p in pngs.iterdir()} == {f"{name}.png" for name in names}


BAD = {
    "no output": ([], "--output is missing"),
    "not a page": (["--output={}/x.txt"], "name a file that ends in .html"),
    "no folder for it": (["--output={}/none/x.html"], "none is not a folder"),
    "a file for a folder": (["--output={}/x.html", "--png={}/file"], "file is a file: name a folder"),
    "no run": (["--output={}/x.html"], "no run there"),
    "a name that is too long": (["--output={}/" + 300 * "x" + ".html"], "no run there"),
    "a folder's name that is too long": (["--output={}/" + 300 * "x" + "/x.html"], "is not a folder: create it"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what, run_command, tmp_path):
    args, words = BAD[what]
    (tmp_path / "file").write_text("")
    done = run_command("report", tmp_path, *(arg.format(tmp_path) for arg in args))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_page_that_cannot_be_written_leaves_no_figures(run_command, tmp_path):
    make(tmp_path / "run", "kd", 80.0)
    done = run_command("report", tmp_path, "--output=/proc/x.html", f"--png={tmp_path}/png")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: can't write")
    assert not list(tmp_path.rglob("*.png"))


def test_an_unfinished_run_is_named(run_command, tmp_path):
    (make(tmp_path / "run", "kd", 80.0) / "results.json").unlink()
    done = run_command("report", tmp_path, f"--output={tmp_path}/x.html")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/run is not finished: let it go on\n"
    assert not (tmp_path / "x.html").exists()
