"""Each method against NumPy, written from the formulas of its paper and of CRD's benchmark."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import enable_x64

from hsakd_jax import create
from hsakd_jax.distillation import methods
from hsakd_jax.distillation.methods import (
    RELATE_IMAGES,
    TERMS,
    Methods,
    Sample,
    contrastive,
    review,
    self_supervised,
    transport,
)
from hsakd_jax.experiments.published import OURS
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.models.network import Outputs

B, N, IMAGES = 4, 5, 12
LABELS = jnp.array([4, 0, 2, 0], jnp.int32)
CLASSES = np.array([1, 4, 0, 2, 2, 0, 1, 3, 0, 3, 1, 4])
STUDENT, TEACHER = ((8, 3), (4, 5), (2, 6)), ((8, 4), (4, 6), (2, 7))


def outputs(seed, stages, rows=B):
    """Random outputs; stages are (size, channels)."""
    g = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(g.normal(size=shape), jnp.float32)

    features = tuple(normal(rows, size, size, channels) for size, channels in stages)
    logits, embedding = normal(rows, N), normal(rows, stages[-1][1])
    last_map = normal(rows, 2, 2, 7)  # of the student after a projector
    joint = tuple(normal(rows, 4 * N) for _ in stages)
    return Outputs(logits, joint, features, embedding, last_map, hints=features, preactivations=features)


STRONG = outputs(2, STUDENT), outputs(3, TEACHER)
SAMPLE = Sample(jnp.array([1, 2, 4, 8], jnp.int32), jnp.asarray(CLASSES, jnp.int32), jax.random.key(7), *STRONG)


def start(term, s, t, **options):
    """A term's variables as they start."""
    return jax.jit(Methods({term: options}).init)(jax.random.key(0), s, LABELS, t, SAMPLE)


def filled(g, make, *given):
    """What `make` gives, all its numbers drawn anew from 0.05 to 0.15: positive, as Z is."""
    return jax.tree.map(lambda x: jnp.asarray(g.uniform(0.05, 0.15, x.shape), x.dtype), jax.eval_shape(make, *given))


def apply(objective, *given):
    """As the train step does."""
    # What is given are arguments, since XLA would spend seconds on computing with constants.
    return jax.jit(lambda *given: objective.apply(*given, mutable=["batch_stats"]))(*given)


def value(term, s, t, variables=None, sample=SAMPLE, **options):
    """The term's value, its variables before and what it remembers after."""
    objective = Methods({term: options})
    variables = start(term, s, t, **options) if variables is None else variables
    found, kept = apply(objective, variables, s, LABELS, t, sample)
    assert found[term].shape == ()
    return float(found[term]), variables, kept


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def convolved(x, kernel, stride, pad):
    x, k = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), len(kernel)
    places = range(0, x.shape[1] - k + 1, stride)
    rows = [[np.tensordot(x[:, i : i + k, j : j + k], kernel, 3) for j in places] for i in places]
    return np.stack([np.stack(row, 1) for row in rows], 1)


def pooled(x, size):
    batch, height, _, channels = x.shape
    return x.reshape(batch, size, height // size, size, height // size, channels).mean((2, 4))


def test_dkd():
    s, t = outputs(0, STUDENT), outputs(1, TEACHER)
    p, q = softmax(wide(t.logits) / 4), softmax(wide(s.logits) / 4)
    expected = 0
    for i, y in enumerate(LABELS):
        a, b = p[i, y], q[i, y]
        target = a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))
        rest = kl(np.delete(p[i], y) / (1 - a), np.delete(q[i], y) / (1 - b))
        expected += 16 * (1.5 * target + 8 * rest) / B
    np.testing.assert_allclose(value("dkd", s, t, alpha=1.5)[0], expected, rtol=1e-4)


