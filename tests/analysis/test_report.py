"""The page of runs: made-up run folders for its text and figures, small networks and a real run for predictions."""

import functools
import html
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import jax
import msgspec
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the extra 'report'")

from hsakd_jax import create, restore
from hsakd_jax.analysis import grouping, plots, run_index, sections
from hsakd_jax.analysis import page as report
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import read_sealed, write_json, write_sealed
from hsakd_jax.data import datasets
from hsakd_jax.data.augment import normalise
from hsakd_jax.evaluation import predictions
from hsakd_jax.experiments.resolve import resolve
from hsakd_jax.models import profile
from hsakd_jax.models.network import Network, Peers
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.metrics_log import Record
from hsakd_jax.runs.restore import build_network, initialise
from hsakd_jax.runs.results import Correct, Results, Sizes, TaughtBy

CLASSES = [str(i) for i in range(10)]
FIGURES = {"results", "accuracy", "branches", "losses", "schedule", "throughput", "speed"}  # without predictions


def make(
    path, recipe, top1, *, seed=0, classes=CLASSES, trained=False, log=True, peers=False, words=None, correct=None,
    **options,
):  # fmt: skip
    """A finished run of digits as training leaves it.

    Args:
      path: its directory.
      recipe: of configs/digits.py.
      top1: after the last epoch; one point more after the best.
      seed: of the run.
      classes: their names.
      trained: whether it has a checkpoint, of random variables.
      log: whether it has a metrics.jsonl.
      peers: whether its accuracies are those of two networks, the second one point better.
      words: arguments of the command that trained it.
      correct: which test images it classifies correctly, bool [896]; None where its results do not store that.
      **options: of the config file, such as 'student__lr'.
    """
    command = runpy.run_path(str(ROOT / "configs/digits.py"))["get_config"](recipe).to_dict() | {"seed": seed}
    for key, value in options.items():
        *sections, name = key.split("__")
        functools.reduce(dict.__getitem__, sections, command)[name] = value
    images = SimpleNamespace(image_shape=(8, 8, 1), labels=())
    splits = SimpleNamespace(train=images, test=images, class_names=classes)
    config = resolve(command, recipe, splits, words)
    path.mkdir(parents=True)
    write_json(path / "config.json", config)
    branches = {f"{kind}_{l}": 10.0 * l + seed for kind in ("joint", "class") for l in (1, 2, 3)}

    def measured(epoch, top1):
        found = {"peer1/top1": top1, "peer2/top1": top1 + 1} if peers else {"top1": top1}
        return {"epoch": epoch, **found, "top5": 99.0, **(branches if config.network.branches else {})}

    results = Results(
        last=measured(4, top1),
        best=measured(2, top1 + 1),
        selected_by="top-1 on test",
        recipe=recipe,
        arch=config.network.arch,
        seed=seed,
        teacher=None,
        train_images=100,
        test_images=896,
        parameters=Sizes(with_branches=9999, backbone=5142),
        multiply_adds=Sizes(with_branches=99999, backbone=49568),
        images_per_s=1234.5,
        versions={"jax": "0.10.2"},
        device="1 x cpu",
        git="0123456789abcdef0123456789abcdef01234567",
        correct=None if correct is None else Correct.pack(correct, np.arange(896)),
    )
    write_sealed(path / "results.json", results)
    if log:
        (path / "metrics.jsonl").write_text("".join(f"{record.to_json()}\n" for record in records(config, seed, top1)))
    if trained:
        variables = initialise(build_network(config.network), (8, 8, 1), seed=len(path.name))
        checkpoints = Checkpoints(path / "checkpoints")
        checkpoints.save(20, {"params": variables["params"], "batch_stats": variables["batch_stats"]})
        checkpoints.close()
    return path


def records(config, seed, top1):
    """A record of training and an evaluation for each of four epochs."""
    terms = [name for name, term in config.objective.terms.items() if term.weight]
    for epoch in range(1, 5):
        rates = {"loss": 3 / epoch, "top1": 0.1, "lr": 0.05 / epoch, "images_per_s": 1200.0, "grad_norm": 1.0}
        losses = {name: (1 + seed) / epoch for name in terms}
        yield Record(step=5 * epoch, epoch=float(epoch), values={**rates, **losses})
        score = top1 + 1 if epoch == 2 else top1
        yield Record(step=5 * epoch, epoch=float(epoch), values={"top1": score}, split="test", score=score)


