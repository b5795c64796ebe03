"""MobileNets, EfficientNets and RegNet of torchvision and timm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import safetensors.numpy
from flax import linen as nn
from flax.traverse_util import flatten_dict
from float64 import enable_x64
from run_configs import run_config
from torch_tensors import assert_tensors_of_the_original

from hsakd_jax import create, load_torch, restore
from hsakd_jax.core.console import Console
from hsakd_jax.interop import torch_names, torch_weights
from hsakd_jax.interop.exporters import FORMATS, TOLERANCE, Export, compare
from hsakd_jax.interop.importing import convert
from hsakd_jax.models import architecture, efficientnet, mobilenet_imagenet, regnet
from hsakd_jax.models.folding import Folded
from hsakd_jax.models.layers import HE_TORCH, LayerFactory, SqueezeExcitation, normalise_batch
from hsakd_jax.models.mobilenet import InvertedResidual
from hsakd_jax.models.mobilenet_imagenet import DepthwiseSeparable

GOLDEN = reference.torchvision()
NAMES = [*mobilenet_imagenet.NETWORKS, *efficientnet.NETWORKS, *regnet.NETWORKS]
# Channels of the maps after the stages, whose sides are a 4th, 8th, 16th and 32nd of the image's.
CHANNELS = {
    "mobilenetv1_100": (128, 256, 512, 1024),
    "mobilenet_v2": (24, 32, 96, 320),
    "mobilenet_v3_small": (16, 24, 48, 96),
    "mobilenet_v3_large": (24, 40, 112, 160),
    "efficientnet_b0": (24, 40, 112, 320),
    "efficientnet_b1": (24, 40, 112, 320),
    "efficientnet_b2": (24, 48, 120, 352),
    "regnet_y_400mf": (48, 104, 208, 440),
}
ONE_A_FAMILY = ["mobilenetv1_100", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"]
IMAGES = jnp.zeros((2, 64, 64, 3))


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *(
            pytest.param(name, np.float64, 1e-6, marks=pytest.mark.slow)
            for name in ("efficientnet_b1", "efficientnet_b2")
        ),
        *((name, np.float32, 1e-5) for name in NAMES),
    ],
)
def test_logits_are_those_of_the_original(name, dtype, tolerance):
    arch, network = GOLDEN[name], create(name, 1000, branches=False)
    expected = reference.torchvision_logits(name)
    images, _ = reference.inputs("input2", 2, arch["resolution"], 1000, reference.SALT2)
    variables = load_torch(reference.state_dict(arch, reference.SALT2, dtype), name)
    with enable_x64(dtype == np.float64):
        logits = jax.jit(network.apply)(variables, images.astype(dtype)).logits
        assert logits.dtype == dtype
        assert abs(np.asarray(logits) - expected).max() <= tolerance * abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_tensors_are_those_of_the_original(name):
    assert_tensors_of_the_original(name, 64)


@pytest.mark.parametrize("name", NAMES)
def test_stages_and_branches(name):
    outputs, variables = jax.eval_shape(create(name, 7).init_with_output, jax.random.key(0), IMAGES)
    sides = (16, 8, 4, 2)
    assert [x.shape for x in outputs.features] == [
        (2, side, side, c) for side, c in zip(sides, CHANNELS[name], strict=True)
    ]
    assert [q.shape for q in outputs.aux_logits] == [(2, 28)] * 4
    branches = {part: set(params) for part, params in variables["params"].items() if part.startswith("branch")}
    assert branches == {
        "branch1": {"stage2", "stage3", "stage4", "head"},
        "branch2": {"stage3", "stage4", "head"},
        "branch3": {"stage4", "head"},
        "branch4": {"stage", "head"},
    }
    keys = [
        torch_names.state_dict_key(name, 4, path[1:], True, torch_names.HEADS[name][0])
        for path in flatten_dict(variables)
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_a_published_file_becomes_a_run(name, tmp_path):
    tensors = reference.state_dict(GOLDEN[name], reference.SALT2, np.float32)
    safetensors.numpy.save_file(
        {key: np.ascontiguousarray(value) for key, value in tensors.items()}, tmp_path / "x.safetensors"
    )
    convert(tmp_path / "x.safetensors", tmp_path / "run", Console())
    network, variables = restore(tmp_path / "run")
    assert network.architecture == architecture(name)
    back = torch_weights.to_state_dict(name, network, variables)
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_stablehlo(name, tmp_path):
    network = create(name, 1000, branches=False)
    variables = load_torch(reference.state_dict(GOLDEN[name], reference.SALT2, np.float32), name)
    config = run_config(shape=(64, 64, 3), data__mean=(0.5,) * 3, data__std=(0.25,) * 3)
    exported = Export(name, network, variables, config, False)
    difference, greatest = compare(exported, FORMATS["stablehlo"][0](exported, tmp_path / "x"))
    assert difference <= TOLERANCE * greatest


def test_batch_norm_of_mobilenet_v3():
    """eps 1e-3 and momentum 0.01, also when it is folded; other networks have PyTorch's defaults."""
    assert architecture("mobilenet_v3_small")[-2:] == architecture("mobilenet_v3_large")[-2:] == (1e-3, 0.01)
    assert {architecture(name)[-2:] for name in set(NAMES) - {"mobilenet_v3_small", "mobilenet_v3_large"}} == {
        (1e-5, 0.1)
    }
    name = "mobilenet_v3_small"
    network, images = create(name, 1000, branches=False), jax.random.normal(jax.random.key(1), (4, 64, 64, 3))
    variables = load_torch(reference.state_dict(GOLDEN[name], reference.SALT2, np.float32), name)
    # Small variances, beside which the eps counts.
    variables["batch_stats"] = jax.tree.map(lambda x: 0.01 * x, variables["batch_stats"])
    folded = Folded(network)
    ours = jax.jit(folded.apply)(folded.fold(variables, images), images).logits
    plain = jax.jit(network.apply)(variables, images).logits
    assert abs(ours - plain).max() <= 1e-4 * abs(plain).max()
    _, updated = network.apply(variables, images, True, mutable=["batch_stats"])
    old = variables["batch_stats"]["stem"]["bn1"]["mean"]
    kernel = jnp.asarray(variables["params"]["stem"]["conv1"]["kernel"])
    numbers = ("NHWC", "HWIO", "NHWC")
    batch = jax.lax.conv_general_dilated(images, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=numbers).mean(
        (0, 1, 2)
    )
    np.testing.assert_allclose(updated["batch_stats"]["stem"]["bn1"]["mean"], 0.99 * old + 0.01 * batch, atol=1e-6)


