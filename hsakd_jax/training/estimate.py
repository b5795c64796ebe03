"""Time and memory of a run on this device, measured on random variables before anything trains."""

import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.streaming import Photos
from hsakd_jax.runs.config import RunConfig
from hsakd_jax.runs.restore import initialiser
from hsakd_jax.training.build import Program, with_objective

STEPS = 3  # that are timed, after one that is not


class Estimate(NamedTuple):
    """Time and memory of a run.

    Attributes:
      seconds: of its steps, without evaluations, data that is read from files, and compiling.
      step_seconds: of one step.
      compile_seconds: of the step, or of loading it from the compilation cache.
      bytes: of one device, for the arguments, results and temporary arrays of the step.
      available: bytes of the device's memory.
    """

    seconds: float
    step_seconds: float
    compile_seconds: float
    bytes: int
    available: int


def estimate(config: RunConfig, program: Program, train: Dataset | Photos, devices: Devices) -> Estimate:
    """Compiles the step of a run and times it.

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
    began = time.perf_counter()
    step = program.step.lower(state, taught, *given).compile()
    compiled = time.perf_counter() - began
    state = jax.block_until_ready(step(state, taught, *given))
    began = time.perf_counter()
    for _ in range(STEPS):
        state = step(state, taught, *given)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - began) / STEPS
    total = config.training.epochs * config.training.steps_per_epoch(len(train.labels))
    return Estimate(total * seconds, seconds, compiled, program_bytes(step.memory_analysis()), _available())


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


def _available() -> int:
    """Bytes of a device's memory; on CPU, of the machine's."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
