"""Contrastive representation distillation (CRD): each image against images of other classes, from a memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsakd_jax.distillation.methods.common import Sample, embedding, inner_products, linear, unit_rows
from hsakd_jax.distillation.options import Fraction, Negatives, Temperature, Width
from hsakd_jax.models.network import Outputs

Array = jax.Array


def nce_loss(positive: Array, scores: Array, counts: Array, noise: float) -> Array:
    """Noise-contrastive estimation of which image is the anchor's own (Tian et al. 2020, arXiv 1910.10699).

    Args:
      positive: [B, 1], at least float32, score of each anchor with its own image; scores are exponentials divided by Z.
      scores: [B, n], score of each anchor with every training image.
      counts: [B, n], how often each training image was drawn as a negative of the anchor.
      noise: expected number of draws per training image: negatives per anchor / n.

    Returns:
      Scalar: the sum over the positive and the negatives, mean over the batch.
    """
    eps = 1e-7
    right = jnp.log(positive / (positive + noise + eps))
    wrong = counts * jnp.log(noise / (scores + noise + eps))
    return -(right.sum() + wrong.sum()) / len(scores)


def draw_negatives(sample: Sample, count: int) -> Array:
    """Positions of training images of other classes than each image's own, uniform with replacement.

    Args:
      sample: B images of n.
      count: how many to draw per image.

    Returns:
      [B, count], integers.
    """
    order = jnp.argsort(sample.classes)
    ordered, own = sample.classes[order], sample.classes[sample.index]
    # The images of the own class are contiguous: skip them.
    first = jnp.searchsorted(ordered, own)
    size = jnp.searchsorted(ordered, own, side="right").astype(first.dtype) - first

    def draw(index: Array, first: Array, size: Array) -> Array:
        # A key for each image: neither micro-batches nor devices change its negatives.
        key = jax.random.fold_in(sample.key, index)
        place = jax.random.randint(key, (count,), 0, len(order) - size, first.dtype)
        return order[jnp.where(place < first, place, place + size)]

    return jax.vmap(draw)(sample.index, first, size)


# Wiring: projections and memory.


def crd(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    negatives: Negatives = 16384,
    temperature: Temperature = 0.07,
    features: Width = 128,
    momentum: Fraction = 0.5,
) -> Array:
    """`nce_loss` of both networks' embeddings, each projected and scored against the other network's memory.

    Negatives are drawn with replacement; the published code does so only where there are too few images.
    """
    contrast = Contrast(features, momentum, negatives, temperature, name="crd")
    return contrast(embedding(outputs), embedding(teacher), sample)


class Contrast(nn.Module):
    """CRD's projections and memory, for each of the two networks.

    The memory holds the projection of every training image, [n, features], and a constant Z that the scores are
    divided by. The first batch sets Z.

    Attributes:
      features: numbers per projection.
      momentum: fraction of a remembered projection that an update keeps.
      negatives: negatives per image.
      temperature: divides the inner products.
    """

    features: int
    momentum: float
    negatives: int
    temperature: float

    @nn.compact
    def __call__(self, student: Array, teacher: Array, sample: Sample) -> Array:
        """The sum of both networks' losses, a scalar, from embeddings [B, D] and [B, D']."""
        n, bound = len(sample.classes), (3 / self.features) ** 0.5
        anchors = {
            side: unit_rows(linear(x, self.features, side)) for side, x in (("student", student), ("teacher", teacher))
        }

        def start() -> Array:
            return jax.random.uniform(self.make_rng("params"), (n, self.features), student.dtype, -bound, bound)

        memories = {side: self.variable("batch_stats", f"{side}_bank", start) for side in anchors}
        # The scores of the whole memory, [B, n], are weighted by how often each image was drawn. To gather the drawn
        # rows would take [B, negatives, features], usually more than that, and a gradient that adds in no fixed order.
        counts = jnp.zeros((len(student), n), student.dtype)
        counts = counts.at[jnp.arange(len(student))[:, None], draw_negatives(sample, self.negatives)].add(1)
        losses: list[Array] = []
        for side, other in (("student", "teacher"), ("teacher", "student")):
            memory = jax.lax.stop_gradient(memories[other].value)
            scores = jnp.exp(inner_products(anchors[side], memory) / self.temperature)
            positive = jnp.take_along_axis(scores, sample.index[:, None], 1)
            z = self._normaliser(side, positive, scores, counts)
            losses.append(nce_loss(positive / z, scores / z, counts, self.negatives / n))
        if not self.is_initializing():
            for side, memory in memories.items():
                mixed = self.momentum * memory.value[sample.index] + (1 - self.momentum) * anchors[side]
                memory.value = memory.value.at[sample.index].set(jax.lax.stop_gradient(unit_rows(mixed)))
        return losses[0] + losses[1]

    def _normaliser(self, side: str, positive: Array, scores: Array, counts: Array) -> Array:
        """Z, a scalar: n times the mean score of the first batch."""
        z = self.variable("batch_stats", f"{side}_z", jnp.zeros, (), scores.dtype)  # 0 until the first batch sets it
        batch, n = scores.shape
        mean = (positive.sum() + (counts * scores).sum()) / (batch * (self.negatives + 1))
        now = jax.lax.stop_gradient(jnp.where(z.value > 0, z.value, n * mean))
        if not self.is_initializing():
            z.value = now
        return now
