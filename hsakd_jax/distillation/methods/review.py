"""ReviewKD: each stage of the teacher teaches that stage of the student and all deeper ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import lecun_uniform

from hsakd_jax.distillation.methods.common import Sample, StagePairs, cells, embedding, groups_of, stage_pairs
from hsakd_jax.distillation.options import Width
from hsakd_jax.models.layers import TORCH, LayerFactory
from hsakd_jax.models.network import Outputs

Array = jax.Array


def hcl_loss(student_map: Array, teacher_map: Array) -> Array:
    """Hierarchical context loss (Chen et al. 2021, arXiv 2104.09044): squared errors of two maps at several sizes.

    Sizes and weights are those of the authors' code. The sizes are the full one, and 4x4, 2x2 and 1x1 where these are
    smaller. The weights are 1, 1/2, 1/4 and 1/8 in this order, divided by their sum.

    Args:
      student_map: [B, H, W, C], at least float32, see `Fusion`.
      teacher_map: [B, H, W, C], at least float32.

    Returns:
      Scalar, mean over images, cells and channels.
    """
    error = student_map - teacher_map
    sizes = [size for size in (4, 2, 1) if size < min(error.shape[1:3])]
    levels = [error, *(jnp.stack([cell.mean((1, 2)) for cell in cells(error, size)]) for size in sizes)]
    weights = [0.5**i for i in range(len(levels))]
    errors = [weight * jnp.square(level).mean() for weight, level in zip(weights, levels, strict=True)]
    return jnp.stack(errors).sum() / sum(weights)


def resize_nearest(x: Array, height: int, width: int) -> Array:
    """Resizes maps as PyTorch's mode 'nearest' does: row i of the result is row floor(i H / height) of the map.

    Args:
      x: [B, H, W, C], at least float32.
      height: of the result.
      width: of the result.

    Returns:
      [B, height, width, C].
    """
    if x.shape[1:3] == (height, width):
        return x
    # Matrices of zeros and ones, since the gradient of indexing adds in no fixed order.
    rows, columns = (
        jax.nn.one_hot(jnp.arange(size) * n // size, n, dtype=x.dtype)
        for n, size in zip(x.shape[1:3], (height, width), strict=True)
    )
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision="highest")


# Wiring: which maps the loss takes, and the layers that fuse the student's.


def reviewkd(
    outputs: Outputs,
    labels: Array,
    teacher: Outputs,
    sample: Sample,
    max_channels: Width = 512,
    preactivation: bool = False,
) -> Array:
    """`Review` of the hints and the embeddings, as the authors take them.

    The teacher's maps are those before the last ReLU, and with `preactivation` the student's too, as in the authors'
    code for ImageNet. On CIFAR, ResNets have four levels: three stages and the embedding. The authors' weight grows
    linearly for 20 epochs on CIFAR. They count epochs from 0, so that the first one has weight 0; here it has 1/20.

    Args:
      outputs: of the student.
      labels: [B], not used.
      teacher: its outputs.
      sample: for its BatchNorm groups.
      max_channels: see `Review`.
      preactivation: whether the student's maps are those before the last ReLU.
    """
    pairs = stage_pairs(outputs.preactivations if preactivation else outputs.hints, teacher.preactivations)
    return Review(max_channels, groups_of(sample), name="reviewkd")(pairs, embedding(outputs), embedding(teacher))


class Review(nn.Module):
    """The sum of `hcl_loss` over all pairs of stages and the embeddings, from maps that `Fusion` makes.

    Attributes:
      max_channels: the most channels of a fused map, which has as many as the student's embedding up to that. The
        authors use 512, and 256 for MobileNetV1 on ImageNet.
      batch_norm_groups: see `BatchNorm.groups`.
    """

    max_channels: int = 512
    batch_norm_groups: int = 1

    @nn.compact
    def __call__(self, pairs: StagePairs, student: Array, teacher: Array) -> Array:
        """The loss, a scalar.

        Args:
          pairs: maps of both networks.
          student: [B, D], at least float32, the student's embedding, which counts as a map of one pixel.
          teacher: [B, D'], at least float32, the teacher's embedding.
        """
        stages = {f"stage{stage}": pairs[stage] for stage in sorted(pairs, reverse=True)}
        levels = {"pooled": (student[:, None, None], teacher[:, None, None]), **stages}
        channels = min(self.max_channels, student.shape[-1])
        deeper, terms = None, list[Array]()
        for name, (student_map, teacher_map) in levels.items():
            fusion = Fusion(channels, teacher_map.shape[1:], self.batch_norm_groups, name=name)
            compared, deeper = fusion(student_map, deeper)
            terms.append(hcl_loss(compared, teacher_map))
        return jnp.stack(terms).sum()


class Fusion(nn.Module):
    """Attention-based fusion: the sum of a map and that of the deeper level, each times a weight per pixel.

    Attributes:
      channels: of the fused map.
      size: H, W, C of the teacher's map.
      batch_norm_groups: see `BatchNorm.groups`.
    """

    channels: int
    size: tuple[int, ...]
    batch_norm_groups: int = 1

    @nn.compact
    def __call__(self, x: Array, deeper: Array | None) -> tuple[Array, Array]:
        """Fuses a map.

        Args:
          x: [B, H', W', C'], the student's map.
          deeper: [B, H'', W'', channels], the fused map of the deeper level, or None at the deepest.

        Returns:
          The map to compare with the teacher's, [B, H, W, C], and the fused map, [B, H, W, channels].
        """
        height, width, features = self.size
        fresh = LayerFactory(TORCH._replace(conv=lecun_uniform()), None, True, False, self.batch_norm_groups)
        x = fresh.norm(fresh.conv(x, self.channels, 1, name="conv1"), name="bn1")
        if deeper is not None:
            deeper = resize_nearest(deeper, *x.shape[1:3])
            attention = LayerFactory(TORCH, None, True, False)
            both = jnp.concatenate([x, deeper], -1)
            weights = jax.nn.sigmoid(attention.conv(both, 2, 1, bias=True, name="attention"))
            x = weights[..., :1] * x + weights[..., 1:] * deeper
        x = resize_nearest(x, height, width)
        return fresh.norm(fresh.conv(x, features, 3, name="conv2"), name="bn2"), x
