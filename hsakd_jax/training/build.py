"""From a run's config to its computation: network, teacher, objective and the whole jitted step."""

from collections.abc import Callable, Iterable
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
from hsakd_jax.data.augment import augment, normalise, random_crop
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.rand_augment import rand_augment
from hsakd_jax.data.streaming import Photos
from hsakd_jax.distillation import methods, objectives
from hsakd_jax.models.layers import Train, is_trainable
from hsakd_jax.models.network import OBJECTIVE
from hsakd_jax.models.rotations import ROTATIONS, rotate
from hsakd_jax.runs.config import Config, Objective, RunConfig, Term, Training
from hsakd_jax.runs.directory import RunDirectory, resolve_path
from hsakd_jax.runs.restore import (
    Start,
    build_network,
    initialise,
    initialiser,
    is_last_layer,
    read_variables,
    start_from,
)
from hsakd_jax.training import optim, teachers
from hsakd_jax.training.class_costs import check_classes
from hsakd_jax.training.step import Batch, State, TrainStep


class Program(NamedTuple):
    """The computation of a run, without any parameters.

    Attributes:
      network: Linen module.
      teacher: as `teachers.load` makes it, or None.
      schedule: learning rate by step.
      init: makes the first state of variables.
      step: the whole jitted step, `step(state, teacher_variables, uint8 [B, H, W, C], labels [B], index [B]) -> State`,
        which reuses the state's memory.
      objective_init: variables of network and teacher -> those of an objective that has some; None of any other.
    """

    network: Any
    teacher: Any
    schedule: optax.Schedule
    init: Callable[[Any], State]
    step: Any
    objective_init: Callable[[Any, Any], dict[str, Any]] | None


class Built(NamedTuple):
    """A run that is ready to train.

    Attributes:
      program: its computation.
      state: at step 0.
      teacher_variables: None without a teacher.
      taught_by: the teacher's run; None without a teacher.
      notes: lines for the user about teacher and start.
    """

    program: Program
    state: State
    teacher_variables: Any
    taught_by: RunDirectory | None
    notes: tuple[str, ...] = ()


def build(
    config: RunConfig, path: Path, train: Dataset | Photos, devices: Devices, traced: Program | None = None
) -> Built:
    """Builds the network, teacher, objective and step of a run; `dry_run` has refused those that can't be built.

    Args:
      config: of the run.
      path: of the run, from which the relative paths of other runs start.
      train: training images.
      devices: where it runs.
      traced: the program that `dry_run` returned for the same config, images and devices; None traces it here.

    Raises:
      UserError: a teacher or start that does not fit.
    """
    taught_by, taught = None, teachers.Taught(None, None, ())
    if config.teacher:
        taught_by = RunDirectory(resolve_path(path, config.teacher.workdir))
        taught = teachers.load(config, config.teacher, taught_by)
    fits = traced and traced.teacher == taught.network
    program = traced if traced and fits else _program(config, taught.network, train, devices)
    start = _start(config, path, program.network)
    variables, notes = start.variables, (*taught.notes, *filter(None, [start.note]))
    if config.network.projector:
        variables = _with_last_layer(variables, taught.variables)
    if program.objective_init:
        own = jax.jit(program.objective_init)(variables, taught.variables)
        own = _fixed_from_teacher(own, config, taught_by) if taught_by else own
        variables = with_objective(variables, own)
    return Built(program, program.init(variables), taught.variables, taught_by, notes)


