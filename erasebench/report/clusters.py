"""Intervals of images that come in clusters: of one text, one search, one word, one concept, or one training.

Fifty images of eight texts are not fifty draws. What an interval rests on is then how far the clusters agree, judged
from few of them, so it takes Student's quantile for their number less one. With fewer than :data:`FEWEST` clusters no
interval is given: tables print "too few".
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from math import atan, cos, inf, nan, pi, sin, sqrt
from statistics import NormalDist

import numpy as np

from erasebench.report.intervals import clopper_pearson, exact_paired, mcnemar, wilson, wilson_share

Values = Sequence[float] | np.ndarray
Clusters = Sequence[Hashable] | np.ndarray  # the cluster of each value
FEWEST = 3  # clusters below which there is no interval


@lru_cache(maxsize=1024)
def student(df: int, confidence: float = 0.95) -> float:
    """Two-sided quantile of Student's t for a whole number of degrees of freedom, by bisection.

    The distribution is Abramowitz and Stegun's finite series (26.7.3 and 26.7.4), above 2,000 degrees the
    normal one's expansion (26.7.5).

    >>> round(student(2), 4), round(student(7), 4), round(student(10**6), 4)
    (4.3027, 2.3646, 1.96)
    """
    if df > 2000:
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        return z + (z**3 + z) / (4 * df)
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle, df) < confidence else (low, middle)
    return high


def inside(t: float, df: int) -> float:
    """P(|T| < t); above 2,000 degrees of freedom the normal distribution's."""
    if df > 2000 or t == inf:
        return 2 * NormalDist().cdf(t) - 1
    angle = atan(t / sqrt(df))
    even = df % 2 == 0
    term = total = 1.0 if even else cos(angle)
    for k in range(2 if even else 3, df - 1, 2):
        term *= cos(angle) ** 2 * (k - 1) / k
        total += term
    if even:
        return sin(angle) * total
    return 2 / pi * (angle + (sin(angle) * total if df > 1 else 0))


def _members(clusters: Clusters) -> tuple[np.ndarray, np.ndarray]:
    """Number of each value's cluster and the clusters' sizes, in an order that the rows' does not change."""
    own = clusters if isinstance(clusters, np.ndarray) else np.asarray(list(clusters))
    _, inverse, sizes = np.unique(own, return_inverse=True, return_counts=True)
    return inverse, sizes.astype(float)


def count(clusters: Clusters) -> int:
    """How many there are."""
    return len(np.unique(clusters)) if isinstance(clusters, np.ndarray) else len(set(clusters))


def agreement(values: Values, clusters: Clusters) -> float:
    """How much more alike values of one cluster are: intra-class correlation, shrunk towards 1 by one cluster's weight.

    The analysis-of-variance estimate r (Donner and Koval, Biometrics 36, 1980), cut to [0, 1], of K clusters becomes
    ``((K - 1) r + 1) / K``: few clusters cannot show that they do not agree inside. Where nothing varies it is 1.

    >>> agreement([0, 1, 0, 1], [*"aabb"]), agreement([1, 1, 1, 1], [*"aabb"]), agreement([0, 0, 1, 1], [*"aabb"])
    (0.5, 1.0, 1.0)
    """
    return _agreement(np.asarray(values, dtype=float), *_members(clusters))


def _agreement(drawn: np.ndarray, inverse: np.ndarray, sizes: np.ndarray) -> float:
    n, k = len(drawn), len(sizes)
    if k < 2 or k == n or np.ptp(drawn) == 0:
        return 1.0
    means = np.bincount(inverse, drawn) / sizes
    between = float((sizes * (means - drawn.mean()) ** 2).sum()) / (k - 1)
    within = float(((drawn - means[inverse]) ** 2).sum()) / (n - k)
    size = (n - float((sizes**2).sum()) / n) / (k - 1)
    r = (between - within) / (between + (size - 1) * within)
    return (min(1.0, max(0.0, r)) * (k - 1) + 1) / k


def effective(values: Values, clusters: Clusters) -> float:
    """Effective number of values: n / deff, ``deff = 1 + (sum of squared sizes / n - 1) r`` (Kish, 1965).

    >>> effective([1] * 6, [*"aaabbb"]), effective([1, 0, 1], [*"abc"])
    (2.0, 3.0)
    """
    inverse, sizes = _members(clusters)
    n = sizes.sum()
    return float(n / (1 + ((sizes**2).sum() / n - 1) * _agreement(np.asarray(values, dtype=float), inverse, sizes)))


def alone(clusters: Clusters) -> bool:
    """Every value is a cluster of its own: the values are independent draws.

    >>> alone("abc"), alone("aab")
    (True, False)
    """
    return count(clusters) == len(clusters)


