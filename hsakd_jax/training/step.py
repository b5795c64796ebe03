"""The train step: outputs -> terms -> gradient -> update, of any network, objective and optimiser."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from hsakd_jax.evaluation.metrics import top1
from hsakd_jax.models.layers import Train
from hsakd_jax.models.network import OBJECTIVE
from hsakd_jax.training.optim import fix, trainable_mask

Array = jax.Array
Weight = float | Callable[[Array], Array]
NEVER = jnp.iinfo(jnp.int32).max


class MetricAccumulator(PyTreeNode):
    """Sums since the last record; part of the state, so that a resumed run records the same means.

    Attributes:
      steps: steps that were summed, int32 scalar.
      sums: metric -> sum over those steps, scalars.
      first_non_finite: metric -> first step of the run at which it was not finite, else `NEVER`, int32 scalars.
    """

    steps: Array
    sums: dict[str, Array]
    first_non_finite: dict[str, Array]


class State(PyTreeNode):
    """All that changes during a run.

    Attributes:
      step: updates so far, int32 scalar.
      params: trained and fixed parameters.
      batch_stats: running statistics of BatchNorm.
      opt_state: of the optimiser.
      metrics: sums since the last record.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    metrics: MetricAccumulator

    @property
    def variables(self) -> dict[str, Any]:
        """For `network.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Batch(NamedTuple):
    """One batch in the form of the network's input.

    Attributes:
      images: floating point, [B, H, W, C] or, rotated, [4B, H, W, C].
      labels: integers, [B].
      sample: which training images these are, for objectives that are modules; None for others.
      strong: floating point, [B, H, W, C], a second view of the images, with a stronger augmentation and never rotated.
        Only for such objectives; None for others.
    """

    images: Array
    labels: Array
    sample: Any = None
    strong: Array | None = None


@dataclass(frozen=True, eq=False)
class TrainStep:
    """One update: `step(state, teacher_variables, batch) -> State`; `step.init(variables)` makes the first state.

    Attributes:
      network: Linen module, `apply(variables, images, train)` -> the first argument of `objective`.
      objective: `objective(outputs, labels, teacher's outputs)` -> named terms. Where it has parameters or memory of
        its own, it is a Linen module with the batch's sample as further argument. The network's variables then contain
        its own under 'objective'.
      weights: weight of every term that `objective` returns, a number or a function of the step.
      optimizer: of the trainable parameters.
      train: the trained parameters (see `models.layers.is_trainable`); the others stay fixed, BatchNorm included.
      teacher: as `teachers.load` makes it, run in eval mode without gradient; None without one.
      accumulate: micro-batches per step; each has its own BatchNorm statistics, the gradient is their mean.
    """

    network: Any
    objective: Callable[..., dict[str, Array]]
    weights: Mapping[str, Weight]
    optimizer: optax.GradientTransformation
    train: Train = True
    teacher: Any = None
    accumulate: int = 1

    def init(self, variables: Mapping[str, Any]) -> State:
        """The state before the first step.

        Args:
          variables: {'params', 'batch_stats'} of the network and the objective.

        Raises:
          UserError: no parameter is trained.
        """
        params = variables["params"]
        return State(
            step=jnp.int32(0),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=fix(self.optimizer, trainable_mask(self.train, params)).init(params),
            metrics=_empty((*self.weights, "loss", "top1", "grad_norm"), params),
        )

    def __call__(self, state: State, teacher_variables: Any, batch: Batch) -> State:
        """The state after one update on a batch."""
        batch_stats, grads, metrics = _gradient(self, state, teacher_variables, batch)
        learns = trainable_mask(self.train, state.params)
        metrics["grad_norm"] = optax.tree.norm(jax.tree.map(lambda g, on: g if on else None, grads, learns))
        updates, opt_state = fix(self.optimizer, learns).update(grads, state.opt_state, state.params)
        return State(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            metrics=_accumulate(state.metrics, state.step, metrics),
        )


def _gradient(step: TrainStep, state: State, teacher_variables: Any, batch: Batch) -> tuple[Any, Any, dict[str, Array]]:
    """New running statistics, gradient and metrics, the latter two as means over the micro-batches."""
    batch_stats, total = state.batch_stats, None
    for part in _micro_batches(batch, step.accumulate):
        grad_fn = jax.grad(_loss, argnums=1, has_aux=True)
        grads, (batch_stats, metrics) = grad_fn(step, state.params, batch_stats, teacher_variables, part, state.step)
        found = grads, metrics
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    grads, metrics = jax.tree.map(lambda x: x / step.accumulate, total)
    return batch_stats, grads, metrics


def _loss(step: TrainStep, params, batch_stats, teacher_variables, batch: Batch, at: Array):
    """The weighted sum of the terms; besides, new running statistics and the metrics of the batch."""
    taught = _taught(step, teacher_variables, batch.images)
    variables = {"params": params, "batch_stats": batch_stats}
    outputs, updated = step.network.apply(variables, batch.images, step.train, mutable=["batch_stats"])
    if batch.strong is not None:
        # A second pass with BatchNorm statistics of its own, as in MLLD's and CRLD's code. Branches learn from rotated
        # batches only.
        backbone = step.network.clone(branches=False)
        strong, updated = backbone.apply({**variables, **updated}, batch.strong, step.train, mutable=["batch_stats"])
        taught_strong = _taught(step, teacher_variables, batch.strong)
        batch = batch._replace(sample=batch.sample._replace(strong=strong, teacher_strong=taught_strong))
    terms, memory = _terms(step.objective, variables, outputs, taught, batch)
    weights = {name: weight(at) if callable(weight) else weight for name, weight in step.weights.items()}
    loss = sum(weights[name] * term for name, term in terms.items())
    # Networks without BatchNorm have no statistics.
    statistics = {**updated.get("batch_stats", {}), **memory}
    return loss, (statistics, {**terms, "loss": loss, "top1": top1(outputs, batch.labels)})


def _taught(step: TrainStep, teacher_variables, images: Array) -> Any:
    """The teacher's outputs, without gradient; None without a teacher."""
    if step.teacher is None:
        return None
    return jax.lax.stop_gradient(step.teacher.apply(teacher_variables, images))


