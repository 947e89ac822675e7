"""How often two equally good methods are told apart: ours beside a percentile bootstrap over concepts.

    python -m benchmarks.board [--worlds 2000] [--resamples 500]

A world: each concept is erased unevenly well by either method (rates of 30 %, spread 15 points), 50 images a
concept. Both should call a difference in 5 % of the worlds.
"""

from __future__ import annotations

import argparse

import numpy as np

from erasebench.report.pairs import compare_all


def bootstrap(apart: np.ndarray, resamples: int, rng: np.random.Generator) -> bool:
    """Whether the percentile interval of the concepts' mean difference [concepts] leaves out 0."""
    means = apart[rng.integers(0, len(apart), (resamples, len(apart)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return bool(low > 0 or high < 0)


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


if __name__ == "__main__":
    main()
