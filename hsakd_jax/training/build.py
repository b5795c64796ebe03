"""From a run's config to what trains: network, teacher, objective and the whole jitted step."""

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

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.augment import augment, normalise
from hsakd_jax.data.sampling import Dataset, order
from hsakd_jax.data.streaming import Photos
from hsakd_jax.distillation import methods, objectives
from hsakd_jax.experiments.recipes import GIVEN, RECIPES
from hsakd_jax.models.layers import is_trainable
from hsakd_jax.models.rotations import ROTATIONS, rotate
from hsakd_jax.runs.directory import RunDirectory, beside
from hsakd_jax.runs.restore import build, initialiser, read_variables, start
from hsakd_jax.training import optim, teachers
from hsakd_jax.training.step import OBJECTIVE, State, make_step

# What a term's options say of its weight rather than of its formula.
WEIGHING = ("weight", "warmup")


class Assembly(NamedTuple):
    """What trains.

    Attributes:
      network: Linen module.
      teacher: Linen module, `folding.Folded`, or None.
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


class Rehearsed(NamedTuple):
    """What a rehearsal has traced, so that the run need not again.

    Attributes:
      teacher: Linen module, `folding.Folded`, or None.
      init: starts a state.
      step: as in `Assembly`.
    """

    teacher: Any
    init: Callable[[Any], State]
    step: Callable[..., State]


def assemble(
    config: dict[str, Any], path: Path, train: Dataset | Photos, devices: Devices, rehearsed: Rehearsed | None = None
) -> Assembly:
    """Makes all that a run trains with; `rehearse` has found what can't be.

    Args:
      config: resolved, as `pipeline.resolve` makes it.
      path: of the run, from which the paths of other runs are told.
      train: training images.
      devices: where it runs.
      rehearsed: what `rehearse` gave for the same config, images and devices.

    Raises:
      UserError: a teacher or start that does not fit.
    """
    settings, shape, seed = config["train"], config["network"]["image_shape"], config["seed"]
    network = _network(config)
    init_from = str(beside(path, settings["init"])) if settings["init"] else ""
    new_fc = RECIPES[config["recipe"]].init == GIVEN
    frozen_fc = not is_trainable(settings["trainable"] or True, "head/fc/kernel")
    variables = start(network, shape, seed, init_from, new_fc, frozen_fc)
    taught_by = RunDirectory(beside(path, config["teacher"]["workdir"])) if config["teacher"] else None
    teacher, teacher_variables = teachers.load(config, taught_by) if taught_by else (None, None)
    schedule = make_schedule(settings, len(train.labels))
    if rehearsed and rehearsed.teacher == teacher:
        init, step = rehearsed.init, rehearsed.step
    else:
        init, step = compile_step(config, network, teacher, devices, schedule, train)
    own = _own(config, network, teacher, train, jax.jit)(variables, teacher_variables)
    own = _take_over(own, settings["trainable"] or True, config["teacher"], taught_by)
    variables = {c: {**tree, **own.get(c, {})} for c, tree in variables.items()}
    return Assembly(network, teacher, teacher_variables, taught_by, schedule, init(variables), step)


def rehearse(
    config: dict[str, Any], path: Path, teacher: dict[str, Any] | None, train: Dataset | Photos, devices: Devices
) -> Rehearsed:
    """Goes through the first step of a run on shapes alone, so that mistakes show before anything trains.

    Args:
      config: of the run.
      path: of the run, from which the paths of other runs are told.
      teacher: config of its teacher's run, which need not have begun; None without one.
      train: training images.
      devices: where it will run.

    Returns:
      What it traced, for `assemble`.

    Raises:
      UserError: terms that can't be computed, such as of branches that do not exist, or numbers that make no run.
    """
    settings, shape = config["train"], config["network"]["image_shape"]
    order(len(train.labels), settings["batch"], config["seed"], 0)  # refuses a batch larger than the training set
    network = _network(config)
    taught = teachers.foresee(config, teacher, beside(path, config["teacher"]["workdir"])) if teacher else None
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    init, step = compile_step(config, network, taught, devices, make_schedule(settings, len(train.labels)), train)
    rows = (settings["batch"], *(shape if isinstance(train, Photos) else train.image_shape))
    numbers = jax.ShapeDtypeStruct(rows[:1], jnp.int32)
    try:
        variables = initialiser(network).eval_shape(jax.random.key(0), image)
        theirs = None if taught is None else jax.eval_shape(taught.init, jax.random.key(0), image)
        own = _own(config, network, taught, train, lambda f: partial(jax.eval_shape, f))(variables, theirs)
        variables = {c: {**tree, **own.get(c, {})} for c, tree in variables.items()}
        state = jax.eval_shape(init, variables)
        # Where they lie is part of what is traced.
        given = devices.abstract((state, theirs), devices.everywhere)
        batch = devices.abstract((jax.ShapeDtypeStruct(rows, jnp.uint8), numbers, numbers), devices.split)
        step.eval_shape(*given, *batch)
    except ValueError as error:
        raise UserError(str(error)) from error
    return Rehearsed(taught, init, step)


def _network(config):
    settings = config["train"]
    return build(config["network"], remat=settings["remat"], batch_norm_groups=settings["batch_norm_groups"])


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
    if kind == "methods":
        return methods.Methods({name: options for name, options in terms.items() if options is not None})
    return partial(objectives.OBJECTIVES[kind], **terms)


def compile_step(
    config: dict[str, Any], network: Any, teacher: Any, devices: Devices, schedule: optax.Schedule, train: Any
) -> tuple[Callable[[Any], State], Callable[..., State]]:
    """(init, step): what starts a state, and the whole jitted step from uint8 images on (see `Assembly`).

    Args:
      config: of a run.
      network: Linen module.
      teacher: Linen module, `folding.Folded`, or None.
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
            sample = methods.Sample(index, jnp.asarray(train.labels), jax.random.fold_in(key, 1))
        return update(state, teacher_variables, images, labels, sample)

    return init, devices.jit(step, replicated=2, donate=True)


