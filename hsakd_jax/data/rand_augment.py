"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719) with cutout: the strong augmentation of MLLD and CRLD.

Operations, ranges and order are those of the authors' code, which is alike in both: `RandAugment(2, 10)` in
mdistiller/dataset/cifar100.py of sunshangquan/logit-standardization-KD (MLLD) and scx-822/CRLD-main. That code never
uses its 10: each strength is uniform over the operation's range. The pixels are Pillow's, with which the authors work.

Each operation is a warp, then a blend with another image, then a table of grey levels. Two of the three are the
identity. So one program serves all images of a batch, whichever operations they drew.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
LEVELS = 256
# Cutout's colour in the authors' code, on all datasets: about the mean of CIFAR-10.
FILL = (125, 123, 114)
GREY_FILL = 123  # its grey level
CUTOUT = 0.5  # the greatest side, as a fraction of the image's width
FIXED = 2**16  # Pillow's unit of coordinates: 16 bits behind the point
# The weights of red, green and blue in a grey level, in Pillow's units.
LUMA = (19595, 38470, 7471)


class Operation(NamedTuple):
    """One operation and the range of its strength.

    Attributes:
      name: as in the paper.
      low: least strength.
      high: greatest strength.
    """

    name: str
    low: float
    high: float


OPERATIONS = (
    Operation("AutoContrast", 0, 1),
    Operation("Brightness", 0.05, 0.95),
    Operation("Color", 0.05, 0.95),
    Operation("Contrast", 0.05, 0.95),
    Operation("Equalize", 0, 1),
    Operation("Identity", 0, 1),
    Operation("Posterize", 4, 8),
    Operation("Rotate", -30, 30),
    Operation("Sharpness", 0.05, 0.95),
    Operation("ShearX", -0.3, 0.3),
    Operation("ShearY", -0.3, 0.3),
    Operation("Solarize", 0, 256),
    Operation("TranslateX", -0.3, 0.3),
    Operation("TranslateY", -0.3, 0.3),
)
_NUMBER = {operation.name: number for number, operation in enumerate(OPERATIONS)}


def rand_augment(key: Array, images: Array, count: int = 2) -> Array:
    """Random operations of random strength, then cutout of a random square: uint8 [B, H, W, C] -> the same.

    Args:
      key: of the batch; the draws of an image depend on the key and on its row only.
      images: uint8.
      count: operations per image; one may be drawn twice.
    """
    operation_key, strength_key, side_key, centre_key = jax.random.split(key, 4)
    batch, (height, width) = len(images), images.shape[1:3]
    chosen = jax.random.randint(operation_key, (batch, count), 0, len(OPERATIONS), jnp.int32)
    low, high = (jnp.array([getattr(o, end) for o in OPERATIONS], jnp.float32) for end in ("low", "high"))
    uniform = jax.random.uniform(strength_key, (batch, count), jnp.float32)
    strengths = low[chosen] + (high - low)[chosen] * uniform
    # A loop inside XLA, so that the operations are compiled once.
    images, _ = jax.lax.scan(lambda x, drawn: (apply_operations(x, *drawn), None), images, (chosen.T, strengths.T))
    sides = CUTOUT * width * jax.random.uniform(side_key, (batch,), jnp.float32)
    # The authors draw from 1 on, as NumPy's `uniform(size)` does.
    last = jnp.array([[height, width]], jnp.float32)
    centres = 1 + (last - 1) * jax.random.uniform(centre_key, (batch, 2), jnp.float32)
    return cutout(images, centres, sides)


def apply_operations(images: Array, operations: Array, strengths: Array) -> Array:
    """One operation of each image: uint8 [B, H, W, C] -> the same.

    Args:
      images: uint8; Color leaves those without three channels as they are.
      operations: [B], integers, positions in `OPERATIONS`.
      strengths: [B], float32, within the operation's range.
    """
    images = warp(images, _matrices(operations, strengths, images.shape[1:3]))
    images = _blended(images, operations, strengths)
    return _looked_up(images, _tables(images, operations, strengths))


