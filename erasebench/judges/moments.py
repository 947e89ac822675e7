"""Mean and covariance of rows that come a few at a time: what a Fréchet distance needs of any number of images."""

from __future__ import annotations

import numpy as np


class Moments:
    """Mean and unbiased covariance of all rows added so far, in memory that does not grow with their number.

    Blocks are joined as in Chan, Golub and LeVeque (1979): with n and m rows, d the difference of their means,
    ``S = S_n + S_m + d d^T n m / (n + m)``; no sum of squares is taken whose difference would lose digits.

    Args:
        width: features of a row, d.

    >>> whole = Moments(1)
    >>> for block in ([[1.0], [2.0]], [[6.0]]):
    ...     whole.add(np.array(block))
    >>> whole.count, whole.mean.tolist(), whole.covariance().tolist()
    (3, [3.0], [[7.0]])
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self._scatter = np.zeros((width, width))

    def add(self, rows: np.ndarray) -> None:
        """Rows [n, d] of any float type, n >= 0; they are held in float64 while they are added."""
        if not len(rows):
            return
        block = np.asarray(rows, dtype=np.float64)
        mean = block.mean(axis=0)
        block = block - mean
        apart, total = mean - self.mean, self.count + len(block)
        self._scatter += block.T @ block
        self._scatter += np.outer(apart, apart) * (self.count * len(block) / total)
        self.mean = self.mean + apart * (len(block) / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """[d, d] float64, divided by count - 1; of at least two rows."""
        return self._scatter / (self.count - 1)
