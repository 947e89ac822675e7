"""What a board of methods claims: errors of its ranks and intervals, beside a percentile bootstrap over concepts.

    python -m benchmarks.board [--worlds 2000] [--resamples 500]

A world: each concept is erased unevenly well by either method (rates of 30 %, spread 15 points), 50 images a
concept. Both should call a difference in 5 % of the worlds.
"""

from __future__ import annotations

import argparse

import numpy as np

from erasebench.report import clusters
from erasebench.report.pairs import compare_all
from erasebench.report.summary import widest


def bootstrap(apart: np.ndarray, resamples: int, rng: np.random.Generator) -> bool:
    """Whether the percentile interval of the concepts' mean difference [concepts] leaves out 0."""
    means = apart[rng.integers(0, len(apart), (resamples, len(apart)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return bool(low > 0 or high < 0)


def holds(mean: float, spread: float, concepts: int, worlds: int, rng: np.random.Generator) -> list[float]:
    """How often three intervals of a pooled rate hold the mean of such concepts, whose rates are beta distributed."""
    concept, text = np.repeat(np.arange(concepts), 50), np.arange(50 * concepts)
    hits = np.zeros(3)
    for _ in range(worlds):
        rates = rng.beta(mean * spread, (1 - mean) * spread, concepts)[concept]
        drawn = (rng.random(len(rates)) < rates).astype(float)
        own = clusters.rate(drawn, text)
        means = drawn.reshape(concepts, 50).mean(1)
        resampled = means[rng.integers(0, concepts, (200, concepts))].mean(1)
        low, high = clusters.mean(drawn, concept)
        found = [widest([own, clusters.rate(drawn, concept)]), widest([own, (low, high)])]
        found.append(tuple(np.quantile(resampled, [0.025, 0.975])))
        hits += [low <= mean <= high for low, high in found]
    return [float(100 * hit / worlds) for hit in hits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=500)
    args = parser.parse_args()
    print("concepts  ours  bootstrap over concepts")
    for concepts in (3, 4, 6, 10, 20, 50):
        rng = np.random.default_rng(concepts)
        concept, text = np.repeat(np.arange(concepts), 50), np.arange(50 * concepts)
        ours = theirs = 0
        for _ in range(args.worlds):
            rates = np.clip(rng.normal(0.3, 0.15, (2, concepts)), 0, 1)[:, concept]
            drawn = (rng.random(rates.shape) < rates).astype(float)
            ours += bool(compare_all(drawn, [text, concept]).p[0] < 0.05)
            theirs += bootstrap((drawn[0] - drawn[1]).reshape(concepts, 50).mean(1), args.resamples, rng)
        print(f"{concepts:8d} {100 * ours / args.worlds:4.1f} % {100 * theirs / args.worlds:8.1f} %")
    print("\ninterval holds the truth, worst and best of five spreads: ours, t over concepts, bootstrap")
    rng = np.random.default_rng(0)
    for concepts in (3, 4, 6, 10, 20):
        shapes = ((0.05, 2), (0.05, 10), (0.3, 2), (0.3, 10), (0.9, 5))
        found = np.array([holds(*shape, concepts, args.worlds * 3 // 10, rng) for shape in shapes])
        told = (f"{low:5.1f} to {high:5.1f} %" for low, high in zip(found.min(0), found.max(0), strict=True))
        print(f"{concepts:8d} {'   '.join(told)}")


if __name__ == "__main__":
    main()
