"""Every family of torchvision and timm trains with its branches; tests of exporters export them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_families import SMALL

from hsakd_jax.distillation import objectives
from hsakd_jax.models.network import Network
from hsakd_jax.models.rotations import rotate
from hsakd_jax.runs.restore import initialise
from hsakd_jax.training import optim
from hsakd_jax.training.step import Batch, TrainStep

CLASSES, IMAGE = 5, (32, 32, 3)
# Steps by which the losses of so few images, whose last maps have one pixel, still fall. In a line along the gradient,
# the loss of a small MobileNetV1 changes by 1.0 times the learning rate and the squared gradient at 1e-5, by 0.5 times
# at 1e-3 and by 0.03 times at 0.02, where EfficientNet's is above its start after one step.
RATES = {**dict.fromkeys(SMALL, 3e-3), **dict.fromkeys(("mobilenet_v3", "convnext", "deit"), 0.02), "vgg": 0.15}
SLOW = ("densenet", "mobilenet_v2", "mobilenet_v3", "efficientnet", "regnet")  # to compile: 20 to 30 s of CPU time
FALL = 0.99  # of the loss before


def terms(outputs, labels, teacher):
    """The terms of the recipe `teacher`, those of its branches one by one."""
    joint = {
        f"joint{l}": objectives.teacher(outputs._replace(aux_logits=(q,)), labels, teacher)["joint"]
        for l, q in enumerate(outputs.aux_logits, 1)
    }
    return {"task": objectives.teacher(outputs, labels, teacher)["task"], **joint}


def losses(network, lr, objective=terms, steps=3):
    """Each term before `steps` training steps and after the last one, of the same batch; and kernels that never learn.

    Returns:
      The terms, [steps + 1, 1 + L], and the paths of the kernels that had no gradient in any step.
    """
    names = ["task", *(f"joint{l}" for l in range(1, len(network.architecture.stages) + 1))]
    step = TrainStep(network, objective, dict.fromkeys(names, 1.0), optim.sgd(lr, 0.9, 0.0, True))
    random = np.random.default_rng(0)
    batch = Batch(rotate(jnp.asarray(random.standard_normal((4, *IMAGE)), jnp.float32)), jnp.arange(4))
    state, update, sums = step.init(initialise(network, IMAGE, 0)), jax.jit(step), [np.zeros(len(names))]
    for _ in range(steps + 1):
        state = update(state, None, batch)
        sums.append(np.array([state.metrics.sums[name] for name in names]))
    sum_of_gradients = jax.tree_util.tree_leaves_with_path(optax.tree_utils.tree_get(state.opt_state, "trace"))
    still = ["/".join(key.key for key in path) for path, leaf in sum_of_gradients if not np.any(leaf)]
    return np.diff(sums, axis=0), [path for path in still if path.endswith("kernel")]


def without_gradients(outputs, labels, teacher):
    """The same terms, from which the branches don't learn."""
    return terms(outputs._replace(aux_logits=jax.lax.stop_gradient(outputs.aux_logits)), labels, teacher)


def fell(found):
    """Whether each loss is lower after the last step, by more than what a branch gains by the backbone's steps."""
    return found[-1] < FALL * found[0]


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SMALL]
)
def test_backbone_and_branches_train(family):
    found, still = losses(Network(SMALL[family], CLASSES), RATES[family])
    assert fell(found).all(), found
    assert still == []


def test_branches_without_gradients_are_noticed():
    network = Network(SMALL["mobilenetv1"], CLASSES)
    found, still = losses(network, RATES["mobilenetv1"], without_gradients)
    assert fell(found)[0]
    assert not fell(found)[1:].all(), found
    assert {path.partition("/")[0] for path in still} == {f"branch{l}" for l in range(1, found.shape[1])}
