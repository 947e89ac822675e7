"""Intervals and tests of counts: pure functions of numbers, each with its formula and source."""

from __future__ import annotations

from functools import lru_cache
from math import nan, sqrt
from statistics import NormalDist


def _check(successes: float, n: float, confidence: float) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n; got {successes} of {n}; count ok rows only")
    _check_confidence(confidence)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}; use 0.95 for 95 %")


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a rate.

    With p = successes / n and z the normal quantile, the interval is
    ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``, without continuity correction
    (Wilson, JASA 22, 1927; recommended for small n by Brown, Cai and DasGupta, Statistical Science 16, 2001).

    Args:
        successes: count, 0..n.
        n: number of trials.
        confidence: coverage in (0, 1).

    Returns:
        (low, high) in [0, 1]; (nan, nan) for n = 0.

    Raises:
        ValueError: counts that contradict each other, or a confidence outside (0, 1).

    It never has width 0: ten of ten is not certainty.

    >>> [round(x, 3) for x in wilson(10, 10)]
    [0.722, 1.0]
    """
    _check(successes, n, confidence)
    if n == 0:
        return nan, nan
    return wilson_share(successes / n, n, NormalDist().inv_cdf((1 + confidence) / 2))


def wilson_share(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a share ``p`` of ``n`` values, which need not be a whole number, at quantile ``z``."""
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if p <= 0 else (centre - half) / scale
    high = 1.0 if p >= 1 else (centre + half) / scale
    return low, high


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value of McNemar's test: are the two kinds of discordant pairs equally likely?

    ``p = min(1, 2 P(X <= min(b, c)))`` with X ~ Binomial(b + c, 1/2) (McNemar, Psychometrika 12, 1947; exact form:
    Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13, 2013).

    Args:
        b, c: pairs that changed one way and the other way; >= 0.

    Raises:
        ValueError: a negative count.

    >>> mcnemar(0, 0), mcnemar(6, 0)
    (1.0, 0.03125)
    """
    if b < 0 or c < 0:
        raise ValueError(f"mcnemar - counts must be >= 0; got {b} and {c}; count discordant pairs")
    term = total = 1
    for k in range(min(b, c)):  # exact integers: binomial coefficients of b + c
        term = term * (b + c - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2 ** (b + c))


def newcombe_paired(
    both: float, first: float, second: float, neither: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference of two rates measured on the same items, first minus second.

    Square-and-add of the two Wilson intervals (l1, u1), (l2, u2) with the pairs' correlation phi (corrected for
    continuity): ``low = d - sqrt((p1-l1)^2 - 2 phi (p1-l1)(u2-p2) + (u2-p2)^2)`` and
    ``high = d + sqrt((u1-p1)^2 - 2 phi (u1-p1)(p2-l2) + (p2-l2)^2)`` (method 10 of Newcombe, Statistics in Medicine
    17, 1998). A bootstrap would have width 0 when every pair changes the same way; this has not.

    Args:
        both, first, second, neither: numbers of pairs with success in both, the first only, the second only, none;
            weighted pairs need not be whole numbers.
        confidence: coverage in (0, 1).

    Returns:
        (low, high) in [-1, 1]; (nan, nan) without pairs.

    >>> [round(x, 3) for x in newcombe_paired(0, 0, 50, 0)]  # all 50 images lost the concept
    [-1.0, -0.899]
    """
    n = both + first + second + neither
    low1, high1 = wilson(min(both + first, n), n, confidence)  # a sum of shares may round above
    low2, high2 = wilson(min(both + second, n), n, confidence)
    if n == 0:
        return nan, nan
    return _square_and_add((both, first, second, neither), (low1, high1), (low2, high2))


def exact_paired(
    both: float, first: float, second: float, neither: float, confidence: float = 0.95
) -> tuple[float, float]:
    """:func:`newcombe_paired` with Clopper-Pearson in Wilson's place: it holds at both ends at once.

    A model that falls from 98 to 2 % is near either end. With Wilson's intervals, 20 pairs cover such a difference 87 %
    of the time, with these 96 % (docs/metrics.md); where the rates are near a half it is a little wider.

    >>> [round(x, 3) for x in exact_paired(0, 0, 50, 0)]
    [-1.0, -0.899]
    """
    n = both + first + second + neither
    if n == 0:
        return nan, nan
    ends = (clopper_pearson(min(both + other, n), n, confidence) for other in (first, second))
    return _square_and_add((both, first, second, neither), *ends)


def _square_and_add(
    counts: tuple[float, float, float, float], ends1: tuple[float, float], ends2: tuple[float, float]
) -> tuple[float, float]:
    """The interval of a difference from those of its two rates and the correlation of the pairs."""
    both, first, second, neither = counts
    n = sum(counts)
    (low1, high1), (low2, high2) = ends1, ends2
    p1, p2 = (both + first) / n, (both + second) / n
    covariance: float = both * neither - first * second
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)
    spread = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = covariance / sqrt(spread) if spread else 0.0
    down, up = (p1 - low1, high2 - p2), (high1 - p1, p2 - low2)
    below, above = (sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)) for x, y in (down, up))
    return max(-1.0, p1 - p2 - below), min(1.0, p1 - p2 + above)


@lru_cache(maxsize=1 << 14)
def clopper_pearson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a rate (Clopper and Pearson, Biometrika 26, 1934): never below its coverage, so conservative.

    Quantiles of the beta distributions (k, n - k + 1) and (k + 1, n - k); ``n`` may be an effective number, not whole.

    >>> [round(x, 4) for x in clopper_pearson(0, 20)]
    [0.0, 0.1684]
    """
    from scipy.special import betaincinv  # half a second that most tables do without

    _check(successes, n, confidence)
    if n == 0:
        return nan, nan
    tail = (1 - confidence) / 2
    low = 0.0 if successes <= 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes >= n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high
