"""The maps that methods compare: those of CRD's benchmark, those before the last ReLU and the input of the pool."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hsakd_jax import create
from hsakd_jax.models import NETWORKS, architecture
from hsakd_jax.models.layers import HE_TORCH, LayerFactory
from hsakd_jax.models.network import Architecture, Network
from hsakd_jax.models.resnet import Stem
from hsakd_jax.runs.restore import initialise


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes(name):
    side = 64 if architecture(name).for_imagenet else 32
    outputs, _ = jax.eval_shape(
        create(name, 7, False).init_with_output, jax.random.key(0), jnp.zeros((2, side, side, 3))
    )
    hints = [hint.shape for hint in outputs.hints]
    if name.startswith("vgg") and side == 32:  # CRD's f1 to f4
        assert hints == [(2, 16, 16, 128), (2, 8, 8, 256), (2, 4, 4, 512), (2, 4, 4, 512)]
    else:
        assert hints == [feature.shape for feature in outputs.features]
    assert [x.shape for x in outputs.preactivations] == hints
    # The last linear layers of some networks take no pooled map.
    hidden = ("vgg16_bn_imagenet", "mobilenet_v3", "convnext", "deit")
    size = (1, 1) if name.startswith(hidden) else outputs.features[-1].shape[1:3]
    assert outputs.last_map.shape == (2, *size, outputs.embedding.shape[-1])


def drawn(name, images, train=False):
    """The outputs of a network and its variables, all drawn anew, so that BatchNorm does something."""
    network, g = create(name, 5, False), np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)

    def draw(path, leaf):
        low = 0.5 if path[-1].key in ("scale", "var") else -0.5
        return jnp.asarray(g.uniform(low, low + 1, leaf.shape), jnp.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    apply = jax.jit(lambda v: network.apply(v, images, train, mutable=["batch_stats"]))
    return *apply(variables), jax.tree.map(np.asarray, variables)


IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize("name", ["resnet8", "vgg8_bn", "ShuffleV2_0_5"])
def test_preactivations_are_the_hints_before_their_last_relu(name):
    outputs, *_ = drawn(name, IMAGES)
    assert len(outputs.preactivations) == len(outputs.hints) >= 3
    for before, hint in zip(outputs.preactivations, outputs.hints, strict=True):
        np.testing.assert_array_equal(np.maximum(before, 0), hint)
        assert (np.asarray(before) < 0).any()
    np.testing.assert_array_equal(outputs.hints[-1], outputs.features[-1])


@pytest.mark.parametrize("train", [False, True])
def test_a_wide_resnet_has_those_of_the_batch_norm_that_follows(train):
    """As in the authors' code, of the next stage's first block and of the head; in training it is updated once."""
    outputs, updated, variables = drawn("wrn_16_1", IMAGES, train)
    for where, (hint, found) in zip(
        (("stage2", "block0"), ("stage3", "block0"), ("head",)),
        zip(outputs.hints, outputs.preactivations, strict=True),
        strict=True,
    ):
        params, stats, new = variables["params"], variables["batch_stats"], updated["batch_stats"]
        for name in (*where, "bn1"):
            params, stats, new = params[name], stats[name], new[name]
        x = np.asarray(hint, np.float64)
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
        expected = (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        once = 0.9 * stats["mean"] + 0.1 * mean if train else stats["mean"]
        np.testing.assert_allclose(new["mean"], once, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(outputs.last_map, np.maximum(outputs.preactivations[-1], 0))


def test_linear_bottlenecks_have_no_last_relu():
    outputs, *_ = drawn("mobilenetV2", IMAGES)
    for before, hint in zip(outputs.preactivations, outputs.hints, strict=True):
        np.testing.assert_array_equal(before, hint)
    assert (np.asarray(outputs.last_map) >= 0).all()


def test_the_last_map_is_what_the_global_pool_takes():
    outputs, *_ = drawn("ShuffleV2_0_5", IMAGES)
    np.testing.assert_allclose(outputs.last_map.mean((1, 2)), outputs.embedding, rtol=1e-6)


def test_recomputed_stages_have_the_same_maps():
    network = create("resnet8_quarter", 5)
    variables = initialise(network, (8, 8, 3), 0)
    plain, again = (jax.jit(n.apply)(variables, IMAGES) for n in (network, network.clone(remat=True)))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_stage_may_return_its_output_alone():
    class OwnHead(nn.Module):
        layers: LayerFactory
        num_outputs: int

        @nn.compact
        def __call__(self, x):
            return self.layers.pool_fc(x, self.num_outputs)[:2]

    def stage(layers, name, stride=1):
        return Stem(layers, 8, name=name)

    network = Network(Architecture(None, (stage, stage), OwnHead, HE_TORCH, HE_TORCH), 5)
    outputs, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), IMAGES)
    assert [x.shape for x in outputs.features] == [(4, 8, 8, 8)] * 2
    assert outputs.hints == outputs.preactivations == outputs.features
    assert [q.shape for q in outputs.aux_logits] == [(4, 20)] * 2
    assert outputs.last_map is None
