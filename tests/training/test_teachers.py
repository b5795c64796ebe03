"""Teachers as a student's run sees them: their own preprocessing, and their classes in the student's order."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from msgspec import structs
from run_configs import run_config

from hsakd_jax import create
from hsakd_jax.core.console import Console
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.augment import normalise
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.models.folding import Folded
from hsakd_jax.models.rotations import class_logits, rotate
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build_network, initialise, reorder_classes, start_from
from hsakd_jax.runs.results import Results
from hsakd_jax.training import loop, teachers
from hsakd_jax.training.build import dry_run

NAMES = ("a", "b", "c")
STUDENT = run_config("student", classes=NAMES, data__mean=(0.6,), data__std=(0.2,), student__arch="resnet8_quarter")


def teacher_config(side=8, classes=NAMES, **keys):
    return run_config(
        "teacher", classes=classes, shape=(side, side, 1), teacher__arch="resnet8_quarter",
        data__mean=(0.31,), data__std=(0.38,), **keys,
    )  # fmt: skip


@pytest.fixture(scope="module")
def network():
    return create("resnet8_quarter", 3)


@pytest.fixture(scope="module")
def variables(network):
    """Random ones, biases of the last layers included."""
    random = np.random.default_rng(0)
    shapes = jax.device_get(initialise(network, (8, 8, 1), 0))
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.random(leaf.shape, np.float32), shapes)


def images(side=8):
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (4, side, side, 1), np.uint8))


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * abs(b).max())


@pytest.mark.parametrize("folded", [False, True])
def test_a_teacher_sees_its_own_normalisation(folded, network, variables):
    """The student's mean and standard deviation are others: 0.6 and 0.2 for 0.31 and 0.38."""
    expected = jax.jit(network.apply)(variables, rotate(normalise(images(), (0.31,), (0.38,))))
    form = Folded(network) if folded else network
    given = form.fold(variables, images().astype(jnp.float32)) if folded else variables
    teacher = teachers.preprocessed(STUDENT, form, teacher_config())
    assert teacher.branches
    theirs = rotate(normalise(images(), STUDENT.data.mean, STUDENT.data.std))
    assert_close(jax.jit(teacher.apply)(given, theirs), expected)
    assert teacher == teachers.preprocessed(STUDENT, form, teacher_config())  # so that it is traced once
    upright = jax.jit(teacher.clone(branches=False).apply)(given, theirs)
    assert not upright.aux_logits
    assert_close(upright.logits, expected.logits)


def test_equal_preprocessing_costs_nothing(network):
    same = run_config("student", classes=NAMES, data__mean=(0.31,), data__std=(0.38,))
    assert teachers.preprocessed(same, network, teacher_config()) is network


def test_one_number_for_all_channels_is_the_same_as_one_per_channel(network):
    gray, coloured = (
        run_config("student", shape=(8, 8, 3), data__mean=(0.5,) * count, data__std=(0.25,) * count) for count in (1, 3)
    )
    assert teachers.preprocessed(gray, network, coloured) is network


