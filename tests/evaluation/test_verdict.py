"""Verdicts on two methods, against figures computed by hand."""

import math

import numpy as np
import pytest
from msgspec import structs
from run_configs import run_results

from hsakd_jax.core.files import InvalidContent, read_sealed, write_sealed
from hsakd_jax.evaluation.verdict import compare, mcnemar, paired_t
from hsakd_jax.runs.results import Correct, Results

LABELS = np.arange(20, dtype=np.int32)


def result(right, labels=LABELS):
    """The results of a run that classifies `right` of its test images correctly: a number, or bool [n]."""
    right = np.arange(len(labels)) < right if isinstance(right, int) else right
    top1 = 100 * right.mean()
    return run_results("kd", top1, test_images=len(labels), correct=Correct.pack(right, labels))


def networks(n, ours, theirs):
    """Two networks on n images, some of which only the first or only the second classifies correctly."""
    i = np.arange(n)
    return (i < ours) | (i >= ours + theirs), i >= ours


def test_three_seeds_by_hand():
    """t(0.975, 2) = 4.302653; with 2 degrees of freedom, p = 1 - t / sqrt(2 + t^2)."""
    found = paired_t([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert found.interval == pytest.approx((2 - half, 2 + half), abs=1e-6)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-12)
    assert str(found) == "not shown: +2.00 (95 % interval -0.48 to 4.48, 3 seeds)"
    assert str(paired_t([1.9, 2.0, 2.1])) == "better by 2.00 (95 % interval 1.75 to 2.25, 3 seeds)"
    assert str(paired_t([-1.9, -2.0, -2.1])) == "worse by 2.00 (95 % interval 1.75 to 2.25, 3 seeds)"


def test_two_seeds_by_hand():
    """t(0.975, 1) = 12.706205; with 1 degree of freedom, p = 1 - 2 atan(t) / pi."""
    found = paired_t([1.0, 2.0])
    assert found.interval == pytest.approx((1.5 - 12.706205 / 2, 1.5 + 12.706205 / 2), abs=1e-6)
    assert found.p == pytest.approx(1 - 2 * math.atan(3) / math.pi, abs=1e-12)
    assert found.words == "not shown: +1.50"


@pytest.mark.parametrize("differences", [(1.0, 1.0), (73.0 - 72.0, 72.6 - 71.6)])
def test_equal_differences_have_no_deviation(differences):
    """Equal up to rounding too, whose deviation would show any difference."""
    found = paired_t(differences)
    assert (found.interval, found.p, found.is_shown) == (None, None, False)
    assert str(found) == "not tested: +1.00 (the same in 2 seeds, without a deviation)"


@pytest.mark.parametrize(
    ("ours", "theirs", "p", "variance", "sentence"),
    [
        (6, 0, 2 / 2**6, 8 / 22 - (6 / 22) ** 2, "better by 30.00 (95 % interval 4.80 to 49.75"),
        (0, 6, 2 / 2**6, 8 / 22 - (6 / 22) ** 2, "worse by 30.00 (95 % interval 4.80 to 49.75"),
        (0, 0, 1.0, 2 / 22, "not shown: +0.00 (95 % interval -12.60 to 12.60"),
        (1, 0, 1.0, 3 / 22 - (1 / 22) ** 2, "not shown: +5.00 (95 % interval -10.77 to 19.86"),
        (20, 0, 2 / 2**20, 22 / 22 - (20 / 22) ** 2, "better by 100.00 (95 % interval 73.50 to 100.00"),
    ],
)
def test_one_seed_by_hand(ours, theirs, p, variance, sentence):
    """Of 20 test images: Bonett and Price add one image to each side, and two to the number."""
    found = mcnemar(*networks(20, ours, theirs))
    centre, half = 100 * (ours - theirs) / 22, 100 * 1.959964 * math.sqrt(variance / 22)
    assert found.difference == pytest.approx(100 * (ours - theirs) / 20)
    assert found.interval == pytest.approx((centre - half, min(100.0, centre + half)), abs=1e-4)
    assert found.p == pytest.approx(p, abs=1e-12)
    assert str(found) == f"{sentence}, 1 seed) (test images only; another seed may differ)"


def test_the_exact_test_decides():
    """With 11 against 3 images of 10,000, it is stricter than the interval, which is never the stricter one."""
    found = mcnemar(*networks(10_000, 11, 3))
    assert found.p == pytest.approx(2 * (1 + 14 + 91 + 364) / 2**14)
    assert found.interval[0] > 0
    assert str(found).startswith("not shown: +0.08 (95 % interval 0.00 to 0.16")
    for n in (30, 1000):
        for b in range(25):
            for c in range(min(b, n - b)):
                found = mcnemar(*networks(n, b, c))
                assert found.interval[0] > 0 or not found.is_shown


def test_seeds_are_compared_with_themselves():
    """Within each seed, whatever the others are, and only those that both have."""
    ours, theirs = (
        {0: result(10), 1: result(16), 2: result(13), 7: result(1)},
        {2: result(12), 1: result(13), 0: result(8)},
    )
    assert compare(ours, theirs) == paired_t([10.0, 15.0, 5.0])
    assert compare({0: result(10), 1: result(16)}, {1: result(13), 2: result(12)}) == mcnemar(
        np.arange(20) < 16, np.arange(20) < 13
    )
    assert str(compare({0: result(10)}, {1: result(10)})) == "not tested (no seed in common)"


def test_other_test_images_are_not_compared():
    other = np.arange(20, dtype=np.int32)[::-1]
    for seeds in ((0,), (0, 1)):
        ours, few = dict.fromkeys(seeds, result(10)), dict.fromkeys(seeds, result(10, LABELS[:16]))
        assert str(compare(ours, few)) == "not tested (their test images differ)"
        assert compare(ours, dict.fromkeys(seeds, result(10, other))).reason == "their test images differ"


def test_other_test_images_with_the_same_labels_are_not_compared():
    """Where both runs store their digest; one of an earlier version has none."""
    first, second, old = (structs.replace(result(10), test_digest=digest) for digest in ("a", "b", None))
    assert compare({0: first}, {0: second}).reason == "their test images differ"
    assert compare({0: first}, {0: first}).p == compare({0: first}, {0: old}).p == compare({0: old}, {0: second}).p == 1


def test_one_seed_without_its_images():
    """Of an earlier version, or of several networks."""
    old = structs.replace(result(12), correct=None)
    line = "not tested: +10.00 (one seed, and results.json does not store which test images are correct)"
    assert str(compare({0: old}, {0: result(10)})) == line
    assert str(compare({0: old, 1: old}, {0: result(10), 1: result(11)})) == str(paired_t([10.0, 5.0]))


def test_which_images_are_correct_is_stored(tmp_path):
    right = np.random.default_rng(0).random(20) < 0.5
    write_sealed(tmp_path / "results.json", result(right))
    stored = read_sealed(tmp_path / "results.json", Results)
    np.testing.assert_array_equal(stored.correct.unpack(20), right)
    assert stored == result(right)
    write_sealed(
        tmp_path / "results.json", {**{k: getattr(stored, k) for k in stored.__struct_fields__}, "test_images": 25}
    )
    with pytest.raises(InvalidContent, match="`correct` has 3 bytes for 25 test images"):
        read_sealed(tmp_path / "results.json", Results)
