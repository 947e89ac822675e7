"""One row of a summary from the values behind it: the erased model's, the original's, and their paired difference."""

from __future__ import annotations

from math import nan

import numpy as np

from erasebench.report.intervals import bootstrap_mean, mcnemar, newcombe_paired, wilson

Side = tuple[np.ndarray, np.ndarray, np.ndarray]  # values of a whole-group metric and the intervals they bring, [runs]


def interval(values: np.ndarray, rate: bool) -> tuple[float, float, float]:
    """Mean with its interval: Wilson for a rate, bootstrap otherwise; NaN without values."""
    if len(values) == 0:
        return nan, nan, nan
    low, high = wilson(int(values.sum()), len(values)) if rate else bootstrap_mean(values.tolist())
    return float(values.mean()), low, high


def difference(erased: np.ndarray, original: np.ndarray, rate: bool) -> dict[str, float]:
    """Paired difference erased - original of the same prompts, with interval and, for rates, p-value."""
    if len(erased) == 0:
        return dict.fromkeys(("delta", "delta_low", "delta_high", "p_value"), nan)
    if rate:
        both, gained = int((erased * original).sum()), int((erased * (1 - original)).sum())
        lost = int(((1 - erased) * original).sum())
        low, high = newcombe_paired(both, gained, lost, len(erased) - both - gained - lost)
        p_value = mcnemar(gained, lost)
    else:
        (low, high), p_value = bootstrap_mean(erased - original), nan
    return {"delta": float((erased - original).mean()), "delta_low": low, "delta_high": high, "p_value": p_value}


def summarise_prompts(
    erased: np.ndarray, original: np.ndarray, shared: tuple[np.ndarray, np.ndarray], rate: bool
) -> dict[str, float]:
    """A metric with one value per prompt.

    Args:
        erased, original: ok values of either side.
        shared: indices, on either side, of the prompts that both have, in one order.
        rate: whether the values are 0 or 1 by nature.
    """
    mean, low, high = interval(erased, rate)
    base, base_low, base_high = interval(original, rate)
    own = {"mean": mean, "low": low, "high": high, "base": base, "base_low": base_low, "base_high": base_high}
    return own | difference(erased[shared[0]], original[shared[1]], rate)


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
