"""WKD-L's costs between classes: made once from the teacher, before the first step, and part of the run's state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.augment import prepare
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.streaming import Photos
from hsakd_jax.distillation.methods import default_options
from hsakd_jax.distillation.methods.transport import cka_cost, cosine_cost
from hsakd_jax.evaluation.accuracy import batches_of, preprocessing
from hsakd_jax.models.network import OBJECTIVE
from hsakd_jax.models.numerics import at_least_float32
from hsakd_jax.runs.config import RunConfig
from hsakd_jax.training.step import State

TERM = "wkd_l"


def with_class_costs(
    state: State, config: RunConfig, teacher: Any, teacher_variables: Any, train: Dataset | Photos, devices: Devices
) -> State:
    """The first state of a run, with the costs that its objective keeps; the same state of any other objective.

    Args:
      state: at step 0.
      config: of the run.
      teacher: as `teachers.load` makes it, or None.
      teacher_variables: of the teacher.
      train: training images.
      devices: where it runs.

    Raises:
      UserError: as `check_classes`.
    """
    options = _options(config)
    if options is None:
        return state
    check_classes(config, train.labels)
    if options["cost"] == "classifier":
        kernel = at_least_float32(jnp.asarray(teacher_variables["params"]["head"]["fc"]["kernel"]))
        cost = jax.jit(cosine_cost)(kernel)
    else:
        features = _features(config, options, teacher, teacher_variables, train, devices)
        cost = jax.jit(cka_cost)(features)
    memory = state.batch_stats[OBJECTIVE]
    kept = {**memory, TERM: {"cost": np.asarray(cost, memory[TERM]["cost"].dtype)}}
    return state.replace(batch_stats={**state.batch_stats, OBJECTIVE: kept})


def check_classes(config: RunConfig, labels: np.ndarray) -> None:
    """Refuses a class whose features can't be compared with those of others.

    Args:
      config: of the run.
      labels: of the training images, integers [n].

    Raises:
      UserError: a class has fewer than two training images, where the costs are made from them.
    """
    options = _options(config)
    if options is None or options["cost"] == "classifier":
        return
    counts = np.bincount(labels, minlength=config.network.num_classes)
    least = int(counts.argmin())
    if counts[least] < 2:
        raise UserError(
            f"class {config.classes[least]!r} has {counts[least]} training images, and {TERM}.cost={options['cost']} "
            f"needs at least 2: set --config.objective.{config.recipe}.{TERM}.cost=classifier, or a greater "
            "--config.data.fraction"
        )


def _options(config: RunConfig) -> dict[str, Any] | None:
    """The options of the term; None where it has no weight."""
    term = config.objective.terms.get(TERM)
    return {**default_options(TERM), **term.options} if term and term.weight else None


def _features(
    config: RunConfig,
    options: dict[str, Any],
    teacher: Any,
    teacher_variables: Any,
    train: Dataset | Photos,
    devices: Devices,
) -> np.ndarray:
    """The teacher's features of the first images of each class, as in evaluation: [N, R, D], see `wkd_l`."""
    classes, preprocess = config.network.num_classes, preprocessing(config)
    by_class = [np.flatnonzero(train.labels == label) for label in range(classes)]
    count = min(options["images"], *map(len, by_class))
    chosen = train.take(np.concatenate([members[:count] for members in by_class]))

    def compute(variables, images):
        outputs = teacher.apply(variables, prepare(images, **preprocess))
        rows = outputs.logits if options["cost"] == "cka_logits" else outputs.features[-1]
        return at_least_float32(rows).reshape(len(images), -1, rows.shape[-1])

    compute, variables = devices.jit(compute, 1), devices.replicate(teacher_variables)
    batch = -(-config.eval_batch // len(devices)) * len(devices)
    features, done = None, 0
    for rows in batches_of(config, chosen, batch, devices.local_slice(batch)):
        found = np.asarray(compute(variables, devices.shard(rows["image"])))[: len(chosen.labels) - done]
        if features is None:
            features = np.empty((len(chosen.labels), *found.shape[1:]), found.dtype)
        features[done : done + len(found)] = found
        done += len(found)
    assert features is not None
    return features.reshape(classes, -1, features.shape[-1])
