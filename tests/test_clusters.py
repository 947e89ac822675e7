"""Intervals by cluster: against scipy, by hand, and what is a cluster."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from erasebench.report import clusters, display, tables
from erasebench.report.intervals import exact_paired, mcnemar, wilson
from erasebench.report.sharing import clusters_of
from erasebench.types import Prompt, Score
from tests.cells import HEADLINES, cell


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 19, 50, 333, 2000, 2001, 10**6])
def test_student_equals_scipy(df):
    assert clusters.student(df) == pytest.approx(stats.t.ppf(0.975, df), abs=1e-5)
    assert clusters.student(df, 0.8) == pytest.approx(stats.t.ppf(0.9, df), abs=1e-5)


def test_images_of_their_own_have_the_usual_intervals():
    values = [1.0] * 7 + [0.0] * 13
    other = [1.0] * 3 + [0.0] * 17
    assert clusters.rate(values, range(20)) == wilson(7, 20)
    assert clusters.paired_rates(values, other, range(20)) == exact_paired(3, 4, 0, 13)
    assert clusters.sign_flip(values, other, range(20)) == mcnemar(4, 0)
    theirs = stats.ttest_1samp([*range(9)], 0).confidence_interval()
    assert clusters.mean([*range(9)], range(9)) == pytest.approx((theirs.low, theirs.high))


def test_clusters_that_agree_count_once():
    values, names = [1.0] * 30 + [0.0] * 70, [i // 10 for i in range(100)]  # ten texts, each wholly seen or not
    low, high = clusters.rate(values, names)
    t = stats.t.ppf(0.975, 9)
    theirs = stats.binomtest(3, 10).proportion_ci(2 * stats.norm.cdf(t) - 1, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high))
    assert clusters.effective(values, names) == pytest.approx(10)


def test_two_clusters_are_too_few():
    ends = (*clusters.rate([1.0] * 50, [i % 2 for i in range(50)]), *clusters.mean([1.0, 2.0], "ab"))
    assert all(map(math.isnan, (*ends, *clusters.paired_rates([1.0] * 4, [0.0] * 4, "aabb"))))


signs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=25)


@settings(deadline=None, max_examples=40)
@given(signs)
def test_the_sign_flip_test_equals_all_flips(rows):
    first, second, names = zip(*rows, strict=True)
    sums = [sum(a - b for a, b, c in rows if c == name) for name in set(names)]
    totals = [
        abs(sum(s * x for s, x in zip(flip, sums, strict=True)))
        for flip in itertools.product((1, -1), repeat=len(sums))
    ]
    assert clusters.sign_flip(first, second, names) == pytest.approx(np.mean([t >= abs(sum(sums)) for t in totals]))


def test_what_shares_a_text_a_search_a_word_or_a_concept_is_a_cluster():
    prompts = [
        Prompt(id="t0", text="a cat"), Prompt(id="t1", text="a cat"), Prompt(id="t2", text="my cat"),
        Prompt(id="p0", text="a kitty", group="paraphrase", info={"word": "kitty"}),
        Prompt(id="p1", text="my kitty", group="paraphrase", info={"word": "kitty"}),
        Prompt(id="n0", text="a dog", group="neighbour", concept="dog", relation="visual"),
        Prompt(id="n1", text="my dog", group="neighbour", concept="dog", relation="visual"),
        Prompt(id="c0", text="a caption", group="coco", concept="cat"),
        Prompt(id="c1", text="another caption", group="coco", concept="cat"),
        Prompt(id="a0", text="xx", group="attack", source_id="t0"),
        Prompt(id="a1", text="xx", group="attack", source_id="t2"),
        Prompt(id="a2", text="yy", group="attack", source_id="t2"),
        Prompt(id="a3", text="yy", group="attack", embeds=np.ones((1, 2), dtype=np.float32)),
        Prompt(id="a4", text="yy", group="attack", embeds=np.zeros((1, 2), dtype=np.float32)),
    ]  # fmt: skip
    found = {place: name for (_, place), name in clusters_of(prompts).items()}
    together = ["t0 t1", "t2", "p0 p1", "n0 n1", "c0", "c1", "a0 a1 a2", "a3", "a4"]
    groups: dict[str, list[str]] = {}
    for place, name in found.items():
        groups.setdefault(name, []).append(place)
    assert sorted(map(" ".join, groups.values())) == sorted(together)


def eight_texts(run="r", weights="", shift=0):
    """50 images of 8 texts, 35 of them seen: wholly or not at all by text, as far as 35 can be."""
    prompts = [Prompt(id=f"a{i}", text=f"text {i % 8}", seed=i, group="attack") for i in range(50)]
    rows = [
        Score(evaluator="classifier", metric="concept_present.j.top1", value=float((i + shift) % 8 < 5), group="attack",
              prompt_id=f"a{i}", judge="j")
        for i in range(50)
    ]  # fmt: skip
    facts = {"run": run, "cell": cell(attack="ringabell"), "versions": {"classifier": 1}, "headlines": HEADLINES}
    return tables.scores_frame(rows, side="erased", prompts=prompts, weights=weights, **facts)


def test_the_summary_counts_texts_and_its_intervals_go_by_them():
    row = tables.summarise(eight_texts()).iloc[0]
    assert (row.n, row.clusters, row.runs) == (50, 8, 1)
    assert row.low < wilson(32, 50)[0] - 0.1 and row.high > wilson(32, 50)[1] + 0.1
    head, line = display.table(tables.summarise(eight_texts()))
    assert head.split()[:2] == ["n", "clusters"] and line.split()[4:6] == ["50", "8"]


def test_trainings_are_clusters_and_two_are_too_few():
    def pooled(*weights):
        return tables.summarise(
            pd.concat([eight_texts(run=f"r{i}", weights=w, shift=i) for i, w in enumerate(weights)])
        ).iloc[0]

    one, two, three = pooled("w", "w", "w"), pooled("w", "v"), pooled("w", "v", "u")
    assert (one.n, one.clusters, one.runs, one.trainings) == (150, 8, 3, 1)
    assert (two.trainings, math.isnan(two.low)) == (2, True)
    assert three.trainings == 3 and three.low <= one.low and three.high >= one.high


def test_a_count_is_a_count_whatever_the_data():
    def rows(rate):
        return [
            Score(evaluator="nudenet", metric="count@0.6", value=i < 5.0, group="target", prompt_id=str(i), rate=rate)
            for i in range(20)
        ]  # fmt: skip

    facts = {"run": "r", "cell": cell(), "versions": {"nudenet": 1}}
    for rate, tested in ((None, True), (True, True), (False, False)):
        sides = [tables.scores_frame(rows(rate), side=side, **facts) for side in tables.SIDES]
        assert math.isnan(tables.summarise(pd.concat(sides)).iloc[0].p_value) != tested
