"""Accuracies: logits, labels and a mask -> numbers of correct predictions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hsakd_jax.models.network import Outputs
from hsakd_jax.models.rotations import ROTATIONS, class_logits, joint_labels, upright

Array = jax.Array


def in_top(logits: Array, labels: Array, k: int = 1) -> Array:
    """Whether the label is among the k greatest logits: [R, N], integers [R] -> bool [R]; False where one is NaN."""
    _, best = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    # `top_k` sorts NaN first: without the check, a network that outputs NaN only would always predict class 0.
    return (best == labels[:, None].astype(best.dtype)).any(-1) & ~jnp.isnan(logits).any(-1)


def top1(outputs: Outputs | Sequence[Outputs], labels: Array) -> Array:
    """Accuracy on the upright rows, 0..1, in the logits' dtype; the mean over networks where there are several."""
    if isinstance(outputs, Outputs):
        outputs = (outputs,)
    right = [in_top(upright(o.logits, len(labels)), labels) for o in outputs]
    return jnp.stack(right).mean(dtype=outputs[0].logits.dtype)


def correct(outputs: Outputs, labels: Array, mask: Array) -> dict[str, Array]:
    """Which predictions of a batch are correct.

    Args:
      outputs: of a plain batch [B], or of a rotated one [4B] where the network has branches.
      labels: integers [B].
      mask: bool [B], False for padding.

    Returns:
      'top1' and 'top5' of the upright images, bool [B]. Per branch l, 'joint_l' and 'class_l' of all four rotations,
      bool [4B]: the argmax of the joint logits is 4y + j, and that of the folded logits is y. False for padding.
    """
    logits = upright(outputs.logits, len(labels))
    rows = jnp.repeat(mask, ROTATIONS)
    found = {f"top{k}": in_top(logits, labels, k) & mask for k in (1, 5)}
    for l, joint_logits in enumerate(outputs.aux_logits, 1):
        found[f"joint_{l}"] = in_top(joint_logits, joint_labels(labels)) & rows
        found[f"class_{l}"] = in_top(class_logits(joint_logits), jnp.repeat(labels, ROTATIONS)) & rows
    return found


def percentages(counts: dict[str, int], images: int) -> dict[str, float]:
    """Percentages from numbers of `correct` predictions in a dataset of that many images; names may have a prefix."""

    def rows(name):
        return images * (1 if name.rpartition("/")[2].startswith("top") else ROTATIONS)

    return {name: 100 * int(n) / rows(name) for name, n in counts.items()}