def cutout(images: Array, centres: Array, sides: Array) -> Array:
    """Covers a square of each image with `FILL`, or `GREY_FILL` where there are not three channels.

    As in the authors' code, a square at the upper or left border keeps its side, and one at the others is cut off.

    Args:
      images: uint8 [B, H, W, C].
      centres: [B, 2], float32, rows and columns in pixels.
      sides: [B], float32, pixels; 0 covers nothing.
    """
    first = jnp.floor(jnp.maximum(centres - sides[:, None] / 2, 0))  # [B, 2]
    last = jnp.floor(first + sides[:, None])
    inside = []
    for axis, size in enumerate(images.shape[1:3]):
        at = jnp.arange(size, dtype=jnp.float32)[None]
        inside.append((at >= first[:, axis, None]) & (at <= last[:, axis, None]))
    covered = inside[0][:, :, None] & inside[1][:, None] & (sides > 0)[:, None, None]
    colour = jnp.array(FILL if images.shape[-1] == len(FILL) else [GREY_FILL], jnp.uint8)
    return jnp.where(covered[..., None], colour.reshape(1, 1, 1, -1), images)


def warp(images: Array, matrices: Array) -> Array:
    """Affine warp to the nearest pixel, 0 outside, as Pillow's `Image.transform`: [B, H, W, C] -> the same.

    Args:
      images: any dtype.
      matrices: [B, 6], float32, (a, b, c, d, e, f). The pixel of the result at column x + 1/2, row y + 1/2 is that of
        the image at column a x + b y + c, row d x + e y + f.
    """
    batch, height, width, channels = images.shape
    a, b, c, d, e, f = (matrices[:, i].reshape(-1, 1, 1) for i in range(6))
    rows, columns = (
        jnp.arange(height, dtype=jnp.int32).reshape(1, -1, 1),
        jnp.arange(width, dtype=jnp.int32).reshape(1, 1, -1),
    )
    x, y = (
        # Whole pixels apart, since a float32 has 24 bits.
        (_fixed(shift + across / 2 + down / 2) + columns * _fixed(across) + rows * _fixed(down)) >> 16
        for across, down, shift in ((a, b, c), (d, e, f))
    )
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    places = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
    flat = images.reshape(batch, height * width, channels)
    found = jax.vmap(lambda image, at: image[at])(flat, places.reshape(batch, -1)).reshape(images.shape)
    return jnp.where(inside[..., None], found, 0)


def _fixed(x: Array) -> Array:
    return jnp.floor(x * FIXED + 0.5).astype(jnp.int32)


def _matrices(operations: Array, strengths: Array, size: tuple[int, ...]) -> Array:
    """The matrix of each image's operation, [B, 6]; the identity of those that do not move pixels."""
    height, width = size
    one, zero = jnp.ones_like(strengths), jnp.zeros_like(strengths)
    angle = -jnp.deg2rad(strengths)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotated = (cos, sin, (width - cos * width - sin * height) / 2, -sin, cos, (height + sin * width - cos * height) / 2)
    return _by_operation(
        operations,
        jnp.stack([one, zero, zero, zero, one, zero], -1),
        Rotate=jnp.stack(rotated, -1),
        ShearX=jnp.stack([one, strengths, zero, zero, one, zero], -1),
        ShearY=jnp.stack([one, zero, zero, strengths, one, zero], -1),
        TranslateX=jnp.stack([one, zero, strengths * width, zero, one, zero], -1),
        TranslateY=jnp.stack([one, zero, zero, zero, one, strengths * height], -1),
    )


def _blended(images: Array, operations: Array, strengths: Array) -> Array:
    """Each image mixed with black (Brightness), its grey form, its mean grey or its smooth form; others unchanged."""
    grey = _grey(images)
    size = images.shape[1] * images.shape[2]
    mean = (2 * grey.sum((1, 2, 3), keepdims=True, dtype=jnp.int32) + size) // (2 * size)  # halves are rounded up
    whole = images.astype(jnp.int32)
    other = _by_operation(
        operations,
        whole,
        Brightness=jnp.zeros_like(whole),
        Color=jnp.broadcast_to(grey, images.shape) if images.shape[-1] == len(LUMA) else whole,
        Contrast=jnp.broadcast_to(mean, images.shape),
        Sharpness=_smooth(whole),
    )
    share = strengths.reshape(-1, 1, 1, 1) * (whole - other).astype(jnp.float32)
    # An image that is its own partner stays as it is, whatever the strength.
    return (other.astype(jnp.float32) + share).astype(jnp.uint8)


