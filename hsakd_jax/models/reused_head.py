"""SimKD's head: a projector to a teacher's last map, and the teacher's last linear layer."""

import flax.linen as nn
import jax

from hsakd_jax.models.layers import TORCH, LayerFactory, average_pool
from hsakd_jax.models.maps import HeadOutputs

Array = jax.Array


class ReusedHead(nn.Module):
    """Three convolutions to the channels of the teacher's last map, global average pool, the teacher's linear layer.

    Chen et al. 2022, arXiv 2203.14001. It takes the student's map after the last stage, in the place of the student's
    own head, as in the authors' code. The linear layer 'fc' has the teacher's parameters, which are fixed. BatchNorm
    and ReLU follow each convolution, which starts as PyTorch's do. A map that is larger than the teacher's is
    average-pooled first.

    Attributes:
      layers: of the student's backbone; its initialisers are not used.
      num_outputs: of the teacher's linear layer.
      size: H, W, C of the teacher's map in front of its global average pool.
      factor: C is divided by this number in the first two convolutions; 2 in all published settings.
    """

    layers: LayerFactory
    num_outputs: int
    size: tuple[int, int, int]
    factor: int = 2

    @nn.compact
    def __call__(self, x: Array) -> HeadOutputs:
        """Classifies a map.

        Args:
          x: [B, H', W', C'], the student's map after the last stage.

        Returns:
          Logits, [B, num_outputs], the input of the linear layer, [B, C], and the map after the convolutions,
          [B, min(H, H'), min(W, W'), C].

        Raises:
          ValueError: a height or width does not divide that of its partner.
        """
        (height, width, features), hidden = self.size, self.size[-1] // self.factor
        layers = self.layers._replace(init=TORCH)
        x = average_pool(x, min(x.shape[1], height), min(x.shape[2], width))
        for i, (channels, kernel) in enumerate(((hidden, 1), (hidden, 3), (features, 1)), 1):
            x = layers.relu(layers.norm(layers.conv(x, channels, kernel, name=f"conv{i}"), name=f"bn{i}"))
        return layers.pool_fc(x, self.num_outputs)
