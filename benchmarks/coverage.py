"""How often the 95 % intervals of the tables hold the truth, simulated: the table of docs/metrics.md.

    python -m benchmarks.coverage [--draws 4000]

Rates: n images in K clusters (texts, searches, words, concepts) of nearly equal size; each cluster's own rate is drawn
from the beta distribution with the given mean and intra-class correlation (ICC), the images from that rate. Means:
normal values with the same correlation. Differences: two models on the same images, each with its
own rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from erasebench.report import clusters
from erasebench.report.intervals import clopper_pearson, exact_paired, wilson
from erasebench.report.printing import as_markdown

SIZES, RATES, CLUSTERS, ALIKE = (20, 50, 200), (0.0, 0.02, 0.5, 0.98, 1.0), (3, 8, 20), (0.0, 0.3, 0.8)
Found = dict[tuple[Any, ...], float]  # the case -> share of intervals that hold the truth


def sizes(n: int, k: int) -> list[int]:
    """Nearly equal sizes of k clusters of n images."""
    return [n // k + (i < n % k) for i in range(k)]


def names(n: int, k: int) -> list[int]:
    """The cluster of each image."""
    return [i for i, size in enumerate(sizes(n, k)) for _ in range(size)]


def cluster_rates(rng: np.random.Generator, mean: float, icc: float, shape: tuple[int, int]) -> np.ndarray:
    """Rates of clusters [draws, clusters]."""
    if icc == 0 or mean in (0, 1):
        return np.full(shape, mean)
    return rng.beta(mean * (1 - icc) / icc, (1 - mean) * (1 - icc) / icc, size=shape)


@lru_cache(maxsize=1 << 18)
def _rate(counts: tuple[int, ...], n: int) -> tuple[float, float]:
    values = [float(i < count) for count, size in zip(counts, sizes(n, len(counts)), strict=True) for i in range(size)]
    return clusters.rate(values, names(n, len(counts)))


def _share(found: Sequence[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in found]))


def single_rates(draws: int = 4000) -> Found:
    """Images of their own: (n, rate)."""
    rng = np.random.default_rng(0)
    return {
        (n, p): _share([wilson(int(k), n) for k in rng.binomial(n, p, size=draws)], p) for n in SIZES for p in RATES
    }


def single_pairs(draws: int = 2000) -> Found:
    """Pairs of their own: (n, first rate, second rate, whether the sides depend on one another as far as they can)."""
    rng, out = np.random.default_rng(5), {}
    interval = cache(exact_paired)
    for n in SIZES:
        for p in RATES:
            for q in RATES:
                apart = (p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q))
                least = min(p, q)
                for tied, cells in ((False, apart), (True, (least, p - least, q - least, 1 - max(p, q)))):
                    tables = rng.multinomial(n, np.clip(cells, 0, 1), size=draws).tolist()
                    out[n, p, q, tied] = _share([interval(*table) for table in tables], p - q)
    return out


def clustered_rates(draws: int = 4000, rates: Sequence[float] = RATES) -> Found:
    """(K, ICC, n, rate)."""
    rng, out = np.random.default_rng(1), {}
    for k in CLUSTERS:
        for icc in ALIKE:
            for n in SIZES:
                for p in rates:
                    own = cluster_rates(rng, p, icc, (draws if 0 < p < 1 else 1, k))
                    counts = rng.binomial(sizes(n, k), own).tolist()
                    out[k, icc, n, p] = _share([_rate(tuple(c), n) for c in counts], p)
    return out


def clustered_means(draws: int = 1000) -> Found:
    """(K, ICC, n), normal values; K = n are values of their own."""
    rng, out = np.random.default_rng(2), {}
    for n in SIZES:
        for k in (*CLUSTERS, n):
            for icc in ALIKE if k < n else (0.0,):
                own = names(n, k)
                values = np.sqrt(icc) * rng.normal(size=(draws, k))[:, own] + np.sqrt(1 - icc) * rng.normal(
                    size=(draws, n)
                )
                out[k, icc, n] = _share([clusters.mean(v, own) for v in values], 0.0)
    return out


def clustered_pairs(draws: int = 400) -> Found:
    """(K, ICC, n, first rate, second rate): differences on the same images."""
    rng, out = np.random.default_rng(3), {}
    for k in CLUSTERS:
        for icc in ALIKE:
            for n in SIZES:
                for p, q in ((0.02, 0.98), (0.5, 0.5), (0.3, 0.6), (0.98, 0.98)):
                    own = names(n, k)
                    sides = [
                        rng.random((draws, n)) < cluster_rates(rng, rate, icc, (draws, k))[:, own] for rate in (p, q)
                    ]
                    found = [clusters.paired_rates(a, b, own) for a, b in zip(*sides, strict=True)]
                    out[k, icc, n, p, q] = _share(found, p - q)
    return out


def harmonic(draws: int = 1000) -> Found:
    """(n, three rates): the harmonic mean of independent groups."""
    from evaluators.spillover import harmonic_interval, harmonic_mean

    @cache
    def interval(counts: tuple[int, ...], n: int) -> tuple[float, float]:
        return harmonic_interval([(100 * k / n, *(100 * x for x in clopper_pearson(k, n))) for k in counts])

    rng, out = np.random.default_rng(4), {}
    for n in (20, 50):
        for terms in combinations_with_replacement(RATES, 3):
            rates = (1 - terms[0], 1 - terms[1], terms[2])
            counts = rng.binomial(n, rates, size=(draws, 3)).tolist()
            truth = harmonic_mean(*(100 * rate for rate in rates))
            out[n, *rates] = _share([interval(tuple(c), n) for c in counts], truth)
    return out


def _line(name: str, case: str, found: Mapping[tuple[Any, ...], float]) -> list[str]:
    shares = list(found.values())
    return [name, case, *(f"{100 * x:.1f}" for x in (np.mean(shares), min(shares), max(shares)))]


def table(draws: int) -> list[list[str]]:
    """Mean, least and largest coverage over the cases of each line, in %."""
    lines = [["interval", "cases", "mean", "least", "largest"]]
    lines.append(_line("rate, images of their own", "5 rates, n = 20, 50, 200", single_rates(draws)))
    case = "25 pairs of the 5 rates, independent and not, n = 20, 50, 200"
    lines.append(_line("paired difference of rates, images of their own", case, single_pairs(draws)))
    simulated: list[tuple[str, str, Callable[[int], Found], int]] = [
        ("rate", "5 rates", clustered_rates, draws), ("mean", "normal", clustered_means, max(draws // 4, 100)),
        ("paired difference of rates", "4 pairs of rates", clustered_pairs, max(draws // 10, 100)),
    ]  # fmt: skip
    for name, what, make, number in simulated:
        found = make(number)
        for k in CLUSTERS:
            for icc in ALIKE:
                part = {case: share for case, share in found.items() if case[:2] == (k, icc)}
                lines.append(_line(f"{name}, {k} clusters", f"ICC {icc:g}, {what}, n = 20, 50, 200", part))
    lines.append(_line("harmonic mean", "35 triples of the 5 rates, n = 20, 50", harmonic(max(draws // 4, 100))))
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    print(as_markdown(table(parser.parse_args(arguments).draws)))


if __name__ == "__main__":
    main()