def page_of(*folders):
    """The page of all runs in folders and the names of its figures, after a look at what makes every page whole."""
    page, figures = report.make(*run_index.find([str(folder) for folder in folders]))
    check(page)
    return page, figures


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
            make(tmp_path / str(seed) / recipe, recipe, top1, seed=seed, words=[f"--config.seed={seed}"])
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "config.json").write_text((tmp_path / "0" / "kd" / "config.json").read_text())
    page, figures = page_of(tmp_path)
    said = text(page)
    # Differences of 10 and 12 points, and t(0.975, 1) = 12.706.
    assert "HSAKD*: resnet8_quarter reaches 91.50 % top-1 on digits, not shown to differ from the baseline" in said
    assert "HSAKD* not shown: +11.00 (-1.71 to 23.71, 2 seeds)" in said
    assert "HSAKD* KD" not in said  # whose teacher is not found, and may be another network
    assert "teacher* the baseline" not in said
    assert "2.50 below its teacher resnet8 (mean of 2 seeds)" in said
    assert "8 runs on digits: 100 training images, 896 test images, 10 classes, images of 8x8x1." in said
    assert re.search(r"HSAKD\* 91\.50 \(2\.12\) 92\.50 \(2\.12\) resnet8_quarter resnet8 0, 1", said)
    assert "5,142 49,568" in said
    assert "Trained on 1 x cpu, commit 0123456789ab, with jax 0.10.2." in said
    assert "Band: one standard deviation over seeds" in said
    assert "python -m hsakd_jax.main --config.seed=1" in said
    assert f"are not shown: {tmp_path}/0/student is finished, and its checkpoints are gone" in said
    assert f"Unfinished, and not shown: {tmp_path}/later." in said
    assert set(figures) == FIGURES
    for draw in figures.values():
        assert draw().startswith(b"\x89PNG")


def test_what_is_missing_is_named(tmp_path):
    make(tmp_path / "run", "baseline", 80.0, log=False)
    page, figures = page_of(tmp_path)
    said = text(page)
    assert "baseline: resnet8_quarter reaches 80.00 % top-1 on digits" in said
    assert "than the baseline" not in said
    for part in ("Accuracy over time is", "Branches are", "Losses are", "Predictions for the test images are"):
        assert f"{part} not shown" in said
    assert set(figures) == {"speed"}


def test_the_label_of_a_group_names_no_seed(tmp_path):
    for seed in (0, 1):
        make(tmp_path / f"one/seed_{seed}/kd", "kd", 80.0, seed=seed)
        make(tmp_path / f"two/seed_{seed}/kd", "kd", 81.0, seed=seed, student__lr=0.1)
    both = grouping.group(run_index.find([tmp_path])[0])
    assert [(g.label, len(g.runs)) for g in both.groups] == [("KD (one)", 2), ("KD (two)", 2)]


def test_runs_of_several_settings_and_datasets(tmp_path):
    make(tmp_path / "a", "kd", 80.0)
    make(tmp_path / "b", "kd", 81.0, student__lr=0.1)
    make(tmp_path / "c", "kd", 82.0, student__arch="resnet8")
    make(tmp_path / "d", "kd", 83.0, data__name="mnist")
    with (tmp_path / "c" / "metrics.jsonl").open("a") as file:
        file.write('7\n{"step": 25}\n{"step": 30, "ep')  # cut off by a kill
    runs, _ = run_index.find([tmp_path])
    found = grouping.group(runs[:3])
    assert not found.repeated
    assert [g.label for g in found.groups] == ["KD (a)", "KD (b)", "KD (resnet8)"]
    assert len({g.colour for g in found.groups}) == 3
    make(tmp_path / "e" / "alone", "baseline", 70.0)
    make(tmp_path / "f" / "alone", "baseline", 60.0, student__epochs=7)  # nothing to compare with
    page, figures = page_of(tmp_path)
    assert page.count("<h1>") == 2
    assert re.search(r"KD \(a\) 80\.00 81\.00 resnet8_quarter \? 0 120", text(page))
    assert "KD (resnet8) 82.00 83.00 resnet8 ? 0 120" in text(page)
    assert {"digits-accuracy", "mnist-speed"} <= set(figures)


