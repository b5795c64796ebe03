"""Methods that learn from two views of the same images: cross-entropy of the strong view, MLLD, CRLD."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsakd_jax.distillation import losses
from hsakd_jax.distillation.methods.common import Sample, inner_products
from hsakd_jax.distillation.options import Fraction, Temperature
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array
# MLLD's temperatures besides its option.
FURTHER_TEMPERATURES = (3.0, 5.0, 2.0, 6.0)


class Views(NamedTuple):
    """Class logits of two views of the same images, by one network.

    Attributes:
      weak: [B, N], floating point, of the images with the usual augmentation.
      strong: [B, N], floating point, of the images with a stronger one.
    """

    weak: Array
    strong: Array


def mlld_kl_loss(student: Views, teacher: Views, temperature: float, standardise: bool = False) -> Array:
    """Multi-level logit distillation of each image's prediction (Jin et al. 2023, CVPR): KL at five temperatures.

    This follows the authors' code where it differs from the paper. The code does not mask single images of the weak
    view: it multiplies their mean by the fraction that a mask keeps, those that the teacher is less sure of. At the
    last two temperatures the weak view replaces the strong one.

    Args:
      student: logits of both views.
      teacher: logits of both views.
      temperature: the first temperature; the others are `FURTHER_TEMPERATURES`.
      standardise: whether all logits are replaced by their `losses.standardised` form.

    Returns:
      Scalar in at least float32, sum over temperatures and views, mean over the batch.
    """
    temperatures = _temperatures(temperature)
    weak = jnp.stack([losses.kl(teacher.weak, student.weak, t, standardise) for t in temperatures])
    strong = jnp.stack([losses.kl(teacher.strong, student.strong, t, standardise) for t in temperatures[:3]])
    unsure = _fraction_up_to_median(_probabilities(teacher.weak, 1.0).max(-1))
    return unsure * weak.sum() + strong.sum() + weak[3:].sum()


def mlld_images_loss(student_logits: Array, teacher_logits: Array, temperature: float) -> Array:
    """Multi-level logit distillation of relations between images (Jin et al. 2023, CVPR), of the weak view.

    The relation of two images is the inner product of their probabilities. As in the authors' code, the sum over all
    pairs is multiplied by the fraction of images that the teacher is less sure of.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      temperature: the first temperature; the others are `FURTHER_TEMPERATURES`.

    Returns:
      Scalar in at least float32: squared differences, sum over temperatures and pairs, divided by B.
    """
    each = [
        _relation_difference(_probabilities(student_logits, t), _probabilities(teacher_logits, t))
        for t in _temperatures(temperature)
    ]
    return _fraction_up_to_median(_probabilities(teacher_logits, 1.0).max(-1)) * jnp.stack(each).sum()


def mlld_classes_loss(student_logits: Array, teacher_logits: Array, temperature: float) -> Array:
    """Multi-level logit distillation of relations between classes (Jin et al. 2023, CVPR), of the weak view.

    The relation of two classes is the inner product of their probabilities over the batch. As in the authors' code, the
    sum over all pairs is multiplied by the fraction of classes that the teacher predicts less.

    Args:
      student_logits: [B, N], floating point.
      teacher_logits: [B, N], floating point.
      temperature: the first temperature; the others are `FURTHER_TEMPERATURES`.

    Returns:
      Scalar in at least float32: squared differences, sum over temperatures and pairs, divided by N.
    """
    each = [
        _relation_difference(_probabilities(student_logits, t).T, _probabilities(teacher_logits, t).T)
        for t in _temperatures(temperature)
    ]
    return _fraction_up_to_median(_probabilities(teacher_logits, 1.0).sum(0)) * jnp.stack(each).sum()


def _temperatures(first: float) -> tuple[float, ...]:
    return (first, *FURTHER_TEMPERATURES)


def _probabilities(logits: Array, temperature: float) -> Array:
    return jax.nn.softmax(at_least_float32(logits) / temperature)


def _relation_difference(student: Array, teacher: Array) -> Array:
    """Squared difference of all inner products of rows, [R, D] twice, divided by R: a scalar."""
    difference = inner_products(teacher, teacher) - inner_products(student, student)
    return jnp.square(difference).sum() / len(difference)


def _fraction_up_to_median(x: Array) -> Array:
    """The fraction of a vector's elements that are at most its median, a scalar."""
    return (x <= jnp.median(x)).mean(dtype=x.dtype)