def _terms(objective, variables, outputs, taught, batch: Batch) -> tuple[dict[str, Array], dict[str, Any]]:
    """The terms, and the new memory of an objective that has one."""
    if not isinstance(objective, nn.Module):
        return objective(outputs, batch.labels, taught), {}
    own = {collection: tree.get(OBJECTIVE, {}) for collection, tree in variables.items()}
    terms, kept = objective.apply(own, outputs, batch.labels, taught, batch.sample, mutable=["batch_stats"])
    return terms, {OBJECTIVE: kept["batch_stats"]} if kept.get("batch_stats") else {}


def _micro_batches(batch: Batch, count: int) -> list[Batch]:
    def split(x: Array) -> list[Array]:
        # Neighbouring rows go to different micro-batches, so that each stays spread over all devices.
        rows = x.reshape(len(batch.labels) // count, count, -1, *x.shape[1:])
        return [rows[:, i].reshape(-1, *x.shape[1:]) for i in range(count)]

    samples: list[Any] = [None] * count
    if batch.sample is not None:
        samples = [batch.sample._replace(index=index) for index in split(batch.sample.index)]
    strong = [None] * count if batch.strong is None else split(batch.strong)
    parts = zip(split(batch.images), split(batch.labels), samples, strong, strict=True)
    return [Batch(*part) for part in parts]


def _empty(names: tuple[str, ...], params: Any) -> MetricAccumulator:
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return MetricAccumulator(
        steps=jnp.int32(0),
        sums={name: jnp.zeros((), dtype) for name in names},
        first_non_finite={name: jnp.int32(NEVER) for name in names},
    )


def _accumulate(before: MetricAccumulator, step: Array, metrics: Mapping[str, Array]) -> MetricAccumulator:
    return MetricAccumulator(
        steps=before.steps + 1,
        sums={name: total + metrics[name] for name, total in before.sums.items()},
        first_non_finite={
            name: jnp.where(jnp.isfinite(metrics[name]), first, jnp.minimum(first, step))
            for name, first in before.first_non_finite.items()
        },
    )
