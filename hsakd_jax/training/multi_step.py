"""Running the steps of a training run: one compiled call per step, or one for many steps on data in device memory."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from hsakd_jax.core.sharding import Devices
from hsakd_jax.data import sampling
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.streaming import Photos, training_batches

MultiStep = Callable[[Any, Any, int, int], tuple[Any, int]]
# Most steps per call: enough to hide its cost, few enough to stop soon after a signal.
CHUNK = 100
# Most bytes of training images in the memory of each device.
RESIDENT = 4 * 2**30


def make_multi_step(
    step: Callable[..., Any],
    dataset: Dataset | Photos,
    devices: Devices,
    batch: int,
    seed: int,
    many: bool | None = None,
    size: int = 0,
) -> MultiStep:
    """Makes `multi_step(state, teacher's variables, done, until) -> (state, done)`, which runs steps up to `until`.

    Args:
      step: the jitted step of `build.Program`.
      dataset: training images.
      devices: where to compute.
      batch: images per step, over all processes.
      seed: of the order, see `sampling.order`.
      many: whether one call runs many steps on images in device memory. The default is to do so on accelerators whose
        memory holds the images. On CPU a loop inside XLA computes gradients of convolutions many times slower.
      size: side of the crops of photographs, pixels.
    """
    if many is None:
        in_memory = not isinstance(dataset, Photos)
        many = in_memory and jax.default_backend() != "cpu" and dataset.images.nbytes <= RESIDENT
    return (_many_steps_per_call if many else _one_step_per_call)(step, dataset, devices, batch, seed, size)


def _one_step_per_call(step, dataset, devices, batch, seed, size) -> MultiStep:
    local_slice, batches = devices.local_slice(batch), None

    def multi_step(state, teacher_variables, done, until):
        del until
        nonlocal batches  # they begin at the first step, which is not 0 in a resumed run
        batches = batches or training_batches(dataset, batch, seed, done, local_slice, size)
        rows = next(batches)
        given = devices.shard((rows["image"], rows["label"], rows["index"]))
        return step(state, teacher_variables, *given), done + 1

    return multi_step


def compile_many(step: Callable[..., Any], devices: Devices) -> Callable[..., Any]:
    """The jitted `steps(state, teacher's variables, all images, all labels, count, rows [batch, CHUNK]) -> state`.

    Args:
      step: the jitted step of `build.Program`.
      devices: where to compute.
    """

    def steps(state, teacher_variables, images, labels, count, chosen):
        # The count is an argument, so that one program serves all counts.
        def body(i, state):
            rows = chosen[:, i]
            return step(state, teacher_variables, images[rows], labels[rows], rows)

        return jax.lax.fori_loop(0, count, body, state)

    return devices.jit(steps, replicated=5, donate=True)


def _many_steps_per_call(step, dataset, devices, batch, seed, size) -> MultiStep:
    del size  # images in memory have their size
    images, labels = devices.replicate((dataset.images, dataset.labels))
    local_slice, steps = devices.local_slice(batch), compile_many(step, devices)

    def multi_step(state, teacher_variables, done, until):
        count = min(CHUNK, until - done)
        # Images first, so that each device gets the rows of its own slice.
        chosen = np.zeros((batch, CHUNK), np.int32)
        for i in range(count):
            chosen[:, i] = sampling.order(len(dataset.labels), batch, seed, done + i)
        given = devices.replicate(np.int32(count)), devices.shard(chosen[local_slice])
        return steps(state, teacher_variables, images, labels, *given), done + count

    return multi_step