def test_ofa():
    """Of the last stage but one, which has a separable convolution, and of the last one, which has a 1x1."""
    s, t = outputs(0, ((4, 3), (2, 6))), outputs(1, ((4, 4), (2, 7)))
    found, variables, _ = value("ofa", s, t, gamma=1.5, temperature=2.0)
    layers, x = wide(variables["params"]["ofa"]), wide(s.features[0])
    stage = layers["stage1"]["conv1"]
    for i, stride in ((1, 2), (2, 1)):
        kernel = stage[f"depthwise{i}"]["kernel"]
        x = np.concatenate([convolved(x[..., c : c + 1], kernel[..., c : c + 1], stride, 1) for c in range(3)], -1)
        x = x @ stage[f"pointwise{i}"]["kernel"][0, 0]
        x = np.maximum((x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5), 0)
    last = layers["stage2"]["conv"]
    maps = x, wide(s.features[1]) @ last["kernel"][0, 0] + last["bias"]
    assert [x.shape for x in maps] == [(B, 2, 2, 7)] * 2
    fc = [layers[f"stage{l}"]["fc"] for l in (1, 2)]
    exits = [x.mean((1, 2)) @ layer["kernel"] + layer["bias"] for x, layer in zip(maps, fc, strict=True)]
    p, target = softmax(wide(t.logits) / 2), np.eye(N)[np.asarray(LABELS)]
    weights = (p + target) ** 1.5 - target
    expected = sum(-(weights * np.log(softmax(x / 2))).sum(-1).mean() for x in (wide(s.logits), *exits))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def distance(s, t, tau):
    """1 - Pearson's correlation of probabilities, mean over rows, and the same over columns."""
    q, p = softmax(wide(s) / tau), softmax(wide(t) / tau)
    by_row, by_column = (
        np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]) for x, y in ((q, p), (q.T, p.T))
    )
    return 1 - by_row, 1 - by_column


