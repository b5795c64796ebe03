"""Every family of torchvision and timm trains with its branches, and is exported with and without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_families import SMALL

from hsakd_jax.distillation import objectives
from hsakd_jax.models.network import Network
from hsakd_jax.models.rotations import rotate
from hsakd_jax.runs.restore import initialise
from hsakd_jax.training import optim
from hsakd_jax.training.step import Batch, TrainStep

CLASSES, IMAGE = 5, (32, 32, 3)


def terms(outputs, labels, teacher):
    """The terms of the recipe `teacher`, those of its branches one by one."""
    joint = {
        f"joint{l}": objectives.teacher(outputs._replace(aux_logits=(q,)), labels, teacher)["joint"]
        for l, q in enumerate(outputs.aux_logits, 1)
    }
    return {"task": objectives.teacher(outputs, labels, teacher)["task"], **joint}


def losses(network, lr, steps=3, objective=terms):
    """Each term before `steps` training steps and after the last one, of the same batch: [steps + 1, 1 + L]."""
    names = ["task", *(f"joint{l}" for l in range(1, len(network.architecture.stages) + 1))]
    step = TrainStep(network, objective, dict.fromkeys(names, 1.0), optim.sgd(lr, 0.9, 5e-4, True))
    random = np.random.default_rng(0)
    batch = Batch(rotate(jnp.asarray(random.standard_normal((4, *IMAGE)), jnp.float32)), jnp.arange(4))
    state, update, sums = step.init(initialise(network, IMAGE, 0)), jax.jit(step), [np.zeros(len(names))]
    for _ in range(steps + 1):
        state = update(state, None, batch)
        sums.append(np.array([state.metrics.sums[name] for name in names]))
    return np.diff(sums, axis=0)


@pytest.mark.parametrize("family", SMALL)
def test_backbone_and_branches_train(family):
    found = losses(Network(SMALL[family], CLASSES), 0.01)
    assert (found[-1] < found[0]).all(), found
