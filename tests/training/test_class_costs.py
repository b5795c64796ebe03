"""WKD-L's costs between classes: what they are made from, and that a run keeps them."""

import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from run_configs import run_config

from hsakd_jax import create
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.augment import normalise
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.streaming import Photos
from hsakd_jax.models.folding import Folded
from hsakd_jax.models.network import OBJECTIVE
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import initialise
from hsakd_jax.training import build, class_costs, loop, teachers
from hsakd_jax.training.step import MetricAccumulator, State

NAMES = ("a", "b", "c")
# Five images of the first class, four and seven of the others, mixed.
LABELS = np.array([2, 0, 1, 2, 0, 2, 1, 0, 2, 1, 2, 0, 1, 2, 0, 2], np.int32)
IMAGES = np.random.default_rng(3).integers(0, 256, (len(LABELS), 8, 8, 1), np.uint8)
TRAIN = Dataset(IMAGES, LABELS)


def configs(arch="resnet8_half", **options):
    """Of a run with WKD-L, and of its teacher's, whose pixels have another normalisation."""
    keys = {f"objective__wkd_l__wkd_l__{key}": value for key, value in options.items()}
    keys |= {"student__arch": "resnet8_quarter", "student__batch": 8, "eval_batch": 5}
    mine = run_config("wkd_l", classes=NAMES, data__mean=(0.6,), data__std=(0.2,), **keys)
    return mine, run_config("backbone", classes=NAMES, teacher__arch=arch)


