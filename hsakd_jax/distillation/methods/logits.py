"""Methods that compare class logits: DKD, NKD, RLD, TTM, WTTM, DIST."""

import jax
import jax.numpy as jnp
import optax

from hsakd_jax.distillation import losses
from hsakd_jax.distillation.methods.common import Sample
from hsakd_jax.distillation.objectives import branch_pairs
from hsakd_jax.distillation.options import Branches, Coefficient, Exponent, Temperature
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
    s, t = _softened(student_logits, temperature), _softened(teacher_logits, temperature)
    target = _one_hot(labels, s)
    by_target = losses.kl(_one_against_others(t, labels), _one_against_others(s, labels), 1.0)
    by_others = losses.kl(_without(t, target), _without(s, target), 1.0)
    return temperature**2 * (alpha * by_target + beta * by_others)


def target_loss(student_logits: Array, teacher_logits: Array, labels: Array) -> Array:
    """NKD's and WKD-L's part of the target class: -p(target) log q(target), p of the teacher, q of the student.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      labels: [B], integers: the target classes.

    Returns:
      Scalar in at least float32, mean over the batch.
    """
    log_q = jax.nn.log_softmax(at_least_float32(student_logits))
    p = jax.nn.softmax(at_least_float32(teacher_logits))
    return -jnp.take_along_axis(p * log_q, labels[:, None], 1).mean()


def nkd_loss(student_logits: Array, teacher_logits: Array, labels: Array, gamma: float, temperature: float) -> Array:
    """Normalised KD (Yang et al. 2023, arXiv 2303.13005): -p_y log q_y, and a cross-entropy over the other classes.

    Both parts are cross-entropies, which contain the teacher's entropy.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      labels: [B], integers: y.
      gamma: weight of the cross-entropy over the other classes.
      temperature: tau of that cross-entropy, which is multiplied by tau^2; p_y and q_y are those of temperature 1.

    Returns:
      Scalar in at least float32, mean over the batch.
    """
    s, t = at_least_float32(student_logits), at_least_float32(teacher_logits)
    target = _one_hot(labels, s)
    p = jax.nn.softmax(_without(t / temperature, target))
    by_others = optax.softmax_cross_entropy(_without(s / temperature, target), p).mean()
    return target_loss(s, t, labels) + gamma * temperature**2 * by_others


def rld_loss(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    alpha: float,
    beta: float,
    temperature: float,
    alpha_temperature: float,
) -> Array:
    """Refined logit distillation (Sun et al. 2024, arXiv 2408.07703): alpha KL(confidence) + beta KL(masked).

    The first KL compares the teacher's greatest probability with the student's probability of the label, each against
    all other classes together. The second compares the distributions over those classes whose logit the teacher ranks
    below that of the label. It is 0 for an image without such classes.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      labels: [B], integers.
      alpha: weight of the first KL.
      beta: weight of the second KL.
      temperature: divides the logits of the second KL, whose factor is its square.
      alpha_temperature: divides the logits of the first KL, whose factor is its square.

    Returns:
      Scalar in at least float32, mean over the batch.
    """
    s, t = _softened(student_logits, alpha_temperature), _softened(teacher_logits, alpha_temperature)
    by_confidence = losses.kl(_one_against_others(t, t.argmax(-1)), _one_against_others(s, labels), 1.0)
    masked = teacher_logits >= jnp.take_along_axis(teacher_logits, labels[:, None], 1)
    s, t = _softened(student_logits, temperature), _softened(teacher_logits, temperature)
    by_others = losses.kl(_without(t, masked), _without(s, masked), 1.0)
    return alpha * alpha_temperature**2 * by_confidence + beta * temperature**2 * by_others


def _softened(logits: Array, temperature: float) -> Array:
    return at_least_float32(logits) / temperature


def _one_hot(classes: Array, logits: Array) -> Array:
    """[B] -> [B, N], bool."""
    return jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)


def _one_against_others(logits: Array, classes: Array) -> Array:
    """Logits of a class of each row and of all others together: [B, N], [B] -> [B, 2]."""
    others = _without(logits, _one_hot(classes, logits))
    own = jnp.take_along_axis(logits, classes[:, None], 1)[:, 0]
    return jnp.stack([own, jax.nn.logsumexp(others, -1)], -1)


def _without(logits: Array, mask: Array) -> Array:
    """Logits whose probability is 0 where `mask` is set; uniform ones where it is set for all classes."""
    # Finite, since KL of infinities is NaN; small enough that its exponential is 0.
    return jnp.where(mask, -1e4, logits)


def ttm_loss(student_logits: Array, teacher_logits: Array, gamma: float) -> Array:
    """Transformed teacher matching (Zheng and Yang 2024, arXiv 2402.11148): KL(p^gamma / sum p^gamma || student).

    Only the teacher's prediction p is softened, by the temperature 1 / gamma, and no tau^2 multiplies the KL.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      gamma: exponent of the teacher's probabilities.

    Returns:
      Scalar in at least float32, mean over the batch.
    """
    return losses.kl(gamma * at_least_float32(teacher_logits), student_logits, 1.0)


