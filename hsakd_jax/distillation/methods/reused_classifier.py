"""SimKD: the student learns the teacher's last map and takes over the teacher's last layer."""

import flax.linen as nn
import jax

from hsakd_jax.distillation.methods.common import average_pool
from hsakd_jax.distillation.methods.features import hint_loss
from hsakd_jax.models.layers import LayerFactory
from hsakd_jax.models.numerics import at_least_float32

Array = jax.Array


def simkd_loss(student_map: Array, teacher_map: Array) -> Array:
    """SimKD (Chen et al. 2022, arXiv 2203.14001): mean squared error of the maps in front of the last layer.

    It is the only loss; the labels are not used. A teacher's map that is larger is average-pooled.

    Args:
      student_map: [B, H, W, C], floating point, see `ReusedHead`.
      teacher_map: [B, H', W', C], floating point; H divides H', W divides W'.

    Returns:
      Scalar in at least float32.
    """
    pooled = average_pool(at_least_float32(teacher_map), *student_map.shape[1:3])
    return hint_loss(at_least_float32(student_map), pooled)


# Wiring: the head of the student.


class ReusedHead(nn.Module):
    """Three convolutions to the channels of the teacher's last map, global average pool, the teacher's linear layer.

    The linear layer 'fc' takes the teacher's parameters, which are fixed. BatchNorm and ReLU follow each convolution. A
    map that is larger than the teacher's is average-pooled first.

    Attributes:
      layers: of the student's backbone.
      size: H, W, C of the teacher's map in front of its global average pool.
      num_outputs: of the teacher's linear layer.
      factor: C is divided by this number in the first two convolutions.
    """

    layers: LayerFactory
    size: tuple[int, ...]
    num_outputs: int
    factor: int = 2

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        """Classifies a map.

        Args:
          x: [B, H', W', C'], the student's map in front of its global average pool.

        Returns:
          Logits, [B, num_outputs], the input of the linear layer, [B, C], and the map after the convolutions,
          [B, min(H, H'), min(W, W'), C].

        Raises:
          ValueError: a height or width does not divide that of its partner.
        """
        (height, width, features), hidden = self.size, self.size[-1] // self.factor
        x = average_pool(x, min(x.shape[1], height), min(x.shape[2], width))
        for i, (channels, kernel) in enumerate(((hidden, 1), (hidden, 3), (features, 1)), 1):
            x = self.layers.norm(self.layers.conv(x, channels, kernel, name=f"conv{i}"), name=f"bn{i}")
            x = self.layers.relu(x)
        return *self.layers.pool_fc(x, self.num_outputs), x
