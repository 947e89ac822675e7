"""Which of several methods are told apart on the same items: all pairs at once, by cluster, adjusted for all of them.

A pair's difference is tested with Student's t of cluster sums (Cochran, Sampling Techniques, 1977, chapter 6) for each
way to put the items into clusters, by text and by concept, and the largest p-value counts. It is never less than
``2^(1 - m)`` for m texts on which the two differ, the least an exact sign-flip test of these could give: a handful of
images without variance shows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erasebench.report.clusters import FEWEST, inside, student
from erasebench.report.paired import holm


@dataclass(frozen=True)
class Pairs:
    """All pairs of rows of a matrix: ``first``, ``second`` [pairs] its rows, and what their difference shows.

    ``delta``: mean of first - second over the items that both have; ``margin``: half the 95 % interval, of all ways to
    cluster the widest; ``p`` and ``p_holm``; NaN where clusters are too few, which counts as not told apart.
    """

    first: np.ndarray
    second: np.ndarray
    delta: np.ndarray
    margin: np.ndarray
    p: np.ndarray
    p_holm: np.ndarray

    def told_apart(self, level: float = 0.05) -> np.ndarray:
        """[pairs] whether the difference is shown, with all pairs in view."""
        return (self.p_holm < level) & (self.delta != 0)

    def better(self, rows: int, higher_is_better: bool) -> np.ndarray:
        """[rows, rows] bool: whether row i is shown to be better than row j."""
        out = np.zeros((rows, rows), bool)
        ahead = (self.delta > 0) == higher_is_better
        shown = self.told_apart()
        for i, j, first, known in zip(self.first, self.second, ahead, shown, strict=True):
            if known:
                out[(i, j) if first else (j, i)] = True
        return out


def compare_all(values: np.ndarray, ways: Sequence[np.ndarray], exact: bool = True) -> Pairs:
    """Every two rows of a matrix, compared on the items that both have.

    Args:
        values: [rows, items], NaN where a row lacks an item.
        ways: each [items], the cluster of every item; the finest first.
        exact: bound the p-value by the number of clusters, of the first way, in which the two differ.

    >>> same, other = np.zeros(20), np.ones(20)
    >>> compare_all(np.array([same, other, same]), [np.arange(20)]).told_apart().tolist()
    [True, False, True]
    """
    first, second = np.triu_indices(len(values), 1)
    parts = [_one(values, i, ways, exact) for i in range(len(values) - 1)]
    delta, margin, p = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else [np.empty(0)] * 3
    return Pairs(first, second, delta, margin, p, np.array(holm(p.tolist())))


def _one(
    values: np.ndarray, row: int, ways: Sequence[np.ndarray], exact: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row against all rows after it: differences, margins and p-values."""
    apart = values[row] - values[row + 1 :]
    known = ~np.isnan(apart)
    n = known.sum(1)
    filled = np.where(known, apart, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        delta = filled.sum(1) / n
        margin, p = np.zeros(len(apart)), np.zeros(len(apart))
        for place, way in enumerate(ways):
            codes = np.unique(way, return_inverse=True)[1]
            sums = _sums(filled, codes)
            counts = _sums(known.astype(float), codes)
            k = (counts > 0).sum(1)
            spread = ((sums - counts * delta[:, None]) ** 2).sum(1)
            error = np.sqrt(k / (k - 1) * spread) / n
            t = np.where(error > 0, np.abs(delta) / error, np.where(delta == 0, 0.0, np.inf))
            enough = k >= FEWEST
            quantile = np.array([student(int(df)) for df in np.maximum(k - 1, 1)])
            own = np.where(enough, _outside(t, np.maximum(k - 1, 1)), np.nan)
            if place == 0 and exact:
                own = np.maximum(own, np.minimum(1.0, 2.0 ** (1 - (sums != 0).sum(1))))
            margin = np.maximum(margin, np.where(enough, quantile * error, np.nan))
            p = np.maximum(p, own)
    return delta, margin, p


def _outside(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """P(|T| > t), each with its own degrees of freedom."""
    out = np.empty(len(t))
    for own in set(df.tolist()):
        out[df == own] = [max(0.0, 1 - inside(one, own)) for one in t[df == own]]
    return out


def _sums(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """[rows, items] -> [rows, clusters]."""
    order = np.argsort(codes, kind="stable")
    edges = np.flatnonzero(np.diff(codes[order], prepend=-1))
    sums: np.ndarray = np.add.reduceat(values[:, order], edges, axis=1)
    return sums
