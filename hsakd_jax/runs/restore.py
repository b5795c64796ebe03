"""Networks and their variables: random ones, or those of a run directory."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from msgspec import structs

from hsakd_jax.core.errors import UserError
from hsakd_jax.models import architecture, create
from hsakd_jax.models.network import OBJECTIVE, Network, Peers
from hsakd_jax.runs import config, manifest
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.compare import match_classes
from hsakd_jax.runs.directory import RunDirectory

TRIES = 5  # to read a checkpoint of a run that trains


def peer_config(
    network: config.Network, run_dir: str | Path, dtype: str | None = None, peer: int = 1
) -> config.Network:
    """The config of one network of a run.

    Args:
      network: the networks of the run.
      run_dir: the run, for the error.
      dtype: compute dtype; None for the one that it was trained in.
      peer: which network of an online run, from 1; 1 of any other.

    Raises:
      UserError: there is no such network.
    """
    names = network.peers or (network.arch,)
    if not 1 <= peer <= len(names):
        raise UserError(f"{run_dir} has no network {peer}: choose one from 1 to {len(names)}")
    return structs.replace(network, arch=names[peer - 1], peers=(), dtype=dtype or network.dtype)


def build_network(network: config.Network, **options: Any) -> Network | Peers:
    """The Linen module that a config describes, with further attributes of `Network`.

    Raises:
      UserError: an unknown architecture.
    """
    one = create(network.arch, network.num_classes, network.branches, network.dtype)
    one = one.clone(projector=network.projector, **options)
    if not network.peers:
        return one
    shared = {"num_classes": one.num_classes, "dtype": one.dtype, **options}
    return Peers(tuple(partial(Network, architecture(arch), **shared) for arch in network.peers), network.branches)


def restore(
    run_dir: str | Path, checkpoint: str = "last", dtype: str | None = None, peer: int = 1
) -> tuple[Network, dict[str, Any]]:
    """Restores a trained network, on any devices.

    Args:
      run_dir: a run directory.
      checkpoint: 'last' or 'best' (by the accuracy that results.json names).
      dtype: compute dtype, as for `create`; None for the one that it was trained in.
      peer: which network of an online run, from 1.

    Returns:
      The network and its variables, {'params', 'batch_stats'} of NumPy arrays.

    Raises:
      UserError: not a run directory, no such network in it, no checkpoint, or a damaged one.
    """
    directory = RunDirectory(run_dir)
    described = directory.config().network
    network = cast(Network, build_network(peer_config(described, directory.path, dtype, peer)))
    variables = network_variables(directory, checkpoint)
    if described.peers:
        return network, {c: tree.get(f"peer{peer}", {}) for c, tree in variables.items()}
    return network, variables


def network_variables(directory: RunDirectory, checkpoint: str) -> dict[str, Any]:
    """The variables of all networks of a run, without those of its objective, as NumPy arrays.

    Raises:
      UserError: as `restore`, or config.json describes another network than the checkpoint's.
    """
    described = directory.config().network
    variables = read_variables(directory, checkpoint)
    variables = {c: {k: v for k, v in tree.items() if k != OBJECTIVE} for c, tree in variables.items()}
    image = jax.ShapeDtypeStruct((1, *described.image_shape), jnp.float32)
    try:
        shapes = initialiser(build_network(described)).eval_shape(jax.random.key(0), image)
    except ValueError as error:
        raise UserError(f"{directory.path}/config.json describes no network ({error}): restore the file") from error
    expected: dict[tuple[str, ...], Any] = flatten_dict(shapes)
    found: dict[tuple[str, ...], Any] = flatten_dict(variables)
    for path in sorted(expected.keys() | found.keys()):
        theirs, ours = (list(tree[path].shape) if path in tree else "absent" for tree in (found, expected))
        if theirs != ours:
            raise UserError(
                f"{directory.path}/config.json does not describe the network of the checkpoint: {'/'.join(path[1:])} "
                f"is {theirs} there, and {ours} by the config; restore the file"
            )
    return variables


def read_variables(directory: RunDirectory, checkpoint: str) -> dict[str, Any]:
    """{'params', 'batch_stats'} of a run's 'last' or 'best' checkpoint, of all its networks, NumPy arrays.

    A run that trains deletes its checkpoints one after the other: a newer one is read then.

    Raises:
      UserError: as `restore`.
    """
    checkpoints = Checkpoints(directory.checkpoints, write=False)
    for _ in range(TRIES):
        step = manifest.select(directory.checkpoints, checkpoint)
        try:
            state = checkpoints.restore(step)
        except UserError:
            if step in checkpoints.steps():
                raise
        else:
            return {"params": state["params"], "batch_stats": state.get("batch_stats", {})}
    raise UserError(f"{directory.path} trains, and deletes its checkpoints before they are read: wait until it ends")


def without_branches(variables: dict[str, Any]) -> dict[str, Any]:
    """A network's variables but those of its auxiliary classifiers."""
    return {c: {k: v for k, v in tree.items() if not k.startswith("branch")} for c, tree in variables.items()}


