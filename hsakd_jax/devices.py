"""Where arrays live: one mesh axis 'data', batches split over it, everything else on every device."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hsakd_jax.errors import UserError


class Devices:
    """The devices of a run.

    Args:
      devices: all of the process group's by default.
    """

    def __init__(self, devices: Sequence[Any] | None = None):
        self.mesh = Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))
        self.everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.split = NamedSharding(self.mesh, PartitionSpec("data"))

    def __len__(self) -> int:
        return self.mesh.size

    def replicate(self, tree: Any) -> Any:
        """A pytree of arrays on every device; those that lie there already are not copied."""
        return jax.device_put(tree, self.everywhere)

    def shard(self, tree: Any) -> Any:
        """Arrays [B, ...] split by rows over the devices; B is a multiple of their number."""
        return jax.device_put(tree, self.split)

    def check_batch(self, batch: int, accumulate: int = 1) -> None:
        """Refuses a batch that can't be split evenly.

        Raises:
          UserError: it can't.
        """
        parts = len(self) * accumulate
        if batch < 1 or batch % parts:
            micro = f" times {accumulate} micro-batches" if accumulate > 1 else ""
            fit = max(parts, parts * round(batch / parts))
            raise UserError(
                f"a batch of {batch} can't be split evenly over {len(self)} devices{micro}: take a multiple of "
                f"{parts}, such as {fit}"
            )

    def jit(self, function: Callable, replicated: int, donate: bool = False) -> Callable:
        """Compiles `function(*replicated, *split)` whose result is replicated.

        Args:
          function: its first `replicated` arguments lie on every device, the rest are split by rows.
          replicated: how many.
          donate: whether the first argument's memory is given to the result.
        """

        def on_mesh(*args):
            shardings = (self.everywhere,) * replicated + (self.split,) * (len(args) - replicated)
            return function(*jax.lax.with_sharding_constraint(args, shardings))

        return jax.jit(on_mesh, donate_argnums=(0,) if donate else (), out_shardings=self.everywhere)
