"""From a run's config to what trains: network, teacher, objective and the whole jitted step."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from hsakd_jax import objectives, optim, rivals
from hsakd_jax.augment import augment, normalise
from hsakd_jax.devices import Devices
from hsakd_jax.errors import UserError
from hsakd_jax.nets.parts import is_trainable
from hsakd_jax.photos import Photos
from hsakd_jax.recipes import RECIPES
from hsakd_jax.rotations import ROTATIONS, rotate
from hsakd_jax.rundir import RunDirectory
from hsakd_jax.sampling import Dataset
from hsakd_jax.step import OBJECTIVE, State, make_step
from hsakd_jax.variables import build, read_variables, restore, start

# What a term's options say of its weight rather than of its formula.
WEIGHING = ("weight", "warmup")


class Assembly(NamedTuple):
    """What trains.

    Attributes:
      network: Linen module.
      teacher: Linen module, or None.
      teacher_variables: its variables, or None.
      taught_by: the teacher's run, or None.
      schedule: learning rate by step.
      state: at step 0.
      step: the whole jitted step, `step(state, teacher_variables, uint8 [B, H, W, C], labels [B], index [B]) -> State`,
        which takes the state's memory.
    """

    network: Any
    teacher: Any
    teacher_variables: Any
    taught_by: RunDirectory | None
    schedule: optax.Schedule
    state: State
    step: Callable[..., State]


def assemble(config: dict[str, Any], path: Path, train: Dataset | Photos, devices: Devices) -> Assembly:
    """Makes all that a run trains with.

    Args:
      config: resolved, as `pipeline.resolve` makes it.
      path: of the run, from which the paths of other runs are told.
      train: training images.
      devices: where it runs.

    Raises:
      UserError: a teacher or start that does not fit, terms that can't be computed, or numbers that make no run.
    """
    settings, shape, seed = config["train"], config["network"]["image_shape"], config["seed"]
    network = build(config["network"], remat=settings["remat"], batch_norm_groups=settings["batch_norm_groups"])
    variables = start(network, shape, seed, _beside(path, settings["init"]) if settings["init"] else "")
    taught_by = RunDirectory(_beside(path, config["teacher"]["workdir"])) if config["teacher"] else None
    teacher, teacher_variables = load_teacher(config, taught_by)
    objective = make_objective(config)
    schedule = make_schedule(settings, len(train.labels))
    init, step = compile_step(config, network, teacher, devices, schedule, train)
    try:
        if isinstance(objective, nn.Module):
            both = (network, variables), (teacher, teacher_variables)
            own = _start_objective(objective, *both, shape, RECIPES[config["recipe"]].rotated, train.labels, seed)
            own = _take_over(own, settings["trainable"] or True, taught_by)
            variables = {c: {**tree, **own.get(c, {})} for c, tree in variables.items()}
        state = init(variables)
        rows = (settings["batch"], *(shape if isinstance(train, Photos) else train.image_shape))
        numbers = jax.ShapeDtypeStruct(rows[:1], jnp.int32)
        step.eval_shape(state, teacher_variables, jax.ShapeDtypeStruct(rows, jnp.uint8), numbers, numbers)
    except ValueError as error:  # such as branches that do not exist
        raise UserError(str(error)) from error
    return Assembly(network, teacher, teacher_variables, taught_by, schedule, state, step)


def _beside(path: Path, other: str) -> str:
    """Where another run lies, told from the run's own directory if its path is relative."""
    return os.path.normpath(path / other)


def load_teacher(config: dict[str, Any], directory: RunDirectory | None) -> tuple[Any, Any]:
    """(network, variables) of the teacher, or (None, None).

    Raises:
      UserError: it has other classes, or no branches where a term needs them.
    """
    if directory is None:
        return None, None
    path = directory.path
    options = {name: config["teacher"][name] for name in ("dtype", "peer") if name in config["teacher"]}
    teacher, variables = restore(path, config["teacher"]["checkpoint"], **options)
    if teacher.num_classes != config["network"]["num_classes"]:
        raise UserError(
            f"the teacher {path} knows {teacher.num_classes} classes and the dataset has "
            f"{config['network']['num_classes']}: choose a teacher of the same dataset"
        )
    reads_branches = bool(config["objective"].get("kl_aux", {}).get("weight"))
    if reads_branches and not teacher.branches:
        raise UserError(f"the teacher {path} has no branches, which kl_aux needs: train it with the recipe 'teacher'")
    # Branches that no term reads are not computed.
    return teacher.clone(branches=reads_branches), variables


