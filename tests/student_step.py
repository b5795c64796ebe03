"""A whole student step from uint8 images on, in float64, for processes of their own: its spread must not matter."""

import jax
import jax.numpy as jnp
import numpy as np

from hsakd_jax import create
from hsakd_jax.data.augment import augment, normalise
from hsakd_jax.distillation import objectives
from hsakd_jax.models.rotations import rotate
from hsakd_jax.runs.restore import initialise
from hsakd_jax.training import optim
from hsakd_jax.training.step import Batch, TrainStep

teacher, student = (create("resnet8_quarter", 10) for _ in range(2))
teacher_variables, variables = (
    jax.tree.map(lambda x: np.asarray(x, np.float64), initialise(network, (8, 8, 1), seed))
    for seed, network in enumerate((teacher, student))
)
weights = dict.fromkeys(("task", "kl_aux", "kl_final"), 1.0)
update = TrainStep(student, objectives.student, weights, optim.sgd(0.05, 0.9, 5e-4, True), True, teacher)
init = update.init


def step(state, teacher_variables, images, labels, index=None):
    key = jax.random.fold_in(jax.random.key(0), state.step)
    images = augment(key, images, crop="pad", pad=1, flip=True, size=8)
    images = rotate(normalise(images, (0.3,), (0.4,), jnp.float64))
    return update(state, teacher_variables, Batch(images, labels))
