"""Crop, flip and normalise batches of uint8 images on the device; random numbers are a function of the key."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


def random_crop(key: Array, images: Array, pad: int) -> Array:
    """Zero-pads by `pad` on every side and cuts the size of the image out again: [B, H, W, C] -> the same."""
    if not pad:
        return images
    batch, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * pad + 1)
    return jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), (height, width, x.shape[-1])))(
        padded, corners
    )


def random_flip(key: Array, images: Array) -> Array:
    """Mirrors each image left to right with probability one half: [B, H, W, C] -> the same."""
    flipped = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def augment(key: Array, images: Array, *, pad: int, flip: bool) -> Array:
    """Random crop, then random flip: uint8 [B, H, W, C] -> the same."""
    crop_key, flip_key = jax.random.split(key)
    images = random_crop(crop_key, images, pad)
    return random_flip(flip_key, images) if flip else images


def normalise(images: Array, mean: Sequence[float], std: Sequence[float], dtype=jnp.float32) -> Array:
    """(images / 255 - mean) / std: uint8 [B, H, W, C] -> `dtype`.

    Args:
      images: uint8.
      mean: one number a channel, or one for all, as a share of 255.
      std: likewise.
      dtype: of the result.

    Raises:
      ValueError: mean or std has another number of channels.
    """
    for name, value in (("mean", mean), ("std", std)):
        if len(value) not in (1, images.shape[-1]):
            raise ValueError(f"{name} has {len(value)} numbers but the images have {images.shape[-1]} channels")
    shift, scale = (jnp.asarray(v, dtype).reshape(1, 1, 1, -1) for v in (mean, std))
    return (images.astype(dtype) / 255 - shift) / scale
