import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import ROOT
from flax.traverse_util import flatten_dict

from hsakd_jax import create
from hsakd_jax.core.errors import UserError
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.models import NETWORKS, architecture, profile
from hsakd_jax.models.layers import is_trainable
from hsakd_jax.models.network import Network, Peers
from hsakd_jax.runs.restore import initialise

ARCHITECTURES = reference.read("architectures.json")["architectures"]
TORCHVISION = set(reference.torchvision())  # counted in the tests of their families


def shapes(tree):
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_golden_outputs(name):
    arch, network = reference.create(name)
    image_shape = (arch["resolution"],) * 2 + (3,)
    variables = reference.variables(arch, dtype=np.float32)
    ours = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, *image_shape)))
    assert shapes(ours) == shapes(variables)
    assert profile.totals(network, image_shape) == {"parameters": arch["params"], "multiply_adds": arch["multi_adds"]}

    images, _ = reference.inputs("input", 2, arch["resolution"], arch["num_classes"])
    outputs = jax.jit(network.apply)(variables, images.astype(np.float32))
    expected = np.load(reference.GOLDEN / "outputs.npz")
    found = {"logits": outputs.logits, **{f"aux_{l}": q for l, q in enumerate(outputs.aux_logits, 1)}}
    assert {f"{name}/{key}" for key in found} == {key for key in expected if key.startswith(f"{name}/")}
    for key, value in found.items():
        golden = expected[f"{name}/{key}"]
        assert abs(value - golden).max() <= 1e-5 * abs(golden).max(), key
    for feature, golden in zip(outputs.features, arch.get("features", outputs.features), strict=True):
        if "features" in arch:
            batch, channels, height, width = golden["shape_nchw"]
            assert feature.shape == (batch, height, width, channels)
            assert abs(feature.mean() - golden["mean"]) <= 1e-5 * golden["std"]
            assert abs(np.std(np.asarray(feature, np.float64), ddof=1) / golden["std"] - 1) <= 1e-5


def conv(c_in, c, kernel, groups=1, bias=0):
    """Parameters of a convolution and its BatchNorm."""
    return kernel * kernel * c_in * c // groups + 2 * c + bias * c