def test_dist_aux():
    """Of a deeper teacher, whose first branch has no partner."""
    s, t = outputs(0, STUDENT, 4 * B), outputs(1, ((16, 2), *TEACHER), 4 * B)
    parts = [distance(q, p, 2.0) for q, p in zip(s.aux_logits, t.aux_logits[1:], strict=True)]
    expected = sum(4 * (0.5 * rows + 3 * columns) for rows, columns in parts)
    found, *_ = value("dist_aux", s, t, beta=0.5, gamma=3.0, temperature=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    rows, columns = parts[1]
    np.testing.assert_allclose(value("dist_aux", s, t, temperature=2.0, branches=(2,))[0], 4 * (rows + columns), 1e-5)
    with pytest.raises(ValueError, match="dist_aux: branch 1 has no partner.*choose branches from 2 on"):
        start("dist_aux", t, s, branches=(1,))


@pytest.mark.parametrize(("size", "of_teacher"), [(4, 4), (8, 4), (4, 8), (6, 4)])
def test_fitnet(size, of_teacher):
    s, t = outputs(0, ((8, 2), (size, 3), (2, 4))), outputs(1, ((16, 2), (of_teacher, 5), (2, 4)))
    found, variables, kept = value("fitnet", s, t)
    x, conv = wide(s.features[1]), wide(variables["params"]["fitnet"]["conv"])
    if 2 * size == of_teacher:
        gaps = np.zeros((B, 2 * size + 3, 2 * size + 3, 3))
        gaps[:, 2 : 2 * size + 2 : 2, 2 : 2 * size + 2 : 2] = x
        x = convolved(gaps, conv["kernel"], 1, 0)
        assert conv["kernel"].shape[:2] == (4, 4)
    elif size == 2 * of_teacher:
        x = convolved(x, conv["kernel"], 2, 1)
        assert conv["kernel"].shape[:2] == (3, 3)
    else:
        x = convolved(x, conv["kernel"], 1, 0)
    x = x + conv["bias"]
    normal = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(found, ((np.maximum(normal, 0) - wide(t.features[1])) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(kept["batch_stats"]["fitnet"]["bn"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-4)


def attention_loss(s, t):
    a, b = (unit((x**2).mean(-1).reshape(len(x), -1)) for x in (s, t))
    return ((a - b) ** 2).mean()


def test_at():
    s, t = outputs(0, STUDENT), outputs(1, TEACHER)
    expected = sum(attention_loss(a, b) for a, b in zip(wide(s.features), wide(t.features), strict=True))
    np.testing.assert_allclose(value("at", s, t)[0], expected, rtol=1e-5)


def test_stages_pair_from_the_deepest_and_pool_to_the_smaller():
    s, t = outputs(0, ((8, 3), (4, 5))), outputs(1, ((16, 2), (4, 4), (8, 6)))
    (a, b), (_, c, d) = wide(s.features), wide(t.features)
    expected = attention_loss(pooled(a, 4), c) + attention_loss(b, pooled(d, 4))
    np.testing.assert_allclose(value("at", s, t)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(value("at", t, s)[0], expected, rtol=1e-5)
    assert set(start("vid", t, s)["params"]["vid"]) == {
        f"stage{l}_{part}" for l in (2, 3) for part in ("conv1", "conv2", "conv3", "log_scale")
    }


def test_hints_unless_the_features_are_chosen():
    """Those of VGG begin one block later and are as many."""
    s, t = (
        outputs(seed, stages)._replace(hints=outputs(seed + 2, (*stages[1:], stages[2])).features)
        for seed, stages in ((0, STUDENT), (1, TEACHER))
    )
    for maps in ("hints", "features"):
        pairs = list(zip(wide(getattr(s, maps)), wide(getattr(t, maps)), strict=True))
        expected = sum(attention_loss(a, b) for a, b in pairs)
        np.testing.assert_allclose(value("at", s, t, maps=maps)[0], expected, rtol=1e-5)
        channels = [b.shape[-1] for _, b in pairs]
        found = start("vid", s, t, maps=maps)["params"]["vid"]
        assert [found[f"stage{l}_log_scale"].size for l in (1, 2, 3)] == channels
        conv = start("fitnet", s, t, maps=maps)["params"]["fitnet"]["conv"]["kernel"]
        assert conv.shape[-2:] == (pairs[1][0].shape[-1], channels[1])
    assert value("at", s, t)[0] == value("at", s, t, maps="hints")[0]


@pytest.mark.parametrize(
    ("term", "stages", "options", "message"),
    [
        ("at", ((8, 3), (3, 5), (2, 6)), {}, "maps of 4x4 and 3x3"),
        ("fitnet", ((8, 3), (3, 5), (2, 6)), {}, "no regressor from a map of 3x3 to one of 4x4"),
        ("fitnet", STUDENT, {"stage": 4}, "stage that has a partner .*: 1, 2, 3"),
        ("fitnet", ((16, 2), *STUDENT), {"stage": 1}, "stage that has a partner .*: 2, 3, 4"),
        ("wkd_f", ((2, 3),), {"grid": 2}, "a map of 2x2 has cells of one pixel in a grid of 2"),
        ("wkd_f", ((4, 3),), {"projector": "bottleneck"}, "no bottleneck from a map of 4x4 to one of 2x2"),
    ],
)
def test_maps_that_do_not_compare(term, stages, options, message):
    with pytest.raises(ValueError, match=message):
        start(term, outputs(0, stages), outputs(1, TEACHER), **options)


def test_wkd_l_and_its_target():
    s, t = outputs(0, STUDENT), outputs(1, TEACHER)
    cost = np.random.default_rng(5).uniform(0.1, 1, (N, N)).astype(np.float32)
    variables = start("wkd_l", s, t)
    assert np.isnan(variables["batch_stats"]["wkd_l"]["cost"]).all()
    variables["batch_stats"]["wkd_l"]["cost"] = cost
    options = {"temperature": 2.0, "regularisation": 0.2, "iterations": 7}
    for sharpness, used in ((0.0, cost), (1.5, 1 - np.exp(-1.5 * cost))):
        found, _, kept = value("wkd_l", s, t, variables, sharpness=sharpness, **options)
        expected = transport.transport_loss(s.logits, t.logits, LABELS, jnp.asarray(used), 2.0, 0.2, 7)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_array_equal(kept["batch_stats"]["wkd_l"]["cost"], cost)
    rows, labels = np.arange(B), np.asarray(LABELS)
    p, q = (softmax(wide(x.logits))[rows, labels] for x in (t, s))
    np.testing.assert_allclose(value("wkd_target", s, t)[0], -(p * np.log(q)).mean(), rtol=1e-5)


@pytest.mark.parametrize("rows", [4, 9])
def test_cka_cost(rows):
    """Of fewer and of more rows than channels, which are computed in two ways, and of a class without features."""
    features = np.random.default_rng(0).normal(size=(3, rows, 6)).astype(np.float32)
    features[2] = 1
    a, b = (wide(x) - wide(x).mean(0) for x in features[:2])
    cka = (np.linalg.norm(b.T @ a) ** 2) / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    expected = [[0, 1 - cka, 1], [1 - cka, 0, 1], [1, 1, 1]]
    for scale in (1, 1e15, 1e-15):
        np.testing.assert_allclose(jax.jit(transport.cka_cost)(scale * features), expected, atol=1e-5)


def test_reviewkd_takes_the_teachers_maps_before_their_last_relu():
    """The golden cases compare its values."""
    s, t = outputs(0, STUDENT), outputs(1, TEACHER)
    found, variables, _ = value("reviewkd", s, t)
    assert set(variables["params"]["reviewkd"]) == {"pooled", "stage1", "stage2", "stage3"}

    def changed(of_teacher, *fields, **options):
        """Whether the loss reads one of the fields: their maps are replaced by those after a ReLU."""
        given = [s, t]
        cut = {field: tuple(np.maximum(x, 0) for x in given[of_teacher].hints) for field in fields}
        given[of_teacher] = given[of_teacher]._replace(**cut)
        return value("reviewkd", *given, variables, **options)[0] != found

    assert changed(True, "preactivations")
    assert not changed(True, "features", "hints")
    assert changed(False, "hints")
    assert not changed(False, "features", "preactivations")
    assert changed(False, "preactivations", preactivation=True)
    assert not changed(False, "features", "hints", preactivation=True)
    narrow = start("reviewkd", s, t, max_channels=2)["params"]["reviewkd"]
    assert {level["conv1"]["kernel"].shape[-1] for level in narrow.values()} == {2}


def test_sp():
    s, t = outputs(0, STUDENT), outputs(1, TEACHER)
    grams = []
    for x in (s, t):
        rows = wide(x.features[-1]).reshape(B, -1)
        grams.append(unit(np.array([[a @ b for b in rows] for a in rows])))
    np.testing.assert_allclose(value("sp", s, t)[0], ((grams[0] - grams[1]) ** 2).sum() / B**2, rtol=1e-5)


def test_cc():
    s, t = outputs(0, STUDENT), outputs(1, TEACHER)
    found, variables, _ = value("cc", s, t)
    layers = wide(variables["params"]["cc"])
    a, b = (
        wide(x.embedding) @ layers[side]["kernel"] + layers[side]["bias"]
        for x, side in ((s, "student"), (t, "teacher"))
    )
    assert a.shape == (B, 128)
    delta = abs(a - b)
    expected = sum((delta[i] * delta[i + 1]).sum() for i in range(B - 1)) / (B - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_vid():
    s, t = outputs(0, STUDENT), outputs(1, TEACHER)
    variables, rows = start("vid", s, t), itertools.count(1)
    scale = float(variables["params"]["vid"]["stage1_log_scale"][0])
    np.testing.assert_allclose(math.log1p(math.exp(scale)) + 1e-5, 5, rtol=1e-6)
    variables = jax.tree.map(lambda x: x + 0.1 * next(rows) if x.ndim == 1 else x, variables)
    layers, expected = wide(variables["params"]["vid"]), 0
    for l, (x, y) in enumerate(zip(wide(s.features), wide(t.features), strict=True), 1):
        for i in (1, 2, 3):
            x = (np.maximum(x, 0) if i > 1 else x) @ layers[f"stage{l}_conv{i}"]["kernel"]
        variance = np.log1p(np.exp(layers[f"stage{l}_log_scale"])) + 1e-5
        expected += (0.5 * ((x - y) ** 2 / variance + np.log(variance))).mean()
    np.testing.assert_allclose(value("vid", s, t, variables)[0], expected, rtol=1e-5)


def smooth(d):
    return 0.5 * d**2 if abs(d) < 1 else abs(d) - 0.5


def test_rkd():
    s, t = outputs(0, STUDENT), outputs(1, TEACHER)
    distances, angles = [], []
    for x in (wide(s.embedding), wide(t.embedding)):
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        distances.append(d / d[d > 0].mean())
        angle = np.zeros((B, B, B))
        for i, j, k in itertools.product(range(B), repeat=3):
            if i not in (j, k):
                angle[i, j, k] = unit(x[j] - x[i]) @ unit(x[k] - x[i])
        angles.append(angle)
    by_distance, by_angle = (np.mean([smooth(d) for d in (a - b).reshape(-1)]) for a, b in (distances, angles))
    np.testing.assert_allclose(value("rkd", s, t)[0], 25 * by_distance + 50 * by_angle, rtol=1e-5)


def test_pkt():
    s, t = outputs(0, STUDENT), outputs(1, TEACHER)
    q, p = ((unit(wide(x.embedding)) @ unit(wide(x.embedding)).T + 1) / 2 for x in (s, t))
    q, p = (x / x.sum(1, keepdims=True) for x in (q, p))
    expected = (p * np.log((p + 1e-7) / (q + 1e-7))).mean()
    np.testing.assert_allclose(value("pkt", s, t)[0], expected, rtol=1e-4)


def test_negatives_are_of_other_classes():
    drawn = np.asarray(contrastive.draw_negatives(SAMPLE, 4000))
    for row, index in zip(drawn, SAMPLE.index, strict=True):
        others = np.flatnonzero(CLASSES[index] != CLASSES)
        frequencies = np.bincount(row, minlength=IMAGES)[others] / 4000
        assert set(row) == set(others)
        np.testing.assert_allclose(frequencies, 1 / len(others), atol=0.03)
    part = Sample(SAMPLE.index[2:], SAMPLE.classes, SAMPLE.key)
    np.testing.assert_array_equal(contrastive.draw_negatives(part, 4000), drawn[2:])


def test_crd():
    """Two steps; the second takes the first one's Z."""
    s, t = outputs(0, STUDENT), outputs(1, TEACHER)
    count, z, sample = 30, {}, SAMPLE
    variables = start("crd", s, t, negatives=count)
    banks = {side: wide(variables["batch_stats"]["crd"][f"{side}_bank"]) for side in ("student", "teacher")}
    assert all(bank.shape == (IMAGES, 128) and 0.14 < abs(bank).max() < (3 / 128) ** 0.5 for bank in banks.values())
    layers = wide(variables["params"]["crd"])
    for _ in range(2):
        drawn, index = np.asarray(contrastive.draw_negatives(sample, count)), np.asarray(sample.index)
        anchors = {
            side: unit(wide(x.embedding) @ layers[side]["kernel"] + layers[side]["bias"])
            for x, side in ((s, "student"), (t, "teacher"))
        }
        expected = 0
        for side, other in (("student", "teacher"), ("teacher", "student")):
            rows = np.concatenate([index[:, None], drawn], 1)
            scores = np.exp(np.einsum("bd,bkd->bk", anchors[side], banks[other][rows]) / 0.07)
            z.setdefault(side, scores.mean() * IMAGES)
            scores, noise = scores / z[side], count / IMAGES
            right = np.log(scores[:, 0] / (scores[:, 0] + noise + 1e-7))
            expected -= (right.sum() + np.log(noise / (scores[:, 1:] + noise + 1e-7)).sum()) / B
        for side, bank in banks.items():
            bank[index] = unit(0.2 * bank[index] + 0.8 * anchors[side])
        found, _, kept = value("crd", s, t, variables, sample, negatives=count, momentum=0.2)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        memory = kept["batch_stats"]["crd"]
        for side in banks:
            np.testing.assert_allclose(memory[f"{side}_bank"], banks[side], atol=1e-6)
            np.testing.assert_allclose(memory[f"{side}_z"], z[side], rtol=1e-5)
        variables = {**variables, **kept}
        sample = Sample(SAMPLE.index[::-1] + 1, SAMPLE.classes, jax.random.key(8))
        s, t = outputs(2, STUDENT), outputs(3, TEACHER)


def kept_rows(scores, targets, fraction):
    """Rows in the order of the target's rank; all right ones, then a fraction of the wrong ones."""
    ranks = [list(np.argsort(-row)).index(y) for row, y in zip(scores, targets, strict=True)]
    wrong = sum(rank > 0 for rank in ranks)
    rows = sorted(range(len(ranks)), key=lambda i: ranks[i])
    return rows[: len(ranks) - wrong + int(wrong * fraction)], wrong


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.75, 1.0])
def test_selected_rows(fraction):
    g = np.random.default_rng(3)
    scores, targets = g.normal(size=(23, 4)), g.integers(0, 4, 23)
    rows, wrong = kept_rows(scores, targets, fraction)
    assert 10 < wrong < 23
    found = self_supervised.selected_rows(jnp.asarray(scores, jnp.float32), jnp.asarray(targets, jnp.int32), fraction)
    np.testing.assert_array_equal(np.flatnonzero(found), sorted(rows))


TURNED = [i for i in range(4 * B) if i % 4]


def test_sskd_kl():
    s, t = outputs(0, STUDENT, 4 * B), outputs(1, TEACHER, 4 * B)
    a, b = wide(s.logits)[TURNED], wide(t.logits)[TURNED]
    for fraction in (1.0, 0.5):
        rows, _ = kept_rows(b, np.repeat(LABELS, 3), fraction)
        expected = 16 * kl(softmax(b[rows] / 4), softmax(a[rows] / 4)).mean()
        np.testing.assert_allclose(value("sskd_kl", s, t, kept=fraction)[0], expected, rtol=1e-4)


def test_sskd_ss_and_the_teachers_head():
    s, t = outputs(0, STUDENT, 4 * B), outputs(1, TEACHER, 4 * B)
    found, variables, _ = value("sskd_ss", s, t)
    cosines = []
    for x, side in ((s, "student"), (t, "teacher")):
        head = wide(variables["params"]["sskd"][f"{side}_head"])
        x = np.maximum(wide(x.embedding) @ head["fc1"]["kernel"] + head["fc1"]["bias"], 0)
        x = unit(x @ head["fc2"]["kernel"] + head["fc2"]["bias"])
        cosines.append(np.array([[x[i] @ x[4 * j] for j in range(B)] for i in TURNED]))
    images = np.repeat(np.arange(B), 3)
    rows, _ = kept_rows(cosines[1], images, 0.75)
    expected = 0.25 * kl(softmax(2 * cosines[1][rows]), softmax(2 * cosines[0][rows])).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-3)

    alone = start("sskd_head", t, None)
    shapes = jax.tree.map(jnp.shape, alone["params"]["sskd"])
    assert shapes == {"teacher_head": jax.tree.map(jnp.shape, variables["params"]["sskd"]["teacher_head"])}
    alone["params"]["sskd"]["teacher_head"] = variables["params"]["sskd"]["teacher_head"]
    expected = -np.log(softmax(cosines[1])[np.arange(3 * B), images]).mean()
    np.testing.assert_allclose(value("sskd_head", t, None, alone)[0], expected, rtol=1e-5)


PLAIN = [name for name in methods.TERMS if not name.startswith("sskd")]
# Random logits are sure of nothing.
OPTIONS = {"crd": {"negatives": 8}, "crld_within": {"threshold": 0.4}}


def case(terms):
    """An objective, its variables and the outputs it takes; SSKD's batches are rotated."""
    rows = 4 * B if any(term.startswith("sskd") for term in terms) else B
    s, t = outputs(0, STUDENT, rows), outputs(1, TEACHER, rows)
    t = None if "sskd_head" in terms else t
    objective = Methods({term: OPTIONS.get(term, {}) for term in terms})
    return objective, filled(np.random.default_rng(2), objective.init, jax.random.key(0), s, LABELS, t, SAMPLE), s, t


SETS = [*([name] for name in PLAIN), ["sskd_kl"], ["sskd_ss"], ["sskd_head"]]


@pytest.mark.parametrize("terms", SETS, ids=lambda terms: terms[0])
def test_gradients_reach_the_student_alone(terms):
    objective, variables, s, t = case(terms)

    @jax.jit
    def gradients(variables, s, labels, t, sample):
        def loss(variables, student, teacher):
            (s, strong), (t, teacher_strong) = student, teacher
            views = sample._replace(strong=strong, teacher_strong=teacher_strong)
            return objective.apply(variables, s, labels, t, views, mutable=["batch_stats"])[0][terms[0]]

        return jax.grad(loss, (0, 1, 2))(variables, (s, sample.strong), (t, sample.teacher_strong))

    def moves(tree):
        return [bool(np.any(np.asarray(x) != 0)) for x in jax.tree.leaves(tree)]

    learnt, of_student, of_teacher = gradients(variables, s, LABELS, t, SAMPLE)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((learnt, of_student)))
    # The head of the frozen teacher is all that learns in its run.
    assert any(moves(of_student)) == (terms != ["sskd_head"])
    assert not any(moves((of_teacher, learnt.get("batch_stats", {}))))
    fixed = learnt["params"]["sskd"].pop("teacher_head") if terms == ["sskd_ss"] else ()
    assert not any(moves(fixed))
    # A bias before BatchNorm has no effect.
    for term in ("fitnet", "wkd_f"):
        learnt.get("params", {}).get(term, {"conv": {}})["conv"].pop("bias", None)
    assert all(moves(learnt.get("params", {})))


@pytest.mark.parametrize("terms", [PLAIN, ["sskd_kl", "sskd_ss"], ["sskd_head"]], ids=lambda terms: terms[-1])
@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_dtypes(terms, name):
    """Float64 stays; maps in bfloat16 give float32."""
    objective, *given = case(terms)
    given += STRONG

    def apply(variables, s, t, strong, teacher_strong):
        sample = SAMPLE._replace(strong=strong, teacher_strong=teacher_strong)
        return objective.apply(variables, s, LABELS, t, sample, mutable=["batch_stats"])

    with enable_x64(name == "float64"):
        if name == "float64":
            given, dtype = jax.tree.map(lambda x: np.asarray(x, np.float64), given), "float64"
        else:
            variables, *pair = given
            fields = ("features", "hints", "preactivations", "last_map")
            low = [o and {field: getattr(o, field) for field in fields} for o in pair]
            maps = jax.tree.map(lambda x: x.astype(name), low)
            given = [variables, *(o and o._replace(**x) for o, x in zip(pair, maps, strict=True))]
            dtype = "float32"
        assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(apply, *given))} == {np.dtype(dtype)}


