"""Method against method: pairs by prompt and noise, recomputed with scipy alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from erasebench.report import paired, tables
from erasebench.types import Headline, Prompt, Score
from tests.cells import HEADLINES, cell

N = 80


def run(method, seen, *, texts=N, clip=(25.0, 1.0), seed=0, weights="", drop=(), concept="cat", recipe="paper"):
    """Erased scores of one run: which of N images show the concept, and CLIP scores."""
    rng = np.random.default_rng(len(method) + seed)
    prompts = [
        Prompt(id=f"{group}-{i}", text=f"{group} {i % texts}", seed=1000 * seed + i, group=group)
        for group in ("target", "unrelated") for i in range(N)
    ]  # fmt: skip
    rows = [
        Score(evaluator="classifier", metric="concept_present.j.top1", value=float(seen[i]), group="target",
              prompt_id=f"target-{i}", judge="j", higher_is_better=False)
        for i in range(N) if i not in drop
    ]  # fmt: skip
    rows += [
        Score(evaluator="clip_score", metric="clip_score.m", value=clip[0] + clip[1] * rng.normal() + i % 7,
              group="unrelated", prompt_id=f"unrelated-{i}", higher_is_better=True)
        for i in range(N)
    ]  # fmt: skip
    return tables.scores_frame(
        rows, run=f"{method} {seed} {recipe}", side="erased", prompts=prompts, weights=weights or method,
        cell=cell(method=method, concept=concept, recipe=recipe), versions={"classifier": 1, "clip_score": 1},
        headlines=HEADLINES,
    )  # fmt: skip


def hits(share, shift=0):
    return [(i * 37 + shift) % N < share * N for i in range(N)]


@pytest.fixture
def scores():
    return pd.concat([run("uce", hits(0.1)), run("rece", hits(0.05, 3)), run("esd", hits(0.6), clip=(23.0, 1.0))])


def test_the_table_equals_scipy(scores):
    table = paired.compare_methods(scores, heads=["target", "CLIP"])
    assert len(table) == 6
    for row in table.itertuples():
        one, two = (
            scores[(scores.metric == row.metric) & (scores.method == name)].set_index("prompt_id").value.sort_index()
            for name in (row.first, row.second)
        )
        assert row.delta == pytest.approx((one - two).mean()) and row.n == row.clusters == N
        if row.metric.startswith("clip"):
            theirs = stats.ttest_rel(one, two)
            assert row.p_value == pytest.approx(theirs.pvalue, abs=1e-9)
            ends = theirs.confidence_interval()
            assert (row.low, row.high) == pytest.approx((ends.low, ends.high))
        else:
            b, c = int(((one == 1) & (two == 0)).sum()), int(((one == 0) & (two == 1)).sum())
            assert row.p_value == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue)
            assert (row.low, row.high) == pytest.approx(_newcombe(one.to_numpy(), two.to_numpy()))
    adjusted = _holm(table.p_value.to_numpy())
    assert table.p_holm.to_numpy() == pytest.approx(adjusted)


def _newcombe(one, two):
    """Method 10 of Newcombe 1998 with exact ends, written anew."""
    n, sides = len(one), []
    for values in (one, two):
        ends = stats.binomtest(int(values.sum()), n).proportion_ci(0.95, method="exact")
        sides.append((values.mean(), ends.low, ends.high))
    (p, l1, u1), (q, l2, u2) = sides
    a, b, c, d = (int(x.sum()) for x in (one * two, one * (1 - two), (1 - one) * two, (1 - one) * (1 - two)))
    top = a * d - b * c
    top = max(top - n / 2, 0) if top > 0 else top
    phi = top / np.sqrt(float((a + b) * (c + d) * (a + c) * (b + d)))
    low = np.sqrt((p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2)
    high = np.sqrt((u1 - p) ** 2 - 2 * phi * (u1 - p) * (q - l2) + (q - l2) ** 2)
    return p - q - low, p - q + high


def _holm(p):
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    out = np.empty_like(p)
    out[order] = steps
    return out


def test_what_it_says(scores):
    table = paired.compare_methods(scores, heads=["target"]).set_index(["first", "second"])
    assert (
        table.loc[("esd", "rece"), "says"] == "rece is better" and table.loc[("esd", "uce"), "says"] == "uce is better"
    )
    assert table.loc[("rece", "uce"), "says"] == "not told apart"
    assert paired.compare_methods(scores, ["uce", "esd"], ["CLIP"]).says.tolist() == ["uce is better"]
    head, *rest = paired.lines(table.reset_index())
    assert len(rest) == 3 and head[:2] == ["concept", "measure"] and all(len(line) == len(head) for line in rest)


def test_only_shared_prompts_and_noise_are_compared():
    table = paired.compare_methods(pd.concat([run("uce", hits(0.1), drop=(0, 1)), run("rece", hits(0.1), drop=(2,))]))
    assert table[table["head"] == "target"].n.tolist() == [N - 3]
    table = paired.compare_methods(pd.concat([run("uce", hits(0.1)), run("rece", hits(0.1), seed=1)]))
    assert set(table.n) == {0} and set(table.says) == {"nothing in common"}


def test_few_texts_and_trainings_are_no_evidence():
    few = [run("uce", hits(0.0), texts=4), run("esd", hits(1.0), texts=4)]
    row = paired.compare_methods(pd.concat(few), heads=["target"]).iloc[0]
    assert (row.clusters, row.p_value, row.says) == (4, 0.125, "not told apart")
    two = [run(m, hits(s), seed=k, weights=f"{m}{k}") for m, s in (("uce", 0), ("esd", 1)) for k in (0, 1)]
    row = paired.compare_methods(pd.concat(two), heads=["target"]).iloc[0]
    assert (row.n, row.trainings, row.says) == (2 * N, 2, "too few")


def test_recipes_are_told_apart_and_one_method_is_too_few(scores):
    both = pd.concat([run("uce", hits(0.1)), run("uce", hits(0.5), recipe="uce_emoji")])
    row = paired.compare_methods(both, heads=["target"]).iloc[0]
    assert (row.first, row.second) == ("uce (paper)", "uce (uce_emoji)")
    with pytest.raises(ValueError, match=r"two methods are needed to compare, .* got uce; name others"):
        paired.compare_methods(scores, ["uce"])


def distance(method, value, moved, side="erased"):
    """A distance of 40 images to real ones, and how much each of them moves it."""
    prompts = [Prompt(id=str(i), text=f"t {i}", group="coco" if i % 2 else "unrelated") for i in range(len(moved))]
    rows = [Score(evaluator="fid", metric="fid.m.vs_real", value=value, group="kept", n=len(moved))]
    rows += [
        Score(evaluator="fid", metric="influence.fid.m.vs_real", value=float(v), group=p.group, prompt_id=p.id)
        for p, v in zip(prompts, moved, strict=True)
    ]
    heads = [Headline(metric="fid.m.vs_real", group="kept", label="{metric}", head="FID", role="distance")]
    heads += [Headline(metric="influence.fid", group=g, label="", role="influence") for g in ("coco", "unrelated")]
    return tables.scores_frame(
        rows, run=method, side=side, prompts=prompts, cell=cell(method=method), versions={"fid": 1},
        headlines={"fid": heads}, weights=method,
    )  # fmt: skip


def test_distances_between_sets_are_compared_image_by_image():
    rng = np.random.default_rng(0)
    shared = 5 * rng.normal(size=40)
    one, two = (shared + rng.normal(size=40) for _ in range(2))
    one, two = one - one.mean(), two - two.mean()
    frame = pd.concat([distance("rece", 28.39, one), distance("uce", 28.43, two)])
    (row,) = paired.compare_methods(frame).itertuples()
    theirs = stats.ttest_1samp(one - two - 0.04, 0)
    assert (row.metric, row.group, row.n, row.delta) == ("fid.m.vs_real", "kept", 40, pytest.approx(-0.04))
    assert (row.low, row.high) == pytest.approx(theirs.confidence_interval()) and row.p_value == pytest.approx(
        theirs[1]
    )
    assert row.high - row.low < 0.4 * np.ptp(stats.ttest_1samp(one, 0).confidence_interval())
    both = pd.concat([distance("rece", 28.39, one), distance("rece", 28.43, two, side="original")])
    (row,) = tables.summarise(both).itertuples()
    assert row.metric == "fid.m.vs_real" and row.n == 40 and row.delta == pytest.approx(-0.04)
    assert (row.delta_low, row.delta_high) == pytest.approx(theirs.confidence_interval())


def test_pairs_of_images_are_those_that_merging_finds():
    one = pd.DataFrame(
        {"image": [4, 1, 3, 2], "value": [0.1, 0.2, 0.3, 0.4], "own": [7, 7, 8, 9], "trained": [0, 0, 1, 1]}
    )
    two = pd.DataFrame({"image": [2, 5, 4], "value": [0.6, 0.7, 0.9], "own": [9, 6, 7], "trained": [2, 2, 3]})
    both = one.merge(two, on="image", suffixes=("", "_b"))
    found = paired._pair(paired._Side(one), paired._Side(two), "a", "b", rate=False)
    assert found["n"] == 2 and found["clusters"] == both.own.nunique() and found["trainings"] == 2
    assert (found["first_mean"], found["second_mean"]) == (both.value.mean(), both.value_b.mean())
    assert found["delta"] == (both.value - both.value_b).mean()
