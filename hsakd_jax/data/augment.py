"""Crop, flip and normalise batches of uint8 images on the device; random numbers are a function of the key."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
# Of Szegedy et al. 2015 (arXiv 1409.4842): fraction of the area, ratio of sides, draws before the middle is taken.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
DRAWS = 10
# Names of JAX for the filters of `image_files.FILTERS`, which compute the same as Pillow's to a grey level.
METHODS = {"bilinear": "linear", "bicubic": "cubic"}


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


def random_resized_crop(key: Array, images: Array, size: int, interpolation: str = "bilinear") -> Array:
    """Cuts a random part out of each image and scales it: uint8 [B, H, W, C] -> uint8 [B, size, size, C].

    The part has 8 to 100 % of the area and a ratio of sides from 3/4 to 4/3 (Szegedy et al. 2015, arXiv 1409.4842);
    where ten draws do not fit into the image, it is the greatest square in the middle. Antialiased; `interpolation` is
    a key of `METHODS`.
    """
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(keys[0], (batch, DRAWS), minval=AREA[0], maxval=AREA[1])
    ratio = jnp.exp(jax.random.uniform(keys[1], (batch, DRAWS), minval=jnp.log(RATIO[0]), maxval=jnp.log(RATIO[1])))
    sides = jnp.round(jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)], -1))  # [B, DRAWS, 2]
    limits = jnp.array([[[height, width]]], sides.dtype)
    fits = ((sides <= limits) & (sides > 0)).all(-1)
    first = jnp.take_along_axis(sides, fits.argmax(1)[:, None, None], 1)[:, 0]
    sides = jnp.where(fits.any(1)[:, None], first, jnp.full((1, 2), min(height, width), sides.dtype))
    free = limits[0] - sides
    corners = jnp.floor(jax.random.uniform(keys[2], (batch, 2)) * (free + 1))
    corners = jnp.where(fits.any(1)[:, None], corners, jnp.floor(free / 2))
    return _cut(images, corners, sides, size, interpolation)


def centre_crop(images: Array, size: int, resize: int, interpolation: str = "bilinear") -> Array:
    """Scales the shorter side to `resize` and cuts the middle out: uint8 [B, H, W, C] -> uint8 [B, size, size, C].

    Antialiased; `interpolation` is a key of `METHODS`.
    """
    batch, height, width, _ = images.shape
    side = min(height, width) * size / resize
    sides = jnp.full((batch, 2), side, jnp.float32)
    corners = (jnp.array([[height, width]], jnp.float32) - sides) / 2
    return _cut(images, corners, sides, size, interpolation)


def _cut(images: Array, corners: Array, sides: Array, size: int, interpolation: str) -> Array:
    """The rectangles at `corners` with `sides`, in pixels, float32 [B, 2], scaled to squares."""
    shape, method = (size, size, images.shape[-1]), METHODS[interpolation]

    def one(image, corner, side):
        scale = size / side
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, -corner * scale, method, antialias=True)

    cut = jax.vmap(one)(images.astype(jnp.float32), corners, sides)
    return jnp.clip(jnp.round(cut), 0, 255).astype(jnp.uint8)


def random_flip(key: Array, images: Array) -> Array:
    """Mirrors each image left to right with probability one half: [B, H, W, C] -> the same."""
    flipped = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def augment(
    key: Array, images: Array, *, crop: str, pad: int, flip: bool, size: int, interpolation: str = "bilinear"
) -> Array:
    """Random crop, then random flip: uint8 [B, H, W, C] -> uint8 [B, size, size, C], or [B, H, W, C] with 'pad'.

    Args:
      key: of the step.
      images: uint8.
      crop: 'pad' (see `random_crop`), 'resized' (see `random_resized_crop`) or 'done' (before they came here).
      pad: of 'pad'.
      flip: whether to.
      size: of 'resized'.
      interpolation: of 'resized', a key of `METHODS`.
    """
    crop_key, flip_key = jax.random.split(key)
    if crop == "resized":
        images = random_resized_crop(crop_key, images, size, interpolation)
    elif crop == "pad":
        images = random_crop(crop_key, images, pad)
    return random_flip(flip_key, images) if flip else images


def normalise(images: Array, mean: Sequence[float], std: Sequence[float], dtype=jnp.float32) -> Array:
    """(images / 255 - mean) / std: uint8 [B, H, W, C] -> `dtype`.

    Computed as (images - 255 mean) * (1 / (255 std)). The bits are the same on every device and in every runtime, as in
    onnxruntime. Compilers replace a division by a constant, and join a product and a sum after it, some but not all.

    Args:
      images: uint8.
      mean: one number per channel, or one for all, as a fraction of 255.
      std: as `mean`.
      dtype: of the result.

    Raises:
      ValueError: mean or std has another number of channels.
    """
    for name, value in (("mean", mean), ("std", std)):
        if len(value) not in (1, images.shape[-1]):
            raise ValueError(f"{name} has {len(value)} numbers but the images have {images.shape[-1]} channels")
    numbers = 255 * np.asarray(mean, np.float64), 1 / (255 * np.asarray(std, np.float64))
    shift, scale = (jnp.asarray(v, dtype).reshape(1, 1, 1, -1) for v in numbers)
    return (images.astype(dtype) - shift) * scale


def crop_to(images: Array, shape: tuple[int, int], resize: int, interpolation: str = "bilinear") -> Array:
    """Test images of their network's shape: those of that shape whole, the middle of others.

    Args:
      images: uint8 [B, H, W, C].
      shape: height and width of the images that the network takes.
      resize: length to which the shorter side of others is scaled before the central crop; 0 for the side of the crop.
      interpolation: how they are scaled, a key of `METHODS`.

    Returns:
      uint8 [B, height, width, C].

    Raises:
      ValueError: images of another shape for a network whose images are not square.
    """
    height, width = shape
    if images.shape[1:3] == (height, width):
        return images
    if height != width:
        raise ValueError(f"images of {images.shape[1:3]}, where {height} x {width} are expected")
    return centre_crop(images, height, resize or height, interpolation)


def prepare(
    images: Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    shape: tuple[int, int],
    resize: int,
    interpolation: str = "bilinear",
) -> Array:
    """The network's input for test images: `normalise` of `crop_to`, which have the same arguments and errors."""
    return normalise(crop_to(images, shape, resize, interpolation), mean, std)