@pytest.mark.parametrize("side", [16, 32])
def test_a_teacher_sees_images_of_its_own_size(side, network, variables):
    """Of images that are constant in squares, which nearest neighbours would enlarge without loss."""
    teacher = teachers.preprocessed(STUDENT, network, teacher_config(side))
    flat = jnp.broadcast_to(images()[:, :1, :1], (4, 8, 8, 1))
    large = jnp.broadcast_to(flat[:, :1, :1], (4, side, side, 1))
    expected = jax.jit(network.apply)(variables, rotate(normalise(large, (0.31,), (0.38,))))
    found = jax.jit(teacher.apply)(variables, rotate(normalise(flat, STUDENT.data.mean, STUDENT.data.std)))
    assert_close(found.logits, expected.logits)
    gradient = jnp.broadcast_to(jnp.arange(8.0).reshape(1, 8, 1, 1), (1, 8, 8, 1))
    enlarged = teacher._preprocess(gradient) * teacher.scale[0] ** -1
    assert enlarged.shape == (1, side, side, 1)
    assert float(jnp.diff(enlarged[0, side // 4 : -side // 4, 0, 0]).max()) == pytest.approx(8 / side, rel=1e-4)


def test_a_teacher_of_another_interpolation_scales_by_it_and_is_named(network, tmp_path):
    other = teacher_config(16, data__interpolation="bicubic")
    teacher = teachers.preprocessed(STUDENT, network, other)
    theirs = normalise(images(), STUDENT.data.mean, STUDENT.data.std)
    expected = jax.image.resize(normalise(images(), (0.31,), (0.38,)), (4, 16, 16, 1), "cubic")
    np.testing.assert_allclose(teacher._preprocess(theirs), expected, atol=1e-5)
    cropped = structs.replace(other, data=structs.replace(other.data, crop="resized"))
    assert teachers._other_images(STUDENT, other, tmp_path) == ""  # images that are taken as they are
    assert teachers._other_images(STUDENT, cropped, tmp_path) == (
        f"the teacher {tmp_path} was trained on bicubic images, and sees the bilinear ones of this run: "
        "--config.data.interpolation=bicubic scales as its own run"
    )


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (
            run_config("teacher", classes=NAMES, shape=(8, 12, 1)),
            "of 8x12, and those of 8x8 have another ratio .*image_",
        ),
        (run_config("teacher", classes=NAMES, shape=(8, 8, 3)), "of 3 channels and the dataset has 1.*teacher.workdir"),
        (run_config("teacher", classes=("a", "b", "d")), "has other classes: 'd' where 'c' is expected"),
        (run_config("teacher", classes=("a", "b")), "has 2 classes, not 3"),
    ],
)
def test_what_no_teacher_can_be(theirs, words, tmp_path):
    with pytest.raises(UserError, match=words):
        teachers.abstract_teacher(STUDENT, STUDENT.teacher, theirs, tmp_path)


def test_a_method_that_compares_maps_refuses_those_of_another_size():
    student = run_config("fitnet", classes=NAMES, student__arch="resnet8_quarter")
    theirs = teacher_config(24)
    train = Dataset(np.zeros((64, 8, 8, 1), np.uint8), np.zeros(64, np.int32))
    with pytest.raises(UserError, match=r"no regressor from a map of .*; the teacher takes images of 24x24"):
        dry_run(student, RunDirectory("x").path, theirs, train, Devices())


@pytest.fixture
def trained(network, variables, tmp_path):
    """A function that makes a teacher's run of classes in some order."""

    def make(classes):
        directory = RunDirectory(tmp_path / "teacher")
        directory.acquire(structs.replace(teacher_config(classes=classes or NAMES), classes=classes))
        checkpoints = Checkpoints(directory.checkpoints)
        checkpoints.save(1, variables)
        checkpoints.close()
        return directory

    return make


def test_a_teacher_with_its_classes_in_another_order_is_reordered(trained, network, variables):
    directory = trained(("c", "a", "b"))
    taught = teachers.load(STUDENT, STUDENT.teacher, directory)
    assert taught.notes == (f"{directory.path} has the classes of digits in another order: matched by name",)
    theirs = normalise(images(), STUDENT.data.mean, STUDENT.data.std)
    found = jax.jit(taught.network.apply)(taught.variables, rotate(theirs))
    before = jax.jit(network.apply)(variables, rotate(normalise(images(), (0.31,), (0.38,))))
    order = [1, 2, 0]
    assert_close(found.logits, before.logits[:, order])
    for new, old in zip(found.aux_logits, before.aux_logits, strict=True):
        assert_close(class_logits(new), class_logits(old)[:, order])
        assert_close(new.reshape(-1, 3, 4), old.reshape(-1, 3, 4)[:, order])


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_teacher_is_the_checkpoint_that_is_set(checkpoint, variables, tmp_path):
    directory = RunDirectory(tmp_path / "teacher")
    directory.acquire(teacher_config())
    checkpoints = Checkpoints(directory.checkpoints)
    for step, score in ((1, 2.0), (2, 1.0)):
        checkpoints.save(step, jax.tree.map(lambda x, step=step: x + step, variables), score)
    checkpoints.close()
    settings = structs.replace(STUDENT.teacher, checkpoint=checkpoint)
    found = jax.tree.leaves(teachers.load(STUDENT, settings, directory).variables["batch_stats"])
    expected = jax.tree.leaves(variables["batch_stats"])
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b + {"best": 1, "last": 2}[checkpoint])


def test_classes_without_names_are_taken_in_their_order(trained):
    directory = trained(())
    taught = teachers.load(STUDENT, STUDENT.teacher, directory)
    assert taught.notes == (
        f"the class names of {directory.path} are not known: their order is taken as that of digits (a, b, c)",
    )


@pytest.mark.parametrize(
    ("classes", "kept", "words"),
    [
        (("c", "a", "b"), [1, 2, 0], "in another order: matched by name"),
        (("a", "b", "d"), None, "has other classes: 'd' where 'c' is expected: the last layer starts at random"),
        (NAMES, [0, 1, 2], None),
    ],
)
def test_a_start_has_its_last_layer_in_the_order_of_the_classes(classes, kept, words, trained, variables):
    fresh = jax.tree.map(np.zeros_like, variables)
    start = start_from(trained(classes).path, fresh, NAMES)
    head = start.variables["params"]["head"]["fc"]
    expected = np.zeros(3) if kept is None else variables["params"]["head"]["fc"]["bias"][kept]
    np.testing.assert_array_equal(head["bias"], expected)
    np.testing.assert_array_equal(start.variables["params"]["branch1"]["head"]["fc"]["bias"][4:8].any(), bool(kept))
    assert start.note is None if words is None else words in start.note


