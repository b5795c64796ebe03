"""torchvision's ConvNeXt and timm's DeiT: no BatchNorm, and a class token beside the map."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import safetensors.numpy
import small_families
from flax.traverse_util import flatten_dict, unflatten_dict
from float64 import enable_x64
from run_configs import run_config
from torch_tensors import assert_tensors_of_the_original, shapes

from hsakd_jax import create, load_torch, restore
from hsakd_jax.core.console import Console
from hsakd_jax.distillation.methods import TERMS, Methods, Sample
from hsakd_jax.interop import torch_names, torch_weights
from hsakd_jax.interop.exporters import FORMATS, TOLERANCE, Export, compare
from hsakd_jax.interop.importing import convert
from hsakd_jax.models import architecture, deit, profile, resnet
from hsakd_jax.models.folding import Folded
from hsakd_jax.models.network import Network, Peers

# Side and channels of the map after each stage, at images of 64x64.
STAGES = {
    "convnext_tiny": [(16, 96), (8, 192), (4, 384), (2, 768)],
    "deit_tiny_patch16_224": [(4, 192)] * 4,
    "deit_small_patch16_224": [(4, 384)] * 4,
}
GOLDEN = reference.torchvision()
SMALL = {family: small_families.SMALL[family] for family in ("convnext", "deit")}
g = np.random.default_rng(0)
IMAGES = jnp.asarray(g.standard_normal((4, 64, 64, 3)), jnp.float32)
LABELS = jnp.arange(4)


def drawn(network, dtype=np.float32, seed=0):
    """Variables, all drawn anew, so that layer scales and biases do something."""
    g = np.random.default_rng(seed)
    found = jax.eval_shape(network.init, jax.random.key(0), IMAGES)

    def draw(path, leaf):
        noise = 0.1 * g.standard_normal(leaf.shape)
        return jnp.asarray(1 + noise if path[-1].key in ("scale", "layer_scale", "var") else noise, dtype)

    return jax.tree_util.tree_map_with_path(draw, found)


def error(found, expected):
    return max(
        abs(np.asarray(a, np.float64) - b).max() / abs(np.asarray(b)).max()
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )


@pytest.mark.parametrize("name", STAGES)
def test_shapes_and_branches(name):
    network = create(name, 7)
    outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), IMAGES)
    assert [f.shape for f in outputs.features] == [(4, side, side, channels) for side, channels in STAGES[name]]
    assert [q.shape for q in outputs.aux_logits] == [(4, 28)] * 4
    assert outputs.embedding.shape == (4, STAGES[name][-1][1])
    assert set(variables) == {"params"}
    params = variables["params"]
    assert {part: set(tree) for part, tree in params.items() if part.startswith("branch")} == {
        "branch1": {"stage2", "stage3", "stage4", "head"},
        "branch2": {"stage3", "stage4", "head"},
        "branch3": {"stage4", "head"},
        "branch4": {"stage", "head"},
    }
    # The last stage once more, without the layers that halve the map.
    again = shapes(params["branch4"]["stage"])
    expected = shapes(params["stage4"])
    assert again == {path: shape for path, shape in expected.items() if path[0] not in ("norm", "conv")}


@pytest.mark.parametrize("name", STAGES)
def test_parameters_and_tensors_are_those_of_torchvision_and_timm(name):
    assert architecture(name).image_size == GOLDEN[name]["resolution"] == 224
    assert_tensors_of_the_original(name, 224)


@pytest.mark.parametrize("name", ["convnext_tiny", "deit_tiny_patch16_224"])
def test_each_layer_of_a_branch_has_a_key_of_its_own(name):
    variables = jax.eval_shape(create(name, 1000).init, jax.random.key(0), IMAGES)
    paths = [path[1:] for path in flatten_dict(variables)]
    keys = [torch_names.state_dict_key(name, 4, path, True, torch_names.HEADS[name][0]) for path in paths]
    assert len(set(keys)) == len(keys)
    plain = {key.removeprefix("backbone.") for key in keys if key.startswith("backbone.")}
    assert plain == {key for key, _ in GOLDEN[name]["state_dict"]}
    assert {key for key in keys if not key.startswith(("backbone.", "auxiliary_classifier.branch"))} == set()


@pytest.mark.parametrize("name", STAGES)
def test_golden_logits(name):
    network = create(name, 1000, branches=False)
    variables = reference.variables(GOLDEN[name], reference.SALT2, np.float32)
    images, _ = reference.inputs("input2", 2, 224, 1000, reference.SALT2)
    logits = jax.jit(network.apply)(variables, images.astype(np.float32)).logits
    expected = reference.torchvision_logits(name)
    assert abs(logits - expected).max() <= 1e-5 * abs(expected).max()
    # The images differ, so that an equal answer to both would fail.
    assert abs(expected[0] - expected[1]).max() > 0.01 * abs(expected).max()


def test_positions_for_other_image_sizes_are_those_of_timm():
    """timm calls `interpolate(bicubic, antialias=True)`; here in float64, since PyTorch rounds weights in float32."""
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed; .ci/run does it")
    given = g.standard_normal((1, 14, 14, 5)).astype(np.float32)
    for size in ((14, 14), (4, 4), (7, 10), (24, 24)):
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(given.transpose(0, 3, 1, 2).astype(np.float64)), size=size, mode="bicubic", antialias=True
        )
        ours = deit.resized_positions(jnp.asarray(given), *size)
        np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_attention():
    """Against NumPy, with scores that a softmax without maximum would not survive."""
    q, k, v = (30 * g.standard_normal((2, 5, 3, 4)) for _ in range(3))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    with enable_x64(True):
        np.testing.assert_allclose(deit.attention(*map(jnp.asarray, (q, k, v))), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(64, 65), (8, 64), (200, 200)])
def test_images_without_whole_patches_are_refused(size):
    with pytest.raises(ValueError, match="multiple of 16 pixels"):
        jax.eval_shape(create("deit_tiny_patch16_224", 5).init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def test_a_class_token_goes_with_the_map():
    """Each branch, and SimKD's projector, takes what belongs to its stage: tokens of the stages before decide both."""
    network = Network(SMALL["deit"], 5)
    variables = drawn(network)
    flat = flatten_dict(variables)
    path = ("params", "stem", "class_token")
    # Not by a constant, which each LayerNorm would remove.
    changed = unflatten_dict({**flat, path: flat[path] + jnp.arange(32).reshape(1, 1, 32) / 32})
    before, after = (jax.jit(network.apply)(v, IMAGES[:, :32, :48]) for v in (variables, changed))
    assert [f.shape for f in before.features] == [(4, 2, 3, 32)] * 3
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert abs(a - b).max() > 1e-3 * abs(a).max()
    # The patches decide the logits through the class token alone.
    np.testing.assert_allclose(before.last_map.reshape(4, -1), before.embedding)
    assert abs(before.logits[0] - before.logits[1]).max() > 0