def _weight(weight: float, warmup: int) -> Any:
    return (lambda step: weight * jnp.minimum(1.0, (step + 1) / warmup)) if warmup else weight


def _own(config, network, teacher, train, run):
    """A function of both networks' variables that gives what the objective has of its own, under 'objective'.

    `run` makes a function that computes, or that tells shapes alone, of one that does.
    """
    objective, shape = make_objective(config), config["network"]["image_shape"]
    rows = 2

    def init(variables, taught_variables):
        images = jnp.zeros((rows * (ROTATIONS if RECIPES[config["recipe"]].rotated else 1), *shape))
        outputs = network.apply(variables, images)
        taught = None if teacher is None else teacher.apply(taught_variables, images)
        key = jax.random.fold_in(jax.random.key(config["seed"]), 2)
        sample = methods.Sample(jnp.arange(rows), jnp.asarray(train.labels), key)
        own = objective.init(key, outputs, jnp.zeros(rows, jnp.int32), taught, sample)
        return {collection: {OBJECTIVE: tree} for collection, tree in own.items()}

    return run(init) if isinstance(objective, nn.Module) else lambda *_: {}


def _take_over(own, trainable, options, taught_by):
    """What an objective has but does not train comes from the teacher's run, where that was trained."""
    if taught_by is None:
        return own
    flat: dict[tuple[str, ...], Any] = flatten_dict(own)
    given: dict[tuple[str, ...], Any] = flatten_dict(read_variables(taught_by, options["checkpoint"]))
    fixed = [path for path in flat if path[0] == "params" and not is_trainable(trainable, "/".join(path[1:]))]
    if missing := [path for path in fixed if np.shape(given.get(path, 0)) != flat[path].shape]:
        raise UserError(
            f"trainable={trainable!r} keeps {'/'.join(missing[0][1:])}, which {taught_by.path} has not trained: train "
            "a teacher that does (for SSKD the recipe sskd_teacher), or let it learn"
        )
    return unflatten_dict({**flat, **{path: given[path] for path in fixed}})