def dry_run(
    config: RunConfig, path: Path, teacher_config: Config | None, train: Dataset | Photos, devices: Devices
) -> Program:
    """Traces the first step of a run on shapes alone, so that mistakes show before anything trains.

    Args:
      config: of the run.
      path: of the run, from which the relative paths of other runs start.
      teacher_config: config of its teacher's run, which need not have begun; None without a teacher.
      train: training images.
      devices: where it will run.

    Returns:
      The traced program, for `build`.

    Raises:
      UserError: terms that can't be computed, such as of branches that do not exist, or numbers that make no run.
    """
    batch = config.training.batch
    _check_steps(config, len(train.labels))
    check_classes(config, train.labels)
    teacher = None
    if config.teacher and teacher_config:
        where = resolve_path(path, config.teacher.workdir)
        teacher = teachers.abstract_teacher(config, config.teacher, teacher_config, where)
    program = _program(config, teacher, train, devices)
    image = jax.ShapeDtypeStruct((1, *config.network.image_shape), jnp.float32)
    images = (batch, *(config.network.image_shape if isinstance(train, Photos) else train.image_shape))
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    try:
        variables = initialiser(program.network).eval_shape(jax.random.key(0), image)
        theirs = None if teacher is None else initialiser(teacher).eval_shape(jax.random.key(0), image)
        if program.objective_init:
            own = jax.eval_shape(program.objective_init, variables, theirs)
            if config.teacher and teacher_config:
                _check_fixed(own, config, teacher_config, resolve_path(path, config.teacher.workdir))
            variables = with_objective(variables, own)
        state = jax.eval_shape(program.init, variables)
        # The placement of arrays is part of a trace.
        given = devices.abstract((state, theirs), devices.replicated)
        rows = devices.abstract((jax.ShapeDtypeStruct(images, jnp.uint8), labels, labels), devices.batch_sharded)
        program.step.eval_shape(*given, *rows)
    except ValueError as error:
        hint = ""
        if isinstance(teacher, teachers.Preprocessed) and teacher.size != config.network.image_shape[:2]:
            hint = f"; the teacher takes images of {teacher.size[0]}x{teacher.size[1]} (data.image_size)"
        raise UserError(f"{error}{hint}") from error
    return program


def _check_steps(config: RunConfig, images: int) -> None:
    training, terms = config.training, config.objective.terms.values()
    epochs = max(training.epochs, training.warmup, *training.milestones, *(term.warmup for term in terms))
    if (steps := epochs * training.steps_per_epoch(images)) >= 2**31:
        raise UserError(f"{epochs:,} epochs are {steps:.2g} steps, more than a run counts (2**31): set fewer epochs")


def _program(config: RunConfig, teacher: Any, train: Dataset | Photos, devices: Devices) -> Program:
    training = config.training
    network = build_network(config.network, remat=training.remat, batch_norm_groups=training.batch_norm_groups)
    return make_program(config, network, teacher, train, devices)


def make_program(config: RunConfig, network: Any, teacher: Any, train: Dataset | Photos, devices: Devices) -> Program:
    """The computation of a run: from uint8 images to the next state.

    Args:
      config: of the run.
      network: Linen module.
      teacher: as `teachers.load` makes it, or None.
      train: training images.
      devices: where it runs.

    Raises:
      UserError: as `make_objective`.
    """
    training, labels = config.training, train.labels
    steps_per_epoch = training.steps_per_epoch(len(labels))
    schedule = make_schedule(training, steps_per_epoch)
    update = TrainStep(
        network=network,
        objective=make_objective(config.objective, training.batch_norm_groups),
        weights={
            name: term_weight(term, steps_per_epoch, training.epochs)
            for name, term in config.objective.terms.items()
            if term.weight
        },
        optimizer=_optimizer(training, schedule),
        train=_train(training),
        teacher=teacher,
        accumulate=training.accumulate,
    )
    # Not the key of the initialisers.
    seed = jax.random.fold_in(jax.random.key(config.seed), 1)

    def step(state, teacher_variables, images, labels, index):
        key = jax.random.fold_in(seed, state.step)
        cropped = isinstance(train, Photos)
        weak = training_images(key, images, config, cropped)
        strong = strong_view(key, images, config, cropped) if training.strong_view else None
        sample = None
        if isinstance(update.objective, nn.Module):
            # Not fold_in(key, 1), which is the key of the flips: `split` makes the same keys as `fold_in`.
            sample = methods.Sample(index, jnp.asarray(train.labels), jax.random.fold_in(key, 4))
        return update(state, teacher_variables, Batch(weak, labels, sample, strong))

    objective_init = None
    if isinstance(update.objective, nn.Module):
        alone = update.objective.clone(batch_norm_groups=1)  # for a batch of two rows
        objective_init = partial(_objective_variables, config, network, teacher, alone, labels)
    whole = devices.jit(step, replicated=2, donate=True)
    return Program(network, teacher, schedule, update.init, whole, objective_init)