def test_networks_that_learn_together_start_from_all_of_theirs(tmp_path):
    config = run_config("mutual", classes=NAMES, student__arch="resnet8_quarter")
    network = build_network(config.network)
    theirs, fresh = (jax.device_get(initialise(network, (8, 8, 1), seed)) for seed in (0, 1))
    directory = RunDirectory(tmp_path / "mutual")
    directory.acquire(config)
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(1, theirs)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, start_from(directory.path, fresh, NAMES).variables, theirs)


def test_a_teacher_without_the_layer_that_a_run_takes_from_it_is_refused_before_it_trains(tmp_path):
    config = run_config("sskd", classes=NAMES, student__arch="resnet8_quarter", student__batch=4)
    train = Dataset(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32))
    for recipe in ("backbone", "sskd_teacher"):
        theirs = run_config(recipe, classes=NAMES, teacher__arch="resnet8_quarter")
        refused = pytest.raises(UserError, match="keeps objective/sskd/teacher_head/.* fixed, which .* has not trained")
        with jax.numpy_dtype_promotion("standard"), refused if recipe == "backbone" else nullcontext():
            dry_run(config, tmp_path / "sskd", theirs, train, Devices(jax.devices()[:1]))


def test_peers_are_reordered_too():
    fc = {"kernel": np.arange(12.0).reshape(2, 6), "bias": np.arange(6.0)}
    found = reorder_classes(
        {"params": {"peer1": {"branch1": {"head": {"fc": fc}}, "stem": {"bias": fc["bias"]}}}}, [2, 0, 1]
    )
    peer = found["params"]["peer1"]
    np.testing.assert_array_equal(peer["branch1"]["head"]["fc"]["bias"], [4, 5, 0, 1, 2, 3])
    np.testing.assert_array_equal(peer["branch1"]["head"]["fc"]["kernel"][1], [10, 11, 6, 7, 8, 9])
    assert peer["stem"]["bias"] is fc["bias"]


ACCURACY = "the teacher reaches 35.00 % here and 72.60 % in its own results: compare data, data.mean"
OTHER = "was tested on other images when its training ended: it may have been trained on some of these"


@pytest.mark.parametrize(
    ("own", "images", "digest", "split", "warnings"),
    [
        (72.6, 896, "d", "test", [ACCURACY]),
        (35.9, 896, "d", "test", []),
        (72.6, 896, "d", "validation", []),
        (72.6, 900, "d", "test", [OTHER]),
        (35.9, 896, "e", "test", [OTHER]),
        (72.6, 896, "e", "test", [OTHER]),
        (72.6, 896, "e", "validation", [OTHER]),
        (72.6, 896, None, "test", [ACCURACY]),
    ],
)
def test_a_teacher_of_another_accuracy_or_other_images(
    own, images, digest, split, warnings, tmp_path, monkeypatch, capsys
):
    results = SimpleNamespace(last={"top1": own}, best={"top1": 1.0}, test_images=images, test_digest=digest)
    results.same_test_images = partial(Results.same_test_images, results)
    taught_by = SimpleNamespace(path=tmp_path, is_finished=lambda: True, results=lambda: results, config=teacher_config)
    # It is evaluated without its branches.
    teacher = SimpleNamespace(clone=lambda branches: "all" if branches else "backbone")
    made, test = [], SimpleNamespace(labels=np.zeros(896), digest="d")
    monkeypatch.setattr(loop, "make_evaluate", lambda *given: made.append(given[0]) or (lambda *_: {"top1": 35.0}))
    session = SimpleNamespace(
        built=SimpleNamespace(program=SimpleNamespace(teacher=teacher), taught_by=taught_by, teacher_variables={}),
        config=STUDENT, console=Console(), devices=Devices(),
        splits=SimpleNamespace(test=test, selection=(test, split)),
    )  # fmt: skip
    measured = {}
    assert loop._report_teacher(session, "12ab", measured) == {"top1": 35.0}
    shown = capsys.readouterr().out
    assert f"teacher on {split}: top-1 35.00 %" in shown
    assert shown.count("warning: ") == len(warnings)
    assert all(line in shown for line in warnings)
    # The next run of a command does not measure it again, unless something that changes its accuracy is another.
    session.config = structs.replace(STUDENT, seed=STUDENT.seed + 1)
    loop._report_teacher(session, "12ab", measured)
    assert capsys.readouterr().out == shown
    assert made == ["backbone"] * (2 if split == "validation" else 1)
    for config, content in (
        (STUDENT, "34cd"),
        (structs.replace(STUDENT, data=structs.replace(STUDENT.data, mean=(0.5,))), "12ab"),
        (structs.replace(STUDENT, teacher=structs.replace(STUDENT.teacher, dtype="bfloat16")), "12ab"),
    ):
        session.config, made[:] = config, []
        loop._report_teacher(session, content, measured)
        assert made == ["backbone"]
