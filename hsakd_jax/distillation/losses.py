"""The two losses that every objective is made of: cross-entropy and KL divergence."""

import jax
import optax

from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of the softmax of logits with labels.

    Args:
      logits: [R, N], floating point.
      labels: [R], integers, 0 to N - 1.

    Returns:
      Scalar in at least float32, mean over rows.
    """
    return optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), labels).mean()


def kl(teacher_logits: Array, student_logits: Array, temperature: float) -> Array:
    """tau^2 KL(teacher || student) of predictions softened by a temperature (Hinton et al. 2015, arXiv 1503.02531).

    Args:
      teacher_logits: [R, N], floating point.
      student_logits: [R, N], floating point.
      temperature: tau, which divides the logits.

    Returns:
      Scalar in at least float32, mean over rows, sum over classes.
    """
    log_p = jax.nn.log_softmax(at_least_float32(teacher_logits) / temperature)
    log_q = jax.nn.log_softmax(at_least_float32(student_logits) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_q, log_p).mean()
