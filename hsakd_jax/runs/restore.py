"""Networks and their variables: fresh ones, or those of a run directory."""

from collections.abc import Hashable
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from hsakd_jax.core.errors import UserError
from hsakd_jax.models import architecture, create
from hsakd_jax.models.network import Network, Peers
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.training.step import OBJECTIVE


def peers(network: dict[str, Any]) -> list[str]:
    """The networks of a mutual run, from the section 'network' of its config; [] of any other."""
    found = network["peers"]
    # As a number in runs of earlier versions.
    return [network["arch"]] * found if isinstance(found, int) else found


def chosen(network: dict[str, Any], run_dir: str | Path, dtype: str = "", peer: int = 1) -> dict[str, Any]:
    """One network of a run as a section 'network' of its own.

    Args:
      network: the section 'network' of the run's config.
      run_dir: the run, for the error.
      dtype: compute dtype; '' for the one it was trained in.
      peer: which network of a mutual run, counted from 1; 1 of any other.

    Raises:
      UserError: there is no such network.
    """
    names = peers(network)
    count = len(names) or 1
    if not 1 <= peer <= count:
        raise UserError(f"{run_dir} has no network {peer}: name one from 1 to {count}")
    return {**network, "arch": [*names, network["arch"]][peer - 1], "peers": [], "dtype": dtype or network["dtype"]}


def build(network: dict[str, Any], **options: Any) -> Network | Peers:
    """The network that the section 'network' of a run's config describes, with further options of `Network`."""
    one = create(network["arch"], network["num_classes"], network["branches"], network["dtype"]).clone(**options)
    if not (names := peers(network)):
        return one
    shared = {"num_classes": one.num_classes, "dtype": one.dtype, **options}
    return Peers(tuple(partial(Network, architecture(arch), **shared) for arch in names), network["branches"])


def restore(
    run_dir: str | Path, checkpoint: str = "last", dtype: str = "", peer: int = 1
) -> tuple[Network, dict[str, Any]]:
    """Restores a trained network, on whatever devices are there.

    Args:
      run_dir: a run directory.
      checkpoint: 'last' or 'best' (by the accuracy that results.json names).
      dtype: compute dtype, as for `create`; '' for the one it was trained in.
      peer: which network of a mutual run, counted from 1.

    Returns:
      The network and its variables, {'params', 'batch_stats'} of NumPy arrays.

    Raises:
      UserError: not a run directory, no such network in it, no checkpoint, or a damaged one.
    """
    directory = RunDirectory(run_dir)
    described = directory.config()["network"]
    network = cast(Network, build(chosen(described, directory.path, dtype, peer)))
    variables = read_variables(directory, checkpoint)
    if peers(described):
        return network, {c: tree[f"peer{peer}"] for c, tree in variables.items()}
    # What an objective kept for itself is no part of the network.
    return network, {c: {k: v for k, v in tree.items() if k != OBJECTIVE} for c, tree in variables.items()}


def read_variables(directory: RunDirectory, checkpoint: str) -> dict[str, Any]:
    """{'params', 'batch_stats'} of a run's 'last' or 'best' checkpoint, of all its networks, NumPy arrays.

    Raises:
      UserError: as `restore`.
    """
    checkpoints = Checkpoints(directory.checkpoints, write=False)
    if checkpoint not in ("last", "best"):
        raise UserError(f"unknown checkpoint {checkpoint!r}: choose last or best")
    saved = checkpoints.steps()
    if not saved:
        raise UserError(f"{directory.path} has no checkpoint yet: let its run go on")
    state = checkpoints.restore(saved[-1] if checkpoint == "last" else directory.best()["step"])
    return {"params": state["params"], "batch_stats": state["batch_stats"]}


def without_branches(variables: dict[str, Any]) -> dict[str, Any]:
    """A network's variables but those of its auxiliary classifiers."""
    return {c: {k: v for k, v in tree.items() if not k.startswith("branch")} for c, tree in variables.items()}


def initialiser(network: Network | Peers) -> Any:
    """`network.init`, jitted, the same for networks that are equal, so that it is traced once."""
    return _initialiser(cast(Hashable, network))


@cache
def _initialiser(network: Any):
    # On CPU, XLA takes three quarters of its time at this level, and what it makes is as fast. At 0 it takes less
    # still, but its program runs for half a second, also where it comes from the cache.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(network.init, compiler_options=options)


def start(
    network: Network | Peers,
    image_shape: tuple[int, ...],
    seed: int,
    init: str = "",
    new_fc: bool = False,
    frozen_fc: bool = False,
) -> dict[str, Any]:
    """Variables to train from.

    Args:
      network: Linen module.
      image_shape: [H, W, C].
      seed: of the initialisers.
      init: a run directory whose last parameters are taken wherever path and shape are the same; '' for none. The
        last layer may differ, since it belongs to a dataset; the rest of the backbone may not.
      new_fc: whether the last layer is a fresh one in any case.
      frozen_fc: whether the last layer will stay as it starts, so that it may not differ.

    Raises:
      UserError: the images are too small for the network, or `init` is of another network or, where that matters, of
        another number of classes.
    """
    try:
        variables = initialiser(network)(jax.random.key(seed), jnp.zeros((1, *image_shape)))
    except ValueError as error:
        raise UserError(str(error)) from error
    if not init:
        return variables
    flat: dict[tuple[str, ...], Any] = flatten_dict(variables)
    given: dict[tuple[str, ...], Any] = flatten_dict(restore(init)[1])
    if new_fc:
        given = {path: leaf for path, leaf in given.items() if path[1:3] != ("head", "fc")}
    taken = {path: leaf for path, leaf in given.items() if path in flat and flat[path].shape == leaf.shape}
    missing = [p for p in flat if p not in taken and not p[1].startswith("branch") and p[1:3] != ("head", "fc")]
    if missing:
        raise UserError(f"{init} is not a run of this network: {'/'.join(missing[0][1:])} has no match; check arch")
    if frozen_fc and any(path not in taken for path in flat if path[1:3] == ("head", "fc")):
        raise UserError(
            f"{init} was trained on another number of classes, and its last layer stays as it is: take a "
            "run of the same data"
        )
    return unflatten_dict(flat | taken)
