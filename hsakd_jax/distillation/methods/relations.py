"""Methods that compare relations between the images of a batch: SP, CC, RKD, PKT."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from hsakd_jax.distillation.methods.common import Sample, embedding, inner_products, linear, unit_rows
from hsakd_jax.distillation.options import Coefficient, Small, Width
from hsakd_jax.models.network import Outputs
from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array


def sp_loss(student_map: Array, teacher_map: Array) -> Array:
    """Similarity-preserving KD (Tung and Mori 2019, arXiv 1907.09682): squared error of two similarity matrices.

    A similarity matrix [B, B] has the inner products of the flattened maps, each row scaled to length 1.

    Args:
      student_map: [B, H, W, C], floating point.
      teacher_map: [B, H', W', C'], floating point.

    Returns:
      Scalar in at least float32, mean over all pairs of images.
    """
    return jnp.square(_similarity(student_map) - _similarity(teacher_map)).mean()


def _similarity(x: Array) -> Array:
    """[B, ...] -> [B, B], rows of length 1."""
    x = at_least_float32(x).reshape(len(x), -1)
    return unit_rows(inner_products(x, x))


def cc_loss(student: Array, teacher: Array) -> Array:
    """Correlation congruence (Peng et al. 2019, arXiv 1904.01802), in its authors' form for CRD's benchmark.

    The inner product of `|student - teacher|` of each image with that of the next image.

    Args:
      student: [B, D], projected embeddings, at least float32.
      teacher: [B, D], projected embeddings, at least float32.

    Returns:
      Scalar, mean over the B - 1 pairs of neighbours.
    """
    delta = jnp.abs(student - teacher)
    return (delta[:-1] * delta[1:]).sum(-1).mean()


def rkd_loss(student: Array, teacher: Array, distance: float, angle: float) -> Array:
    """Relational KD (Park et al. 2019, arXiv 1904.05068): Huber losses of distances and of angles.

    Distances of pairs are divided by their mean. Angles are cosines at the first image of a triple.

    Args:
      student: [B, D], embeddings, at least float32.
      teacher: [B, D'], embeddings, at least float32.
      distance: weight of the distances.
      angle: weight of the angles.

    Returns:
      Scalar; means over all B^2 pairs and all B^3 triples.
    """
    (distances_s, angles_s), (distances_t, angles_t) = _distances_and_angles(student), _distances_and_angles(teacher)
    by_distance = optax.losses.huber_loss(distances_s, distances_t).mean()
    by_angle = optax.losses.huber_loss(angles_s, angles_t).mean()
    return distance * by_distance + angle * by_angle


def _distances_and_angles(x: Array) -> tuple[Array, Array]:
    """[B, D] -> distances divided by their mean, [B, B], and cosines of angles, [B, B, B]."""
    difference = x[None] - x[:, None]
    others = ~jnp.eye(len(x), dtype=bool)
    distances = jnp.where(others, jnp.sqrt(jnp.maximum(jnp.square(difference).sum(-1), 1e-12)), 0)
    directions = unit_rows(difference)
    return distances / (distances.sum() / (len(x) * (len(x) - 1))), inner_products(directions, directions)


def pkt_loss(student: Array, teacher: Array, eps: float) -> Array:
    """Probabilistic knowledge transfer (Passalis and Tefas 2018, arXiv 1803.10837): KL(teacher || student).

    The probabilities of an image are its cosine similarities to all images of the batch, shifted to 0..1 and divided by
    their sum.

    Args:
      student: [B, D], embeddings, at least float32.
      teacher: [B, D'], embeddings, at least float32.
      eps: added to probabilities inside the logarithm.

    Returns:
      Scalar, mean over all B^2 pairs of images.
    """
    p, q = _probabilities(teacher), _probabilities(student)
    return (p * jnp.log((p + eps) / (q + eps))).mean()


def _probabilities(x: Array) -> Array:
    """[B, D] -> [B, B], rows that sum to 1."""
    similarities = (inner_products(unit_rows(x), unit_rows(x)) + 1) / 2
    return similarities / similarities.sum(-1, keepdims=True)


# Wiring: which outputs each loss takes.


def sp(outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample) -> Array:
    """`sp_loss` of the maps after the last stages."""
    return sp_loss(outputs.features[-1], teacher.features[-1])


def cc(outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample, features: Width = 128) -> Array:
    """`cc_loss` of both embeddings, each projected to `features` numbers."""
    return cc_loss(*Projections(features, name="cc")(embedding(outputs), embedding(teacher)))


class Projections(nn.Module):
    """A linear layer for each of the two networks: [B, D], [B, D'] -> [B, features] twice."""

    features: int

    @nn.compact
    def __call__(self, student: Array, teacher: Array) -> tuple[Array, Array]:
        return linear(student, self.features, "student"), linear(teacher, self.features, "teacher")


def rkd(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    distance: Coefficient = 25.0,
    angle: Coefficient = 50.0,
) -> Array:
    """`rkd_loss` of the embeddings."""
    return rkd_loss(embedding(outputs), embedding(teacher), distance, angle)


def pkt(outputs: Outputs, labels: Array, teacher: Outputs, sample: Sample, eps: Small = 1e-7) -> Array:
    """`pkt_loss` of the embeddings."""
    return pkt_loss(embedding(outputs), embedding(teacher), eps)