@pytest.mark.parametrize("rotated", [False, True])
def test_all_methods_on_what_networks_give(rotated):
    names = ["sskd_kl", "sskd_ss"] if rotated else PLAIN
    key, g, images = jax.random.key(0), np.random.default_rng(0), jnp.zeros((4 * B if rotated else B, 8, 8, 1))
    student, teacher = (create(name, N, True) for name in ("resnet8_quarter", "resnet8_half"))
    networks = student.clone(projector=(2, 2, 32)), teacher
    s, t = (filled(g, lambda n=n: n.init_with_output(key, images)[0]) for n in networks)
    kl = {"temperature": 4.0, "upright_only": rotated}
    objective = Methods({"task": {}, "kl": kl, **{name: OPTIONS.get(name, {}) for name in names}})
    variables = filled(g, objective.init, key, s, LABELS, t, SAMPLE)
    found, _ = apply(objective, variables, s, LABELS, t, SAMPLE)
    assert set(found) == {"task", "kl", *names}
    assert all(np.isfinite(x) for x in found.values())


@pytest.mark.parametrize(("height", "width"), [(4, 6), (8, 12), (3, 9), (7, 4)])
def test_resize_nearest(height, width):
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    expected = x[:, [i * 4 // height for i in range(height)]][:, :, [i * 6 // width for i in range(width)]]
    np.testing.assert_array_equal(review.resize_nearest(jnp.asarray(x), height, width), expected)


@pytest.mark.parametrize("term", ["strong_task", "mlld_kl", "crld_within", "crld_across"])
def test_a_term_of_two_views_needs_both(term):
    with pytest.raises(ValueError, match="the term needs a strong view"):
        value(term, outputs(0, STUDENT), outputs(1, TEACHER), {}, SAMPLE._replace(strong=None))


def test_every_term_has_a_recipe_with_its_published_weight():
    weights = {
        "fitnet": 100, "at": 1000, "vid": 1, "rkd": 1, "sp": 3000, "cc": 0.02, "pkt": 30000, "dkd": 1, "crd": 0.8,
        "sskd_kl": 2.7, "sskd_ss": 10, "sskd_head": 1,
    }  # fmt: skip
    weights |= {
        "dist": 2,
        "rld": 1,
        "ttm": 45,
        "wttm": 4,
        "nkd": 1,
        "ofa": 1,
        "wkd_target": 1,
        "wkd_l": 600,
        "wkd_f": 0.08,
        "reviewkd": 5,
        "simkd": 1,
    }
    weights |= {"strong_task": 1, "mlld_kl": 0.9, "mlld_images": 0.9, "mlld_classes": 0.9}
    weights |= {"crld_within": 2, "crld_across": 0.5}
    found = {
        name: term["weight"]
        for recipe, r in RECIPES.items()
        for name, term in r.terms.items()
        if name in methods.TERMS and recipe not in ("dkd_ls", "mlld_ls", *OURS)
    }
    assert found == weights
    assert RECIPES["dkd_ls"].terms["dkd"]["weight"] == 12
    # As in the paper's table, methods before 2022 are added to plain distillation. SSKD weighs its own.
    plain = {
        name: r.terms["kl"]["weight"] for name, r in RECIPES.items() if r.objective == "methods" and "kl" in r.terms
    }
    without = (
        "dkd", "dkd_ls", "dist", "rld", "ttm", "wttm", "nkd", "ofa", "wkd_l", "wkd_f", "reviewkd", "simkd", "mlld",
        "mlld_ls", "crld",
    )  # fmt: skip
    special = {**dict.fromkeys(without, 0), **{name: 0.9 for name in plain if name.startswith("sskd")}}
    assert plain == {name: special.get(name, 1) for name in plain}
    assert {*weights, "dist_aux"} == set(methods.TERMS)  # only a recipe of our own has the last


def test_hsakd_with_later_losses():
    """The two divergences of `student` standardised, or replaced by DIST, or a strong view; all else is `student`'s."""
    student, ls, dist, strong = (RECIPES[name] for name in ("student", *OURS))
    for term in ("kl_aux", "kl_final"):
        changed = {**student.terms[term], "weight": 1.0, "temperature": 2.0, "standardise": True}
        assert ls.terms[term] == changed
    for term in ("task", "joint"):
        assert ls.terms[term] == student.terms[term]
    assert dist.terms.keys() == {"task", "dist", "dist_aux"}
    assert dist.terms["dist_aux"] == {**dist.terms["dist"], "branches": ()}
    assert dist.terms["dist"] == {**RECIPES["dist"].terms["dist"], "weight": 0.25}
    assert strong.terms == {**student.terms, "strong_task": {"weight": 0.3}}
    for found in (ls, dist, strong):
        assert (found.branches, found.rotated, found.teacher) == (True, True, "teacher")


def test_every_option_of_a_recipe_has_a_type():
    """The config's check reads it from the signature of the term."""
    for recipe in RECIPES.values():
        for name, options in recipe.terms.items():
            types = methods.option_types(name)
            assert options.keys() - {"weight", "warmup", "decay"} <= types.keys(), name
            assert Any not in types.values()


@pytest.mark.parametrize("term", sorted(TERMS))
def test_terms_relate_the_images_of_a_batch_or_not(term):
    """The mean loss of two halves is that of the batch, or `RELATE_IMAGES` has the term.

    Layers of a method normalise each of two BatchNorm groups on its own, as two batches do.
    """
    rotations = 4 if term.startswith("sskd") or term == "dist_aux" else 1
    s, t = outputs(0, STUDENT, rotations * B), outputs(1, TEACHER, rotations * B)
    s, t = (x._replace(last_map=outputs(i, STUDENT, rotations * B).last_map) for i, x in enumerate((s, t)))
    variables = filled(np.random.default_rng(4), Methods({term: {}}).init, jax.random.key(0), s, LABELS, t, SAMPLE)

    def loss(groups, first, count):
        images, rows = slice(first, first + count), slice(rotations * first, rotations * (first + count))
        strong = jax.tree.map(lambda x: x[images], STRONG)
        sample = Sample(SAMPLE.index[images], SAMPLE.classes, SAMPLE.key, *strong)
        s_rows, t_rows = jax.tree.map(lambda x: x[rows], (s, t))
        return float(apply(Methods({term: {}}, groups), variables, s_rows, LABELS[images], t_rows, sample)[0][term])

    whole, halves = loss(2, 0, 4), np.mean([loss(1, 0, 2), loss(1, 2, 2)])
    assert np.isfinite(whole)
    assert (abs(whole - halves) > 1e-5 * abs(whole)) == (term in RELATE_IMAGES)
    if term in ("fitnet", "reviewkd", "wkd_f", "ofa"):
        assert abs(loss(1, 0, 4) - halves) > 1e-5 * abs(whole)
