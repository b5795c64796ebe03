import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hsakd_jax.augment import augment, normalise, random_crop, random_flip

IMAGES = jnp.asarray(np.random.default_rng(0).integers(1, 256, (64, 6, 6, 3)), jnp.uint8)


def test_crops_are_windows_of_the_zero_padded_image():
    crops = np.asarray(random_crop(jax.random.key(0), IMAGES, 2))
    padded = np.pad(np.asarray(IMAGES), ((0, 0), (2, 2), (2, 2), (0, 0)))
    found = set()
    for crop, image in zip(crops, padded, strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if (image[i : i + 6, j : j + 6] == crop).all()]
        assert len(places) == 1
        found.add(places[0])
    assert len(found) > 15  # of 25 places, 64 times


def test_flips_mirror_half_of_the_images():
    flipped = np.asarray(random_flip(jax.random.key(0), IMAGES))
    mirrored = (flipped == np.asarray(IMAGES)[:, :, ::-1]).all((1, 2, 3))
    same = (flipped == np.asarray(IMAGES)).all((1, 2, 3))
    assert (mirrored ^ same).all()
    assert 16 < mirrored.sum() < 48


def test_the_same_key_gives_the_same_images_on_any_number_of_devices():
    from hsakd_jax.devices import Devices

    key, found = jax.random.key(5), []
    for count in (1, 8):
        devices = Devices(jax.devices()[:count])
        crop = devices.jit(lambda key, x: augment(key, x, pad=2, flip=True), 1)
        found.append(np.asarray(crop(devices.replicate(key), devices.shard(IMAGES))))
    assert (found[0] == found[1]).all()
    assert (found[0] != np.asarray(augment(jax.random.key(6), IMAGES, pad=2, flip=True))).any()


def test_without_augmentation_images_pass_unchanged():
    assert (augment(jax.random.key(0), IMAGES, pad=0, flip=False) == IMAGES).all()


def test_normalise():
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)
    expected = (np.asarray(IMAGES) / 255 - mean) / std
    np.testing.assert_allclose(normalise(IMAGES, mean, std), expected, atol=1e-5)
    np.testing.assert_allclose(normalise(IMAGES, (0.5,), (0.2,)), (np.asarray(IMAGES) / 255 - 0.5) / 0.2, atol=1e-5)
    with pytest.raises(ValueError, match="mean has 2 numbers but the images have 3 channels"):
        normalise(IMAGES, (0.1, 0.2), std)
