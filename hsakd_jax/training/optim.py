"""PyTorch-equal SGD and AdamW, their schedules, and the trainable parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from hsakd_jax.core.errors import UserError
from hsakd_jax.models.layers import Train, is_trainable


def schedule(kind: str, lr: float, steps: int, *, warmup: int, milestones: Sequence[float], gamma: float):
    """Learning rate by step.

    Args:
      kind: 'multi_step' (times `gamma` at each milestone) or 'cosine' (to 0 at `steps`).
      lr: base learning rate.
      steps: steps of the whole run.
      warmup: steps of linear warm-up from 0 to `lr`, counted within `steps`.
      milestones: steps, counted from the start of the run.
      gamma: factor at a milestone.

    Raises:
      UserError: unknown kind.
    """
    if kind == "multi_step":
        factors: dict[Any, float] = {m - warmup: gamma for m in milestones}  # a milestone may be between two steps
        main = optax.piecewise_constant_schedule(lr, factors)
    elif kind == "cosine":
        main = optax.cosine_decay_schedule(lr, max(steps - warmup, 1))
    else:
        raise UserError(f"unknown schedule {kind!r}: choose multi_step or cosine")
    return optax.join_schedules([optax.linear_schedule(0, lr, warmup), main], [warmup]) if warmup else main


def sgd(lr: optax.ScalarOrSchedule, momentum: float, weight_decay: float, nesterov: bool):
    """SGD as PyTorch has it: decay joins the gradient before the momentum, on every trained parameter."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(lr, momentum or None, nesterov))


def adamw(lr: optax.ScalarOrSchedule, weight_decay: float):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) as PyTorch has it, with betas 0.9 and 0.999 and eps 1e-8."""
    return optax.adamw(lr, weight_decay=weight_decay)


def trainable_mask(train: Train, params: Any) -> Any:
    """The trained leaves of `params`, as a tree of bools (see `models.layers.is_trainable`).

    Raises:
      UserError: there is none, or the pattern is no regular expression.
    """

    def learns(path, _):
        return is_trainable(train, "/".join(key.key for key in path))

    mask = jax.tree_util.tree_map_with_path(learns, params)
    if not any(jax.tree.leaves(mask)):
        raise UserError(f"no parameter matches trainable={train!r}: name a part, such as 'branch' or 'head/fc'")
    return mask


def fix(optimizer: optax.GradientTransformation, mask: Any) -> optax.GradientTransformation:
    """`optimizer` for the leaves chosen by `mask`; the others get no update, no decay and no momentum."""
    labels = jax.tree.map(lambda learns: "train" if learns else "fixed", mask)
    return optax.multi_transform({"train": optimizer, "fixed": optax.set_to_zero()}, labels)
