"""Words that a training may choose among: where they come from, which stand for the rest, and a choice with gradients.

As in github.com/tuananhbui89/Erasing-Adversarial-Preservation at 7222925; used by EAP and AGE.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erasebench import fields
from erasebench.prompts.files import read_rows
from erasebench.types import Pipeline


def gumbel_softmax(logits: Tensor, uniform: Tensor, temperature: float, hard: bool) -> Tensor:
    """softmax((logits + Gumbel noise) / temperature) [n]; if ``hard``, one 1 with the gradients of the softmax.

    >>> y = gumbel_softmax(torch.zeros(3), torch.tensor([0.1, 0.9, 0.5]), 2.0, True)
    >>> y.round().tolist()
    [0.0, 1.0, 0.0]
    """
    gumbel = -torch.log(-torch.log(uniform + 1e-10) + 1e-10)
    y = torch.softmax((logits + gumbel) / temperature, dim=-1)
    if not hard:
        return y
    one = torch.zeros_like(y).index_fill_(0, y.argmax(), 1.0)
    return (one - y).detach() + y


def spread(values: NDArray[np.float64], centres: int) -> list[int]:
    """Indices of the value nearest to each k-means centre of some numbers, ascending by value.

    The least sum of squares, exactly: in one dimension clusters are runs of the sorted values, so the best split of the
    first j values into k runs is the best last run after the best split into k - 1 (Wang and Song, The R Journal 3/2,
    2011). Time O(centres n^2), memory O(n^2): about a second for 2,000 values and 100 centres.

    >>> spread(np.array([0.0, 0.1, 0.2, 5.0, 5.1, 5.2]), 2)
    [1, 4]
    """
    order = np.argsort(values, kind="stable")
    if centres >= len(values):
        return [int(i) for i in order]
    x = np.asarray(values, dtype=np.float64)[order]
    x = x - x.mean()
    n, sums, squares = len(x), np.append(0.0, x.cumsum()), np.append(0.0, (x**2).cumsum())
    first, last = np.arange(n)[:, None], np.arange(1, n + 1)
    size = np.maximum(last - first, 1)
    cost = (squares[last] - squares[first]) - (sums[last] - sums[first]) ** 2 / size  # [first, last) of the sorted
    cost = np.where(last > first, cost, np.inf)
    best, starts = cost[0], []
    for _ in range(centres - 1):
        total = np.append(np.inf, best[:-1])[:, None] + cost
        starts.append(total.argmin(0))
        best = total.min(0)
    chosen, end = set(), n
    for start in [*(begin for begin in reversed(starts)), np.zeros(n, dtype=int)]:
        begin = int(start[end - 1])
        centre = x[begin:end].mean()
        chosen.add(int(order[begin + np.abs(x[begin:end] - centre).argmin()]))
        end = begin
    return sorted(chosen, key=lambda i: (values[i], i))


def pool_words(pool: Sequence[str] | str) -> list[str]:
    """The words of a pool: the list itself, or the column ``word`` of a CSV file.

    Raises:
        ValueError: no words, something that is no text, a file that is not there or has no such column.
    """
    if isinstance(pool, str):
        if not fields.path("pool", pool).is_file():
            raise ValueError(
                f"pool {pool} must be a CSV file; found none; fetch english_3000.csv, or write method.pool=[{pool}]"
            )
        pool = [row["word"] for _, row in read_rows(pool, {"word": "name the column of the words word"})]
    if not any(word.strip() for word in pool):
        raise ValueError("pool must hold at least one word; got none; list words to preserve")
    return [word.strip() for word in pool if word.strip()]


def tokenizer_words(pipe: Pipeline) -> list[str]:
    """Tokens of the model's tokenizer that are words of at least two letters, in alphabetical order."""
    ended = sorted(token for token in pipe.tokenizer.get_vocab() if token.endswith("</w>"))
    return [word for word in (token.removesuffix("</w>") for token in ended) if len(word) > 1 and word.isalpha()]
