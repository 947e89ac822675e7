"""One row of a summary from the values behind it: the erased model's, the original's, and their paired difference."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np

from erasebench.report import clusters

Side = tuple[np.ndarray, np.ndarray, np.ndarray]  # values of a whole-group metric and the intervals they bring, [runs]
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


def summarise_whole(erased: Side, original: Side) -> dict[str, float]:
    """A metric of a whole group: its own interval is kept; several runs are averaged and have none."""
    (mean, low, high), (base, base_low, base_high) = _whole(erased), _whole(original)
    return {
        "mean": mean, "low": low, "high": high, "base": base, "base_low": base_low, "base_high": base_high,
        "delta": mean - base, "delta_low": nan, "delta_high": nan, "p_value": nan,
    }  # fmt: skip


def _whole(side: Side) -> tuple[float, float, float]:
    value, low, high = side
    own = (float(low[0]), float(high[0])) if len(value) == 1 else (nan, nan)
    return float(value.mean()) if len(value) else nan, *own
