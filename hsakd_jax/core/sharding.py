"""The devices and processes of a run: one mesh axis 'data', batches sharded over it, all other arrays replicated."""

import importlib.util
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hsakd_jax.core.console import note
from hsakd_jax.core.errors import UserError

TIMEOUT = 300  # seconds that the processes of a run wait for one another at the start


class Devices:
    """The mesh of a run's devices, and the placement of arrays on it.

    Args:
      devices: the mesh's devices; by default all devices of all processes.

    Attributes:
      mesh: of one axis, 'data'.
      replicated: the sharding of an array that every device holds whole.
      batch_sharded: the sharding of an array [B, ...] whose rows are split over the devices.
    """

    def __init__(self, devices: Sequence[Any] | None = None):
        # A process's devices are neighbours, so that its rows of a batch are one slice.
        ordered = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self.mesh = Mesh(np.asarray(ordered if devices is None else devices), ("data",))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.batch_sharded = NamedSharding(self.mesh, PartitionSpec("data"))

    def __len__(self) -> int:
        return self.mesh.size

    def replicate(self, tree: Any) -> Any:
        """Places a pytree of arrays, equal in all processes, on every device; it does not copy arrays already there."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.replicated)

        def place(x: Any) -> jax.Array:
            if isinstance(x, jax.Array) and not x.is_fully_addressable:
                return x
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, self.replicated, lambda index: x[index])

        return jax.tree.map(place, tree)

    def shard(self, tree: Any) -> Any:
        """Places arrays [B, ...] with their rows split over the devices; a process passes its `local_slice` only."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.batch_sharded)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.batch_sharded, x), tree)

    def local_slice(self, rows: int) -> slice:
        """The rows of a batch that this process loads; `rows` is a multiple of the number of devices."""
        indices = self.batch_sharded.addressable_devices_indices_map((rows,)).values()
        ranges = [index[0].indices(rows) for index in indices if index is not None]
        return slice(min(start for start, *_ in ranges), max(stop for _, stop, _ in ranges))

    @staticmethod
    def abstract(tree: Any, sharding: NamedSharding) -> Any:
        """Shapes and dtypes of a pytree of arrays, each with the sharding."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def check_batch(self, batch: int, accumulate: int = 1, key: str = "batch") -> None:
        """Checks that a batch can be split evenly over the devices.

        Args:
          batch: images of a step, over all processes.
          accumulate: micro-batches of a step.
          key: the config key of `batch`, for the message.

        Raises:
          UserError: the batch can't be split evenly.
        """
        parts = len(self) * accumulate
        if batch < 1 or batch % parts:
            micro = f" times {accumulate} micro-batches" if accumulate > 1 else ""
            nearest = max(parts, parts * round(batch / parts))
            raise UserError(
                f"{key} is {batch}, which can't be split evenly over {len(self)} devices{micro}: set it to a multiple "
                f"of {parts}, such as {nearest}"
            )

    def jit(self, function: Callable[..., Any], replicated: int, donate: bool = False) -> Callable[..., Any]:
        """Compiles a function whose first arguments are replicated and whose others are batch-sharded.

        Args:
          function: its result is replicated.
          replicated: the number of replicated arguments.
          donate: whether the result may reuse the memory of the first argument.
        """

        def on_mesh(*args: Any) -> Any:
            shardings = (self.replicated,) * replicated + (self.batch_sharded,) * (len(args) - replicated)
            return function(*jax.lax.with_sharding_constraint(args, shardings))

        donated, options = (0,) if donate else (), _compiler_options(self.mesh.devices.flat[0].platform)
        return jax.jit(on_mesh, donate_argnums=donated, out_shardings=self.replicated, compiler_options=options)


def initialize_distributed(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    env: Mapping[str, str] = os.environ,
) -> None:
    """Connects the processes of a run; does nothing for a single process. Call it before JAX uses a device.

    On TPU pods, under Slurm and under OpenMPI, JAX finds the other processes itself. Under Slurm and OpenMPI, it
    assigns one of the machine's devices to each process.

    Args:
      coordinator: 'HOST:PORT' of the first process, where JAX can't find it.
      processes: the number of processes.
      process: the index of this process, from 0.
      env: the environment of this process.

    Raises:
      UserError: some of the three are missing or wrong, or JAX can't connect. If the others do not come in `TIMEOUT`,
        the process prints one line and ends with status 2.
    """
    if coordinator is not None and processes is not None and process is not None:
        host, _, port = coordinator.rpartition(":")
        if not (host and re.fullmatch(r"\d{1,5}", port) and 0 < int(port) < 2**16):
            host = coordinator.partition(":")[0]
            raise UserError(f"--coordinator={coordinator}: set it to HOST:PORT, such as {host}:1234")
        if not 0 <= process < processes:
            raise UserError(f"--process={process} of --processes={processes}: they count from 0 to {processes - 1}")
        _initialize(processes, coordinator, (coordinator, processes, process))
        return
    if (coordinator, processes, process) != (None, None, None):
        raise UserError("--coordinator=HOST:PORT, --processes=N and --process=I belong together: set all three or none")
    # The allocation may have more tasks than the step that this process is of.
    slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= env.keys()
    if slurm and (tasks := _count(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")) > 1:
        _initialize(tasks, env["SLURM_STEP_NODELIST"], (None, tasks))
    elif (tasks := _count(env, "OMPI_COMM_WORLD_SIZE")) > 1:
        _initialize(tasks, "OpenMPI's addresses")
    elif _on_tpu() and "COLAB_RELEASE_TAG" not in env:
        with suppress(ValueError):  # JAX finds no other process
            jax.distributed.initialize()


@contextmanager
def report_lost_process() -> Iterator[None]:
    """Reports in one line that another process of the run ended, when JAX lets this one continue so far.

    Raises:
      UserError: a message to or from another process failed.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        if jax.process_count() == 1 or not any(word in reason for word in ("Gloo", "NCCL", "coordination", "peer")):
            raise
        raise UserError(
            f"another process of the run ended ({reason[-100:]}): start the same command again in all of them"
        ) from error