def initialiser(network: Network | Peers) -> Any:
    """`network.init`, jitted, the same for networks that are equal, so that it is traced once."""
    return _initialiser(cast(Hashable, network))


@cache
def _initialiser(network: Any):
    # On CPU, XLA needs three quarters of its time at this level, and the program is as fast. At 0 it needs less
    # still, but its program runs for half a second, also where it comes from the cache.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(network.init, compiler_options=options)


def initialise(network: Network | Peers, image_shape: Sequence[int], seed: int) -> dict[str, Any]:
    """Random variables, {'params', 'batch_stats'} of JAX arrays.

    Args:
      network: Linen module.
      image_shape: [H, W, C].
      seed: of the initialisers.

    Raises:
      UserError: the images are too small for the network.
    """
    try:
        return initialiser(network)(jax.random.key(seed), jnp.zeros((1, *image_shape)))
    except ValueError as error:
        raise UserError(str(error)) from error


class Start(NamedTuple):
    """The variables that a run starts from.

    Attributes:
      variables: {'params', 'batch_stats'}.
      note: a line for the user about the last layer; None where none is needed.
    """

    variables: dict[str, Any]
    note: str | None = None


def start_from(
    run_dir: str | Path,
    variables: dict[str, Any],
    classes: Sequence[str],
    fresh_last_layer: bool = False,
    fixed_last_layer: bool = False,
    copy_branches: bool = False,
) -> Start:
    """Variables with the last parameters of a run wherever path and shape are equal.

    The last layer may differ, since it belongs to a dataset; the rest of the backbone may not. Where the run has the
    same classes in another order, the last layers are reordered by name. Where it has others, they are random.

    Args:
      run_dir: a run directory.
      variables: of the network to train, as `initialise` makes them.
      classes: names of the classes to train.
      fresh_last_layer: whether the last layer stays random in any case.
      fixed_last_layer: whether the last layer will not be trained, so that the run must have it.
      copy_branches: whether the layers of a branch, which repeats the stages of the backbone, are copied from there if
        the run has no branches. Its last layer, of 4N outputs, stays random.

    Raises:
      UserError: the run is of another network or, where that matters, of other classes.
    """
    flat: dict[tuple[str, ...], Any] = flatten_dict(variables)
    directory = RunDirectory(run_dir)
    several = "peer1" in variables["params"]  # networks that learn together start from all of theirs
    given, note = network_variables(directory, "last") if several else restore(run_dir)[1], None
    if not fresh_last_layer:
        match = match_classes(directory.config(), directory.path, len(classes), classes, "the data")
        given = given if match.order is None else reorder_classes(given, match.order)
        fresh_last_layer, note = bool(match.difference), match.note
        if match.difference and fixed_last_layer:
            raise UserError(
                f"{run_dir} {match.difference}, and its last layer stays as it is: use a run of the same data"
            )
        if match.difference:
            note = f"{directory.path} {match.difference}: the last layer starts at random"
    leaves: dict[tuple[str, ...], Any] = flatten_dict(given)
    if copy_branches:
        leaves = {**_copied(flat, leaves), **leaves}
    taken = {
        path: leaf
        for path, leaf in leaves.items()
        if path in flat and flat[path].shape == leaf.shape and not (fresh_last_layer and is_last_layer(path))
    }
    missing = [path for path in flat if path not in taken and not path[1 + several].startswith("branch")]
    if others := [path for path in missing if not is_last_layer(path)]:
        raise UserError(f"{run_dir} is not a run of this network: {'/'.join(others[0][1:])} has no match; check arch")
    return Start(unflatten_dict(flat | taken), note)


def _copied(branches: Collection[tuple[str, ...]], backbone: Mapping[tuple[str, ...], Any]) -> dict[Any, Any]:
    """For each parameter of a branch, the backbone's one of the same layer; the last branch repeats the last stage."""
    stages = sorted({path[1] for path in backbone if path[1].startswith("stage")})
    copied = {}
    for path in branches:
        if path[1].startswith("branch"):
            collection, _, part, *layer = path
            source = (collection, stages[-1] if part == "stage" else part, *layer)
            if source in backbone and not is_last_layer(path):
                copied[path] = backbone[source]
    return copied


def reorder_classes(variables: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Variables whose last layers have their outputs in another order.

    Args:
      variables: of a network with N classes, or of several. A branch has 4N outputs, the four rotations of a class
        side by side.
      order: for each new class, which one it was.
    """

    def reorder(leaf: Any) -> Any:
        by_class = np.asarray(leaf).reshape(*leaf.shape[:-1], len(order), -1)
        return by_class[..., list(order), :].reshape(leaf.shape)

    flat: dict[tuple[str, ...], Any] = flatten_dict(variables)
    return unflatten_dict({path: reorder(leaf) if is_last_layer(path) else leaf for path, leaf in flat.items()})


def is_last_layer(path: tuple[str, ...]) -> bool:
    """Whether a path is that of a last layer: of the backbone or of a branch."""
    return path[-3:-1] == ("head", "fc")
