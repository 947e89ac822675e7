"""One row of a summary from the values behind it: the erased model's, the original's, and their paired difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan
from statistics import NormalDist

import numpy as np

from erasebench.report import clusters

NORMAL = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Runs:
    """A whole-group metric in several runs: values and the intervals they bring [runs], and how many trainings it were.

    ``terms`` [runs, terms] if each value is their harmonic mean.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    trainings: int = 1
    terms: np.ndarray | None = None


Ways = Sequence[np.ndarray]  # ways to put the same values into clusters, each [values]: by text, by training


def widest(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The widest of several intervals of one number; (nan, nan) if one of them cannot be given."""
    lows, highs = zip(*found, strict=True)
    return (nan, nan) if np.isnan([*lows, *highs]).any() else (min(lows), max(highs))


def interval(values: np.ndarray, rate: bool, ways: Ways) -> tuple[float, float, float]:
    """Mean with its interval, for each way to cluster the values, the widest: see ``erasebench.report.clusters``."""
    if len(values) == 0:
        return nan, nan, nan
    measure = clusters.rate if rate else clusters.mean
    return float(values.mean()), *widest([measure(values, way) for way in ways])


def standard_error(values: np.ndarray, rate: bool, ways: Ways, known: Sequence[Sequence[float]] | None = None) -> float:
    """Half of the 95 % interval over the quantile that it was made with, for each way to cluster, the largest.

    Of a mean it is the root of Cochran's variance by cluster; of a rate it is Wilson's, which is not 0 where every
    value is 0. NaN where there is no interval. ``known``: the interval of each way, if it was made.

    >>> round(standard_error(np.array([1.0, 2.0, 3.0, 4.0]), False, [np.arange(4)]), 3)
    0.645
    >>> round(standard_error(np.zeros(50), True, [np.arange(50)]), 3)
    0.018
    """
    errors = []
    for i, way in enumerate(ways):
        low, high = known[i] if known is not None else interval(values, rate, [way])[1:]
        wide = len(values) and not (rate and clusters.alone(way))
        errors.append((high - low) / 2 / (clusters.student(max(1, clusters.count(way) - 1)) if wide else NORMAL))
    return float(np.max(errors)) if errors else nan


def difference(erased: np.ndarray, original: np.ndarray, rate: bool, ways: Ways) -> dict[str, float]:
    """Paired difference erased - original of the same prompts, with interval and, for rates, p-value."""
    if len(erased) == 0:
        return dict.fromkeys(("delta", "delta_low", "delta_high", "p_value"), nan)
    if rate:
        low, high = widest([clusters.paired_rates(erased, original, way) for way in ways])
        p_value = max(clusters.sign_flip(erased, original, way) for way in ways)
    else:
        (low, high), p_value = widest([clusters.mean(erased - original, way) for way in ways]), nan
    return {"delta": float((erased - original).mean()), "delta_low": low, "delta_high": high, "p_value": p_value}


def summarise_prompts(
    erased: np.ndarray, original: np.ndarray, shared: tuple[np.ndarray, np.ndarray], rate: bool, ways: tuple[Ways, Ways]
) -> dict[str, float]:
    """A metric with one value per prompt.

    Args:
        erased, original: ok values of either side.
        shared: indices, on either side, of the prompts that both have, in one order.
        rate: whether the values are 0 or 1 by nature.
        ways: clusters of the values of either side.
    """
    mean, low, high = interval(erased, rate, ways[0])
    base, base_low, base_high = interval(original, rate, ways[1])
    own = {"mean": mean, "low": low, "high": high, "base": base, "base_low": base_low, "base_high": base_high}
    both = [way[shared[0]] for way in ways[0]]
    return own | difference(erased[shared[0]], original[shared[1]], rate, both)


def over_runs(side: Runs) -> tuple[float, float, float]:
    """A whole-group metric over the runs of one cell, which differ in their seeds.

    The mean of the runs; where the value is a harmonic mean, that of the runs' mean terms, no mean of means. One run
    keeps its interval. Several runs of one training have the mean of their own margins, which is too wide rather than
    too narrow, since they share their texts. Trainings are draws: from three on, the margin is the larger of that and
    of Student's quantile times the jackknife's standard error over the runs; two are too few.
    """
    k = len(side.value)
    if k == 0:
        return nan, nan, nan
    if k == 1:
        return float(side.value[0]), float(side.low[0]), float(side.high[0])
    mean = _pooled(side, np.ones(k, bool))
    below, above = float((side.value - side.low).mean()), float((side.high - side.value).mean())
    if side.trainings > 1:
        if k < clusters.FEWEST or side.trainings < clusters.FEWEST:
            return mean, nan, nan
        without = np.array([_pooled(side, np.arange(k) != i) for i in range(k)])
        error = float(np.sqrt((k - 1) / k * ((without - without.mean()) ** 2).sum()))
        margin = clusters.student(side.trainings - 1) * error
        below, above = np.fmax(below, margin), np.fmax(above, margin)  # FID of wide features brings no interval
    lowest, highest = (-inf, inf) if side.terms is None else (0.0, 100.0)
    return mean, float(max(lowest, mean - below)), float(min(highest, mean + above))


def _pooled(side: Runs, kept: np.ndarray) -> float:
    """The metric over some of the runs."""
    if side.terms is None:
        return float(side.value[kept].mean())
    terms = side.terms[kept].mean(0)
    return 0.0 if terms.min() <= 0 else float(len(terms) / (1 / terms).sum())


def summarise_whole(erased: Runs, original: Runs) -> dict[str, float]:
    """A metric of a whole group on both sides; its difference has no interval."""
    (mean, low, high), (base, base_low, base_high) = over_runs(erased), over_runs(original)
    return {
        "mean": mean, "low": low, "high": high, "base": base, "base_low": base_low, "base_high": base_high,
        "delta": mean - base, "delta_low": nan, "delta_high": nan, "p_value": nan,
    }  # fmt: skip
