import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_configs import run_config

from hsakd_jax import create
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.evaluation import accuracy, metrics
from hsakd_jax.evaluation.accuracy import make_measure, report
from hsakd_jax.models.network import Outputs
from hsakd_jax.runs.restore import initialise


def test_correct_against_numpy():
    g, b, n = np.random.default_rng(0), 50, 7
    logits, aux = g.normal(size=(4 * b, n)).astype(np.float32), g.normal(size=(4 * b, 4 * n)).astype(np.float32)
    labels, mask = g.integers(0, n, b), np.arange(b) < 43
    outputs = Outputs(jnp.asarray(logits), (jnp.asarray(aux),), ())
    right = metrics.correct(outputs, jnp.asarray(labels), jnp.asarray(mask))
    assert right["top1"].shape == (b,)
    found = {name: rows.sum(dtype=jnp.int32) for name, rows in right.items()}
    expected = dict.fromkeys(("top1", "top5", "joint_1", "class_1"), 0)
    for i in range(43):
        order = np.argsort(-logits[4 * i])
        expected["top1"] += order[0] == labels[i]
        expected["top5"] += labels[i] in order[:5]
        for j in range(4):
            q = aux[4 * i + j]
            expected["joint_1"] += q.argmax() == 4 * labels[i] + j
            expected["class_1"] += np.argmax([q[4 * c : 4 * c + 4].sum() for c in range(n)]) == labels[i]
    assert {name: int(count) for name, count in found.items()} == expected
    percent = metrics.percentages(found, 43)
    assert percent["top1"] == pytest.approx(100 * expected["top1"] / 43)
    assert percent["joint_1"] == pytest.approx(100 * expected["joint_1"] / (4 * 43))
    assert metrics.top1(outputs, jnp.asarray(labels)) == pytest.approx(
        np.mean(logits[::4].argmax(1) == labels), abs=1e-6
    )


def test_logits_with_nan_are_wrong_for_each_class():
    labels = jnp.array([0, 1, 2])
    logits = 9.0 * jnp.eye(3)
    assert metrics.in_top(logits, labels).all()
    for at in range(3):
        assert metrics.in_top(logits.at[:, at].set(jnp.nan), labels, 5).tolist() == [False] * 3


@pytest.mark.parametrize("batch", [7, 16, 100])
def test_every_image_counts_once_whatever_the_batch(batch):
    """37 images by batches that don't divide them, on eight devices, against one pass by hand."""
    g = np.random.default_rng(1)
    images = g.integers(0, 256, (37, 8, 8, 1)).astype(np.uint8)
    labels = g.integers(0, 4, 37).astype(np.int32)
    network = create("resnet8_quarter", 4, branches=False)
    variables = initialise(network, (8, 8, 1), 0)
    outputs = network.apply(variables, jnp.asarray((images / 255 - 0.3) / 0.4, jnp.float32))
    right = np.argmax(outputs.logits, -1) == labels
    devices = Devices()
    measure = make_measure(network, devices, run_config(data__mean=(0.3,), data__std=(0.4,)), batch)
    found = measure(devices.replicate(variables), Dataset(images, labels))
    assert found.accuracies["top1"] == pytest.approx(100 * np.mean(right))
    assert found.accuracies["top5"] == 100
    np.testing.assert_array_equal(found.correct, right)
    assert len(jax.devices()) == 8


def test_a_long_evaluation_shows_its_progress(monkeypatch, capsys):
    network, devices = create("resnet8_quarter", 4, branches=False), Devices()
    variables = devices.replicate(initialise(network, (8, 8, 1), 0))
    measure = make_measure(network, devices, run_config(data__mean=(0.3,), data__std=(0.4,)), 16)
    dataset = Dataset(np.zeros((37, 8, 8, 1), np.uint8), np.zeros(37, np.int32))
    measure(variables, dataset)
    assert not capsys.readouterr().err
    monkeypatch.setattr(accuracy, "PATIENCE", 0.0)
    measure(variables, dataset)
    assert capsys.readouterr().err.startswith("Evaluating: 43 %, 16 of 37 images, ")


def test_report_leaves_out_what_says_nothing():
    of = {"arch": "a", "checkpoint": "last", "test_images": 9}
    assert report("run", of | {"classes": 5, "top1": 50.0, "top5": 100.0}).splitlines()[1:] == ["top-1 50.00 %"]
    peers = {f"peer{i}/{kind}": 10.0 * i for i in (1, 2) for kind in ("top1", "top5")}
    assert report("run", of | {"classes": 6} | peers).splitlines()[1:] == [
        "peer1: top-1 10.00 %, top-5 10.00 %",
        "peer2: top-1 20.00 %, top-5 20.00 %",
    ]
