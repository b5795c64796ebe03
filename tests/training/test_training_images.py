"""The images that a network sees in a step, from those of the dataset."""

import jax
import numpy as np
import pytest
from run_configs import run_config

from hsakd_jax.training.build import training_images

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
KEY = jax.random.key(3)
KEYS = {"data__pad": 2, "data__flip": True, "data__mean": (0.5,), "data__std": (0.2,), "shape": (8, 8, 3)}


def crops(image, pad):
    """All crops of an image that is padded with zeros."""
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return [padded[y : y + 8, x : x + 8] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]


@pytest.mark.parametrize("recipe", ["sskd", "sskd_teacher"])
def test_each_rotation_has_a_crop_of_its_own(recipe):
    """As in SSKD's code: flip, rotate, then crop each rotation."""
    config = run_config(recipe, **KEYS)
    assert config.training.crop_rotations
    found = np.rint((np.asarray(training_images(KEY, IMAGES, config)) * 0.2 + 0.5) * 255)
    places = []
    for row, image in enumerate(found):
        expected = []
        for flipped in (IMAGES[row // 4], IMAGES[row // 4][:, ::-1]):
            expected += crops(np.rot90(flipped, row % 4), 2)
        (place,) = np.flatnonzero((np.stack(expected) == image).all((1, 2, 3)))
        places.append(divmod(place, 25))
    flips, corners = np.reshape(places, (6, 4, 2)).transpose(2, 0, 1)
    assert (flips == flips[:, :1]).all()
    assert len(set(flips[:, 0])) == 2
    assert all(len(set(row)) > 1 for row in corners)


def test_all_rotations_of_other_recipes_have_one_crop():
    config = run_config("teacher", **KEYS)
    assert not config.training.crop_rotations
    found = np.asarray(training_images(KEY, IMAGES, config)).reshape(6, 4, 8, 8, 3)
    for image in found:
        for j in range(4):
            np.testing.assert_array_equal(image[j], np.rot90(image[0], j))
    upright = training_images(KEY, IMAGES, run_config("baseline", **KEYS))
    np.testing.assert_array_equal(found[:, 0], upright)


def test_one_crop_where_images_are_scaled():
    config = run_config("sskd", "imagenet", shape=(300, 300, 3))
    assert config.training.rotated
    assert not config.training.crop_rotations
