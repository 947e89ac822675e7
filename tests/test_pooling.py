"""What is pooled over seeds, by what, and what stays apart."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from erasebench.report import tables
from erasebench.report.clusters import student
from erasebench.types import Score
from tests.cells import HEADLINES, cell


def run(name, seen, n=50, weights=None, terms=(95.0, 90.0, 80.0), fid=20.0, changes=None):
    """One seed: how many of n images show the concept, a harmonic mean of these terms, an FID."""
    rows = [
        Score(evaluator="classifier", metric="concept_present.j.top1", value=float(i < seen), group="target",
              prompt_id=f"t{i}", judge="j")
        for i in range(n)
    ]  # fmt: skip
    hm = stats.hmean(terms) if min(terms) > 0 else 0.0
    rows += [
        Score(evaluator="spillover", metric="hm.j", value=hm, group="all", low=hm - 2, high=hm + 1, terms=terms),
        Score(evaluator="fid", metric="fid.j.n50", value=fid, group="kept", low=fid - 3, high=fid + 3),
    ]
    facts = {"versions": {"classifier": 1, "spillover": 2, "fid": 1}, "headlines": HEADLINES}
    return tables.scores_frame(
        rows, run=name, side="erased", cell=cell(**(changes or {})), weights=weights or name, **facts
    )


def summary(*runs):
    return tables.summarise(pd.concat(runs)).set_index("evaluator")


def test_trainings_are_no_images():
    row = summary(run("a", 0), run("b", 50), run("c", 0)).loc["classifier"]
    assert (row.n, row.runs, row.trainings) == (150, 3, 3) and row["mean"] == pytest.approx(1 / 3)
    assert row.low < 0.05 and row.high > 0.85  # by image it was [26, 41] %
    row = summary(run("a", 10), run("b", 12), run("c", 8)).loc["classifier"]
    assert row.low < 0.2 < row.high and row.high - row.low > 0.1


def test_seeds_of_one_training_pool_their_images():
    row = summary(run("a", 10, weights="w"), run("b", 12, weights="w")).loc["classifier"]
    assert (row.n, row.clusters, row.runs, row.trainings) == (100, 100, 2, 1) and not math.isnan(row.low)


def test_the_harmonic_mean_over_seeds_is_no_mean_of_means():
    terms = np.array([[100.0, 100, 10], [50, 60, 90], [99, 90, 95]])
    row = summary(*(run(f"{i}", 5, terms=tuple(t)) for i, t in enumerate(terms))).loc["spillover"]
    assert row["mean"] == pytest.approx(stats.hmean(terms.mean(0))) != np.mean([stats.hmean(t) for t in terms])
    without = [stats.hmean(np.delete(terms, i, 0).mean(0)) for i in range(3)]
    margin = student(2) * np.sqrt(2 / 3 * ((without - np.mean(without)) ** 2).sum())
    assert (row.low, row.high) == pytest.approx((max(0, row["mean"] - margin), min(100, row["mean"] + margin)))


def test_fid_over_trainings_has_student_s_interval_and_never_less_than_its_own():
    values = [20.0, 30.0, 25.0]
    row = summary(*(run(f"{v}", 5, fid=v) for v in values)).loc["fid"]
    theirs = stats.ttest_1samp(values, 0).confidence_interval()
    assert (row.low, row.high) == pytest.approx((theirs.low, theirs.high))
    row = summary(*(run(name, 5, fid=20.0) for name in "abc")).loc["fid"]
    assert (row.low, row.high) == (17.0, 23.0)
    row = summary(run("a", 5), run("b", 5)).loc["fid"]
    assert row["mean"] == 20.0 and math.isnan(row.low)  # two trainings are too few
    equal = summary(run("a", 5), run("b", 5), run("c", 5)).loc["spillover"]
    assert equal["mean"] - equal.low == pytest.approx(2) and equal.high - equal["mean"] == pytest.approx(1)


@pytest.mark.parametrize("what", ["settings", "budget", "recipe", "method", "strength", "model"])
def test_what_differs_in_more_than_the_seed_stays_apart(what):
    both = summary(run("a", 0), run("b", 50, changes={what: "other"}))
    assert sorted(both.loc["classifier", "mean"]) == [0, 1] and set(both.runs) == {1}


def test_a_failed_image_blanks_nothing():
    def side(name, n, value):
        rows = [Score(evaluator="fid", metric="fid.j.vs_real", value=value, group="kept", n=n)]
        facts = {"versions": {"fid": 2}, "headlines": HEADLINES, "run": "a"}
        return tables.scores_frame(rows, side=name, cell=cell(), **facts)

    (row,) = tables.summarise(pd.concat([side("erased", 49, 20.0), side("original", 50, 18.0)])).to_dict("records")
    assert (row["n"], row["mean"], row["base"], row["delta"]) == (49, 20.0, 18.0, 2.0)
