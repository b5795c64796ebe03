"""Rotated batches and joint labels: the only file with the image-major order of rows and the label 4y + j."""

import jax
import jax.numpy as jnp

Array = jax.Array
ROTATIONS = 4


def rotate(images: Array) -> Array:
    """All four rotations of every image: [B, S, S, C] -> [4B, S, S, C], of any dtype.

    Rows are image-major: image 0 by 0, 90, 180, 270 degrees counter-clockwise, then image 1. The four rotations of an
    image are neighbours, so each device keeps its own images of a sharded batch.

    Raises:
      ValueError: the images are not square.
    """
    batch, height, width, channels = images.shape
    if height != width:
        raise ValueError(f"rotations need square images, not {height}x{width}: crop or resize them")
    rotated = jnp.stack([jnp.rot90(images, j, axes=(1, 2)) for j in range(ROTATIONS)], 1)
    return rotated.reshape(ROTATIONS * batch, height, width, channels)


def joint_labels(labels: Array) -> Array:
    """Joint labels of a rotated batch, 4y + j for rotation j: integers [B] -> [4B]."""
    return (ROTATIONS * labels[:, None] + jnp.arange(ROTATIONS, dtype=labels.dtype)[None]).reshape(-1)


def upright(x: Array, batch: int) -> Array:
    """The rows of upright images: [4B, ...] -> [B, ...]; a batch of B rows is returned as it is."""
    return x.reshape(batch, -1, *x.shape[1:])[:, 0]


def class_logits(joint_logits: Array) -> Array:
    """Class logits: joint logits summed over the four rotations of a class, [..., 4N] -> [..., N]."""
    return joint_logits.reshape(*joint_logits.shape[:-1], -1, ROTATIONS).sum(-1)