def test_names_are_untrusted(tmp_path):
    name = "<script>x & $\\frac{"
    make(tmp_path / name, "kd", 80.0)
    make(tmp_path / "other", "kd", 80.0, student__lr=0.1)
    page, _ = page_of(tmp_path)
    assert page.count(html.escape(f"KD ({name})")) > 1


def test_the_command_that_trained_a_run(tmp_path):
    """Quoted for a shell, once for all its runs; a run of which none is stored says so."""
    words = ("--config=configs/digits.py:kd", "--config.data.dir=/my data", "--workdir=$(touch mark)", "<b>")
    for recipe in ("baseline", "kd"):
        make(tmp_path / recipe, recipe, 80.0, words=words)
    make(tmp_path / "notebook", "student", 80.0)
    page, _ = page_of(tmp_path)
    (command,) = re.findall("(?s)<pre>(.*?)</pre>", page)
    assert shlex.split(text(command)) == ["python", "-m", "hsakd_jax.main", *words]
    assert "'--workdir=$(touch mark)'" in text(command)
    said = text(page)
    assert f"{tmp_path}/baseline, {tmp_path}/kd python -m" in said
    assert f"{tmp_path}/notebook: no command is stored" in said


def test_the_file_that_a_run_names_as_its_data_is_not_run(tmp_path):
    stranger = tmp_path / "stranger.py"
    stranger.write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    for name in (str(stranger)[:-3], f"../{'../' * 20}{str(stranger)[1:-3]}"):
        make(tmp_path / f"run{len(name)}", "kd", 80.0, data__name=name, words=[f"--config={stranger}:kd"])
    assert f"--config={stranger}:kd" in page_of(tmp_path)[0]
    assert not (tmp_path / "mark").exists()


def test_the_same_run_twice_is_no_second_seed(tmp_path):
    make(tmp_path / "kd", "kd", 80.0)
    make(tmp_path / "kd-again", "kd", 80.5)
    make(tmp_path / "kd1", "kd", 82.0, seed=1)
    said = text(page_of(tmp_path)[0])
    assert "KD: resnet8_quarter reaches 81.00 % top-1 on digits (mean of 2 seeds)" in said
    assert f"Left out, since another run has the same seed and settings: {tmp_path}/kd-again." in said


def test_folders_of_other_classes_are_other_datasets(tmp_path):
    """All have the name 'image_folder', whatever they hold."""
    make(tmp_path / "cats", "kd", 80.0, data__name="image_folder", data__dir="/cats")
    make(tmp_path / "cars", "baseline", 50.0, classes=list("abcdefghij"), data__name="image_folder")
    page, figures = page_of(tmp_path)
    assert page.count("<h1>") == 2
    assert "than the baseline" not in page
    assert {"image_folder-speed", "image_folder-speed-2"} <= set(figures)
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    with pytest.raises(UserError, match=r"runs have several \(image_folder\): choose runs"):
        report.make(run_index.find([tmp_path])[0], class_file=str(tmp_path / "names.txt"))


def test_the_baseline_with_the_most_settings_in_common(tmp_path):
    make(tmp_path / "a", "baseline", 70.0, student__lr=0.1)
    make(tmp_path / "elsewhere" / "b", "baseline", 75.0)
    make(tmp_path / "kd", "kd", 80.0)
    (kd,) = (one for one in grouping.group(run_index.find([tmp_path])[0]).groups if one.label == "KD")
    assert [run.path for run in kd.with_baseline.runs] == [tmp_path / "elsewhere" / "b"]
    assert kd.with_baseline.verdict.difference == 5.0
    make(tmp_path / "kd1", "kd", 80.0, seed=1)
    assert "KD not tested: +5.00 (one seed, and results.json does not store" in text(page_of(tmp_path)[0])
    make(tmp_path / "elsewhere" / "c", "baseline", 76.0, seed=1)
    assert "KD not shown: +4.50 (-1.85 to 10.85, 2 seeds)" in text(page_of(tmp_path)[0])


