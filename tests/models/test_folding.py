"""A folded network answers as the network does, and what can't be folded stays."""

import json
import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from flax.traverse_util import flatten_dict

from benchmarks.exports import random_variables
from hsakd_jax.core.console import Console
from hsakd_jax.experiments import pipeline
from hsakd_jax.interop import importing, torch_weights
from hsakd_jax.models import create
from hsakd_jax.models.folding import Folded
from hsakd_jax.models.layers import HE_TORCH, BatchNorm, LayerFactory
from hsakd_jax.training import teachers


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def answers(network, variables, x):
    return jax.tree.leaves(jax.jit(network.apply)(variables, x))


def error(found, true):
    """The greatest relative error of an array, by norms."""
    return max(
        float(jnp.linalg.norm(a.astype(b.dtype) - b) / jnp.linalg.norm(b)) for a, b in zip(found, true, strict=True)
    )


def scales(variables):
    """How many layers multiply each channel by something."""
    return sum(path[-1].key == "scale" for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"]))


# How many BatchNorms there are, and how many follow no convolution: of a wide block the first one.
@pytest.mark.parametrize(
    ("name", "norms", "left"),
    [
        ("resnet8", 20, 0),
        ("wrn_16_1", 32, 18),
        ("vgg8_bn", 16, 0),
        pytest.param("ShuffleV2_0_5", 127, 0, marks=pytest.mark.slow),
    ],
)
def test_a_folded_network_is_the_network(name, norms, left):
    network, x = create(name, 10), images(2, 32, 32, 3)
    variables = random_variables(network, (32, 32, 3))
    folded = Folded(network)
    given = folded.fold(variables, x)
    assert (scales(variables), scales(given)) == (norms, left)
    true = answers(network, variables, x)
    assert error(answers(folded, given, x), true) < 2e-6
    # In bfloat16 it is as far from that as the network is.
    narrow = create(name, 10, dtype="bfloat16")
    given = Folded(narrow).fold(variables, x)
    off, plain = error(answers(Folded(narrow), given, x), true), error(answers(narrow, variables, x), true)
    assert given["params"]["head"]["fc"]["kernel"].dtype == jnp.float32
    flat = flatten_dict(given["params"])
    folds = [path for path in flat if (*path[:-1], "scale") not in flat and "fc" not in path]
    assert {str(flat[path].dtype) for path in folds} == {"bfloat16"}
    assert 1e-4 < off < 1.5 * plain


class Pair(nn.Module):
    """A convolution and the BatchNorm that reads it."""

    @nn.compact
    def __call__(self, x):
        layers = LayerFactory(HE_TORCH, None, False, True)
        return layers.norm(layers.conv(x, 1, 1, name="conv1"), name="bn1")


def test_the_example_of_the_docstring():
    variables = {
        "params": {
            "conv1": {"kernel": jnp.full((1, 1, 1, 1), 3.0)},
            "bn1": {"scale": jnp.array([4.0]), "bias": jnp.array([1.0])},
        },
        "batch_stats": {"bn1": {"mean": jnp.array([6.0]), "var": jnp.array([4.0 - 1e-5])}},
    }
    given = Folded(Pair()).fold(variables, images(1, 2, 2, 1))
    assert given["batch_stats"] == {}
    flat = {"/".join(path): float(value.squeeze()) for path, value in flatten_dict(given["params"]).items()}
    assert flat == pytest.approx({"conv1/kernel": 6.0, "bn1/bias": -11.0})
    assert Folded(Pair()).apply(given, jnp.full((1, 1, 1, 1), 2.0)).item() == pytest.approx(6 * 2 - 11)


class Standardised(nn.Conv):
    """What it computes does not grow with its kernel."""

    def __call__(self, x):
        y = super().__call__(x)
        return y / jnp.linalg.norm(y)


class Row(nn.Module):
    """What is repeated."""

    @nn.compact
    def __call__(self, x, _):
        layers = LayerFactory(HE_TORCH, None, False, True)
        return layers.norm(layers.conv(x, 4, 3, name="conv"), name="bn"), None


class Odd(nn.Module):
    """Convolutions that are read twice or made twice, a BatchNorm that is shared, Flax's own, layers in a loop."""

    branches = False

    @nn.compact
    def __call__(self, x, train=False):
        layers = LayerFactory(HE_TORCH, None, train, True)
        twice = layers.conv(x, 4, 3, name="read_twice")
        x = layers.norm(twice, name="bn1") + twice
        shared = nn.Conv(4, (3, 3), name="made_twice")
        x = BatchNorm(train, name="bn2")(shared(x)) + BatchNorm(train, name="bn3")(shared(2 * x))
        x = nn.BatchNorm(use_running_average=True, name="flax")(layers.conv(x, 4, 3, name="before_flax"))
        norm = BatchNorm(train, name="shared")
        x = norm(layers.conv(x, 4, 3, name="conv1")) + norm(layers.conv(x, 4, 1, name="conv2"))
        x = layers.norm(Standardised(4, (3, 3), name="standardised")(x), name="bn4")
        rows = nn.scan(Row, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3)
        x, _ = rows(name="rows")(x, None)
        x = layers.norm(nn.WeightNorm(nn.Conv(4, (3, 3), name="normed"))(x), name="bn6")
        x = BatchNorm(train, name="bn7")(x=layers.conv(x, 4, 3, name="by_keyword"))
        return layers.norm(layers.conv(x, 4, 3, name="conv3", bias=True, groups=2), name="bn5")


def test_what_can_not_be_folded_stays():
    network, x = Odd(), images(2, 8, 8, 4)
    variables = random_variables(network, (8, 8, 4))
    before = jax.jit(network.apply)(variables, x)  # what JAX remembers of it, it shall not take
    given = Folded(network).fold(variables, x)
    assert jnp.isfinite(before).all()
    folded = {name for name in variables["params"] if name.startswith("bn") and "scale" not in given["params"][name]}
    assert folded == {"bn5"}
    assert error(answers(Folded(network), given, x), answers(network, variables, x)) < 2e-6


def test_a_network_without_batch_norm():
    network, x = nn.Conv(3, (3, 3), dtype=jnp.bfloat16), images(2, 8, 8, 4)
    variables = network.init(jax.random.key(0), x)
    given = Folded(network).fold(variables, x)
    assert given["params"]["kernel"].dtype == jnp.bfloat16
    assert error(answers(Folded(network), given, x), answers(network, variables, x)) == 0


@pytest.mark.slow
def test_a_student_of_a_folded_teacher(monkeypatch, tmp_path):
    """A run on accelerators, where teachers are folded: the same losses as without."""
    teacher = create("resnet8_half", 10)
    tensors = torch_weights.to_state_dict("resnet8_half", teacher, random_variables(teacher, (8, 8, 1)))
    safetensors.numpy.save_file(tensors, tmp_path / "teacher.safetensors")
    quiet = Console(silent=True)
    importing.convert(tmp_path / "teacher.safetensors", tmp_path / "teacher", quiet, data="digits", arch="resnet8_half")
    command = runpy.run_path(str(ROOT / "configs/cifar100.py"))["get_config"]("student_tiny")
    command.teacher.workdir = str(tmp_path / "teacher")
    command.student.epochs, command.student.milestones, command.log_every = 1, (), 1
    command.student.lr = 0.005  # with the recipe's 0.05, rounding grows a thousandfold in eleven steps
    losses, forms = [], []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a command
        for kind in ("plain", "folded"):
            pipeline.execute(command.to_dict(), str(tmp_path / kind), quiet)
            lines = [json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()]
            losses.append([line["loss"] for line in lines if "loss" in line])
            monkeypatch.setattr(teachers, "inference_form", lambda network: forms.append(1) or Folded(network))
    assert len(forms) == 2  # in the dry run and when it is loaded
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len(set(losses[0])) == 11


@pytest.mark.parametrize(("backend", "folds"), [("cpu", False), ("gpu", True), ("tpu", True)])
def test_accelerators_fold(monkeypatch, backend, folds):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    network = create("resnet8_quarter", 10)
    found, variables = teachers.to_inference(network, random_variables(network, (8, 8, 1)), (8, 8, 1))
    assert (found != network, "scale" not in variables["params"]["stem"]["bn1"]) == (folds, folds)
