"""Objectives against NumPy, written from PAPER section 1; the golden steps check the same in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hsakd_jax.distillation import losses, objectives
from hsakd_jax.models.network import Outputs

B, N = 3, 5


def outputs(seed, branches=3, rows=4 * B):
    g = np.random.default_rng(seed)
    aux = tuple(jnp.asarray(g.normal(size=(rows, 4 * N)), jnp.float32) for _ in range(branches))
    return Outputs(jnp.asarray(g.normal(size=(rows, N)), jnp.float32), aux, ())


LABELS = jnp.array([4, 0, 2])
JOINT = np.array([4 * y + j for y in (4, 0, 2) for j in range(4)])


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), np.asarray(labels)].mean()


def kl(teacher, student, tau):
    p, q = log_softmax(np.asarray(teacher) / tau), log_softmax(np.asarray(student) / tau)
    return tau**2 * (np.exp(p) * (p - q)).sum(-1).mean()


def check(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
        assert found[name].dtype == jnp.float32
        assert found[name].shape == ()


def test_teacher():
    o = outputs(0)
    joint = sum(cross_entropy(q, JOINT) for q in o.aux_logits)
    check(objectives.teacher(o, LABELS), {"task": cross_entropy(o.logits[::4], LABELS), "joint": joint})


def test_student():
    s, t = outputs(0), outputs(1)
    expected = {
        "task": cross_entropy(s.logits[::4], LABELS),
        "kl_aux": sum(kl(p, q, 3.0) for p, q in zip(t.aux_logits, s.aux_logits, strict=True)),
        "kl_final": kl(t.logits, s.logits, 3.0),
    }
    check(objectives.student(s, LABELS, t), expected)


def test_student_ablations():
    s, t = outputs(0), outputs(1)
    found = objectives.student(
        s, LABELS, t, joint={}, kl_aux={"temperature": 2.0, "branches": (1, 3)}, kl_final={"upright_only": True}
    )
    expected = {
        "task": cross_entropy(s.logits[::4], LABELS),
        "joint": sum(cross_entropy(q, JOINT) for q in s.aux_logits),
        "kl_aux": sum(kl(t.aux_logits[l], s.aux_logits[l], 2.0) for l in (0, 2)),
        "kl_final": kl(t.logits[::4], s.logits[::4], 3.0),
    }
    check(found, expected)
    assert set(objectives.student(s, LABELS, t, kl_final=None)) == {"task", "kl_aux"}


def standard(x):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, ddof=1, keepdims=True)


def test_standardised_logits():
    s, t = outputs(0), outputs(1)
    pairs = zip(t.aux_logits, s.aux_logits, strict=True)
    expected = {
        "kl_aux": sum(kl(standard(p), standard(q), 3.0) for p, q in pairs),
        "kl_final": kl(standard(t.logits), standard(s.logits), 3.0),
    }
    options = {"standardise": True}
    check(objectives.student(s, LABELS, t, task=None, kl_aux=options, kl_final=options), expected)
    found = objectives.kd(s, LABELS, t, task=None, kl=options)["kl"]
    np.testing.assert_allclose(found, expected["kl_final"], rtol=2e-5)


def test_standardised_rows_of_zeros():
    value, gradient = jax.value_and_grad(lambda x: losses.kl(outputs(1).logits, x, 2.0, True))(jnp.zeros((4 * B, N)))
    assert np.isfinite(value)
    assert not np.any(gradient)


def test_baseline_and_kd_take_plain_batches():
    s, t = outputs(0, 0, B), outputs(1, 3, B)
    check(objectives.baseline(s, LABELS), {"task": cross_entropy(s.logits, LABELS)})
    found = objectives.kd(s, LABELS, t, kl={"temperature": 4.0})
    check(found, {"task": cross_entropy(s.logits, LABELS), "kl": kl(t.logits, s.logits, 4.0)})


def test_mutual_of_three_peers():
    peers = [outputs(i) for i in range(3)]
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    expected = {
        "task": sum(cross_entropy(o.logits[::4], LABELS) for o in peers),
        "joint": sum(cross_entropy(q, JOINT) for o in peers for q in o.aux_logits),
        "kl_final": sum(kl(peers[b].logits, peers[a].logits, 3.0) for a, b in pairs),
        "kl_aux": sum(kl(peers[b].aux_logits[l], peers[a].aux_logits[l], 3.0) for a, b in pairs for l in range(3)),
    }
    check(objectives.mutual(peers, LABELS), expected)


def test_mutual_holds_the_peer_fixed():
    a, b = outputs(0), outputs(1)

    def loss(a, b):
        return objectives.mutual((a, b), LABELS, task=None, joint=None, kl_aux=None)["kl_final"]

    gradient = jax.grad(loss)(a, b).logits
    expected = jax.grad(lambda x: losses.kl(b.logits, x, 3.0))(a.logits)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_branches_pair_from_the_deepest_backwards():
    s, t = outputs(0, 3), outputs(1, 4)
    expected = sum(kl(p, q, 3.0) for p, q in zip(t.aux_logits[1:], s.aux_logits, strict=True))
    np.testing.assert_allclose(objectives.student(s, LABELS, t)["kl_aux"], expected, rtol=2e-5)
    shallow = sum(kl(p, q, 3.0) for p, q in zip(s.aux_logits, t.aux_logits[1:], strict=True))
    np.testing.assert_allclose(objectives.student(t, LABELS, s)["kl_aux"], shallow, rtol=2e-5)
    with pytest.raises(ValueError, match="branch 1 has no partner.*choose branches from 2 on"):
        objectives.student(t, LABELS, s, kl_aux={"branches": (1, 2)})


@pytest.mark.parametrize(
    ("branches", "options", "message"),
    [(3, {"branches": (4,)}, "not all among 1..3"), (0, {}, "has no branches"), (3, {"branches": (0,)}, "among 1..3")],
)
def test_branches_that_do_not_exist(branches, options, message):
    with pytest.raises(ValueError, match=message):
        objectives.teacher(outputs(0, branches), LABELS, joint=options)


def test_bfloat16_logits_make_float32_losses():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), outputs(0))
    assert {v.dtype for v in objectives.student(low, LABELS, low).values()} == {jnp.dtype("float32")}
