import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hsakd_jax.data.augment import augment, centre_crop, normalise, random_crop, random_flip, random_resized_crop
from hsakd_jax.data.image_files import FILTERS

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
    from hsakd_jax.core.sharding import Devices

    key, found = jax.random.key(5), []
    for count in (1, 8):
        devices = Devices(jax.devices()[:count])
        crop = devices.jit(lambda key, x: augment(key, x, crop="pad", pad=2, flip=True, size=6), 1)
        found.append(np.asarray(crop(devices.replicate(key), devices.shard(IMAGES))))
    assert (found[0] == found[1]).all()
    assert (found[0] != np.asarray(augment(jax.random.key(6), IMAGES, crop="pad", pad=2, flip=True, size=6))).any()


def test_without_augmentation_images_pass_unchanged():
    for crop in ("pad", "done"):
        assert (augment(jax.random.key(0), IMAGES, crop=crop, pad=0, flip=False, size=6) == IMAGES).all()


def ramps(height, width):
    """Of each pixel its row and its column, and the image's number: [8, H, W, 3]."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([np.stack([rows, columns, np.full_like(rows, i)], -1) for i in range(8)]).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (60, 80), (10, 200)])
def test_resized_crops_are_parts_of_the_published_sizes(height, width):
    """A ramp shows where a crop comes from: its slope is the side, its ends are the corners."""
    images = np.concatenate([ramps(height, width)] * 16)
    crops = np.asarray(augment(jax.random.key(0), jnp.asarray(images), crop="resized", pad=0, flip=False, size=32))
    assert crops.shape == (128, 32, 32, 3)
    assert (crops[..., 2] == images[:, :1, :1, 2]).all()
    down, across = crops[:, :, 16, 0].astype(float), crops[:, 16, :, 1].astype(float)
    # Half a pixel at either end is the filter's.
    sides = [(x[:, 24] - x[:, 8]) * 2 for x in (down, across)]
    area, ratio = sides[0] * sides[1] / (height * width), sides[1] / sides[0]
    if (height, width) == (10, 200):  # ten draws seldom fit: the middle square
        assert np.median(area) == pytest.approx(0.05, abs=0.01)
        return
    assert area.min() > 0.04
    assert area.max() < 1.1
    assert 0.4 < area.mean() < 0.65
    assert 0.6 < ratio.min() < 0.9 < 1.1 < ratio.max() < 1.6
    middles = down[:, 16] - height / 2, across[:, 16] - width / 2
    assert all(m.std() > 3 and abs(m.mean()) < 6 for m in middles)
    again = random_resized_crop(jax.random.key(0), jnp.asarray(images), 32)
    assert (np.asarray(again) != crops).any()  # another key: `augment` splits its own


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("size", "resize"), [(32, 32), (28, 32), (100, 120)])
def test_centre_crops_are_pillows_to_a_grey_level(size, resize, interpolation):
    coarse = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(x).resize((96, 96), Image.Resampling.BILINEAR)) for x in coarse])
    scaled = [np.asarray(Image.fromarray(x).resize((resize, resize), FILTERS[interpolation])) for x in images]
    at = (resize - size) // 2
    expected = np.stack(scaled).astype(int)[:, at : at + size, at : at + size]
    found = np.asarray(centre_crop(jnp.asarray(images), size, resize, interpolation)).astype(int)
    assert abs(found - expected).max() <= 1
    (other,) = set(FILTERS) - {interpolation}
    assert abs(np.asarray(centre_crop(jnp.asarray(images), size, resize, other)).astype(int) - expected).max() > 1


def test_normalise():
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)
    expected = (np.asarray(IMAGES) / 255 - mean) / std
    np.testing.assert_allclose(normalise(IMAGES, mean, std), expected, atol=1e-5)
    np.testing.assert_allclose(normalise(IMAGES, (0.5,), (0.2,)), (np.asarray(IMAGES) / 255 - 0.5) / 0.2, atol=1e-5)
    with pytest.raises(ValueError, match="mean has 2 numbers but the images have 3 channels"):
        normalise(IMAGES, (0.1, 0.2), std)