def make_schedule(settings: dict[str, Any], images: int) -> optax.Schedule:
    """Learning rate by step; the config counts epochs."""
    steps_per_epoch = images // settings["batch"]
    scale = settings["batch"] / settings["lr_batch"] if settings["lr_batch"] else 1
    return optim.schedule(
        settings["schedule"],
        settings["lr"] * scale,
        settings["epochs"] * steps_per_epoch,
        warmup=settings["warmup"] * steps_per_epoch,
        milestones=[epoch * steps_per_epoch for epoch in settings["milestones"]],
        gamma=settings["gamma"],
    )


def make_objective(config: dict[str, Any]) -> Any:
    """The objective of a run, as `make_step` takes it.

    Raises:
      UserError: every term has weight 0.
    """
    terms = {
        name: {key: value for key, value in term.items() if key not in WEIGHING} if term["weight"] else None
        for name, term in config["objective"].items()
    }
    if not any(options is not None for options in terms.values()):
        raise UserError("every term of the objective has weight 0: give one a weight")
    kind = RECIPES[config["recipe"]].objective
    if kind == "rival":
        return rivals.Rival({name: options for name, options in terms.items() if options is not None})
    return partial(objectives.OBJECTIVES[kind], **terms)


def compile_step(
    config: dict[str, Any], network: Any, teacher: Any, devices: Devices, schedule: optax.Schedule, train: Any
) -> tuple[Callable[[Any], State], Callable[..., State]]:
    """(init, step): what starts a state, and the whole jitted step from uint8 images on (see `Assembly`).

    Args:
      config: of a run.
      network: Linen module.
      teacher: Linen module, or None.
      devices: where it runs.
      schedule: learning rate by step.
      train: training images.

    Raises:
      UserError: as `make_objective`.
    """
    settings, source = config["train"], config["data"]
    objective = make_objective(config)
    steps_per_epoch = len(train.labels) // settings["batch"]
    weights = {
        name: _weight(term["weight"], term.get("warmup", 0) * steps_per_epoch)
        for name, term in config["objective"].items()
        if term["weight"]
    }
    sgd = optim.sgd(schedule, settings["momentum"], settings["weight_decay"], settings["nesterov"])
    learning = settings["trainable"] or True
    init, update = make_step(network, objective, weights, sgd, learning, teacher, settings["accumulate"])
    crop = {"crop": "done" if isinstance(train, Photos) else source["crop"], "pad": source["pad"]}
    crop |= {"flip": source["flip"], "size": config["network"]["image_shape"][0]}
    # Not the key of the initialisers.
    seed = jax.random.fold_in(jax.random.key(config["seed"]), 1)

    def step(state, teacher_variables, images, labels, index):
        key = jax.random.fold_in(seed, state.step)
        images = normalise(augment(key, images, **crop), source["mean"], source["std"])
        images = rotate(images) if RECIPES[config["recipe"]].rotated else images
        sample = None
        if isinstance(objective, nn.Module):
            sample = rivals.Sample(index, jnp.asarray(train.labels), jax.random.fold_in(key, 1))
        return update(state, teacher_variables, images, labels, sample)

    return init, devices.jit(step, replicated=2, donate=True)


def _weight(weight: float, warmup: int) -> Any:
    return (lambda step: weight * jnp.minimum(1.0, (step + 1) / warmup)) if warmup else weight


def _start_objective(objective, student, teacher, shape, rotated, classes, seed):
    """What an objective has of its own at the start, under 'objective' in each collection."""
    rows = 2
    images = jnp.zeros((rows * (ROTATIONS if rotated else 1), *shape))
    labels = jnp.zeros(rows, jnp.int32)

    def init(key):
        (network, variables), (taught_network, taught_variables) = student, teacher
        outputs = network.apply(variables, images)
        taught = taught_network.apply(taught_variables, images) if taught_network else None
        sample = rivals.Sample(jnp.arange(rows), jnp.asarray(classes), key)
        return objective.init(key, outputs, labels, taught, sample)

    own = jax.jit(init)(jax.random.fold_in(jax.random.key(seed), 2))
    return {collection: {OBJECTIVE: tree} for collection, tree in own.items()}


def _take_over(own, trainable, taught_by):
    """What an objective has but does not train comes from the teacher's run, where that was trained."""
    if taught_by is None:
        return own
    flat: dict[tuple[str, ...], Any] = flatten_dict(own)
    given: dict[tuple[str, ...], Any] = flatten_dict(read_variables(taught_by, "last"))
    fixed = [path for path in flat if path[0] == "params" and not is_trainable(trainable, "/".join(path[1:]))]
    if missing := [path for path in fixed if np.shape(given.get(path, 0)) != flat[path].shape]:
        raise UserError(
            f"{taught_by.path} has not trained {'/'.join(missing[0][1:])}, which this recipe needs: train the teacher "
            "with the recipe 'sskd_teacher'"
        )
    return unflatten_dict({**flat, **{path: given[path] for path in fixed}})
