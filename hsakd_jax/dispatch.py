"""How the steps of a run reach the devices: a call for each, or one for many, on data that lies there."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from hsakd_jax import data
from hsakd_jax.devices import Devices

Advance = Callable[[Any, Any, int, int], tuple[Any, int]]
# Steps of one call at most: enough to hide its cost, few enough to stop soon after a signal.
CHUNK = 100
# Bytes of training images that may lie on every device.
RESIDENT = 4 * 2**30


def make_advance(
    step: Callable[..., Any], dataset: data.Dataset, devices: Devices, batch: int, seed: int, many: bool | None = None
) -> Advance:
    """Makes `advance(state, teacher's variables, done, until) -> (state, done)`: one call, for steps up to `until`.

    Args:
      step: as `train.compile_step` makes it.
      dataset: training images.
      devices: where to compute.
      batch: images a step.
      seed: of the order, see `data.order`.
      many: whether one call makes many steps on images that lie on the devices; by default on accelerators, where the
        images fit. On CPU, XLA computes gradients of convolutions many times slower inside a loop of its own.
    """
    if many is None:
        many = jax.default_backend() != "cpu" and dataset.images.nbytes <= RESIDENT
    return (_many_a_call if many else _one_a_call)(step, dataset, devices, batch, seed)


def _one_a_call(step, dataset, devices, batch, seed) -> Advance:
    def advance(state, teacher_variables, done, until):
        del until
        rows = devices.shard(next(data.batches(dataset, batch, seed, done)))
        return step(state, teacher_variables, rows["image"], rows["label"]), done + 1

    return advance


def _many_a_call(step, dataset, devices, batch, seed) -> Advance:
    images, labels = devices.replicate(tuple(dataset))

    def steps(state, teacher_variables, images, labels, count, chosen):
        # A count that is an argument, so that pieces of all lengths share one program.
        def body(i, state):
            rows = chosen[:, i]
            return step(state, teacher_variables, images[rows], labels[rows])

        return jax.lax.fori_loop(0, count, body, state)

    steps = devices.jit(steps, replicated=5, donate=True)

    def advance(state, teacher_variables, done, until):
        count = min(CHUNK, until - done)
        # Images first, so that each device gets the rows of its own share.
        chosen = np.zeros((batch, CHUNK), np.int32)
        for i in range(count):
            chosen[:, i] = data.order(len(dataset.labels), batch, seed, done + i)
        given = devices.replicate(np.int32(count)), devices.shard(chosen)
        return steps(state, teacher_variables, images, labels, *given), done + count

    return advance