def linear_cka(x, y):
    """Of two arrays [R, D], by the definition with centred matrices [R, R]."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, l = (centre @ z @ z.T @ centre for z in np.asarray([x, y], np.float64))
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


def by_hand(network, variables, theirs, cost, count):
    """The costs, from the teacher's outputs for its own normalisation."""
    if cost == "classifier":
        kernel = np.asarray(variables["params"]["head"]["fc"]["kernel"], np.float64)
        kernel /= np.linalg.norm(kernel, axis=0)
        return 1 - kernel.T @ kernel
    outputs = jax.jit(network.apply)(variables, normalise(jnp.asarray(IMAGES), theirs.data.mean, theirs.data.std))
    rows = outputs.logits if cost == "cka_logits" else outputs.features[-1]  # not `last_map`, behind the head's layers
    rows = np.asarray(rows)
    features = [rows[label == LABELS][:count].reshape(-1, rows.shape[-1]) for label in range(3)]
    return np.array([[1 - linear_cka(x, y) for y in features] for x in features])


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    ("cost", "images", "count", "arch"),
    [
        ("cka_map", 500, 4, "resnet8_half"),
        ("cka_map", 3, 3, "wrn_16_1"),  # whose head has layers before the pool
        ("cka_logits", 3, 3, "resnet8_half"),
        ("classifier", 500, 0, "resnet8_half"),
    ],
)
def test_costs_are_those_of_the_teacher(cost, images, count, arch, folded):
    """Of the first images of each class: as many as are asked for, or as the smallest class has."""
    mine, theirs = configs(arch, cost=cost, images=images)
    network = create(arch, 3, branches=False)
    variables = jax.tree.map(lambda x: x + 0.1, initialise(network, (8, 8, 1), 0))
    expected = by_hand(network, variables, theirs, cost, count)
    form, given = network, variables
    if folded:
        form = Folded(network)
        given = form.fold(variables, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    teacher, devices = teachers.preprocessed(mine, form, theirs), Devices()
    program = build.make_program(mine, create("resnet8_quarter", 3, branches=False), teacher, TRAIN, devices)
    start = initialise(program.network, (8, 8, 1), 1)
    own = program.objective_init(start, given)
    assert np.isnan(own["batch_stats"][OBJECTIVE]["wkd_l"]["cost"]).all()  # a run without costs fails
    state = program.init({c: {**tree, **own.get(c, {})} for c, tree in start.items()})
    filled = class_costs.with_class_costs(state, mine, teacher, given, TRAIN, devices)
    np.testing.assert_allclose(filled.batch_stats[OBJECTIVE]["wkd_l"]["cost"], expected, atol=2e-4)
    assert (expected[~np.eye(3, dtype=bool)] > 0.01).all()
    filled.batch_stats[OBJECTIVE]["wkd_l"] = state.batch_stats[OBJECTIVE]["wkd_l"]
    assert jax.tree.structure(filled) == jax.tree.structure(state)


def test_costs_of_photographs_are_those_of_their_pixels():
    """Of files that evaluation neither scales nor crops."""
    pixels = np.repeat(IMAGES, 3, -1)

    def read(i):
        file = io.BytesIO()
        Image.fromarray(pixels[i]).save(file, "PNG")
        return f"{i}.png", file.getvalue()

    keys = {"student__arch": "resnet8_quarter", "data__mean": (0.5,), "data__std": (0.2,), "eval_batch": 5}
    config = run_config(
        "wkd_l", classes=NAMES, shape=(8, 8, 3), data__crop="resized", data__image_size=8, data__resize=8, **keys
    )
    teacher = create("resnet8_half", 3, branches=False)
    variables = initialise(teacher, (8, 8, 3), 0)
    empty = {OBJECTIVE: {"wkd_l": {"cost": np.full((3, 3), np.nan, np.float32)}}}
    state = State(jnp.int32(0), {}, empty, (), MetricAccumulator(jnp.int32(0), {}, {}))
    of_pixels, of_files = (
        class_costs.with_class_costs(state, config, teacher, variables, train, Devices())
        for train in (Dataset(pixels, LABELS), Photos(read, LABELS, NAMES))
    )
    found, expected = (x.batch_stats[OBJECTIVE]["wkd_l"]["cost"] for x in (of_files, of_pixels))
    np.testing.assert_array_equal(found, expected)
    assert (expected[~np.eye(3, dtype=bool)] > 0.01).all()


def test_other_objectives_keep_none():
    mine, _ = configs(weight=0.0)
    assert class_costs.with_class_costs("state", mine, None, None, TRAIN, Devices()) == "state"


def test_a_class_of_one_image_is_refused(tmp_path):
    few = TRAIN.take(np.array([*np.flatnonzero(LABELS != 1)[:8], 2]))
    mine, theirs = configs()
    with pytest.raises(UserError, match=r"class 'b' has 1 training images, .*=cka_map .*wkd_l.wkd_l.cost=classifier"):
        build.dry_run(mine, tmp_path, theirs, few, Devices())
    mine, theirs = configs(cost="classifier")
    with jax.numpy_dtype_promotion("standard"):  # as in a command, for optax's schedule
        build.dry_run(mine, tmp_path, theirs, few, Devices())


def saved(run):
    """The steps of the newest checkpoint, and its state."""
    checkpoints = Checkpoints(run / "checkpoints", write=False)
    step = checkpoints.steps()[-1]
    return step, checkpoints.restore(step)


def test_a_run_keeps_its_costs(call_command, tmp_path, monkeypatch):
    """From the first step to the last, and when it resumes, which makes none anew."""
    args = ["--config=configs/cifar100.py:wkd_l_tiny", f"--workdir={tmp_path}"]
    done = call_command("main", *args)
    assert not done.returncode, done.stderr
    run = tmp_path / "wkd_l"
    last, whole = saved(run)
    cost = whole["batch_stats"][OBJECTIVE]["wkd_l"]["cost"]
    assert cost.shape == (10, 10)
    np.testing.assert_allclose(np.diagonal(cost), 0, atol=1e-5)
    assert (cost[~np.eye(10, dtype=bool)] > 0.01).all()
    shutil.rmtree(run / "checkpoints" / str(last))
    (run / "results.json").unlink()
    monkeypatch.setattr(loop, "with_class_costs", None)
    done = call_command("main", *args)
    assert "resuming at step" in done.stdout, done.stderr
    again, resumed = saved(run)
    assert again == last
    assert RunDirectory(run).results()
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
