"""The two formulas behind every objective."""

import jax
import optax

from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean cross-entropy: [R, N] logits, integers [R] -> scalar, in at least float32."""
    return optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), labels).mean()


def kl(teacher_logits: Array, student_logits: Array, temperature: float) -> Array:
    """tau^2 KL(teacher || student) of softened predictions, mean over rows, sum over classes (Hinton et al. 2015).

    Args:
      teacher_logits: [R, N].
      student_logits: [R, N].
      temperature: tau.

    Returns:
      Scalar in at least float32.
    """
    log_p = jax.nn.log_softmax(at_least_float32(teacher_logits) / temperature)
    log_q = jax.nn.log_softmax(at_least_float32(student_logits) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_q, log_p).mean()