def wttm_loss(student_logits: Array, teacher_logits: Array, gamma: float) -> Array:
    """Weighted TTM (Zheng and Yang 2024, arXiv 2402.11148): `ttm_loss` with weight sum p^gamma for each image.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      gamma: exponent of the teacher's probabilities.

    Returns:
      Scalar in at least float32, mean over the batch; the weights do not sum to 1.
    """
    teacher_logits = at_least_float32(teacher_logits)
    weights = jnp.exp(gamma * jax.nn.log_softmax(teacher_logits)).sum(-1)
    return (weights * losses.kl_per_row(gamma * teacher_logits, student_logits, 1.0)).mean()


def dist_loss(student_logits: Array, teacher_logits: Array, beta: float, gamma: float, temperature: float) -> Array:
    """DIST (Huang et al. 2022, arXiv 2205.10536): tau^2 (beta (1 - r of rows) + gamma (1 - r of columns)).

    r is the mean of Pearson's correlation of the two networks' probabilities. It is over the classes of an image (rows)
    or over the images of a class (columns). As in the authors' code, 1e-8 is added to the product of the two norms.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      beta: weight of the rows.
      gamma: weight of the columns.
      temperature: tau, which divides the logits.

    Returns:
      Scalar in at least float32.
    """
    q, p = (jax.nn.softmax(_softened(x, temperature)) for x in (student_logits, teacher_logits))
    return temperature**2 * (beta * (1 - _correlation(q, p)) + gamma * (1 - _correlation(q.T, p.T)))


def _correlation(a: Array, b: Array) -> Array:
    """Pearson's correlation of the rows of two arrays, [R, D] twice, mean over rows: a scalar."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    # Above 0, where the derivative of the square root is infinite, and far below 1e-8 squared.
    squares = jnp.maximum(jnp.square(a).sum(-1) * jnp.square(b).sum(-1), 1e-30)
    return ((a * b).sum(-1) / (jnp.sqrt(squares) + 1e-8)).mean()


# Wiring: which outputs each loss takes.


def dkd(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    alpha: Coefficient = 1.0,
    beta: Coefficient = 8.0,
    temperature: Temperature = 4.0,
    standardise: bool = False,
) -> Array:
    """`dkd_loss` of the class logits, with the defaults of mdistiller.

    Its authors increase the weight of this term linearly over the first 20 epochs.
    """
    return dkd_loss(*_class_logits(outputs, teacher, standardise), labels, alpha, beta, temperature)


def nkd(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    gamma: Coefficient = 1.5,
    temperature: Temperature = 1.0,
) -> Array:
    """`nkd_loss` of the class logits, with the defaults of the authors' code, which are those for ImageNet."""
    return nkd_loss(outputs.logits, teacher.logits, labels, gamma, temperature)


def rld(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    alpha: Coefficient = 1.0,
    beta: Coefficient = 8.0,
    temperature: Temperature = 4.0,
    alpha_temperature: Temperature = 1.0,
    standardise: bool = False,
) -> Array:
    """`rld_loss` of the class logits, with the defaults of the authors' code.

    Its authors increase the weight of this term linearly over the first 20 epochs.
    """
    logits = _class_logits(outputs, teacher, standardise)
    return rld_loss(*logits, labels, alpha, beta, temperature, alpha_temperature)


def ttm(outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample, gamma: Exponent = 0.1) -> Array:
    """`ttm_loss` of the class logits; the default is the authors' for vgg13 and vgg8."""
    return ttm_loss(outputs.logits, teacher.logits, gamma)


def wttm(outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample, gamma: Exponent = 0.2) -> Array:
    """`wttm_loss` of the class logits; the default is the authors' for vgg13 and vgg8, in addition to CRD."""
    return wttm_loss(outputs.logits, teacher.logits, gamma)


def dist(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    beta: Coefficient = 1.0,
    gamma: Coefficient = 1.0,
    temperature: Temperature = 4.0,
) -> Array:
    """`dist_loss` of the class logits, with the authors' defaults for CIFAR-100."""
    return dist_loss(outputs.logits, teacher.logits, beta, gamma, temperature)


def dist_aux(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    beta: Coefficient = 1.0,
    gamma: Coefficient = 1.0,
    temperature: Temperature = 4.0,
    branches: Branches = (),
) -> Array:
    """`dist_loss` of the joint logits, sum over `branch_pairs`, with the defaults of `dist`.

    A column has the 4B rows of the rotated batch.

    Raises:
      ValueError: as `branch_pairs`.
    """
    pairs = branch_pairs(outputs, teacher, branches, "dist_aux")
    return jnp.stack([dist_loss(s, t, beta, gamma, temperature) for s, t in pairs]).sum()


def _class_logits(outputs: Outputs, teacher: Outputs, standardise: bool) -> tuple[Array, Array]:
    """The class logits of student and teacher."""
    if standardise:
        return losses.standardised(outputs.logits), losses.standardised(teacher.logits)
    return outputs.logits, teacher.logits
