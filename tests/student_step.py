"""A whole student step of a small network from uint8 images on, in float64; its form must not matter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hsakd_jax.data.augment import augment, normalise
from hsakd_jax.distillation import objectives
from hsakd_jax.models import resnet
from hsakd_jax.models.network import Network
from hsakd_jax.models.rotations import rotate
from hsakd_jax.training import optim
from hsakd_jax.training.step import Batch, TrainStep

IMAGE = (8, 8, 1)
# Two stages of one block: a third of the layers of a resnet8, which take as much less time to compile.
network = Network(resnet.resnet(resnet.BasicBlock, [1, 1], [4, 8], partial(resnet.Stem, features=4)), 10)


def random_variables(seed):
    """float64 variables; drawn, since a compiled initialiser takes longer than the step."""
    g = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *IMAGE)))

    def draw(path, leaf):
        noise = 0.1 * g.normal(size=leaf.shape)
        return 1 + noise**2 if path[-1].key in ("scale", "var") else noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


teacher_variables, variables = random_variables(0), random_variables(1)
weights = dict.fromkeys(("task", "kl_aux", "kl_final"), 1.0)
update = TrainStep(network, objectives.student, weights, optim.sgd(0.05, 0.9, 5e-4, True), True, network)
init = update.init


def step(state, teacher_variables, images, labels, index=None):
    key = jax.random.fold_in(jax.random.key(0), state.step)
    images = augment(key, images, crop="pad", pad=1, flip=True, size=8)
    images = rotate(normalise(images, (0.3,), (0.4,), jnp.float64))
    return update(state, teacher_variables, Batch(images, labels))
