"""The strong augmentation: each operation against Pillow, with which its authors work, and the random draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import enable_x64
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from hsakd_jax.core.sharding import Devices
from hsakd_jax.data.rand_augment import FILL, OPERATIONS, apply_operations, cutout, rand_augment

# From `augment_list` of the authors' code.
RANGES = {
    "AutoContrast": (0, 1), "Brightness": (0.05, 0.95), "Color": (0.05, 0.95), "Contrast": (0.05, 0.95),
    "Equalize": (0, 1), "Identity": (0, 1), "Posterize": (4, 8), "Rotate": (-30, 30), "Sharpness": (0.05, 0.95),
    "ShearX": (-0.3, 0.3), "ShearY": (-0.3, 0.3), "Solarize": (0, 256), "TranslateX": (-0.3, 0.3),
    "TranslateY": (-0.3, 0.3),
}  # fmt: skip


# Compiled, since operation by operation takes many times longer.
apply, strong = jax.jit(apply_operations), jax.jit(rand_augment)


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


PILLOW = {
    "AutoContrast": lambda image, v: ImageOps.autocontrast(image),
    "Brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "Color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "Contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "Equalize": lambda image, v: ImageOps.equalize(image),
    "Identity": lambda image, v: image,
    "Posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "Rotate": lambda image, v: image.rotate(v),
    "Sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "ShearX": lambda image, v: affine(image, 1, v, 0, 0, 1, 0),
    "ShearY": lambda image, v: affine(image, 1, 0, 0, v, 1, 0),
    "Solarize": lambda image, v: ImageOps.solarize(image, v),
    "TranslateX": lambda image, v: affine(image, 1, 0, v * image.width, 0, 1, 0),
    "TranslateY": lambda image, v: affine(image, 1, 0, 0, 0, 1, v * image.height),
}


def random_images(batch, height, width, channels):
    """Each with a range of its own, since AutoContrast changes nothing in an image with all levels."""
    g = np.random.default_rng(0)
    low, high = g.integers(0, 100, (batch, 1, 1, 1)), g.integers(101, 257, (batch, 1, 1, 1))
    images = low + (high - low) * g.random((batch, height, width, channels))
    images[0] = 77  # of one level
    return images.astype(np.uint8)


def as_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def test_operations_are_the_authors():
    assert {o.name: (o.low, o.high) for o in OPERATIONS} == RANGES


@pytest.mark.parametrize("shape", [(24, 32, 32, 3), (24, 21, 34, 1)], ids=["rgb", "grey"])
@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=[o.name for o in OPERATIONS])
def test_operations_are_pillows(number, shape):
    operation, images = OPERATIONS[number], random_images(*shape)
    strengths = np.linspace(operation.low, operation.high, len(images), endpoint=False, dtype=np.float32)
    found = apply(images, jnp.full(len(images), number), strengths)
    pairs = zip(images, strengths, strict=True)
    expected = [np.asarray(PILLOW[operation.name](as_pillow(x), float(v))).reshape(x.shape) for x, v in pairs]
    difference = abs(np.asarray(found).astype(int) - np.stack(expected))
    # Fractions are cut off. Those next to a whole number fall to one side or the other: Pillow computes AutoContrast in
    # float64 with rounding errors, here it is whole numbers; blends are float32 in both, which XLA may round once less.
    rounded = ("AutoContrast", "Brightness", "Color", "Contrast", "Sharpness")
    assert difference.max() <= (operation.name in rounded)
    assert (difference > 0).mean() < 0.01
    if operation.name not in ("Identity", "Color"):
        assert (np.stack(expected) != images).any((1, 2, 3)).mean() > 0.5  # the comparison is of changed images


def test_an_image_has_an_operation_of_its_own():
    images = random_images(len(OPERATIONS), 16, 16, 3)
    strengths = np.array([(o.low + o.high) / 2 + 0.1 for o in OPERATIONS], np.float32)
    together = apply(jnp.asarray(images), jnp.arange(len(OPERATIONS)), jnp.asarray(strengths))
    for i in range(len(OPERATIONS)):
        alone = apply(jnp.asarray(images[i : i + 1]), jnp.array([i]), jnp.asarray(strengths[i : i + 1]))
        np.testing.assert_array_equal(together[i], alone[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_cutout_is_the_authors(channels):
    g, images = np.random.default_rng(0), np.full((40, 12, 20, channels), 7, np.uint8)
    centres = g.uniform(1, (12, 20), (40, 2)).astype(np.float32)
    sides = g.uniform(0, 10, 40).astype(np.float32)
    sides[0] = 0
    found = np.asarray(cutout(jnp.asarray(images), jnp.asarray(centres), jnp.asarray(sides)))
    np.testing.assert_array_equal(found[0], images[0])
    colour = FILL if channels == 3 else Image.new("RGB", (1, 1), FILL).convert("L").getpixel((0, 0))
    for image, (y, x), side, covered in list(zip(images, centres, sides, found, strict=True))[1:]:
        left, top = int(max(0, x - side / 2)), int(max(0, y - side / 2))
        expected = as_pillow(image)
        ImageDraw.Draw(expected).rectangle((left, top, min(20, left + side), min(12, top + side)), colour)
        np.testing.assert_array_equal(covered, np.asarray(expected).reshape(covered.shape))


def test_draws_are_two_operations_and_a_square():
    """Against the same draws, made one after the other."""
    images, key = jnp.asarray(random_images(512, 8, 16, 3)), jax.random.key(3)
    operation_key, strength_key, side_key, centre_key = jax.random.split(key, 4)
    chosen = np.asarray(jax.random.randint(operation_key, (512, 2), 0, 14))
    assert set(chosen.flat) == set(range(14))
    fractions = np.asarray(jax.random.uniform(strength_key, (512, 2)))
    expected = images
    for i in range(2):
        low, high = np.array([RANGES[OPERATIONS[o].name] for o in chosen[:, i]], np.float32).T
        strengths = jnp.asarray(low + (high - low) * fractions[:, i])
        expected = apply(expected, jnp.asarray(chosen[:, i]), strengths)
    sides = 8 * jax.random.uniform(side_key, (512,))  # up to half of the width
    centres = 1 + jnp.array([[7.0, 15.0]]) * jax.random.uniform(centre_key, (512, 2))
    np.testing.assert_array_equal(strong(key, images), cutout(expected, centres, sides))
    with enable_x64(True):
        np.testing.assert_array_equal(strong(key, images), cutout(expected, centres, sides))


def test_the_same_key_gives_the_same_images_on_any_number_of_devices():
    images, key, found = random_images(64, 8, 8, 3), jax.random.key(5), []
    for count in (1, 8):
        devices = Devices(jax.devices()[:count])
        compiled = devices.jit(rand_augment, 1)
        found.append(np.asarray(compiled(devices.replicate(key), devices.shard(jnp.asarray(images)))))
    np.testing.assert_array_equal(*found)
    assert (found[0] != images).any((1, 2, 3)).mean() > 0.9
    assert (found[0] != np.asarray(strong(jax.random.key(6), jnp.asarray(images)))).any((1, 2, 3)).mean() > 0.9
