"""Verdicts on two methods: a paired t-test on the runs of the same seeds, or McNemar's test on the same test images."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np

from hsakd_jax.evaluation.accuracies import mean_top1
from hsakd_jax.runs.results import Results

LEVEL = 0.95  # of intervals; 1 minus the greatest p of a difference that is shown
EQUAL = 1e-6  # points: below it, differences differ by rounding only


class Verdict(NamedTuple):
    """How a method compares with another one; `str` is its sentence.

    Attributes:
      difference: in points of top-1, positive where the first method is better; None where the two have no common seed.
      interval: the 95 % interval of `difference`; None where no test is possible.
      p: of the two-sided test; None as `interval`.
      seeds: how many both have.
      reason: why no test is possible; '' where one is.
    """

    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    seeds: int
    reason: str = ""

    @property
    def is_shown(self) -> bool:
        """Whether the test shows a difference."""
        return self.p is not None and self.p < 1 - LEVEL

    @property
    def words(self) -> str:
        """Without the interval: 'better by 1.23', 'worse by 1.23', 'not shown: +1.23' or 'not tested: +1.23'."""
        kind = "not shown" if self.p is not None else "not tested"
        if self.difference is None:
            return kind
        if not self.is_shown:
            return f"{kind}: {_zero(self.difference):+.2f}"
        return f"{'better' if self.difference > 0 else 'worse'} by {abs(self.difference):.2f}"

    @property
    def bounds(self) -> str:
        """The interval of the amount in `words`, '0.45 to 2.01'; '' where no test is possible."""
        if self.interval is None or self.difference is None:
            return ""
        low, high = self.interval
        if self.is_shown and self.difference < 0:  # of the amount by which it is worse
            low, high = -high, -low
        return f"{_zero(low):.2f} to {_zero(high):.2f}"

    def brief(self, level: str = "") -> str:
        """With the interval, and `level` in front of it: 'better by 1.23 (0.45 to 2.01, 3 seeds)'."""
        if not self.bounds:
            return f"{self.words} ({self.reason})"
        return f"{self.words} ({level}{self.bounds}, {self.seeds} seed{'s' * (self.seeds > 1)})"

    def __str__(self) -> str:
        found = self.brief(f"{LEVEL * 100:g} % interval ")
        caution = bool(self.bounds) and self.seeds == 1
        return f"{found} (test images only; another seed may differ)" if caution else found


def _zero(points: float) -> float:
    """Rounded as it is shown, without the sign of a negative zero."""
    return round(points, 2) + 0.0


def compare(ours: Mapping[int, Results], theirs: Mapping[int, Results]) -> Verdict:
    """Compares the last epochs of two methods on the seeds that both have.

    Args:
      ours: results of a method by seed.
      theirs: those of the method that it is compared with.
    """
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if not pairs:
        return Verdict(None, None, None, 0, "no seed in common")
    if not all(_same_images(*pair) for pair in pairs):
        return Verdict(None, None, None, len(pairs), "their test images differ")
    differences = [mean_top1(our.last) - mean_top1(their.last) for our, their in pairs]
    if len(pairs) > 1:
        return paired_t(differences)
    ((our, their),) = pairs
    if our.correct is None or their.correct is None:
        reason = "one seed, and results.json does not store which test images are correct"
        return Verdict(differences[0], None, None, 1, reason)
    return mcnemar(our.correct.unpack(our.test_images), their.correct.unpack(their.test_images))


def _same_images(our: Results, their: Results) -> bool:
    """Whether two runs have the same test images, as far as their results show."""
    if not our.same_test_images(their.test_images, their.test_digest):
        return False
    return our.correct is None or their.correct is None or our.correct.labels == their.correct.labels


def paired_t(differences: Sequence[float]) -> Verdict:
    """Student's t-test on differences within pairs, with its interval: mean +- t(n - 1) * standard deviation / sqrt(n).

    Args:
      differences: at least two, in points. Equal ones have no deviation, and are not tested.
    """
    from scipy import stats  # a second to import, which a table without a pair does not need

    n, difference = len(differences), mean(differences)
    if max(differences) - min(differences) < EQUAL:
        return Verdict(difference, None, None, n, f"the same in {n} seeds, without a deviation")
    error = stdev(differences) / n**0.5
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, n - 1))
    return Verdict(difference, (difference - half, difference + half), p, n)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> Verdict:
    """McNemar's exact test: of the images that only one network classifies correctly, each has half.

    The interval is that of Bonett and Price, "Adjusted Wald Confidence Interval for a Difference of Binomial
    Proportions Based on Paired Data" (Journal of Educational and Behavioral Statistics 37, 2012). It adds one image
    per network that only this network classifies correctly, so that identical predictions have an interval too.
    Fagerland, Lydersen and Laake (Statistics in Medicine 33, 2014) recommend it.

    Args:
      ours: whether the network classifies each test image correctly, bool [n].
      theirs: the same of the other network.
    """
    from scipy import stats

    n, b, c = len(ours), int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    p = float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0
    first, second = (b + 1) / (n + 2), (c + 1) / (n + 2)
    centre, error = first - second, ((first + second - (first - second) ** 2) / (n + 2)) ** 0.5
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * error
    interval = max(-100.0, 100 * (centre - half)), min(100.0, 100 * (centre + half))
    return Verdict(100 * (b - c) / n, interval, p, 1)