def _grey(images: Array) -> Array:
    """Pillow's grey level of RGB, the mean of other numbers of channels: [B, H, W, C] -> int32 [B, H, W, 1]."""
    whole = images.astype(jnp.int32)
    channels = images.shape[-1]
    if channels != len(LUMA):
        return (2 * whole.sum(-1, keepdims=True, dtype=jnp.int32) + channels) // (2 * channels)
    weights = jnp.array(LUMA, jnp.int32).reshape(1, 1, 1, -1)
    return ((whole * weights).sum(-1, keepdims=True, dtype=jnp.int32) + FIXED // 2) >> 16


def _smooth(images: Array) -> Array:
    """Pillow's SMOOTH: weights 1, in the middle 5, over 13; the border stays: int32 [B, H, W, C] -> the same."""
    height, width = images.shape[1:3]
    if min(height, width) < 3:
        return images
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * images[:, 1:-1, 1:-1]
    return images.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)


def _tables(images: Array, operations: Array, strengths: Array) -> Array:
    """New grey levels by old ones, int32 [B, C, 256]; the same ones for operations without a table."""
    levels = _levels()
    counts = _histograms(images)
    strength = strengths.reshape(-1, 1, 1)
    dropped = jnp.clip(8 - jnp.floor(strength).astype(jnp.int32), 0, 8)  # bits
    same = jnp.broadcast_to(levels, counts.shape)
    return _by_operation(
        operations,
        same,
        AutoContrast=_autocontrast(counts),
        Equalize=_equalise(counts),
        Posterize=jnp.broadcast_to((levels >> dropped) << dropped, counts.shape),
        Solarize=jnp.where(same < jnp.ceil(strength).astype(jnp.int32), same, LEVELS - 1 - same),
    )


def _levels() -> Array:
    return jnp.arange(LEVELS, dtype=jnp.int32).reshape(1, 1, -1)


def _histograms(images: Array) -> Array:
    """How many pixels have each level: uint8 [B, H, W, C] -> int32 [B, C, 256]."""
    batch, height, width, channels = images.shape
    pixels = jnp.moveaxis(images, -1, 1).reshape(batch * channels, height * width)
    counts = jax.vmap(lambda row: jnp.zeros(LEVELS, jnp.int32).at[row].add(1))(pixels)
    return counts.reshape(batch, channels, LEVELS)


def _autocontrast(counts: Array) -> Array:
    """The table that takes the least level to 0 and the greatest to 255."""
    levels = _levels()
    found = counts > 0
    low = jnp.where(found, levels, LEVELS).min(-1, keepdims=True)
    high = jnp.where(found, levels, -1).max(-1, keepdims=True)
    stretched = (levels - low) * (LEVELS - 1) // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, LEVELS - 1), levels)


def _equalise(counts: Array) -> Array:
    """The table that makes all levels about equally frequent."""
    levels = _levels()
    highest = jnp.where(counts > 0, levels, -1).max(-1, keepdims=True)
    last = jnp.take_along_axis(counts, highest, -1)
    step = (counts.sum(-1, keepdims=True, dtype=jnp.int32) - last) // (LEVELS - 1)
    before = jnp.cumsum(counts, -1, dtype=jnp.int32) - counts
    equal = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), LEVELS - 1)
    return jnp.where(step > 0, equal, levels)


def _looked_up(images: Array, tables: Array) -> Array:
    batch, height, width, channels = images.shape
    pixels = jnp.moveaxis(images, -1, 1).reshape(batch, channels, height * width).astype(jnp.int32)
    found = jnp.take_along_axis(tables.astype(jnp.uint8), pixels, -1)
    return jnp.moveaxis(found.reshape(batch, channels, height, width), 1, -1)


def _by_operation(operations: Array, otherwise: Array, **values: Array) -> Array:
    """The value of each image's operation, [B, ...] each: by name, `otherwise` for those that are not named."""
    for name, value in values.items():
        chosen = operations == _NUMBER[name]
        otherwise = jnp.where(chosen.reshape(-1, *[1] * (value.ndim - 1)), value, otherwise)
    return otherwise
