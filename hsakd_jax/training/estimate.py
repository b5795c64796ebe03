"""Time and memory of a train step on this device, measured on random variables before anything trains."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsakd_jax.core.sharding import Devices, available_bytes
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.streaming import Photos
from hsakd_jax.distillation import objectives
from hsakd_jax.models.network import Network
from hsakd_jax.models.rotations import ROTATIONS
from hsakd_jax.runs.config import RunConfig
from hsakd_jax.runs.restore import initialise, initialiser
from hsakd_jax.training.build import Program, with_objective
from hsakd_jax.training.optim import sgd
from hsakd_jax.training.step import Batch, TrainStep

STEPS = 3  # that are timed, after one that is not
LONG = 5.0  # seconds of a step of which one is timed


class StepCost(NamedTuple):
    """Time and memory of a train step.

    Attributes:
      seconds: of one step.
      compile_seconds: of compiling it, or of loading it from the compilation cache.
      bytes: of one device, for the arguments, results and temporary arrays.
      available: bytes of the device's memory.
    """

    seconds: float
    compile_seconds: float
    bytes: int
    available: int

    @property
    def fits(self) -> bool:
        """Whether the device has the memory."""
        return self.bytes < self.available


def measure_run(config: RunConfig, program: Program, train: Dataset | Photos, devices: Devices) -> StepCost:
    """Compiles the step of a run and times it, without data that is read from files.

    Args:
      config: of the run.
      program: as `build.dry_run` returns it.
      train: training images.
      devices: where it runs.
    """
    batch = config.training.batch
    shape = config.network.image_shape if isinstance(train, Photos) else train.image_shape
    rows = np.zeros((batch, *shape), np.uint8), np.zeros(batch, np.int32), np.arange(batch, dtype=np.int32)
    local = devices.local_slice(batch)
    given = devices.shard(tuple(array[local] for array in rows))
    state, taught = devices.replicate(random_state(config, program))
    return _measure(program.step, state, taught, *given)


def measure_network(network: Network, image_shape: tuple[int, ...], batch: int) -> StepCost:
    """Compiles the step that trains a network with its branches, by SGD and without a teacher, and times it.

    Args:
      network: it may have no branches. Its images are rotated where it has some.
      image_shape: [H, W, C].
      batch: images per step, before they are rotated.
    """
    names = ("task", "joint") if network.branches else ("task",)
    objective = objectives.teacher if network.branches else objectives.baseline
    step = TrainStep(network, objective, dict.fromkeys(names, 1.0), sgd(0.1, 0.9, 5e-4, nesterov=True))
    images = jnp.zeros((batch * (ROTATIONS if network.branches else 1), *image_shape))
    given = Batch(images, jnp.zeros(batch, jnp.int32))
    return _measure(jax.jit(step, donate_argnums=0), step.init(initialise(network, image_shape, 0)), None, given)


def _measure(step: Any, state: Any, *given: Any) -> StepCost:
    began = time.perf_counter()
    compiled = step.lower(state, *given).compile()
    compile_seconds = time.perf_counter() - began
    began = time.perf_counter()
    state = jax.block_until_ready(compiled(state, *given))
    steps = 1 if time.perf_counter() - began > LONG else STEPS
    began = time.perf_counter()
    for _ in range(steps):
        state = compiled(state, *given)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - began) / steps
    return StepCost(seconds, compile_seconds, program_bytes(compiled.memory_analysis()), available_bytes())


def random_state(config: RunConfig, program: Program) -> tuple[Any, Any]:
    """The first state and the teacher's variables, all random."""
    key, image = jax.random.key(0), jnp.zeros((1, *config.network.image_shape))
    variables = initialiser(program.network)(key, image)
    taught = None if program.teacher is None else initialiser(program.teacher)(key, image)
    if program.objective_init:
        own = jax.jit(program.objective_init)(variables, taught)
        # WKD-L's costs, which a run computes from its teacher, are not there yet.
        own = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), 0.5, x), own)
        variables = with_objective(variables, own)
    return program.init(variables), taught


def program_bytes(analysis: Any) -> int:
    """Memory of a compiled program, from its `memory_analysis()`: a result in the memory of an argument counts once."""
    sizes = (analysis.temp_size_in_bytes, analysis.argument_size_in_bytes, analysis.output_size_in_bytes)
    return sum(sizes) - analysis.alias_size_in_bytes