def test_a_row_of_comparisons_has_a_column_for_each_reference(tmp_path):
    for seed in (0, 1):
        make(tmp_path / f"baseline{seed}", "baseline", 70.0 + seed, seed=seed)
        make(tmp_path / f"kd{seed}", "kd", 72.0 + 2 * seed, seed=seed)
        make(tmp_path / f"dist{seed}", "student_dist", 75.0 + 1.1 * seed, seed=seed)
    said = text(page_of(tmp_path)[0])
    assert "Comparisons run against the baseline against KD KD not shown: +2.50 (-3.85 to 8.85, 2 seeds) HSAKD*" in said
    assert "HSAKD* with DIST better by 5.05 (4.41 to 5.69, 2 seeds) not shown: +2.55 (-3.17 to 8.27, 2 seeds)" in said
    assert "HSAKD* with DIST : learns from the labels and from its teacher's classes and branches" in said


def test_a_log_that_was_cut_does_not_cut_the_others(tmp_path):
    for seed in (0, 1):
        make(tmp_path / str(seed), "kd", 80.0, seed=seed)
    log = tmp_path / "1" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]) + '{"step": ')
    page, _ = page_of(tmp_path)
    assert f"Not shown over time, since metrics.jsonl ends before the run did: {tmp_path}/1." in text(page)
    dataset = report.Dataset(run_index.find([tmp_path])[0])
    (one,) = dataset.groups
    logs = [dataset.records[run.path] for run in one.runs]
    curve = sections._curve(one, logs, lambda record: record.values.get("loss"))
    assert curve.x == [1.0, 2.0, 3.0, 4.0]
    assert not curve.spread


def test_the_teacher_is_the_network_that_taught(tmp_path):
    make(tmp_path / "teacher_online", "teacher_online", 91.0, peers=True)
    make(tmp_path / "student", "student_online", 85.0, teacher__checkpoint="best", teacher__peer=2)
    said = text(page_of(tmp_path)[0])
    assert "8.00 below its teacher" in said
    shutil.rmtree(tmp_path / "teacher_online")
    path = tmp_path / "student/results.json"
    taught = TaughtBy(arch="resnet8", recipe="teacher_online", last={"epoch": 4, "top1": 91.0})
    write_sealed(path, msgspec.structs.replace(read_sealed(path, Results), teacher=taught))
    assert "below its teacher" not in text(page_of(tmp_path)[0])  # its best epoch taught, which is not stored
    assert "Sizes are those of the network without branches; of several networks, the first one's." in said


def test_of_several_networks_one_is_deployed():
    network = create("resnet8", 10)
    several = Peers((functools.partial(Network, network.architecture, 10),) * 3)
    one, three = profile.sizes(network, (32, 32, 3)), profile.sizes(several, (32, 32, 3))
    for key in ("parameters", "multiply_adds"):
        assert three[key] == {"with_branches": 3 * one[key]["with_branches"], "backbone": one[key]["backbone"]}


def test_a_teacher_has_no_teacher_to_miss(tmp_path, digits):
    make(tmp_path / "teacher", "teacher", 94.0, trained=True)
    said = text(page_of(tmp_path)[0])
    assert "misclassifies" in said
    assert "no teacher" not in said
    assert "No run is a baseline" not in said


def test_colours_are_the_same_in_every_figure(tmp_path):
    for recipe in ("backbone", "teacher", "baseline", "kd", "student"):
        make(tmp_path / recipe, recipe, 80.0)
    dataset = report.Dataset(run_index.find([tmp_path])[0])
    colours = {one.recipe: one.colour for one in dataset.groups}
    assert len(set(colours.values())) == 5
    for recipe, colour in colours.items():
        assert dataset.colour_of(tmp_path / recipe) == colour
    assert dataset.colour_of(tmp_path / "another") not in colours.values()


def test_losses_below_zero_are_seen():
    curve = plots.Curve("vid", "c2", [1, 2, 3], [1.0, -0.5, -2.0])
    (axes,) = plots.curves([("", [curve])], "epoch", "loss", zero=True).axes
    low, high = axes.get_ylim()
    assert low < -2.0 < 1.0 < high


