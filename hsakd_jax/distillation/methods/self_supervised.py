"""SSKD (Xu et al. 2020, arXiv 2006.07114): self-supervision that finds the image a rotated one was made from.

A rotated batch has 4B rows, image-major; 3B of them are rotated and B are upright.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsakd_jax.distillation import losses
from hsakd_jax.distillation.methods.common import Sample, embedding, inner_products, linear, unit_rows
from hsakd_jax.distillation.options import Fraction, Temperature
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.numerics import at_least_float32
from hsakd_jax.models.rotations import ROTATIONS, upright

Array = jax.Array


def cosine_similarities(x: Array, batch: int) -> Array:
    """Cosine similarity of every rotated row to every upright row.

    Args:
      x: [4B, D], at least float32.
      batch: B.

    Returns:
      [3B, B]: the logits of the self-supervised task, before the temperature.
    """
    x = unit_rows(x)
    return inner_products(_rotated(x, batch), upright(x, batch))


def selected_rows(scores: Array, targets: Array, kept: float) -> Array:
    """Rows that the teacher is trusted on: all that it gets right, and a fraction of those that it gets wrong.

    Of the wrong rows those are selected whose target the teacher ranks highest.

    Args:
      scores: [R, K], the teacher's.
      targets: [R], integers.
      kept: fraction of the wrong rows, 0 to 1; their number is rounded down.

    Returns:
      [R], bool.
    """
    rank = (scores > jnp.take_along_axis(scores, targets[:, None], 1)).sum(-1)
    wrong = (rank > 0).sum()
    count = len(rank) - wrong + jnp.floor(wrong.astype(jnp.float32) * kept).astype(wrong.dtype)
    return jnp.argsort(jnp.argsort(rank)) < count


def kl_of_rows(teacher_logits: Array, student_logits: Array, temperature: float, rows: Array) -> Array:
    """`losses.kl` of selected rows only.

    Args:
      teacher_logits: [R, K], at least float32.
      student_logits: [R, K], at least float32.
      temperature: tau.
      rows: [R], bool.

    Returns:
      Scalar, mean over the selected rows; 0 if none is selected.
    """
    # The number of selected rows is not known when XLA compiles, so every row's KL is computed.
    each = losses.kl_per_row(teacher_logits, student_logits, temperature)
    return jnp.where(rows, each, 0).sum() / jnp.maximum(rows.sum(), 1).astype(each.dtype)


def _rotated(x: Array, batch: int) -> Array:
    """The rows that are not upright: [4B, ...] -> [3B, ...]."""
    return x.reshape(batch, -1, *x.shape[1:])[:, 1:].reshape(-1, *x.shape[1:])


def _for_rotated(x: Array) -> Array:
    """An image's value for each of its rotated rows: [B] -> [3B]."""
    return jnp.repeat(x, ROTATIONS - 1)


# Wiring: which outputs each loss takes, and the heads of the self-supervised task.


def sskd_head(outputs: Outputs, labels: Array, teacher: None, sample: Sample) -> Array:
    """SSKD's first stage: cross-entropy that trains the self-supervised head of the frozen teacher, `outputs`."""
    head = Heads(name="sskd")(teacher_head=jax.lax.stop_gradient(embedding(outputs)))["teacher_head"]
    return losses.cross_entropy(cosine_similarities(head, len(labels)), _for_rotated(jnp.arange(len(labels))))


def sskd_kl(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    temperature: Temperature = 4.0,
    kept: Fraction = 1.0,
) -> Array:
    """`kl_of_rows` of the rotated images' class logits; the defaults are those of the authors' code."""
    t, s = (_rotated(at_least_float32(o.logits), len(labels)) for o in (teacher, outputs))
    return kl_of_rows(t, s, temperature, selected_rows(t, _for_rotated(labels), kept))


def sskd_ss(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    temperature: Temperature = 0.5,
    kept: Fraction = 0.75,
) -> Array:
    """`kl_of_rows` of the similarities between rotated and upright images.

    The teacher's head is that of `sskd_head`, and fixed.
    """
    heads = Heads(name="sskd")(student_head=embedding(outputs), teacher_head=embedding(teacher))
    s = cosine_similarities(heads["student_head"], len(labels))
    t = jax.lax.stop_gradient(cosine_similarities(heads["teacher_head"], len(labels)))
    return kl_of_rows(t, s, temperature, selected_rows(t, _for_rotated(jnp.arange(len(labels))), kept))


class Heads(nn.Module):
    """A head for each named embedding: name -> [R, D] to name -> [R, D]."""

    @nn.compact
    def __call__(self, **embeddings: Array) -> dict[str, Array]:
        return {name: Head(name=name)(x) for name, x in embeddings.items()}


class Head(nn.Module):
    """Linear layer, ReLU, linear layer, as wide as the embedding: [R, D] -> [R, D]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return linear(nn.relu(linear(x, x.shape[-1], "fc1")), x.shape[-1], "fc2")
