"""Fréchet distance against independent implementations and closed forms; the evaluator's rows and intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.linalg import sqrtm
from torchmetrics.image.fid import _compute_fid

from erasebench.report import clusters
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt
from evaluators.fid import FID, frechet_distance, influence, moments


def gaussian(seed, width, count):
    """Moments of ``count`` correlated samples, with their samples."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(width, width)) * np.arange(1, width + 1) ** -0.5
    return generator.normal(size=(count, width)) @ mixing + generator.normal(size=width)


@pytest.mark.parametrize(("width", "count"), [(1, 50), (8, 100), (64, 400)])
def test_equals_torchmetrics_and_the_matrix_square_root(width, count):
    (m1, s1), (m2, s2) = moments(gaussian(1, width, count)), moments(gaussian(2, width, count + 7))
    ours = frechet_distance(m1, s1, m2, s2)
    assert ours == pytest.approx(float(_compute_fid(*map(torch.from_numpy, (m1, s1, m2, s2)))), rel=1e-9)
    root = np.real(np.trace(sqrtm(s1 @ s2)))
    assert ours == pytest.approx(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * root, rel=1e-6)


def test_fewer_images_than_features_in_closed_form():
    """S1 = a a^T and S2 = b b^T have Tr (S1 S2)^{1/2} = |a . b|; a matrix square root of them is ill-defined."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 300))
    zero = np.zeros(300)
    expected = a @ a + b @ b - 2 * abs(a @ b)
    assert frechet_distance(zero, np.outer(a, a), zero, np.outer(b, b)) == pytest.approx(expected, rel=1e-9)


def test_diagonal_covariances_in_closed_form():
    generator = np.random.default_rng(3)
    m1, m2, d1, d2 = generator.uniform(0.1, 4, size=(4, 20))
    expected = ((m1 - m2) ** 2).sum() + ((np.sqrt(d1) - np.sqrt(d2)) ** 2).sum()
    assert frechet_distance(m1, np.diag(d1), m2, np.diag(d2)) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 30), st.integers(2, 30))
def test_is_a_squared_distance(seed, width, n1, n2):
    first, second = moments(gaussian(seed, width, n1)), moments(gaussian(seed + 1, width, n2))
    there, back = frechet_distance(*first, *second), frechet_distance(*second, *first)
    scale = 1 + np.trace(first[1]) + np.trace(second[1])
    assert there >= 0 and there == pytest.approx(back, abs=1e-8 * scale)
    assert frechet_distance(*first, *first) == 0
    shift = np.full(width, 2.0)
    assert frechet_distance(first[0] + shift, first[1], *first) == pytest.approx(4 * width, abs=1e-8 * scale)


def test_moments_are_the_unbiased_ones_and_check_their_input():
    samples = gaussian(5, 4, 30)
    mean, covariance = moments(samples.astype(np.float32))
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(covariance, np.cov(samples.T), rtol=1e-5)
    with pytest.raises(ValueError, match="at least two images"):
        moments(samples[:1])
    with pytest.raises(ValueError, match="finite"):
        moments(np.array([[1.0], [math.nan]]))
    with pytest.raises(ValueError, match="same feature network"):
        frechet_distance(mean, covariance, np.zeros(5), np.eye(5))


@pytest.mark.parametrize("n", [60, 5])  # 5 images of 6 features: a covariance without full rank
def test_influence_is_the_derivative_by_an_image_s_weight(n):
    samples, other = gaussian(1, 6, n), moments(gaussian(2, 6, 200))
    found = influence(samples, *other)
    step = 1e-4

    def distance(weights):
        covariance = np.cov(samples.T, aweights=weights, ddof=0) * n / (n - 1)
        return frechet_distance(np.average(samples, axis=0, weights=weights), covariance, *other)

    for i in (0, n // 2, n - 1):
        more, less = np.full(n, (1 - step) / n), np.full(n, (1 + step) / n)
        more[i], less[i] = more[i] + step, less[i] - step
        assert (distance(more) - distance(less)) / (2 * step) == pytest.approx(found[i], rel=1e-5, abs=1e-5)


REAL = np.zeros(6), np.diag([1.0, 0.5, 0.3, 0.2, 0.1, 0.1])
SPREAD = np.sqrt([1.4, 0.5, 0.2, 0.2, 0.1, 0.1])


def test_the_error_by_influence_is_the_spread_over_fresh_samples():
    generator = np.random.default_rng(0)
    samples = [generator.normal(size=(120, 6)) * SPREAD + 0.2 for _ in range(400)]
    spread = np.std([frechet_distance(*moments(one), *REAL) for one in samples])
    errors = [influence(one, *REAL).std(ddof=1) / math.sqrt(120) for one in samples]
    assert np.mean(errors) == pytest.approx(spread, rel=0.08)


@pytest.mark.parametrize("n", [50, 200])
def test_intervals_of_a_distance_and_of_a_paired_difference_cover(n):
    """Two models on the same noise; the truth at this n is the mean over all repetitions."""
    generator = np.random.default_rng(n)
    firsts, differences, own, paired = [], [], [], []
    for _ in range(500):
        noise = generator.normal(size=(n, 6))
        first, second = noise * SPREAD + 0.2, noise * SPREAD * 1.1 + 0.25 + 0.1 * generator.normal(size=(n, 6))
        a, b = (frechet_distance(*moments(one), *REAL) for one in (first, second))
        moved = influence(first, *REAL), influence(second, *REAL)
        firsts.append(a)
        differences.append(a - b)
        own.append(clusters.mean(moved[0], range(n))[1])
        paired.append(clusters.mean(moved[0] - moved[1], range(n))[1])
    for values, margins in ((firsts, own), (differences, paired)):
        covered = np.mean(np.abs(np.array(values) - np.mean(values)) <= margins)
        assert covered >= 0.92, covered
    assert np.mean(paired) < 0.6 * np.mean(own)  # shorter than either interval by itself


class MeanColour:
    """Three features: the mean of each channel; real images are gray."""

    name = "mean_colour"

    def features(self, images):
        return np.array([np.asarray(i, dtype=np.float32).mean(axis=(0, 1)) / 255 for i in images], dtype=np.float32)

    def reference(self):
        return np.full(3, 0.5), 0.01 * np.eye(3), 1000


class NoReference(MeanColour):
    def reference(self):
        return None


def image_set(folder, seed, tint, failed=()):
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(40):
        group = ("neighbour", "unrelated", "coco", "target")[i % 4]
        level = generator.integers(60, 180, size=3) + tint
        image = Image.new("RGB", (4, 4), tuple(int(v) for v in level))
        status = "nan" if i in failed else "ok"
        rows.append((Prompt(id=f"p{i}", text=f"t{i}", seed=i, group=group), None if i in failed else image, status))
    write_shard(folder, 0, [(prompt.digest(), image, status) for prompt, image, status in rows])
    return ImageSet(key=folder.name, folder=folder, prompts=tuple(prompt for prompt, _, _ in rows))


def whole(scores):
    return [score for score in scores if score.prompt_id is None]


def test_rows_of_the_original_and_the_erased_model(tmp_path):
    original, erased = image_set(tmp_path / "o", 0, 0), image_set(tmp_path / "e", 0, (40, -30, 0))
    fid = FID(features=MeanColour())
    real, own = whole(fid.score(original, original))
    assert (real.metric, own.metric) == ("fid.mean_colour.vs_real", "fid.mean_colour.vs_original")
    assert real.n == own.n == 30
    assert own.value == own.low == own.high == 0
    assert real.group == own.group == "kept" and real.higher_is_better is False and real.prompt_id is None
    worse_real, shifted = whole(fid.score(erased, original))
    assert shifted.value == pytest.approx((40 / 255) ** 2 + (30 / 255) ** 2, rel=1e-3)  # only the mean has moved
    assert worse_real.value > real.value
    assert worse_real.low < worse_real.value < worse_real.high


def test_failed_images_shrink_n_and_nothing_else(tmp_path):
    original, erased = image_set(tmp_path / "o", 0, 0), image_set(tmp_path / "e", 0, 0, failed=(0, 1))
    (own,) = whole(FID(features=NoReference()).score(erased, original))
    assert own.metric == "fid.mean_colour.vs_original" and own.n == 28 and own.value == 0


def test_too_few_images_are_a_status(tmp_path):
    original, lost = image_set(tmp_path / "o", 0, 0), image_set(tmp_path / "l", 0, 0, failed=range(1, 40))
    scores = FID(features=MeanColour()).score(lost, original)
    assert [(score.status, math.isnan(score.value)) for score in scores] == [("error", True)] * 2
    few = FID(features=MeanColour(), groups=["attack"]).score(original, original)
    assert few == []


def test_too_few_images_for_the_network_are_refused_or_named(tmp_path, caplog):
    class Wide(MeanColour):
        least_images = 31

    original, erased = image_set(tmp_path / "o", 0, 0), image_set(tmp_path / "e", 0, (40, -30, 0))
    refused = FID(features=Wide()).score(erased, original)
    assert [(s.metric, s.status, math.isnan(s.value), s.n) for s in refused] == [
        ("fid.mean_colour.vs_real", "error", True, 30), ("fid.mean_colour.vs_original", "error", True, 30)
    ]  # fmt: skip
    assert "no number of 30 images; 31 are the least, or evaluator.fid.small_sample=true" in caplog.text
    asked = FID(features=Wide(), small_sample=True)
    plain = {s.metric: s.value for s in whole(FID(features=MeanColour()).score(erased, original))}
    small = asked.score(erased, original)
    assert {s.metric.removesuffix(".small_sample"): s.value for s in whole(small)} == plain
    assert all(s.metric.endswith(".small_sample") for s in small)
    for score in small:
        assert any(h.fits(score.metric, score.group) for h in asked.headlines), score.metric
    Wide.least_images = 30
    assert {s.metric for s in whole(asked.score(erased, original))} == set(plain)
