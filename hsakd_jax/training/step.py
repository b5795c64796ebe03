"""The train step: outputs -> terms -> gradient -> update, on whatever network, objective and optimiser."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from hsakd_jax.evaluation.metrics import top1
from hsakd_jax.models.layers import Train
from hsakd_jax.training.optim import fix, trainable

Array = jax.Array
Weight = float | Callable[[Array], Array]
# Where an objective keeps parameters and memory of its own, beside the network's.
OBJECTIVE = "objective"
NEVER = jnp.iinfo(jnp.int32).max


class Window(PyTreeNode):
    """Measurements since they were last read; part of the state, so that a resumed run logs the same means.

    Attributes:
      steps: how many steps were summed, int32.
      sums: measurement -> sum over those steps.
      first_bad: measurement -> first step of the run at which it was not finite, else `NEVER`, int32.
    """

    steps: Array
    sums: dict[str, Array]
    first_bad: dict[str, Array]


class State(PyTreeNode):
    """All that changes in a run.

    Attributes:
      step: updates made, int32.
      params: trained and fixed parameters.
      batch_stats: running statistics of BatchNorm.
      opt_state: the optimiser's.
      window: measurements since they were last read.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    window: Window

    @property
    def variables(self) -> dict[str, Any]:
        """For `network.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_step(
    network: Any,
    objective: Callable[..., dict[str, Array]],
    weights: Mapping[str, Weight],
    optimizer: optax.GradientTransformation,
    train: Train = True,
    teacher: Any = None,
    accumulate: int = 1,
) -> tuple[Callable[[Any], State], Callable[..., State]]:
    """Makes the functions that start and advance a run.

    Args:
      network: Linen module, `apply(variables, images, train)` -> what `objective` takes.
      objective: `objective(outputs, labels, teacher's outputs)` -> named terms; or, where it has parameters or memory
        of its own, a Linen module that takes `sample` besides. They lie under 'objective' among the network's.
      weights: the weight of every term that `objective` gives, a number or a function of the step.
      optimizer: of the trainable parameters.
      train: which parameters learn (see `layers.is_trainable`); the others are fixed, BatchNorm included.
      teacher: Linen module or `folding.Folded`, run in eval mode without gradient, or None.
      accumulate: micro-batches a step; each has its own BatchNorm statistics, the gradient is their mean.

    Returns:
      `init(variables) -> State` and `step(state, teacher_variables, images, labels, sample=None) -> State`, with images
      in floating point and ready for the network, [B, ...] or [4B, ...], labels integers [B], and a `sample` for
      objectives that are modules (see `methods.Sample`).
    """

    def judge(variables, outputs, labels, taught, sample):
        """Terms, and what the objective remembers."""
        if not isinstance(objective, nn.Module):
            return objective(outputs, labels, taught), {}
        own = {c: tree.get(OBJECTIVE, {}) for c, tree in variables.items()}
        terms, kept = objective.apply(own, outputs, labels, taught, sample, mutable=["batch_stats"])
        return terms, {OBJECTIVE: kept["batch_stats"]} if kept.get("batch_stats") else {}

    def loss_fn(params, batch_stats, teacher_variables, images, labels, sample, step):
        taught = None if teacher is None else jax.lax.stop_gradient(teacher.apply(teacher_variables, images))
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, updated = network.apply(variables, images, train, mutable=["batch_stats"])
        terms, kept = judge(variables, outputs, labels, taught, sample)
        now = {name: weight(step) if callable(weight) else weight for name, weight in weights.items()}
        loss = sum(now[name] * term for name, term in terms.items())
        measured = {**terms, "loss": loss, "top1": top1(outputs, labels)}
        return loss, ({**updated["batch_stats"], **kept}, measured)

    def transformation(params):
        mask = trainable(train, params)
        return mask, fix(optimizer, mask)

    def micro_batches(x, labels):
        # Neighbouring rows go to different micro-batches, so that each stays spread over all devices.
        rows = x.reshape(len(labels) // accumulate, accumulate, -1, *x.shape[1:])
        return [rows[:, i].reshape(-1, *x.shape[1:]) for i in range(accumulate)]

    def gradient(state, teacher_variables, images, labels, sample):
        batch_stats, grads, measured = state.batch_stats, None, None
        samples = [None] * accumulate
        if sample is not None:
            samples = [sample._replace(index=index) for index in micro_batches(sample.index, labels)]
        for x, y, s in zip(micro_batches(images, labels), micro_batches(labels, labels), samples, strict=True):
            grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (_, (batch_stats, m)), g = grad_fn(state.params, batch_stats, teacher_variables, x, y, s, state.step)
            grads, measured = (g, m) if grads is None else jax.tree.map(jnp.add, (grads, measured), (g, m))
        grads, measured = jax.tree.map(lambda x: x / accumulate, (grads, measured))
        return batch_stats, grads, measured

    def step(state, teacher_variables, images, labels, sample=None):
        batch_stats, grads, measured = gradient(state, teacher_variables, images, labels, sample)
        mask, optimizer = transformation(state.params)
        learning = jax.tree.map(lambda g, learns: g if learns else None, grads, mask)
        measured["grad_norm"] = optax.tree.norm(learning)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return State(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            window=_measure(state.window, state.step, measured),
        )

    def init(variables):
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        names = (*weights, "loss", "top1", "grad_norm")
        dtype = jnp.result_type(*jax.tree.leaves(params))
        window = Window(
            steps=jnp.int32(0),
            sums={name: jnp.zeros((), dtype) for name in names},
            first_bad={name: jnp.int32(NEVER) for name in names},
        )
        opt_state = transformation(params)[1].init(params)
        return State(jnp.int32(0), params, batch_stats, opt_state, window)

    return init, step


def _measure(window: Window, step: Array, measured: Mapping[str, Array]) -> Window:
    return Window(
        steps=window.steps + 1,
        sums={name: total + measured[name] for name, total in window.sums.items()},
        first_bad={
            name: jnp.where(jnp.isfinite(measured[name]), first, jnp.minimum(first, step))
            for name, first in window.first_bad.items()
        },
    )