@pytest.mark.parametrize("family", SMALL)
def test_forms_of_a_network(family):
    """Folding, remat, export and float64 compute the same; bfloat16 answers in float32."""
    network = Network(SMALL[family], 5)
    variables = drawn(network)
    outputs = jax.jit(network.apply)(variables, IMAGES)
    folded = Folded(network)
    given = folded.fold(variables, IMAGES)
    jax.tree.map(np.testing.assert_array_equal, given["params"], variables["params"])
    assert not given["batch_stats"]
    assert error(jax.jit(folded.apply)(given, IMAGES), outputs) == 0
    for form in (network.clone(remat=True), network.clone(for_export=True)):
        assert error(jax.jit(form.apply)(variables, IMAGES), outputs) < 1e-5
    with enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), (variables, IMAGES))
        exact = jax.jit(network.apply)(*wide)
        assert {x.dtype for x in jax.tree.leaves(exact)} == {jnp.dtype("float64")}
        assert 0 < error(outputs, exact) < 1e-4
    narrow = jax.jit(network.clone(dtype=jnp.bfloat16).apply)(variables, IMAGES)
    assert {f.dtype for f in narrow.features} == {jnp.dtype("bfloat16")}
    assert {q.dtype for q in (narrow.logits, *narrow.aux_logits)} == {jnp.dtype("float32")}
    assert 1e-4 < error(narrow.logits, outputs.logits) < 0.1