def training_images(key: jax.Array, images: jax.Array, config: RunConfig, cropped: bool = False) -> jax.Array:
    """The images that the network sees in a step: augmented, in all four rotations if the run has them, normalised.

    Args:
      key: of the step.
      images: uint8 [B, H, W, C].
      config: of the run.
      cropped: whether they were cropped before they came here.

    Returns:
      float32 [B, H, W, C], or [4B, H, W, C] in the order of `rotate`.
    """
    training, data = config.training, config.data
    images = _cropped(key, images, config, cropped or training.crop_rotations)
    images = rotate(images) if training.rotated else images
    if training.crop_rotations:
        images = random_crop(jax.random.fold_in(key, 3), images, data.pad)
    return normalise(images, data.mean, data.std)


def strong_view(key: jax.Array, images: jax.Array, config: RunConfig, cropped: bool = False) -> jax.Array:
    """The second view of the images that the network sees in a step: upright, changed by RandAugment and cutout.

    It has a random crop and flip of its own, as in MLLD's and CRLD's code. Images that were cropped before they came
    here have the same crop in both views. Arguments are those of `training_images`, the result is [B, H, W, C].
    """
    crop_key, operations_key = jax.random.split(jax.random.fold_in(key, 2))
    images = rand_augment(operations_key, _cropped(crop_key, images, config, cropped))
    return normalise(images, config.data.mean, config.data.std)


def _cropped(key: jax.Array, images: jax.Array, config: RunConfig, done: bool) -> jax.Array:
    """Random crop, unless it is done, and flip."""
    data = config.data
    return augment(
        key,
        images,
        crop="done" if done else data.crop,
        pad=data.pad,
        flip=data.flip,
        size=config.network.image_shape[0],
        interpolation=data.interpolation,
    )


def _optimizer(training: Training, schedule: optax.Schedule) -> optax.GradientTransformation:
    if training.optimizer == "adamw":
        return optim.adamw(schedule, training.weight_decay)
    return optim.sgd(schedule, training.momentum, training.weight_decay, training.nesterov)