def resnet(depth, stem, widths):
    total, c_in = conv(3, stem, 3), stem
    for c in widths:
        for _ in range((depth - 2) // 6):
            total += conv(c_in, c, 3) + conv(c, c, 3) + (conv(c_in, c, 1) if c_in != c else 0)
            c_in = c
    return total + c_in * 100 + 100


def wrn(depth, width):
    total, c_in = 9 * 3 * 16, 16
    for c in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            total += 2 * c_in + 9 * c_in * c + 2 * c + 9 * c * c + (c_in * c if c_in != c else 0)
            c_in = c
    return total + 2 * c_in + c_in * 100 + 100


def vgg(*depths):
    total, c_in = 0, 3
    for depth, c in zip(depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            total += conv(c_in, c, 3, bias=1)
            c_in = c
    return total + 512 * 100 + 100


def shuffle_v2(*widths):
    total, c_in = conv(3, 24, 1), 24
    for width, repeats in zip(widths, (3, 7, 3), strict=True):
        h = width // 2
        total += conv(c_in, c_in, 3, c_in) + 2 * conv(c_in, h, 1) + conv(h, h, 3, h) + conv(h, h, 1)
        total += repeats * (2 * conv(h, h, 1) + conv(h, h, 3, h))
        c_in = width
    return total + conv(c_in, 1024, 1) + 1024 * 100 + 100


# Backbones with 100 classes, counted layer by layer; each formula also gives a golden count, so it is right itself.
BY_HAND = {
    # Published beside weiaicunzai's PyTorch networks.
    "ResNet18": 11_220_132,
    "resnet14": resnet(14, 16, (16, 32, 64)),
    "resnet32": resnet(32, 16, (16, 32, 64)),
    "resnet44": resnet(44, 16, (16, 32, 64)),
    "resnet110": resnet(110, 16, (16, 32, 64)),
    "resnet8_half": resnet(8, 8, (8, 16, 32)),
    "resnet8_quarter": resnet(8, 4, (4, 8, 16)),
    "wrn_16_1": wrn(16, 1),
    "vgg8_bn": vgg(1, 1, 1, 1, 1),
    "vgg11_bn": vgg(1, 1, 2, 2, 2),
    "vgg16_bn": vgg(2, 2, 3, 3, 3),
    "vgg19_bn": vgg(2, 2, 4, 4, 4),
    "ShuffleV2_0_5": shuffle_v2(48, 96, 192),
    "ShuffleV2_1_5": shuffle_v2(176, 352, 704),
    "mobilenetV2_crd": ARCHITECTURES["mobilenetV2"]["params"],
}
CHECKS = {
    "resnet8x4": resnet(8, 32, (64, 128, 256)),
    "resnet56": resnet(56, 16, (16, 32, 64)),
    "wrn_40_2": wrn(40, 2),
    "vgg13_bn": vgg(2, 2, 2, 2, 2),
    "ShuffleV2": shuffle_v2(116, 232, 464),
}


def test_hand_counts_give_the_golden_ones():
    assert {name: ARCHITECTURES[name]["params"] for name in CHECKS} == CHECKS
    counted = set(BY_HAND) | {name.removesuffix("_aux") for name in ARCHITECTURES}
    assert not counted & TORCHVISION
    assert set(NETWORKS) - TORCHVISION == counted


@pytest.mark.parametrize("name", BY_HAND)
def test_networks_without_golden_figures(name):
    network = create(name, 7)
    outputs, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    assert outputs.logits.shape == (2, 7)
    assert [q.shape for q in outputs.aux_logits] == [(2, 28)] * len(outputs.features)
    assert profile.totals(create(name, 100, branches=False), (32, 32, 3))["parameters"] == BY_HAND[name]


def test_mobilenet_of_crd_differs_in_the_stem_only():
    ours, theirs = (create(name, 100) for name in ("mobilenetV2", "mobilenetV2_crd"))
    images = jnp.zeros((1, 32, 32, 3))
    a, b = (jax.eval_shape(n.init_with_output, jax.random.key(0), images) for n in (ours, theirs))
    assert shapes(a[1]) == shapes(b[1])
    assert [f.shape[1] for f in a[0].features] == [32, 16, 8, 4]
    assert [f.shape[1] for f in b[0].features] == [16, 8, 4, 2]


def test_one_rule_builds_every_branch():
    """Branch l holds the stages after l, the last one the last stage again, each with weights of its own."""
    variables = jax.eval_shape(create("resnet8", 10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = variables["params"]
    assert {name: set(part) for name, part in params.items() if name.startswith("branch")} == {
        "branch1": {"stage2", "stage3", "head"},
        "branch2": {"stage3", "head"},
        "branch3": {"stage", "head"},
    }
    assert "shortcut_conv" not in params["branch3"]["stage"]["block0"]


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (33, 32)])
def test_any_size_and_channels(size):
    outputs = jax.eval_shape(create("resnet8", 10).init_with_output, jax.random.key(0), jnp.zeros((3, *size, 1)))[0]
    assert [f.shape[1:3] for f in outputs.features] == [size] + [(-(-size[0] // s), -(-size[1] // s)) for s in (2, 4)]


@pytest.mark.parametrize(("name", "size"), [("vgg13_bn", 7), ("resnet18_imagenet", 16), ("resnet8", 1)])
def test_too_small_images_are_refused(name, size):
    with pytest.raises(ValueError, match="image too small for the network"):
        jax.eval_shape(create(name, 10).init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    network = create("resnet8_quarter", 10, dtype="bfloat16")
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = initialise(network, (8, 8, 1), 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    outputs, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
    assert {f.dtype for f in outputs.features} == {jnp.dtype("bfloat16")}
    assert {q.dtype for q in (outputs.logits, *outputs.aux_logits)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    exact = create("resnet8_quarter", 10).apply(variables, images, train=True, mutable=["batch_stats"])[0]
    assert 0 < abs(outputs.logits - exact.logits).max() < 0.05 * abs(exact.logits).max()


def test_train_pattern_picks_the_batch_norms_that_learn():
    network = create("resnet8", 10)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = network.init(jax.random.key(0), images)
    outputs, updated = network.apply(variables, images, train="^branch", mutable=["batch_stats"])
    assert (outputs.logits == network.apply(variables, images).logits).all()
    for part, stats in updated["batch_stats"].items():
        same = jax.tree.map(lambda a, b: bool((a == b).all()), stats, variables["batch_stats"][part])
        assert all(jax.tree.leaves(same)) != part.startswith("branch"), part


def test_batch_norm_of_one_value_is_refused():
    network = create("resnet18_imagenet", 10)
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="larger batch"):
        jax.eval_shape(
            lambda v: network.apply(v, jnp.zeros((1, 32, 32, 3)), train=True, mutable=["batch_stats"]), variables
        )


# PAPER, "Initialisers": conv, fc and fc bias of the backbone, then of the branches.
HE, HE_IN, UNIFORM, NORMAL, ZERO = "he", "he of the fan-in", "uniform", "normal", "zero"
FAN_OUT, NORMAL_2 = "uniform fan-out", "normal 0.02"
INITIALISERS = {
    "wrn": (HE, UNIFORM, ZERO, HE, UNIFORM, ZERO),
    "resnet": (HE, UNIFORM, UNIFORM, HE, UNIFORM, ZERO),
    "ResNet": (HE, UNIFORM, UNIFORM, HE, UNIFORM, UNIFORM),
    "imagenet": (HE, UNIFORM, UNIFORM, HE, UNIFORM, UNIFORM),
    "resnet101": (HE, UNIFORM, UNIFORM, HE, UNIFORM, UNIFORM),
    "resnet152": (HE, UNIFORM, UNIFORM, HE, UNIFORM, UNIFORM),
    "resnext": (HE, UNIFORM, UNIFORM, HE, UNIFORM, UNIFORM),
    "wide_resnet": (HE, UNIFORM, UNIFORM, HE, UNIFORM, UNIFORM),
    "densenet": (HE_IN, UNIFORM, ZERO, HE_IN, UNIFORM, ZERO),
    "vgg16_bn_imagenet": (HE, NORMAL, ZERO, HE, NORMAL, ZERO),
    "vgg": (HE, NORMAL, ZERO, UNIFORM, UNIFORM, UNIFORM),
    "mobilenetV2": (HE, NORMAL, ZERO, HE, NORMAL, ZERO),
    "mobilenetv1": (HE, FAN_OUT, ZERO, HE, FAN_OUT, ZERO),
    "mobilenet_v": (HE, NORMAL, ZERO, HE, NORMAL, ZERO),
    "efficientnet": (HE, FAN_OUT, ZERO, HE, FAN_OUT, ZERO),
    "regnet": (HE, NORMAL, ZERO, HE, NORMAL, ZERO),
    "convnext": (NORMAL_2, NORMAL_2, ZERO, NORMAL_2, NORMAL_2, ZERO),
    "deit": (UNIFORM, NORMAL_2, ZERO, UNIFORM, NORMAL_2, ZERO),
    "ShuffleV1": (UNIFORM, UNIFORM, UNIFORM, HE, UNIFORM, ZERO),
    "ShuffleV2": (UNIFORM, UNIFORM, UNIFORM, UNIFORM, UNIFORM, UNIFORM),
}


def drawn_from(sample, fan_in, fan_out):
    """Which of the distributions the sample [n] comes from, by its spread and its greatest value."""
    if not sample.any():
        return ZERO
    spreads = {HE: (2 / fan_out) ** 0.5, HE_IN: (2 / fan_in) ** 0.5, UNIFORM: (3 * fan_in) ** -0.5, NORMAL: 0.01}
    spreads |= {FAN_OUT: (3 * fan_out) ** -0.5, NORMAL_2: 0.02}
    for kind, std in spreads.items():
        spread = abs(sample.std() / std - 1) < 5 / (2 * sample.size) ** 0.5
        bounded = abs(sample).max() <= (1 + 1e-6) * 3**0.5 * std
        if spread and abs(sample.mean()) < 5 * std / sample.size**0.5 and bounded == (kind in (UNIFORM, FAN_OUT)):
            return kind
    return f"std {sample.std()}"


@pytest.mark.parametrize("name", NETWORKS)
def test_initialisers(name):
    family = max((f for f in INITIALISERS if f in name), key=len)
    architecture, key = NETWORKS[name](), jax.random.key(0)
    found = []
    for init in (architecture.init, architecture.branch_init):
        found += [
            drawn_from(np.ravel(init.conv(key, (3, 3, 40, 70))), 9 * 40, 9 * 70),
            drawn_from(np.ravel(init.fc(key, (4000, 60))), 4000, 60),
            drawn_from(np.ravel(init.fc_bias(500)(key, (5000,))), 500, 1),
        ]
    assert tuple(found) == INITIALISERS[family]


def test_initialisers_are_wired_to_their_layers():
    """VGG tells all apart: its convolutions have biases, and its branches start unlike its backbone."""
    variables = initialise(create("vgg8_bn", 300), (32, 32, 3), seed=3)
    backbone, branch = variables["params"], variables["params"]["branch3"]
    kernel = np.asarray(backbone["stage3"]["conv1"]["kernel"])
    assert drawn_from(kernel.ravel(), 9 * 128, 9 * 256) == HE
    assert not backbone["stage3"]["conv1"]["bias"].any()
    assert drawn_from(np.ravel(backbone["head"]["fc"]["kernel"]), 512, 300) == NORMAL
    assert not backbone["head"]["fc"]["bias"].any()
    assert drawn_from(np.ravel(branch["stage4"]["conv1"]["kernel"]), 9 * 256, 9 * 512) == UNIFORM
    assert drawn_from(np.ravel(branch["stage4"]["conv1"]["bias"]), 9 * 256, 1) == UNIFORM
    assert drawn_from(np.ravel(branch["head"]["fc"]["kernel"]), 512, 1200) == UNIFORM
    assert drawn_from(np.ravel(branch["head"]["fc"]["bias"]), 512, 1) == UNIFORM
    assert (backbone["stage3"]["bn1"]["scale"] == 1).all()
    assert not branch["stage4"]["bn1"]["bias"].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create("resnet_20", 10), "unknown network 'resnet_20': did you mean 'resnet20'"),
        (lambda: create("resnet20", 1), "at least 2 classes"),
        (lambda: create("resnet20", 10, dtype="float16"), "choose float32 or bfloat16"),
    ],
)
def test_bad_names(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_peers_share_nothing():
    from functools import partial

    peers = Peers((partial(Network, NETWORKS["resnet8_quarter"](), 10),) * 2)
    params = initialise(peers, (8, 8, 1), 0)["params"]
    assert set(params) == {"peer1", "peer2"}
    assert (params["peer1"]["stem"]["conv1"]["kernel"] != params["peer2"]["stem"]["conv1"]["kernel"]).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_probe_trains_the_last_layer_only(name):
    """And so does the teacher of configs/own.py, by the same pattern."""
    network, side = create(name, 10, branches=False), architecture(name).image_size
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    paths = ["/".join(path) for path in flatten_dict(shapes["params"])]
    trained = [path for path in paths if is_trainable(RECIPES["probe"].trainable, path)]
    assert sorted(trained) == ["head/fc/bias", "head/fc/kernel"]
    teacher = runpy.run_path(str(ROOT / "configs/own.py"))["get_config"]().teacher
    assert teacher.trainable == RECIPES["probe"].trainable
