"""Intervals and tests against scipy, published examples and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from erasebench.report.intervals import (
    clopper_pearson,
    exact_paired,
    mcnemar,
    newcombe_paired,
    wilson,
)

quick = settings(deadline=None, max_examples=40)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0000),
        (0, 10, 0.0000, 0.2775),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


@quick
@given(n=st.integers(1, 2000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(n, share, confidence):
    successes = round(share * n)
    ours = wilson(successes, n, confidence)
    theirs = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours[0] <= successes / n <= ours[1] <= 1 and ours[0] < ours[1]
    assert wilson(n - successes, n, confidence) == pytest.approx((1 - ours[1], 1 - ours[0]))


def test_nothing_measured_has_no_interval():
    assert all(math.isnan(x) for x in (*wilson(0, 0), *newcombe_paired(0, 0, 0, 0), *exact_paired(0, 0, 0, 0)))


IMPOSSIBLE = (
    lambda: wilson(3, 2),
    lambda: wilson(-1, 2),
    lambda: wilson(1, 2, 95),
    lambda: mcnemar(-1, 2),
    lambda: newcombe_paired(1, -2, 3, 4),
)


@pytest.mark.parametrize("call", IMPOSSIBLE)
def test_impossible_counts_are_refused(call):
    with pytest.raises(ValueError, match=r"must|got"):
        call()


@quick
@given(b=st.integers(0, 300), c=st.integers(0, 300))
def test_mcnemar_equals_the_binomial_test(b, c):
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_gives_published_p_values_and_survives_large_counts():
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)  # Bentur et al. 2009 in Fagerland et al. 2013
    assert mcnemar(59, 6) < 1e-10
    assert mcnemar(0, 5000) == 0.0 and mcnemar(5000, 5000) == 1.0


@pytest.mark.parametrize(
    ("table", "interval"),
    [  # both, first, second, neither
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Bentur et al. 2009, in Fagerland, Lydersen and Laake, Stat. Med. 33 (2014)
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe, Statistics in Medicine 17 (1998) 2635, table II
    ],
)
def test_newcombe_gives_the_published_intervals(table, interval):
    assert newcombe_paired(*table) == pytest.approx(interval, abs=5e-4)


counts = st.integers(0, 60)


@quick
@given(a=counts, b=counts, c=counts, d=counts)
def test_newcombe_holds_the_difference_and_is_antisymmetric(a, b, c, d):
    if a + b + c + d == 0:
        return
    low, high = newcombe_paired(a, b, c, d)
    assert -1 <= low <= (b - c) / (a + b + c + d) <= high <= 1 and low < high
    assert newcombe_paired(a, c, b, d) == pytest.approx((-high, -low))


@quick
@given(n=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.9999]))
def test_clopper_pearson_equals_scipy(n, share, confidence):
    k = round(share * n)
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
    assert clopper_pearson(k, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_clopper_pearson_takes_an_effective_number():
    ends = stats.beta.ppf(0.025, 2.5, 9.0), stats.beta.ppf(0.975, 3.5, 8.0)
    assert clopper_pearson(2.5, 10.5) == pytest.approx(ends)


@quick
@given(a=counts, b=counts, c=counts, d=counts)
def test_the_exact_paired_interval_is_antisymmetric_and_hardly_narrower(a, b, c, d):
    if a + b + c + d == 0:
        return
    low, high = exact_paired(a, b, c, d)
    assert -1 <= low <= (b - c) / (a + b + c + d) <= high <= 1 and low < high
    assert exact_paired(a, c, b, d) == pytest.approx((-high, -low))
    assert high - low > 0.9 * (newcombe_paired(a, b, c, d)[1] - newcombe_paired(a, b, c, d)[0])


def test_newcombe_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    p = np.array([0.55, 0.25, 0.05, 0.15])  # both, first, second, neither: true difference 0.2
    covered = [
        low <= 0.2 <= high for low, high in (newcombe_paired(*t) for t in rng.multinomial(50, p, size=1000).tolist())
    ]
    assert 0.92 <= np.mean(covered) <= 0.99