def test_names_of_classes_are_untrusted(tmp_path, monkeypatch):
    names = ["</div><b>\"'&", "Żółw 亀", *map(str, range(8))]
    labels = np.array([0, 0, 1, 1])
    by_network = {
        key: predictions.Prediction(np.array(found), np.full(4, 0.5, np.float32))
        for key, found in (("student", [1, 0, 0, 0]), ("baseline", [0, 0, 0, 0]), ("teacher", [0, 0, 1, 1]))
    }
    images = {i: np.zeros((8, 8, 1), np.uint8) for i in (0, 2, 3)}
    found = predictions.Predictions(labels, by_network, images, {})
    monkeypatch.setattr(report, "predict_all", lambda *_: found)
    for recipe in ("baseline", "kd", "backbone"):
        make(tmp_path / recipe, recipe, 80.0, classes=names)
    page, figures = page_of(tmp_path)
    assert page.count("<img ") == 3
    assert names[0] not in page
    assert page.count("&lt;/div&gt;&lt;b&gt;&#34;&#39;&amp;") >= 3
    said = text(page)
    assert "It misclassifies 3 of 4 test images." in said
    assert "Of these, the baseline classifies 1 correctly and its teacher classifies 3 correctly." in said
    assert f"true: {names[0]} student: {names[1]} (50 %) teacher: {names[0]}" in said
    assert "the accuracy is higher for 0 classes, lower for 1 and equal for 1." in said
    assert set(figures) == {"confusions", "misclassified", "classes", *FIGURES} - {"branches"}
    for draw in figures.values():
        assert draw().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", splits=("test",)).test


def test_predictions_and_their_figures(digits, tmp_path):
    for recipe in ("teacher", "baseline", "student"):
        make(tmp_path / recipe, recipe, 10.0, trained=True, teacher__arch="resnet8_quarter")
    networks = {key: predictions.Checkpoint(tmp_path / key) for key in ("student", "teacher")}
    found = predictions.predict_all(networks | {"absent": predictions.Checkpoint(tmp_path / "absent")}, 5)
    np.testing.assert_array_equal(found.labels, digits.labels)
    assert found.left_out == {"absent": f"{tmp_path}/absent is not a run directory (no config.json): check the path"}
    for key in networks:
        network, variables = restore(tmp_path / key)
        images = normalise(jax.numpy.asarray(digits.images), (0.31,), (0.38,))
        probabilities = jax.nn.softmax(jax.jit(network.clone(branches=False).apply)(variables, images).logits)
        assert (found.by_network[key].classes == probabilities.argmax(-1)).mean() > 0.99  # batches round otherwise
        np.testing.assert_allclose(found.by_network[key].probabilities, probabilities.max(-1), rtol=1e-3)
    student = found.by_network["student"]
    certain = np.where(student.classes != digits.labels, student.probabilities, 0)
    kept = []
    for i in np.argsort(-certain, kind="stable"):
        same = [j for j in kept if student.classes[j] == student.classes[i]]
        kept += [i] if certain[i] and len(same) < predictions.SAME else []
    assert list(found.misclassified) == kept[:5]
    for i, image in found.misclassified.items():
        np.testing.assert_array_equal(image, digits.images[i])

    page, figures = page_of(tmp_path)
    shown = text(page)
    wrong = int((student.classes != digits.labels).sum())
    assert f"It misclassifies {wrong} of 896 test images. Of these, the baseline classifies" in shown
    assert re.search(r"\d+ correctly and its teacher classifies \d+ correctly\.", shown)
    assert re.search(r"true: \d student: \d \(\d+\s%\) teacher: \d \(\d+\s%\) [✓✗]", shown)
    assert page.count("<img ") == min(len(kept), report.IMAGES)
    for name in ("confusions", "classes", "misclassified"):
        assert figures[name]().startswith(b"\x89PNG")


def test_classes_are_called_what_a_file_says(digits, tmp_path):
    make(tmp_path / "runs" / "run", "baseline", 10.0, trained=True)
    runs, _ = run_index.find([tmp_path / "runs"])
    (tmp_path / "names.txt").write_text("\n".join(f"digit {i}" for i in range(10)) + "\n")
    assert re.search(
        r"true: digit \d student: digit \d", text(report.make(runs, class_file=str(tmp_path / "names.txt"))[0])
    )
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="names.txt contains 2 class names, the network has 10 classes: fix the file"):
        report.make(runs, class_file=str(tmp_path / "names.txt"))