def is_first_process() -> bool:
    """Whether this is the process that writes logs and files."""
    return jax.process_index() == 0


def broadcast_from_first(value: int) -> int:
    """The first process's `value`, in all processes; all of them must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def all_reduce_max(value: int) -> int:
    """The largest `value` of all processes; all of them must call it."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def run_in_first_process(work: Callable[[], None], name: str) -> None:
    """Calls a function in the first process; all of them must call this, and all end where the function fails.

    Args:
      work: the function.
      name: name of its work, for the line of the other processes.

    Raises:
      UserError: the function raised it.
    """
    error = None
    if is_first_process():
        try:
            work()
        except UserError as found:
            error = found
    if broadcast_from_first(error is not None):
        raise error or UserError(f"{name} is refused by the first process, which names the reason")


def _count(env: Mapping[str, str], *names: str) -> int:
    """The number of processes in the first of the variables that has one; 1 without."""
    return next((int(env[name]) for name in names if env.get(name, "").isdecimal()), 1)


def _initialize(processes: int, where: str, options: Sequence[Any] = ()) -> None:
    """Waits for the other processes of a run; all that are not in `options` JAX finds in the environment."""
    others = "1 other process" if processes == 2 else f"{processes - 1} other processes"
    if processes > 1:
        note(f"waiting for {others} at {where}, for up to {TIMEOUT} s")
    # XLA would end the process with a page of C++ addresses.
    watch = threading.Timer(TIMEOUT, _give_up, [others, where])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(*options, initialization_timeout=TIMEOUT + 60)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the other processes can't be reached ({reason}): check that all run this command, or set --coordinator, "
            "--processes and --process"
        ) from error
    finally:
        watch.cancel()
        watch.join()


def _give_up(others: str, where: str) -> None:
    note(
        f"error: {others} at {where} did not answer in {TIMEOUT} s: check that all run this command, and that the port "
        "is open"
    )
    os._exit(2)


def _on_tpu() -> bool:
    return bool(importlib.util.find_spec("libtpu")) and any(Path(p).exists() for p in ("/dev/accel0", "/dev/vfio/0"))


@cache
def _compiler_options(platform: str) -> dict[str, str] | None:
    """On CPU, operations in the order of XLA's memory scheduler: steps of ResNets are 7 % faster than by default."""
    if platform != "cpu":
        return None
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # this jaxlib does not have the option
        return None
    return options


def available_bytes() -> int:
    """Bytes of a device's memory; on CPU, of the machine's."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
