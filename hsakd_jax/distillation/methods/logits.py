"""Methods that compare class logits: DKD."""

import jax
import jax.numpy as jnp

from hsakd_jax.distillation import losses
from hsakd_jax.distillation.methods.common import Sample
from hsakd_jax.distillation.options import Coefficient, Temperature
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array


def dkd_loss(
    student_logits: Array, teacher_logits: Array, labels: Array, alpha: float, beta: float, temperature: float
) -> Array:
    """Decoupled KD (Zhao et al. 2022, arXiv 2203.08679): tau^2 (alpha KL(target) + beta KL(others)).

    The first KL compares the probability of the target class with that of all others together. The second compares the
    distributions over the other classes.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      labels: [B], integers: the target classes.
      alpha: weight of the first KL.
      beta: weight of the second KL.
      temperature: tau, which divides the logits.

    Returns:
      Scalar in at least float32, mean over the batch.
    """
    target_t, others_t = _decouple(teacher_logits, labels, temperature)
    target_s, others_s = _decouple(student_logits, labels, temperature)
    return temperature**2 * (alpha * losses.kl(target_t, target_s, 1.0) + beta * losses.kl(others_t, others_s, 1.0))


def _decouple(logits: Array, labels: Array, temperature: float) -> tuple[Array, Array]:
    """Log-odds of the target against the others, [B, 2], and logits of the others alone, [B, N]."""
    logits = at_least_float32(logits) / temperature
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    # Finite, since KL of infinities is NaN; small enough that its exponential is 0.
    others = jnp.where(target, -1e4, logits)
    own = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jnp.stack([own, jax.nn.logsumexp(others, -1)], -1), others


# Wiring: which outputs each loss takes.


def dkd(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    alpha: Coefficient = 1.0,
    beta: Coefficient = 8.0,
    temperature: Temperature = 4.0,
) -> Array:
    """`dkd_loss` of the class logits, with the defaults of mdistiller.

    Its authors increase the weight of this term linearly over the first 20 epochs.
    """
    return dkd_loss(outputs.logits, teacher.logits, labels, alpha, beta, temperature)
