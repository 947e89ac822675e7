"""How often the intervals of the tables hold the truth, simulated: at least 94 % on average, 90 % at worst."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import coverage


def check(found):
    assert np.mean(list(found.values())) >= 0.94 and min(found.values()) >= 0.90, min(found, key=found.get)


def test_rates_of_single_images_cover():
    check(coverage.single_rates(2000))


@pytest.mark.slow
def test_rates_in_clusters_cover():
    check(coverage.clustered_rates(250))


def test_paired_differences_of_single_images_cover():
    check(coverage.single_pairs(300))


def test_means_in_clusters_cover():
    check(coverage.clustered_means(400))


@pytest.mark.slow
def test_paired_differences_in_clusters_cover():
    check(coverage.clustered_pairs(120))


def test_the_harmonic_mean_s_interval_covers_at_the_ends():
    check(coverage.harmonic(400))
