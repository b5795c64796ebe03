import itertools

import numpy as np
import pytest

from hsakd_jax.core.errors import UserError
from hsakd_jax.data import sampling
from hsakd_jax.data.dataset import Dataset

GOLDEN_SHARE = [108, 136, 196, 227, 246, 266]
GOLDEN_ORDER = [11, 41, 14, 10, 0, 34]

# A stratified share


def test_stratified_keeps_the_share_of_each_class():
    labels = np.repeat(np.arange(4), [100, 50, 10, 1])
    chosen = sampling.stratified(labels, 0.1, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [10, 5, 1, 1])
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(sampling.stratified(labels, 1.0, seed=0), np.arange(161))


def test_a_smaller_fraction_is_a_subset_of_a_larger_one():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    shares = [
        set(sampling.stratified(labels, fraction, seed=5).tolist()) for fraction in (0.05, 0.1, 0.25, 0.5, 0.9, 1)
    ]
    assert all(a < b for a, b in itertools.pairwise(shares))


def test_stratified_depends_on_the_seed_and_on_nothing_else():
    labels = np.arange(300) % 3
    assert (
        sampling.stratified(labels, 0.02, seed=0).tolist()
        == sampling.stratified(labels.astype(np.int32), 0.02, 0).tolist()
    )
    assert sampling.stratified(labels, 0.02, seed=0).tolist() == GOLDEN_SHARE  # on every version of numpy
    assert sampling.stratified(labels, 0.02, seed=1).tolist() != GOLDEN_SHARE


# The order of training


def test_each_epoch_is_a_permutation_without_its_remainder():
    n, batch = 23, 5
    epochs = [np.concatenate([sampling.order(n, batch, 0, 4 * e + i) for i in range(4)]) for e in range(3)]
    for epoch in epochs:
        assert len(np.unique(epoch)) == 20
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(range(n)) == set(np.concatenate(epochs).tolist())


def test_order_is_fixed_by_seed_and_step():
    assert sampling.order(50, 6, seed=2, step=9).tolist() == GOLDEN_ORDER  # on every version of numpy
    assert sampling.order(50, 6, seed=3, step=9).tolist() != GOLDEN_ORDER


def test_batches_resume_anywhere():
    n = 20
    dataset = Dataset(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), np.arange(n, dtype=np.int32))
    whole = list(itertools.islice(sampling.batches(dataset, 6, seed=1), 10))
    for start in (0, 2, 3, 7):
        for a, b in zip(whole[start:], sampling.batches(dataset, 6, seed=1, start_step=start), strict=False):
            np.testing.assert_array_equal(a["image"], b["image"])
            np.testing.assert_array_equal(a["label"], b["label"])
    for step, batch in enumerate(whole):
        assert batch["image"].shape == (6, 1, 1, 1)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"].ravel(), batch["label"])
        np.testing.assert_array_equal(batch["label"], sampling.order(n, 6, 1, step))


def test_a_share_is_some_rows_of_each_batch():
    dataset = Dataset(np.zeros((20, 1, 1, 1), np.uint8), np.arange(20, dtype=np.int32))
    for share in (slice(0, 3), slice(3, 6), slice(1, None, 2)):
        for whole, part in itertools.islice(
            zip(sampling.batches(dataset, 6, 1), sampling.batches(dataset, 6, 1, local_slice=share), strict=True), 5
        ):
            np.testing.assert_array_equal(part["label"], whole["label"][share])
            assert len(part["image"]) == 3


def test_taking_images():
    n = 9
    dataset = Dataset(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), np.arange(n, dtype=np.int32))
    taken = dataset.take(np.array([7, 2]))
    assert taken.images.ravel().tolist() == taken.labels.tolist() == [7, 2]
    assert dataset.image_shape == (1, 1, 1)


@pytest.mark.parametrize("size", [0, -1, 24])
def test_a_batch_must_fit_the_training_set(size):
    with pytest.raises(UserError, match="batch size from 1 to 23"):
        sampling.order(23, size, 0, 0)


def test_a_negative_seed():
    with pytest.raises(UserError, match="seed -1"):
        sampling.order(23, 5, -1, 0)
    with pytest.raises(UserError, match="seed -1"):
        sampling.stratified(np.zeros(3, int), 0.5, -1)


# Evaluation


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (3, 4), (0, 4)])
def test_each_image_is_evaluated_once(n, size):
    dataset = Dataset(
        np.arange(1, n + 1, dtype=np.uint8).reshape(n, 1, 1, 1) * np.ones((1, 2, 2, 3), np.uint8),
        np.arange(1, n + 1, dtype=np.int32),
    )
    found = list(sampling.eval_batches(dataset, size))
    assert len(found) == -(-n // size)
    for batch in found:
        assert batch["image"].shape == (size, 2, 2, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == (size,)
        assert batch["label"].dtype == np.int32
        assert batch["mask"].dtype == bool
        assert not batch["image"][~batch["mask"]].any()
        assert not batch["label"][~batch["mask"]].any()
    for key in ("image", "label"):
        seen = [row for batch in found for row in batch[key][batch["mask"]].tolist()]
        assert seen == getattr(dataset, key + "s").tolist()


def test_an_empty_evaluation_batch():
    with pytest.raises(UserError, match="at least 1"):
        next(sampling.eval_batches(Dataset(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int32)), 0))
