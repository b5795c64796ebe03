"""DeiT of Touvron et al. 2021 (arXiv 2012.12877), without distillation token, as in timm, without stochastic depth.

A vision transformer (arXiv 2010.11929) has a token for each patch of 16x16 pixels, and a class token, whose final value
is classified. Here the patches' tokens are a map [B, H / 16, W / 16, C], since methods compare maps. The class token
[B, C] goes with the map from module to module. The 12 blocks are four stages of three.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import normal

from hsakd_jax.models.layers import Init, LayerFactory, torch_bias, torch_kernel, weighted_sums, zero_bias
from hsakd_jax.models.maps import HeadOutputs, Maps
from hsakd_jax.models.network import Architecture

Array = jax.Array

# Pixels of a patch, and patches of an image of 224 pixels, along each axis.
PATCH, GRID = 16, 14
# Blocks of a stage.
DEPTH = 3
# timm truncates at -2 and 2, which is a hundred standard deviations. Its patch embedding starts as PyTorch's layers do.
INIT = Init(torch_kernel, torch_bias, normal(0.02), zero_bias)


def attention(query: Array, key: Array, value: Array) -> Array:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762) of T tokens by several heads.

    Args:
      query: [B, T, heads, D], floating point.
      key: as `query`.
      value: as `query`.

    Returns:
      [B, T, heads, D], in the dtype of `value`; the softmax is computed in at least float32.
    """
    dtype = jnp.float32 if query.dtype.itemsize < 4 else query.dtype
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=dtype)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def resized_positions(embeddings: Array, height: int, width: int) -> Array:
    """Position embeddings for another grid of patches, [1, GRID, GRID, C] -> [1, height, width, C].

    Bicubic, with antialiasing where the grid shrinks, as timm does for images of other sizes.
    """
    for axis, size in ((1, height), (2, width)):
        if size != embeddings.shape[axis]:
            embeddings = weighted_sums(embeddings, axis, bicubic_weights(embeddings.shape[axis], size))
    return embeddings


def bicubic_weights(n: int, size: int) -> np.ndarray:
    """The weights of n values in each of `size` values, [size, n]: Keys 1981's cubic with a = -1/2.

    The cubic is stretched where values become fewer, which is the antialiasing. `jax.image.resize` computes the same,
    but jax2onnx does not translate it.
    """
    centres = (np.arange(size) + 0.5) * n / size - 0.5
    x = np.abs(np.arange(n) - centres[:, None]) / max(n / size, 1)
    near, far = 1 + x * x * (1.5 * x - 2.5), 2 + x * (x * (2.5 - 0.5 * x) - 4)
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


class Block(nn.Module):
    """Attention and an MLP, each of a LayerNorm, with shortcuts: [B, T, C] -> [B, T, C]."""

    layers: LayerFactory
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layers, features = self.layers, x.shape[-1]
        qkv = layers.dense(layers.layer_norm(x, name="norm1"), 3 * features, name="qkv")
        query, key, value = (part.reshape(*x.shape[:2], self.heads, -1) for part in jnp.split(qkv, 3, -1))
        x = x + layers.dense(attention(query, key, value).reshape(x.shape), features, name="proj")
        y = layers.dense(layers.layer_norm(x, name="norm2"), 4 * features, name="fc1")
        return x + layers.dense(nn.gelu(y, approximate=False), features, name="fc2")


class Stage(nn.Module):
    """`depth` blocks: (map [B, H, W, C], class token [B, C]) -> `Maps` of the same shapes.

    Attributes:
      layers: makes the layers.
      depth: number of blocks.
      heads: of their attention.
      stride: 1, since no stage changes the size of the map.
    """

    layers: LayerFactory
    depth: int
    heads: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: tuple[Array, Array]) -> Maps:
        patches, class_token = x
        batch, _, _, features = patches.shape
        tokens = jnp.concatenate([class_token[:, None], patches.reshape(batch, -1, features)], 1)
        for i in range(self.depth):
            tokens = Block(self.layers, self.heads, name=f"block{i}")(tokens)
        return Maps(tokens[:, 1:].reshape(patches.shape), class_token=tokens[:, 0])


class Stem(nn.Module):
    """Linear embedding of patches, class token, and position embeddings that are learned."""

    layers: LayerFactory
    features: int

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Images [B, H, W, 3] -> map [B, H / 16, W / 16, features] and class token [B, features].

        Raises:
          ValueError: H or W is no multiple of 16.
        """
        if not images.shape[1] or images.shape[1] % PATCH or images.shape[2] % PATCH:
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]} have no whole number of patches of {PATCH}x{PATCH}: "
                f"use a multiple of {PATCH} pixels (data.image_size)"
            )
        x = self.layers.conv(images, self.features, PATCH, PATCH, bias=True, padding=0, name="conv1")
        # timm's shapes, so that the state dict has them.
        class_token = self.param("class_token", normal(1e-6), (1, 1, self.features))
        positions = self.param("position_embedding", normal(0.02), (1, 1 + GRID**2, self.features))
        of_patches = resized_positions(positions[:, 1:].reshape(1, GRID, GRID, -1), *x.shape[1:3])
        token = (class_token + positions[:, :1]).reshape(1, -1).astype(x.dtype)
        return x + of_patches.astype(x.dtype), jnp.broadcast_to(token, (x.shape[0], self.features))


class Head(nn.Module):
    """LayerNorm and linear layer of the class token."""

    layers: LayerFactory
    num_outputs: int

    @nn.compact
    def __call__(self, x: tuple[Array, Array]) -> HeadOutputs:
        _, class_token = x
        # A map of one pixel, which the global average pool leaves as it is.
        return self.layers.pool_fc(self.layers.layer_norm(class_token, name="norm")[:, None, None], self.num_outputs)


def deit(features: int, heads: int) -> Architecture:
    """A DeiT of four stages of three blocks, with tokens of `features` channels."""
    stages = (partial(Stage, depth=DEPTH, heads=heads),) * 4
    return Architecture(partial(Stem, features=features), stages, Head, INIT, INIT, PATCH * GRID)


NETWORKS = {
    "deit_tiny_patch16_224": partial(deit, 192, 3),
    "deit_small_patch16_224": partial(deit, 384, 6),
}