def make_schedule(training: Training, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step; the config counts epochs."""
    scale = training.batch / training.lr_batch if training.lr_batch else 1
    return optim.schedule(
        training.schedule,
        training.lr * scale,
        training.epochs * steps_per_epoch,
        warmup=training.warmup * steps_per_epoch,
        milestones=[epoch * steps_per_epoch for epoch in training.milestones],
        gamma=training.gamma,
    )


def make_objective(objective: Objective, batch_norm_groups: int = 1) -> Any:
    """The objective of a run, as `TrainStep` takes it.

    Args:
      objective: its config.
      batch_norm_groups: see `BatchNorm.groups`; of layers that belong to a method.

    Raises:
      UserError: every term has weight 0.
    """
    on = {name: term.options for name, term in objective.terms.items() if term.weight}
    if not on:
        raise UserError("every term of the objective has weight 0: set a weight above 0")
    if objective.kind == "methods":
        return methods.Methods(on, batch_norm_groups)
    return partial(objectives.OBJECTIVES[objective.kind], **{name: on.get(name) for name in objective.terms})


def term_weight(term: Term, steps_per_epoch: int, epochs: int) -> Any:
    """The weight of a term: a number, or a function of the step; it changes between epochs only.

    Args:
      term: of a run's config.
      steps_per_epoch: see `Training.steps_per_epoch`.
      epochs: of the run.
    """
    start = term.decay
    if not term.warmup and start is None:
        return term.weight

    def weight(step):
        epoch = (step // steps_per_epoch + 1).astype(float)
        factor = jnp.minimum(1.0, epoch / term.warmup) if term.warmup else jnp.ones(())
        if start is not None:
            progress = jnp.clip((epoch - start) / max(epochs - start, 1), 0.0, 1.0)
            factor = factor * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return term.weight * factor

    return weight


def _train(training: Training) -> Train:
    return True if training.trainable is None else training.trainable


def _start(config: RunConfig, path: Path, network: Any) -> Start:
    training = config.training
    variables = initialise(network, config.network.image_shape, config.seed)
    if training.init is None:
        return Start(variables)
    train, given = _train(training), resolve_path(path, training.init)
    fixed = not all(
        is_trainable(train, "/".join(names)) for names in flatten_dict(variables["params"]) if is_last_layer(names)
    )
    if not training.fresh_last_layer and RunDirectory(given).config().network.projector != config.network.projector:
        raise UserError(
            f"{given} and this run have different last layers, since SimKD's reads maps of its teacher: start from a "
            "run of another recipe, or of SimKD with the same teacher"
        )
    return start_from(given, variables, config.classes, training.fresh_last_layer, fixed, training.copy_branches)


def _objective_variables(config, network, teacher, objective, labels, variables, teacher_variables) -> dict[str, Any]:
    """The variables of an objective that is a module, under 'objective' in each collection."""
    rows = 2
    images = jnp.zeros((rows * (ROTATIONS if config.training.rotated else 1), *config.network.image_shape))
    outputs = network.apply(variables, images)
    taught = None if teacher is None else teacher.apply(teacher_variables, images)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    sample = methods.Sample(jnp.arange(rows), jnp.asarray(labels), key)
    if config.training.strong_view:
        upright = images[:rows]
        theirs = None if teacher is None else teacher.apply(teacher_variables, upright)
        sample = sample._replace(strong=network.apply(variables, upright), teacher_strong=theirs)
    own = objective.init(key, outputs, jnp.zeros(rows, jnp.int32), taught, sample)
    return {collection: {OBJECTIVE: tree} for collection, tree in own.items()}


def with_objective(variables: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Variables of a network, with those of its objective in the same collections.

    A network without BatchNorm has no 'batch_stats', and its objective may have some.
    """
    return {name: {**variables.get(name, {}), **own.get(name, {})} for name in {**variables, **own}}


def _with_last_layer(variables: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Variables with the last layer of the teacher, whose classes are in the same order."""
    # Copied, since the train step reuses the memory of its state.
    fc = jax.tree.map(np.array, theirs["params"]["head"]["fc"])
    params = variables["params"]
    return {**variables, "params": {**params, "head": {**params["head"], "fc": fc}}}


def _fixed_from_teacher(own: dict[str, Any], config: RunConfig, taught_by: RunDirectory) -> dict[str, Any]:
    """The variables of an objective, with those that it does not train from the teacher's run, which trained them."""
    if config.teacher is None:
        return own
    flat: dict[tuple[str, ...], Any] = flatten_dict(own)
    fixed = _fixed(flat, config)
    if not fixed:
        return own
    given: dict[tuple[str, ...], Any] = flatten_dict(read_variables(taught_by, config.teacher.checkpoint))
    if missing := [path for path in fixed if np.shape(given.get(path, 0)) != flat[path].shape]:
        raise _untrained(config, missing[0], taught_by.path)
    return unflatten_dict({**flat, **{path: given[path] for path in fixed}})


def _fixed(paths: Iterable[tuple[str, ...]], config: RunConfig) -> list[tuple[str, ...]]:
    """The parameters of an objective that the run does not train."""
    train = _train(config.training)
    return [path for path in paths if path[0] == "params" and not is_trainable(train, "/".join(path[1:]))]


def _check_fixed(own: dict[str, Any], config: RunConfig, theirs: Config, teacher: Path) -> None:
    """Refuses a teacher whose recipe has no term for a layer that the run takes from it.

    Raises:
      UserError: as `_fixed_from_teacher` after the teacher's training.
    """
    terms = theirs.objective.terms.items() if isinstance(theirs, RunConfig) else ()
    trained = [name for name, term in terms if term.weight]
    for path in _fixed(flatten_dict(own), config):
        layer = path[2]  # of {'params': {'objective': {'sskd': ...}}}, whose terms are sskd_head, sskd_kl, sskd_ss
        if not any(name == layer or name.startswith(f"{layer}_") for name in trained):
            raise _untrained(config, path, teacher)


def _untrained(config: RunConfig, path: tuple[str, ...], teacher: Path) -> UserError:
    return UserError(
        f"trainable={config.training.trainable!r} keeps {'/'.join(path[1:])} fixed, which {teacher} has not trained: "
        "use a teacher that has (for SSKD the recipe sskd_teacher), or train it here"
    )
