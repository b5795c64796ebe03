"""SimKD: the student learns the teacher's last map and takes over the teacher's last layer."""

import jax

from hsakd_jax.distillation.methods.common import Sample
from hsakd_jax.distillation.methods.features import hint_loss
from hsakd_jax.models.layers import average_pool
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array


def simkd_loss(student_map: Array, teacher_map: Array) -> Array:
    """SimKD (Chen et al. 2022, arXiv 2203.14001): mean squared error of the maps in front of the last layer.

    It is the only loss; the labels are not used. A teacher's map that is larger is average-pooled.

    Args:
      student_map: [B, H, W, C], floating point, see `models.reused_head.ReusedHead`.
      teacher_map: [B, H', W', C], floating point; H divides H', W divides W'.

    Returns:
      Scalar in at least float32.
    """
    pooled = average_pool(at_least_float32(teacher_map), *student_map.shape[1:3])
    return hint_loss(at_least_float32(student_map), pooled)


# Wiring: which maps the loss takes.


def simkd(outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample) -> Array:
    """`simkd_loss` of the last maps of a student with a projector and of its teacher.

    Raises:
      ValueError: a network has no last map, or the student has no projector to the teacher's channels.
    """
    if outputs.last_map is None or teacher.last_map is None:
        raise ValueError("simkd: the head of a network returns no last map: return the result of `layers.pool_fc`")
    (*_, own), (*_, theirs) = outputs.last_map.shape, teacher.last_map.shape
    if own != theirs:
        raise ValueError(
            f"simkd: the student's last map has {own} channels and the teacher's {theirs}: set the student's projector "
            "(the recipe simkd does)"
        )
    return simkd_loss(outputs.last_map, teacher.last_map)