def confident_rows(teacher_logits: Array, threshold: float) -> Array:
    """Images whose greatest probability is at least a threshold.

    Args:
      teacher_logits: [B, N], floating point.
      threshold: 0 to 1.

    Returns:
      [B], bool.
    """
    return _probabilities(teacher_logits, 1.0).max(-1) >= threshold


def crld_within_loss(student: Views, teacher: Views, temperature: float, threshold: float) -> Array:
    """Consistency regularisation within views (CRLD, Zhang et al. 2024, arXiv 2412.16493): each view by its own.

    Args:
      student: logits of both views.
      teacher: logits of both views.
      temperature: see `losses.kl`.
      threshold: of the images whose weak view the teacher is sure of, see `confident_rows`; the others count as 0.

    Returns:
      Scalar in at least float32, sum over views, mean over the batch.
    """
    weak = losses.kl_per_row(teacher.weak, student.weak, temperature)
    strong = losses.kl_per_row(teacher.strong, student.strong, temperature)
    return jnp.where(confident_rows(teacher.weak, threshold), weak + strong, 0).mean()


def crld_across_loss(student: Views, teacher: Views, temperature: float, threshold: float) -> Array:
    """Consistency regularisation across views (CRLD, Zhang et al. 2024, arXiv 2412.16493): each view by the other.

    Args:
      student: logits of both views.
      teacher: logits of both views.
      temperature: see `losses.kl`.
      threshold: of the images whose strong view the teacher is sure of, see `confident_rows`; the others count as 0.

    Returns:
      Scalar in at least float32, sum over views, mean over the batch.
    """
    strong_by_weak = losses.kl_per_row(teacher.weak, student.strong, temperature)
    weak_by_strong = losses.kl_per_row(teacher.strong, student.weak, temperature)
    return jnp.where(confident_rows(teacher.strong, threshold), strong_by_weak + weak_by_strong, 0).mean()


# Wiring: the logits of both views. The weak view is that of the usual augmentation, the strong one that of the sample.


def strong_task(outputs: Outputs, labels: Array, teacher: Outputs | None, sample: Sample) -> Array:
    """Cross-entropy of the strong view's class logits. MLLD and CRLD add it to that of the weak view, 'task'."""
    return losses.cross_entropy(_strong(sample.strong).logits, labels)


def mlld_kl(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    temperature: Temperature = 4.0,
    standardise: bool = False,
) -> Array:
    """`mlld_kl_loss` of the class logits."""
    return mlld_kl_loss(*_views(outputs, teacher, sample), temperature, standardise)


def mlld_images(
    outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample, temperature: Temperature = 4.0
) -> Array:
    """`mlld_images_loss` of the weak view's class logits."""
    return mlld_images_loss(outputs.logits, teacher.logits, temperature)


def mlld_classes(
    outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample, temperature: Temperature = 4.0
) -> Array:
    """`mlld_classes_loss` of the weak view's class logits."""
    return mlld_classes_loss(outputs.logits, teacher.logits, temperature)


def crld_within(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    temperature: Temperature = 4.0,
    threshold: Fraction = 0.9,
) -> Array:
    """`crld_within_loss` of the class logits."""
    return crld_within_loss(*_views(outputs, teacher, sample), temperature, threshold)


def crld_across(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    temperature: Temperature = 4.0,
    threshold: Fraction = 0.2,
) -> Array:
    """`crld_across_loss` of the class logits."""
    return crld_across_loss(*_views(outputs, teacher, sample), temperature, threshold)


def _views(outputs: Outputs, teacher: Outputs, sample: Sample) -> tuple[Views, Views]:
    """The student's logits of both views, and the teacher's."""
    return (
        Views(outputs.logits, _strong(sample.strong).logits),
        jax.lax.stop_gradient(Views(teacher.logits, _strong(sample.teacher_strong).logits)),
    )


def _strong(outputs: Outputs | None) -> Outputs:
    if outputs is None:
        raise ValueError("the term needs a strong view of the images: choose a recipe that has one")
    return outputs