def test_one_seed_is_tested_on_the_test_images(tmp_path):
    """McNemar: of 896 images, KD alone classifies 20 correctly and the baseline alone 2; HSAKD* 5 and 2."""
    i = np.arange(896)
    make(tmp_path / "baseline", "baseline", 80.0, correct=i < 702)
    make(tmp_path / "kd", "kd", 82.0, correct=(i < 700) | (i >= 876))
    make(tmp_path / "student", "student", 80.5, correct=(i < 700) | (i >= 891))
    make(tmp_path / "other", "joint", 79.0)
    said = text(page_of(tmp_path)[0])
    first, second = 21 / 898, 3 / 898
    half = 1.959964 * ((first + second - (first - second) ** 2) / 898) ** 0.5
    interval = f"{100 * (first - second - half):.2f} to {100 * (first - second + half):.2f}"
    assert f"KD better by 2.01 ({interval}, 1 seed)" in said
    assert "The latter holds for these test images only: another seed may differ" in said
    assert re.search(r"HSAKD\* not shown: \+0\.33 \(-0\.\d\d to 0\.\d\d, 1 seed\)", said)
    assert re.search(r"1 seed\) worse by 1\.67", said)
    assert "joint labels not tested: -1.00 (one seed, and results.json does not store" in said
    assert "KD: resnet8_quarter reaches 82.00 % top-1 on digits, 2.01 points more than the baseline 4 runs" in said


def test_other_settings_than_the_baseline_are_in_headline_and_table(tmp_path):
    for seed in (0, 1):
        make(tmp_path / str(seed) / "baseline", "baseline", 80.0 + seed, seed=seed)
        make(tmp_path / str(seed) / "kd", "kd", 90.0 + 3 * seed, seed=seed, student__lr=0.3)
    page = text(page_of(tmp_path)[0])
    assert "not shown to differ from the baseline, whose settings differ too (+11.00 points)" in page
    assert "2 seeds); settings differ too: training.lr (0.3 here, 0.05 there)" in page


def test_data_that_is_gone(digits, tmp_path):
    make(tmp_path / "run", "baseline", 10.0, trained=True, data__dir="/nowhere")
    with pytest.raises(UserError, match="its data digits is not in /nowhere: set --data_dir=DIR"):
        predictions.predict_all({"student": predictions.Checkpoint(tmp_path / "run")}, 5)
    assert "are not shown: its data digits is not in /nowhere" in text(page_of(tmp_path)[0])
    (tmp_path / "data" / "digits").mkdir(parents=True)
    (tmp_path / "data" / "digits" / ".lock").touch()  # of a preparation that was killed
    with pytest.raises(UserError, match="its data digits is not in"):
        predictions.predict_all({"student": predictions.Checkpoint(tmp_path / "run")}, 5, str(tmp_path / "data"))
    assert len(list((tmp_path / "data").rglob("*"))) == 2
    teacher = make(tmp_path / "Teacher" / "T", "teacher", 10.0)
    make(tmp_path / "kd", "kd", 20.0, trained=True, teacher__workdir=str(teacher))
    said = text(page_of(tmp_path / "kd")[0])
    assert f"No run is a baseline with its data, epochs and batch. Its teacher is left out ({teacher} is" in said
    make(tmp_path / "other", "baseline", 10.0, trained=True, classes=list("abcdefghij"))
    with pytest.raises(UserError, match="other has other classes: 'a' where '0' is expected in digits"):
        predictions.predict_all({"student": predictions.Checkpoint(tmp_path / "other")}, 5)


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
    assert "Misclassified test images: baseline" in page
    names = {"accuracy", "losses", "schedule", "throughput", "speed", "confusions", "misclassified"}
    assert {p.name for p in pngs.iterdir()} == {f"{name}.png" for name in names}


BAD = {
    "no output": ([], "--output is missing"),
    "not a page": (["--output={}/x.txt"], "name a file that ends in .html"),
    "no folder for it": (["--output={}/none/x.html"], "none is not a folder"),
    "a file for a folder": (["--output={}/x.html", "--png={}/file"], "file is a file: name a folder"),
    "no run": (["--output={}/x.html"], "no trained run there"),
    "a name that is too long": (["--output={}/" + 300 * "x" + ".html"], "no trained run there"),
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
