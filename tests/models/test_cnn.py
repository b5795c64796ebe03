"""torchvision's ResNets, ResNeXt, Wide ResNet, DenseNet and VGG for ImageNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import safetensors.numpy
from flax.traverse_util import flatten_dict
from run_configs import run_config
from small_families import SMALL

from benchmarks.exports import random_variables
from hsakd_jax import create, load_torch, restore
from hsakd_jax.core.console import Console
from hsakd_jax.interop import torch_names, torch_weights
from hsakd_jax.interop.exporters import FORMATS, TOLERANCE, Export, compare
from hsakd_jax.interop.importing import convert
from hsakd_jax.models import architecture, profile
from hsakd_jax.models.layers import adaptive_avg_pool
from hsakd_jax.models.network import Network

# Stages of each network at images of 64x64: side and channels of their maps.
RESNET = [(16, 256), (8, 512), (4, 1024), (2, 2048)]
STAGES = {
    "resnet101": RESNET,
    "resnet152": RESNET,
    "resnext50_32x4d": RESNET,
    "wide_resnet50_2": RESNET,
    "densenet121": [(16, 256), (8, 512), (4, 1024), (2, 1024)],
    "vgg16_bn_imagenet": [(32, 128), (16, 256), (8, 512), (4, 512)],
}
GOLDEN = reference.torchvision()
IMAGES = jnp.zeros((2, 64, 64, 3))


def shapes(variables):
    return {path: leaf.shape for path, leaf in flatten_dict(variables).items()}


@pytest.mark.parametrize("name", STAGES)
def test_shapes_and_branches(name):
    network = create(name, 7)
    outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), IMAGES)
    assert [(*feature.shape[1:3], feature.shape[3]) for feature in outputs.features] == [
        (side, side, channels) for side, channels in STAGES[name]
    ]
    assert [q.shape for q in outputs.aux_logits] == [(2, 28)] * 4
    assert {part: set(params) for part, params in variables["params"].items() if part.startswith("branch")} == {
        "branch1": {"stage2", "stage3", "stage4", "head"},
        "branch2": {"stage3", "stage4", "head"},
        "branch3": {"stage4", "head"},
        "branch4": {"stage", "head"},
    }


@pytest.mark.parametrize("name", STAGES)
def test_parameters_and_tensors_are_those_of_torchvision(name):
    """Every parameter count, key and shape; the network is found from them."""
    golden, plain = GOLDEN[name], create(name, 1000, branches=False)
    side = golden["resolution"]
    assert architecture(name).image_size == side
    assert profile.totals(plain, (side, side, 3))["parameters"] == golden["params"]
    # Views of one number, since VGG has 138 million.
    tensors = {key: np.broadcast_to(np.float32(1), shape) for key, shape in golden["state_dict"]}
    counters = {key for key in tensors if key.endswith("num_batches_tracked")}
    kept = {key: value for key, value in tensors.items() if key not in counters}
    found = torch_weights.recognise(kept, "", name)
    assert (found.name, found.num_classes, found.branches) == (name, 1000, False)
    assert set(torch_names.num_batches_tracked(kept)) == counters
    expected = jax.eval_shape(plain.init, jax.random.key(0), IMAGES)
    assert shapes(torch_weights.to_variables(kept, found, "")) == shapes(expected)


@pytest.mark.parametrize("name", STAGES)
def test_each_layer_of_a_branch_has_a_key_of_its_own(name):
    variables = jax.eval_shape(create(name, 1000).init, jax.random.key(0), IMAGES)
    head = torch_names.HEADS[name][0]
    paths = [path[1:] for path in flatten_dict(variables)]
    keys = [torch_names.state_dict_key(name, 4, path, True, head) for path in paths]
    assert len(set(keys)) == len(keys)
    assert {key.removeprefix("backbone.") for key in keys if key.startswith("backbone.")} == {
        key for key, _ in GOLDEN[name]["state_dict"] if not key.endswith("num_batches_tracked")
    }
    branches = [key for key in keys if key.startswith("auxiliary_classifier.")]
    assert len(branches) == sum(path[0].startswith("branch") for path in paths) > 0


def golden_variables(name, dtype=np.float32):
    return reference.variables(GOLDEN[name], reference.SALT2, dtype)


@pytest.mark.parametrize(
    "name",
    [
        "resnext50_32x4d",
        "densenet121",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet101", "resnet152", "wide_resnet50_2", "vgg16_bn_imagenet")
        ),
    ],
)
def test_golden_logits(name):
    network = create(name, 1000, branches=False)
    images, _ = reference.inputs("input2", 2, 224, 1000, reference.SALT2)
    logits = jax.jit(network.apply)(golden_variables(name), images.astype(np.float32)).logits
    expected = reference.torchvision_logits(name)
    assert abs(logits - expected).max() <= 1e-5 * abs(expected).max()
    # The logits of the two images differ by far more.
    assert abs(expected[0] - expected[1]).max() > 1e-3 * abs(expected).max()


def test_preactivations_of_a_densenet_are_those_of_the_batch_norm_that_follows():
    network = Network(SMALL["densenet"], 5, branches=False)
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = network.init(jax.random.key(0), images)
    outputs = network.apply(variables, images)
    gain = (1 + 1e-5) ** -0.5  # of a new BatchNorm
    for hint, before in zip(outputs.hints, outputs.preactivations, strict=True):
        np.testing.assert_allclose(before, gain * hint, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs.last_map, np.maximum(outputs.preactivations[-1], 0))


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (5, 9), (10, 1), (24, 8)])
def test_adaptive_pool_is_that_of_pytorch(size):
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed; .ci/run does it")
    x = np.random.default_rng(0).standard_normal((2, *size, 3), np.float32)
    theirs = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), 7)
    np.testing.assert_allclose(
        adaptive_avg_pool(jnp.asarray(x), 7), theirs.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6
    )


def test_convert_finds_the_network_from_its_tensors(tmp_path):
    tensors = reference.state_dict(GOLDEN["densenet121"], reference.SALT2, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    convert(tmp_path / "x.safetensors", tmp_path / "run", Console())
    network, variables = restore(tmp_path / "run")
    assert network.architecture == architecture("densenet121")
    assert not network.branches
    jax.tree.map(np.testing.assert_array_equal, variables, golden_variables("densenet121"))


def test_a_network_with_branches_comes_back_from_its_state_dict():
    network = create("densenet121", 7)
    g = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda leaf: g.standard_normal(leaf.shape, np.float32), jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    )
    tensors = torch_weights.to_state_dict("densenet121", network, drawn)
    jax.tree.map(np.testing.assert_array_equal, load_torch(tensors), drawn)


def check_export(name, network, variables, path):
    config = run_config(shape=(64, 64, 3), data__mean=(0.5,) * 3, data__std=(0.25,) * 3)
    exported = Export(name, network, variables, config, False)
    difference, greatest = compare(exported, FORMATS["stablehlo"][0](exported, path))
    assert greatest > 0
    assert difference <= TOLERANCE * greatest


@pytest.mark.parametrize("family", ["resnext", "densenet", "vgg"])
def test_export_to_stablehlo(family, tmp_path):
    network = Network(SMALL[family], 10, branches=False)
    check_export(family, network, random_variables(network, (64, 64, 3)), tmp_path / "x")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121"])  # results/exports.md has the others
def test_export_of_whole_networks(name, tmp_path):
    check_export(name, create(name, 1000, branches=False), golden_variables(name), tmp_path / "x")