def test_convert_finds_the_network_from_its_tensors(tmp_path):
    name = "deit_tiny_patch16_224"
    tensors = reference.state_dict(GOLDEN[name], reference.SALT2, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    convert(tmp_path / "x.safetensors", tmp_path / "run", Console(silent=True))
    network, variables = restore(tmp_path / "run")
    assert network.architecture == architecture(name)
    assert variables["batch_stats"] == {}
    jax.tree.map(np.testing.assert_array_equal, variables, load_torch(tensors))
    back = torch_weights.to_state_dict(name, network, variables)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor)


@pytest.mark.parametrize("name", [*SMALL, pytest.param("convnext_tiny", marks=pytest.mark.slow)])
def test_export_to_stablehlo(name, tmp_path):
    network = Network(SMALL[name], 10, branches=False) if name in SMALL else create(name, 10, branches=False)
    config = run_config(shape=(64, 64, 3), data__mean=(0.5,) * 3, data__std=(0.25,) * 3)
    exported = Export(name, network, drawn(network), config, False)
    difference, greatest = compare(exported, FORMATS["stablehlo"][0](exported, tmp_path / "x"))
    assert difference <= TOLERANCE * greatest
    assert greatest > 0


def test_peers_with_and_without_batch_norm():
    small = resnet.resnet(resnet.BasicBlock, [1, 1], [4, 8], partial(resnet.Stem, features=4))
    peers = Peers((partial(Network, small, 5), partial(Network, SMALL["deit"], 5)))
    variables = jax.eval_shape(peers.init, jax.random.key(0), IMAGES)
    assert set(variables["batch_stats"]) == {"peer1"}


CNN = resnet.resnet(resnet.BasicBlock, [1] * 3, [4, 8, 12], resnet.ImageNetStem)


@pytest.mark.parametrize("pair", ["deit cnn", "cnn deit", "convnext deit", "deit convnext"])
@pytest.mark.parametrize("term", ["ofa", "at", "sp", "vid", "reviewkd", "wkd_f", "pkt", "crd", "rkd", "cc", "simkd"])
def test_methods_between_families(pair, term):
    """Each method makes its layers and its loss of maps of different sizes."""
    teacher, student = (CNN if kind == "cnn" else SMALL[kind] for kind in pair.split())
    taught = Network(teacher, 5, branches=False)
    size = profile.last_map_size(taught, IMAGES.shape[1:]) if term == "simkd" else None
    learner = Network(student, 5, branches=False, projector=size)
    (theirs, _), (ours, _) = (jax.eval_shape(n.init_with_output, jax.random.key(0), IMAGES) for n in (taught, learner))
    sample = Sample(jnp.arange(4, dtype=jnp.int32), jnp.arange(8, dtype=jnp.int32) % 5, jax.random.key(0))
    objective = Methods({term: {"negatives": 3} if term == "crd" else {}})
    terms, _ = jax.eval_shape(objective.init_with_output, jax.random.key(0), ours, LABELS, theirs, sample)
    assert terms[term].shape == ()
    assert term in TERMS


def test_ofa_needs_maps_that_its_classifiers_can_halve():
    """The classifier after the first of four stages halves the map three times."""
    objective, student = Methods({"ofa": {}}), create("deit_tiny_patch16_224", 5, branches=False)

    def loss(side):
        outputs, _ = jax.eval_shape(student.init_with_output, jax.random.key(0), jnp.zeros((4, side, side, 3)))
        sample = Sample(LABELS, LABELS, jax.random.key(0))
        jax.eval_shape(objective.init, jax.random.key(0), outputs, LABELS, outputs, sample)

    loss(224)
    with pytest.raises(ValueError, match="use larger images"):
        loss(64)
