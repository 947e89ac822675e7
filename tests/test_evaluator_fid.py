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

from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt
from evaluators.fid import FID, frechet_distance, jackknife_error, moments


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


def test_jackknife_error_is_the_spread_over_fresh_samples():
    """Repeating the experiment 200 times gives the true standard deviation of the distance at N = 120."""
    generator = np.random.default_rng(0)
    reference = np.zeros(6), np.diag([1.0, 0.5, 0.3, 0.2, 0.1, 0.1])

    def draw():
        return generator.normal(size=(120, 6)) * np.sqrt([1.4, 0.5, 0.2, 0.2, 0.1, 0.1]) + 0.2

    def distance(samples):
        return frechet_distance(*moments(samples), *reference)

    spread = np.std([distance(draw()) for _ in range(200)])
    estimates = []
    for _ in range(20):
        samples = draw()
        estimates.append(jackknife_error(lambda keep, s=samples: distance(s[keep]), 120))
    assert np.mean(estimates) == pytest.approx(spread, rel=0.2)


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
        rows.append((Prompt(id=f"p{i}", text="t", seed=i, group=group), None if i in failed else image, status))
    write_shard(folder, 0, [(prompt.digest(), image, status) for prompt, image, status in rows])
    return ImageSet(key=folder.name, folder=folder, prompts=tuple(prompt for prompt, _, _ in rows))


def test_rows_of_the_original_and_the_erased_model(tmp_path):
    original, erased = image_set(tmp_path / "o", 0, 0), image_set(tmp_path / "e", 0, (40, -30, 0))
    fid = FID(features=MeanColour())
    real, own = fid.score(original, original)
    assert (real.metric, own.metric) == ("fid.mean_colour.vs_real", "fid.mean_colour.vs_original")
    assert real.n == own.n == 30
    assert own.value == own.low == own.high == 0
    assert real.group == own.group == "kept" and real.higher_is_better is False and real.prompt_id is None
    worse_real, shifted = fid.score(erased, original)
    assert shifted.value == pytest.approx((40 / 255) ** 2 + (30 / 255) ** 2, rel=1e-3)  # only the mean has moved
    assert worse_real.value > real.value
    assert worse_real.low < worse_real.value < worse_real.high


def test_failed_images_shrink_n_and_nothing_else(tmp_path):
    original, erased = image_set(tmp_path / "o", 0, 0), image_set(tmp_path / "e", 0, 0, failed=(0, 1))
    (own,) = FID(features=NoReference()).score(erased, original)
    assert own.metric == "fid.mean_colour.vs_original" and own.n == 28 and own.value == 0


def test_too_few_images_are_a_status(tmp_path):
    original, lost = image_set(tmp_path / "o", 0, 0), image_set(tmp_path / "l", 0, 0, failed=range(1, 40))
    scores = FID(features=MeanColour()).score(lost, original)
    assert [(score.status, math.isnan(score.value)) for score in scores] == [("error", True)] * 2
    few = FID(features=MeanColour(), groups=["attack"]).score(original, original)
    assert few == []
