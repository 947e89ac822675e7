"""Kernel distances against torchmetrics, brute force and leaving images out; the evaluators' rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image.kid import poly_mmd

from erasebench.judges.mmd import gaussian, polynomial, squared_mmd
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt
from evaluators.cmmd import CMMD
from evaluators.kid import KID

CUBIC = polynomial(3, 1 / 8, 1.0)


def samples(seed, n, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, 8)) + shift


@pytest.mark.parametrize("n", [30, 1500])  # one block and more
def test_unbiased_equals_torchmetrics(n):
    x, y = samples(0, n), samples(1, n, 0.3)
    expected = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert squared_mmd(x, y, CUBIC, "unbiased").value == pytest.approx(expected, rel=1e-9)


def test_paired_and_biased_equal_sums_over_all_pairs():
    x, y = samples(0, 12), samples(1, 12, 0.3)

    def k(a, b):
        return math.exp(-((a - b) ** 2).sum() / (2 * 1.5**2))

    pairs = [(i, j) for i in range(12) for j in range(12)]
    h = {(i, j): k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs}
    found = squared_mmd(x, y, gaussian(1.5), "paired")
    assert found.value == pytest.approx(np.mean([h[i, j] for i, j in pairs if i != j]), rel=1e-9)
    assert squared_mmd(x, y, gaussian(1.5), "biased").value == pytest.approx(np.mean(list(h.values())), rel=1e-9)


def test_the_mean_over_repetitions_is_the_truth_however_few_the_images():
    """A linear kernel's discrepancy is the squared distance of the means; noise that pairs share must not move it."""
    generator = np.random.default_rng(0)
    values = []
    for _ in range(4000):
        noise = generator.normal(size=(4, 3))
        values.append(squared_mmd(noise + 0.5, 0.9 * noise, polynomial(1, 1.0, 0.0), "paired").value)
    assert np.mean(values) == pytest.approx(3 * 0.25, abs=4 * np.std(values) / math.sqrt(4000))


def test_moved_is_what_leaving_an_image_out_takes_away():
    x, y = samples(0, 40), samples(1, 40, 0.3)
    found = squared_mmd(x, y, CUBIC, "paired")
    keep = np.arange(40) != 7
    without = squared_mmd(x[keep], y[keep], CUBIC, "paired").value
    assert found.moved[7] == pytest.approx(38 * (found.value - without), rel=1e-8)  # exact for a U-statistic
    for kind in ("unbiased", "biased"):
        x, y = samples(0, 400), samples(1, 300, 0.3)
        found = squared_mmd(x, y, CUBIC, kind)
        without = squared_mmd(x[1:], y, CUBIC, kind).value
        assert found.moved[0] == pytest.approx(399 * (found.value - without), rel=0.02, abs=0.02 * found.moved.std())


def test_input_is_checked():
    with pytest.raises(ValueError, match="of one d"):
        squared_mmd(samples(0, 3), np.zeros((3, 2)), CUBIC, "biased")
    with pytest.raises(ValueError, match="one row each"):
        squared_mmd(samples(0, 3), samples(0, 4), CUBIC, "paired")
    with pytest.raises(ValueError, match="finite"):
        squared_mmd(samples(0, 3) * math.nan, samples(0, 4), CUBIC, "biased")


class MeanColour:
    name = "mean_colour"

    def features(self, images):
        return np.array([np.asarray(i, dtype=np.float32).mean(axis=(0, 1)) / 255 for i in images], dtype=np.float32)

    image_features = features


def image_set(folder, tint, failed=(), order=1):
    generator = np.random.default_rng(0)
    rows = []
    for i in range(40):
        colour = tuple(int(v) for v in generator.integers(60, 180, size=3) + tint)
        prompt = Prompt(id=f"p{i}", text=f"t{i}", seed=i, group=("neighbour", "coco", "target")[i % 3])
        rows.append((prompt, None if i in failed else Image.new("RGB", (4, 4), colour), "nan" if i in failed else "ok"))
    write_shard(folder, 0, [(p.digest(), image, status) for p, image, status in rows])
    return ImageSet(key=f"{folder.name}{order}", folder=folder, prompts=tuple(p for p, _, _ in rows)[::order])


@pytest.fixture
def real(tmp_path):
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(5)
    for i in range(30):
        Image.new("RGB", (4, 4), tuple(generator.integers(0, 255, 3).tolist())).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def kid(**settings):
    return KID(features=MeanColour(), **settings)


def cmmd(**settings):
    return CMMD(model=MeanColour(), **settings)


@pytest.mark.parametrize(("make", "name"), [(kid, "kid_x1000.mean_colour"), (cmmd, "cmmd.mean_colour")])
def test_rows_against_real_images_and_the_original(tmp_path, real, make, name):
    original, erased = image_set(tmp_path / "o", 0), image_set(tmp_path / "e", (40, -30, 0))
    evaluator = make(real=str(real))
    evaluator.check()
    own = [s for s in evaluator.score(original, original) if s.prompt_id is None]
    assert [s.metric for s in own] == [f"{name}.vs_photos", f"{name}.vs_original"]
    assert own[1].value == pytest.approx(0, abs=1e-9) and {s.n for s in own} == {27}
    head = name[: name.index(".")].removesuffix("_x1000").upper()
    assert [h.head for h in evaluator.headlines if h.role == "distance"] == [head, f"{head} to original"]
    scores = evaluator.score(erased, original)
    moved = [s for s in scores if s.metric == f"influence.{name}.vs_original"]
    (far,) = [s for s in scores if s.metric == f"{name}.vs_original"]
    assert 0 < far.low < far.value < far.high and far.higher_is_better is False
    assert len(moved) == 27 and np.mean([s.value for s in moved]) == pytest.approx(0, abs=1e-9)
    turned = make(real=str(real)).score(image_set(tmp_path / "e", (40, -30, 0), order=-1), original)
    assert {s.metric: s.value for s in turned if s.prompt_id is None} == pytest.approx(
        {s.metric: s.value for s in scores if s.prompt_id is None}
    )


@pytest.mark.parametrize("make", [kid, cmmd])
def test_failed_images_shrink_n_and_too_few_are_a_status(tmp_path, make):
    original, some = image_set(tmp_path / "o", 0), image_set(tmp_path / "s", 0, failed=(0, 1))
    (own,) = [s for s in make().score(some, original) if s.prompt_id is None]
    assert own.n == 25 and own.value == pytest.approx(0, abs=1e-9)
    (lost,) = make().score(image_set(tmp_path / "l", 0, failed=range(1, 40)), original)
    assert lost.status == "error" and math.isnan(lost.value)


def test_subsets_as_packages_print_them(tmp_path, real):
    original = image_set(tmp_path / "o", 0)
    asked = kid(real=str(real), subsets=3, subset_size=27, groups=["neighbour", "coco"])
    found = {s.metric: s.value for s in asked.score(original, original) if s.prompt_id is None}
    mean, spread = found["kid_x1000.mean_colour.3x27.vs_photos"], found["kid_std_x1000.mean_colour.3x27.vs_photos"]
    assert spread > 0 and abs(mean - found["kid_x1000.mean_colour.vs_photos"]) < 4 * spread
    few = KID(features=MeanColour(), real=str(real), subset_size=28)
    assert not [s for s in few.score(original, original) if "x28" in s.metric]


def test_a_folder_without_images_is_refused_early(tmp_path):
    with pytest.raises(ValueError, match="at least two images"):
        KID(features=MeanColour(), real=str(tmp_path)).check()