def test_normalisation_by_the_batch_has_the_eps_in_its_derivative():
    g = np.random.default_rng(0)
    x, upstream = (jnp.asarray(0.03 * g.standard_normal((6, 5)), jnp.float32) for _ in range(2))
    ones, zeros = jnp.ones(5), jnp.zeros(5)

    def plain(x):
        mean = x.mean(0, keepdims=True)
        return (x - mean) / jnp.sqrt(jnp.square(x - mean).mean(0, keepdims=True) + 1e-3)

    def ours(x):
        return normalise_batch(x, ones, zeros, zeros, 1e-3)[0]

    np.testing.assert_allclose(ours(x), plain(x), rtol=1e-5, atol=1e-6)
    expected, found = (jax.grad(lambda x, f=f: (f(x) * upstream).sum())(x) for f in (plain, ours))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_squeeze_and_excitation_by_hand():
    layers = LayerFactory(HE_TORCH, None, False, True)
    module = SqueezeExcitation(layers, 2, nn.silu)
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 6))
    variables = module.init(jax.random.key(1), x)
    fc1, fc2 = (variables["params"][name]["kernel"][0, 0] for name in ("fc1", "fc2"))
    squeezed = np.asarray(x).mean((1, 2)) @ np.asarray(fc1)
    weights = 1 / (1 + np.exp(-(squeezed / (1 + np.exp(-squeezed))) @ np.asarray(fc2)))
    np.testing.assert_allclose(module.apply(variables, x), np.asarray(x) * weights[:, None, None], rtol=1e-5, atol=1e-6)


def test_depthwise_convolutions_of_timm_start_by_their_group():
    """N(0, 2 / 9) for 3x3 depthwise, whatever the channels; torchvision's by all channels, N(0, 2 / 9 / 960)."""
    x = jnp.zeros((1, 4, 4, 960))

    def spreads(name, block):
        layers = LayerFactory(architecture(name).init, None, False, True)
        params = block(layers).init(jax.random.key(0), x)["params"]
        return [np.std(params[name]["kernel"]) for name in sorted(params) if name.startswith("conv")]

    separable = spreads("mobilenetv1_100", lambda layers: DepthwiseSeparable(layers, 640, 1))
    np.testing.assert_allclose(separable, [(2 / 9) ** 0.5, (2 / 640) ** 0.5], rtol=0.03)
    inverted = spreads("mobilenet_v2", lambda layers: InvertedResidual(layers, 160, 1))
    np.testing.assert_allclose(inverted, [(2 / 9 / 960) ** 0.5, (2 / 160) ** 0.5], rtol=0.03)