def rate(values: Values, clusters: Clusters, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a rate of values 0 and 1 in clusters.

    Wilson's with the effective number of values for n and Student's quantile for z (Korn and Graubard, Survey
    Methodology 24, 1998, whose Clopper-Pearson this replaces; the design effect as in :func:`effective`). Where every
    value is a cluster of its own it is Wilson's. Measured coverage: docs/metrics.md.

    Returns:
        (low, high); (nan, nan) for fewer than three clusters.

    >>> [round(x, 2) for x in rate([1] * 35 + [0] * 15, [f"text {i % 8}" for i in range(50)])]
    [0.48, 0.85]
    """
    k = count(clusters)
    if k == len(clusters):
        return wilson(int(np.sum(values)), len(values), confidence)
    if k < FEWEST:
        return nan, nan
    mean = float(np.mean(np.asarray(values, dtype=float)))
    return wilson_share(mean, effective(values, clusters), student(k - 1, confidence))


def exact(values: Values, clusters: Clusters, confidence: float = 0.95) -> tuple[float, float]:
    """:func:`rate` with Clopper-Pearson in Wilson's place, for what is put together from several rates."""
    if alone(clusters):
        return clopper_pearson(float(np.sum(values)), len(values), confidence)
    k = count(clusters)
    if k < FEWEST:
        return nan, nan
    n = effective(values, clusters)
    share = float(np.mean(np.asarray(values, dtype=float)))
    return clopper_pearson(min(share * n, n), n, 2 * NormalDist().cdf(student(k - 1, confidence)) - 1)


def mean(values: Values, clusters: Clusters, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean whose values come in clusters, ``m -+ t_{K-1} sqrt(V)``.

    ``V = K / (K - 1) sum_k (sum of the deviations from m in cluster k)^2 / n^2`` (Cochran, Sampling Techniques, 1977,
    chapter 6); with clusters of one value it is the textbook interval.

    Returns:
        (low, high); (nan, nan) for fewer than three clusters.

    Raises:
        ValueError: a value that is not finite.

    >>> [round(x, 3) for x in mean([1.0, 2.0, 3.0], "abc")]
    [-0.484, 4.484]
    """
    drawn = np.asarray(values, dtype=float)
    if not np.isfinite(drawn).all():
        raise ValueError("values must be finite; got NaN or infinity; leave out rows whose status is not ok")
    inverse, sizes = _members(clusters)
    k = len(sizes)
    if k < FEWEST:
        return nan, nan
    order = np.lexsort((drawn, inverse))  # so that the order of the rows changes no digit
    inverse, drawn = inverse[order], drawn[order]
    middle = float(drawn.mean())
    spread = float((np.bincount(inverse, drawn - middle) ** 2).sum())
    margin = student(k - 1, confidence) * sqrt(k / (k - 1) * spread) / len(drawn)
    return middle - margin, middle + margin


def mean_test(values: Values, clusters: Clusters) -> float:
    """Two-sided p-value that the mean is 0, of :func:`mean`'s statistic; NaN for fewer than three clusters.

    >>> round(mean_test([1.0, 2.0, 3.0], "abc"), 3)
    0.074
    """
    low, high = mean(values, clusters)
    if low != low:
        return nan
    df = count(clusters) - 1
    middle, margin = (low + high) / 2, (high - low) / 2
    if margin == 0:
        return 1.0 if middle == 0 else 0.0
    t = abs(middle) / margin * student(df)
    return max(0.0, 1 - inside(t, df))


def paired_rates(first: Values, second: Values, clusters: Clusters, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two rates on the same items in clusters, first minus second.

    Newcombe's paired interval with exact ends (:func:`erasebench.report.intervals.exact_paired`) of the four counts
    scaled to the effective number of pairs, found from the differences as in :func:`effective`, with Student's
    quantile. Clusters of one pair: the four counts themselves.

    Returns:
        (low, high); (nan, nan) for fewer than three clusters.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    both, gained, lost, neither = (float(x.sum()) for x in (a * b, a * (1 - b), (1 - a) * b, (1 - a) * (1 - b)))
    if alone(clusters):
        return exact_paired(both, gained, lost, neither, confidence)
    k = count(clusters)
    if k < FEWEST:
        return nan, nan
    share = effective(a - b, clusters) / len(a)
    wider = 2 * NormalDist().cdf(student(k - 1, confidence)) - 1
    return exact_paired(share * both, share * gained, share * lost, share * neither, wider)


def sign_flip(first: Values, second: Values, clusters: Clusters) -> float:
    """Exact two-sided p-value: could each whole cluster as well have changed the other way?

    Under the null every cluster's sum of differences has either sign with probability 1/2; the distribution of the
    total is convolved exactly. For clusters of one pair this is McNemar's exact test, and three clusters never reach
    less than 1/4.

    >>> sign_flip([1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], "abcdef"), sign_flip([1] * 6, [0] * 6, "aabbcc")
    (0.03125, 0.25)
    """
    inverse, _ = _members(clusters)
    sums = np.rint(np.bincount(inverse, np.asarray(first, dtype=float) - np.asarray(second, dtype=float))).astype(int)
    if (np.abs(sums) <= 1).all():
        return mcnemar(int((sums > 0).sum()), int((sums < 0).sum()))
    reach, total = int(np.abs(sums).sum()), abs(int(sums.sum()))
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for step in np.abs(sums):
        chances = (np.roll(chances, step) + np.roll(chances, -step)) / 2
    far = np.abs(np.arange(-reach, reach + 1)) >= total
    return min(1.0, float(chances[far].sum()))
