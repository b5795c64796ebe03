"""A SimKD student: its last layer is the teacher's and stays so, and its config describes the projector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from msgspec import structs
from run_configs import run_config

from hsakd_jax import create
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.models import profile
from hsakd_jax.models.folding import Folded
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build_network, initialise
from hsakd_jax.training import teachers
from hsakd_jax.training.build import build, dry_run

NAMES, ORDER = ("a", "b", "c"), [1, 2, 0]
KEYS = {"teacher__arch": "resnet8_half", "student__arch": "resnet8_quarter", "student__batch": 16}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The run of a teacher with the classes c, a, b, and its last layer in the student's order."""
    variables = jax.device_get(initialise(create("resnet8_half", 3), (8, 8, 1), 0))
    directory = RunDirectory(tmp_path_factory.mktemp("teacher") / "run")
    directory.acquire(run_config("teacher", classes=("c", "a", "b"), **KEYS))
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(1, variables)
    checkpoints.close()
    fc = variables["params"]["head"]["fc"]
    return directory.path, {"kernel": fc["kernel"][:, ORDER], "bias": fc["bias"][ORDER]}


def three_steps(config):
    """The states before and after three steps, as NumPy arrays."""
    g, devices = np.random.default_rng(0), Devices()
    train = Dataset(g.integers(0, 256, (64, 8, 8, 1), np.uint8), g.integers(0, 3, 64).astype(np.int32))
    built = build(config, RunDirectory("x").path, train, devices)
    start = jax.device_get(built.state)
    state, theirs = devices.replicate((built.state, built.teacher_variables))
    for first in (0, 16, 32):
        rows = slice(first, first + 16)
        batch = devices.shard((train.images[rows], train.labels[rows], np.arange(first, first + 16, dtype=np.int32)))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
            state = built.program.step(state, theirs, *batch)
    return start, jax.device_get(state), built, jax.device_get(theirs)


@pytest.mark.parametrize("folded", [False, True])
def test_the_last_layer_is_the_teachers_and_stays_so(folded, teacher, monkeypatch):
    if folded:  # as on accelerators
        monkeypatch.setattr(teachers, "inference_form", Folded)
    path, fc = teacher
    config = run_config("simkd", classes=NAMES, teacher__workdir=str(path), **KEYS)
    assert config.network.projector == (2, 2, 32)
    before, after, built, theirs = three_steps(config)
    for state in (before, after):
        jax.tree.map(np.testing.assert_array_equal, state.params["head"]["fc"], fc)
    jax.tree.map(np.testing.assert_array_equal, theirs["params"]["head"]["fc"], fc)  # not lost with the state
    for layer in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"):
        for a, b in zip(
            jax.tree.leaves(before.params["head"][layer]), jax.tree.leaves(after.params["head"][layer]), strict=True
        ):
            assert (a != b).any(), layer
    assert (before.batch_stats["head"]["bn3"]["mean"] != after.batch_stats["head"]["bn3"]["mean"]).any()
    assert (before.params["stem"]["conv1"]["kernel"] != after.params["stem"]["conv1"]["kernel"]).any()
    assert set(after.metrics.sums) == {"simkd", "loss", "top1", "grad_norm"}
    assert after.metrics.sums["loss"] == after.metrics.sums["simkd"] > 0
    # The loss is that of the two maps, and the logits are those of the teacher's layer.
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 1)), jnp.float32)
    outputs = jax.jit(built.program.network.apply)(after.variables, images)
    expected = np.asarray(outputs.last_map).mean((1, 2)) @ fc["kernel"] + fc["bias"]
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-5)


def test_the_config_describes_the_projector(teacher):
    """Of a teacher that is trained beside it, and of one that sees larger images."""
    config = run_config("simkd", classes=NAMES, **KEYS)
    assert config.network.projector == (2, 2, 32)
    assert run_config("kd", classes=NAMES, **KEYS).network.projector is None
    large = run_config("simkd", classes=NAMES, **{**KEYS, "teacher__arch": "mobilenetV2"}, shape=(16, 16, 1))
    assert large.network.projector == (2, 2, 1280)
    # C/2 channels inside, and a linear layer from C.
    convolutions = 16 * 16 + 9 * 16 * 16 + 16 * 32 + 2 * (16 + 16 + 32)
    own = profile.totals(create("resnet8_quarter", 3, False), (8, 8, 1))["parameters"]
    found = profile.sizes(build_network(config.network), config.network.image_shape)["parameters"]
    assert found["backbone"] == found["with_branches"] == own - (16 * 3 + 3) + convolutions + 32 * 3 + 3
    with pytest.raises(UserError, match="image too small"):
        run_config("simkd", classes=NAMES, **{**KEYS, "teacher__arch": "vgg8_bn"}, shape=(4, 4, 1))


def test_the_head_takes_the_map_after_the_last_stage():
    """As in the authors' code, where MobileNetV2's and ShuffleNetV2's last convolution has no part."""
    network = create("ShuffleV2_0_5", 5, branches=True).clone(projector=(2, 2, 6))
    outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    head = variables["params"]["head"]
    assert set(head) == {f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3)} | {"fc"}
    assert head["conv1"]["kernel"].shape == (1, 1, 192, 3)
    assert head["fc"]["kernel"].shape == (6, 5)
    assert outputs.last_map.shape == (1, 2, 2, 6)
    assert set(variables["params"]["branch1"]["head"]) == {"conv", "bn", "fc"}  # branches keep their own


def test_a_student_without_a_projector_is_refused(teacher):
    config = run_config("simkd", classes=NAMES, teacher__workdir=str(teacher[0]), **KEYS)
    own = structs.replace(config, network=structs.replace(config.network, projector=None))
    train = Dataset(np.zeros((64, 8, 8, 1), np.uint8), np.zeros(64, np.int32))
    with pytest.raises(UserError, match="last map has 16 channels and the teacher's 32: set the student's projector"):
        dry_run(own, RunDirectory("x").path, RunDirectory(teacher[0]).config(), train, Devices())


def test_maps_that_do_not_pool_to_one_another_are_refused():
    large = create("resnet8_quarter", 3).clone(projector=(3, 3, 8))
    with pytest.raises(UserError, match="maps of 8x8 and 3x3 do not compare"):
        initialise(large, (32, 32, 1), 0)


def test_a_simkd_run_is_a_start_for_simkd_only(teacher, tmp_path):
    """Its last layer reads a map of the teacher's size, behind a projector that other recipes do not have."""
    path, fc = teacher
    simkd = run_config("simkd", classes=NAMES, teacher__workdir=str(path), **KEYS)
    directory = RunDirectory(tmp_path / "simkd")
    directory.acquire(simkd)
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(1, jax.device_get(initialise(build_network(simkd.network), (8, 8, 1), 0)))
    checkpoints.close()
    start, devices = {"student__init": str(directory.path)}, Devices()
    train = Dataset(np.zeros((16, 8, 8, 1), np.uint8), np.arange(16, dtype=np.int32) % 3)
    with pytest.raises(UserError, match="have different last layers, since SimKD's reads maps of its teacher"):
        build(run_config("baseline", classes=NAMES, **KEYS, **start), tmp_path / "run", train, devices)
    again = run_config("simkd", classes=NAMES, teacher__workdir=str(path), **KEYS, **start)
    params = jax.device_get(build(again, tmp_path / "run", train, devices).state.params)
    jax.tree.map(np.testing.assert_array_equal, params["head"]["fc"], fc)
