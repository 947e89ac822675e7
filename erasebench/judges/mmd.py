"""Maximum mean discrepancy of two samples (Gretton et al., JMLR 13, 2012) by blocks, with each row's influence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

BLOCK = 1024  # rows whose features and kernel values are held in float64 at a time

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # [a, d], [b, d] float64 -> [a, b]
Kind = Literal["unbiased", "biased", "paired"]


class MMD(NamedTuple):
    """A squared discrepancy, and how much each row of ``x`` (where paired: each pair) moves it, [n], mean 0."""

    value: float
    moved: np.ndarray


def polynomial(degree: int, gamma: float, coef: float) -> Kernel:
    """``k(x, y) = (gamma <x, y> + coef)^degree``."""
    return lambda x, y: (gamma * (x @ y.T) + coef) ** degree


def gaussian(sigma: float) -> Kernel:
    """``k(x, y) = exp(-|x - y|^2 / (2 sigma^2))``."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
        return np.asarray(np.exp(-np.maximum(squared, 0) / (2 * sigma**2)))

    return kernel


def squared_mmd(x: np.ndarray, y: np.ndarray, kernel: Kernel, kind: Kind) -> MMD:
    """Squared maximum mean discrepancy of two samples.

    - unbiased: ``mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j)``, MMD_u^2 of eq. 3;
    - biased: the same with the terms i = j, eq. 5: never negative, 0 for equal samples;
    - paired: rows belong together (one prompt, one noise), so x_i tells of y_i. Then only eq. 4 is unbiased, the mean
      over i != j of ``h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)``; it is 0 for equal samples, to
      which the first form gives a negative number.

    ``moved`` is the Hájek projection, of a paired one ``2 (mean_{j != i} h_ij - value)``: n - 2 times what leaving the
    pair out takes away. Its standard deviation over sqrt(n) is the standard error, except where the two distributions
    are equal and the first order vanishes.

    Args:
        x: [n, d], n >= 2 (or >= 1 where biased).
        y: [m, d]; m = n where paired.
        kernel: of blocks of float64 rows; positive definite.
        kind: see above.

    Returns:
        The value, in float64, and its influences. Time n^2 d, memory flat.

    Raises:
        ValueError: shapes that do not fit together, too few rows, or features that are not finite.

    >>> x, y = np.array([[0.0], [1.0]]), np.array([[3.0], [4.0]])
    >>> linear = polynomial(1, 1.0, 0.0)  # the squared difference of the means, unbiased
    >>> squared_mmd(x, y, linear, "biased").value, squared_mmd(x, y, linear, "unbiased").value
    (9.0, 8.5)
    >>> squared_mmd(x, x, linear, "paired").value
    0.0
    """
    least = 1 if kind == "biased" else 2
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise ValueError(
            f"features must be [n, d] of one d and at least {least} rows; got {x.shape} and {y.shape}; draw more images"
        )
    if kind == "paired" and len(x) != len(y):
        raise ValueError(f"paired features must have one row each per pair; got {len(x)} and {len(y)}")
    n, m = len(x), len(y)
    xx, yy, xy, yx = (_sums(a, b, kernel) for a, b in ((x, x), (y, y), (x, y), (y, x)))
    if not all(np.isfinite(sums).all() for sums in (xx, yy, xy)):
        raise ValueError("features must be finite; got nan or infinity; check the network's weights")
    if kind == "biased":
        own, other, cross = xx / n, (yy / m).mean(), xy / m
    else:
        xx, yy = xx - _alike(x, x, kernel), yy - _alike(y, y, kernel)
        own, other, cross = xx / (n - 1), (yy / (m - 1)).mean(), xy / m
    if kind == "paired":
        each = (xx + yy - (xy + yx - 2 * _alike(x, y, kernel))) / (n - 1)
        return MMD(float(each.mean()), 2 * (each - each.mean()))
    moved = 2 * (own - cross)
    return MMD(float(own.mean() + other - 2 * cross.mean()), moved - moved.mean())


def _sums(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> np.ndarray:
    """[n]: of each row of x the kernel with all rows of y, summed."""
    sums = np.zeros(len(x))
    for i in range(0, len(x), BLOCK):
        a = np.asarray(x[i : i + BLOCK], dtype=np.float64)
        for j in range(0, len(y), BLOCK):
            sums[i : i + BLOCK] += kernel(a, np.asarray(y[j : j + BLOCK], dtype=np.float64)).sum(1)
    return sums


def _alike(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> np.ndarray:
    """[n]: the kernel of each row of x with the same row of y."""
    rows = [np.asarray(side, dtype=np.float64) for side in (x, y)]
    return np.array([kernel(a[None], b[None])[0, 0] for a, b in zip(*rows, strict=True)])
