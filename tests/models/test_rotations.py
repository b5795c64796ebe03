import jax.numpy as jnp
import numpy as np
import pytest

from hsakd_jax.models.rotations import class_logits, joint_labels, rotate, upright


def test_rotate_is_image_major_and_counter_clockwise():
    images = jnp.arange(2 * 2 * 2 * 1, dtype=jnp.float32).reshape(2, 2, 2, 1)
    rows = rotate(images)[..., 0].tolist()
    # A quarter turn counter-clockwise brings the right column to the top.
    assert rows[:4] == [[[0, 1], [2, 3]], [[1, 3], [0, 2]], [[3, 2], [1, 0]], [[2, 0], [3, 1]]]
    assert rows[4] == [[4, 5], [6, 7]]


def test_rotate_equals_numpy():
    images = np.random.default_rng(0).normal(size=(3, 5, 5, 2)).astype(np.float32)
    expected = [np.rot90(image, j, axes=(0, 1)) for image in images for j in range(4)]
    assert (np.asarray(rotate(jnp.asarray(images))) == np.stack(expected)).all()


def test_rotate_refuses_oblong_images():
    with pytest.raises(ValueError, match="square images, not 4x5"):
        rotate(jnp.zeros((1, 4, 5, 3)))


def test_joint_labels_are_class_major():
    assert joint_labels(jnp.array([0, 7])).tolist() == [0, 1, 2, 3, 28, 29, 30, 31]


def test_upright():
    rows = jnp.arange(8)
    assert upright(rows, 2).tolist() == [0, 4]
    assert upright(rows, 8).tolist() == rows.tolist()


def test_class_logits_sum_the_rotations_of_a_class():
    assert class_logits(jnp.arange(8.0)[None]).tolist() == [[6.0, 22.0]]
