"""The two losses that every objective is made of, cross-entropy and KL divergence, and standardised logits."""

import jax
import jax.numpy as jnp
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


def kl(teacher_logits: Array, student_logits: Array, temperature: float, standardise: bool = False) -> Array:
    """tau^2 KL(teacher || student) of predictions softened by a temperature (Hinton et al. 2015, arXiv 1503.02531).

    Args:
      teacher_logits: [R, N], floating point.
      student_logits: [R, N], floating point.
      temperature: tau, which divides the logits.
      standardise: whether both logits are replaced by their `standardised` form.

    Returns:
      Scalar in at least float32, mean over rows, sum over classes.
    """
    if standardise:
        teacher_logits, student_logits = standardised(teacher_logits), standardised(student_logits)
    log_p = jax.nn.log_softmax(at_least_float32(teacher_logits) / temperature)
    log_q = jax.nn.log_softmax(at_least_float32(student_logits) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_q, log_p).mean()


def kl_per_row(teacher_logits: Array, student_logits: Array, temperature: float) -> Array:
    """`kl` of each row alone: [R, N], [R, N] -> [R]."""
    return jax.vmap(kl, (0, 0, None))(teacher_logits, student_logits, temperature)


def standardised(logits: Array) -> Array:
    """Logits with mean 0 and standard deviation 1 in each row (Sun et al. 2024, arXiv 2403.01427).

    The standard deviation is the unbiased one, of N - 1 degrees of freedom. As in the authors' code, 1e-7 is added to
    it. A row of zeros stays zero and gets no gradient.

    Args:
      logits: [..., N], floating point.

    Returns:
      [..., N] in at least float32.
    """
    logits = at_least_float32(logits)
    variance = logits.var(-1, keepdims=True, ddof=1)
    deviation = jnp.sqrt(jnp.where(variance > 0, variance, 1))
    return jnp.where(variance > 0, (logits - logits.mean(-1, keepdims=True)) / (deviation + 1e-7), 0)
