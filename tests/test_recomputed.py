"""A mixed results folder recomputed by scipy alone: two seeds, settings and judges, clusters, failed images, COCO."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from erasebench.report import tables
from erasebench.report.leaderboard import leaderboard
from erasebench.types import Prompt, Score
from tests.cells import HEADLINES, cell

VERSIONS = {"classifier": 1, "clip_score": 1, "spillover": 2, "fid": 2, "nudenet": 1}
NUDE = "nudenet.v3_4_320n.path_bgr"


def one_run(name, rng, *, seed=0, weights="", judges=("j", "k"), coco_only=False, nude_only=False, failed=(), **names):
    """Both sides of one run with images of 40 texts for the target, 8 texts of the attack, 4 neighbours, COCO."""
    groups = {"target": 40, "attack": 8, "neighbour": 4, "coco": 30} if not coco_only else {"coco": 30}
    prompts = [
        Prompt(id=f"{g}-{i}", text=f"{g} {seed if g == 'target' else ''} {i % k}", seed=100 * seed + i, group=g,
               concept=f"{i % k}", relation="visual" if g == "neighbour" else "")
        for g, k in groups.items() for i in range(50)
    ]  # fmt: skip
    parts = []
    for side, p in (("erased", 0.3), ("original", 0.9)):
        own = {c: rng.beta(2 * p, 2 * (1 - p)) for c in range(50)}
        rows = []
        for prompt in prompts:
            ok = not (side == "erased" and prompt.id in failed)
            place = {"group": prompt.group, "prompt_id": prompt.id, "relation": prompt.relation}
            place |= {"status": "ok" if ok else "nan"}
            for judge in () if nude_only else judges:
                kind = "concept_present" if prompt.group in ("target", "attack") else "accuracy"
                value = float(rng.random() < own[int(prompt.concept)]) if ok else math.nan
                rows.append(
                    Score(evaluator="classifier", metric=f"{kind}.{judge}.top1", value=value, judge=judge, **place)
                )
            if prompt.group == "coco":
                rows.append(
                    Score(
                        evaluator="clip_score", metric="clip_score.m", value=rng.normal(25) if ok else math.nan, **place
                    )
                )
            if nude_only and prompt.group == "target":
                rows.append(
                    Score(evaluator="nudenet", metric=f"{NUDE}.any@0.6", value=1.0, judge="nude", rate=True, **place)
                )
        n = 50 - (len(failed) if side == "erased" else 0)
        value = float(rng.normal(20))
        rows.append(
            Score(
                evaluator="fid", metric="fid.j.vs_real", value=value, low=value - 2, high=value + 2, group="kept", n=n
            )
        )
        parts.append(
            tables.scores_frame(
                rows, run=name, side=side, prompts=prompts, weights=weights or name, versions=VERSIONS,
                headlines=HEADLINES, cell=cell(**names),
            )
        )  # fmt: skip
    return pd.concat(parts)


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    attack = {"attack": "ringabell", "access": "text_encoder"}
    return pd.concat([
        one_run("u0", rng, seed=0, weights="uce", **attack), one_run("u1", rng, seed=1, weights="uce", **attack),
        *(one_run(f"e{s}", rng, seed=s, method="esd", failed=("coco-3", "target-9"), **attack) for s in range(3)),
        one_run("u2", rng, settings="steps=2", **attack), one_run("c", rng, method="sdd", coco_only=True),
        one_run("n", rng, method="slder", nude_only=True), one_run("j", rng, method="rece", judges=("j",), **attack),
    ])  # fmt: skip


def icc(values, names):
    """Intra-class correlation by scipy's analysis of variance, shrunk by one cluster's weight."""
    parts = [values[names == name] for name in dict.fromkeys(names)]
    k, n = len(parts), len(values)
    if np.ptp(values) == 0 or k == n:
        return 1.0
    sizes = np.array([len(part) for part in parts])
    within = sum(((part - part.mean()) ** 2).sum() for part in parts) / (n - k)
    size = (n - (sizes**2).sum() / n) / (k - 1)
    f = stats.f_oneway(*parts).statistic if within else math.inf
    r = 1.0 if math.isinf(f) else (f - 1) / (f + size - 1)
    return (np.clip(r, 0, 1) * (k - 1) + 1) / k


def rate_interval(values, names):
    k, n = len(set(names)), len(values)
    if k == n:
        ends = stats.binomtest(int(values.sum()), n).proportion_ci(method="wilson")
        return ends.low, ends.high
    if k < 3:
        return math.nan, math.nan
    sizes = np.unique(names, return_counts=True)[1]
    m = n / (1 + ((sizes**2).sum() / n - 1) * icc(values, names))
    t, p = stats.t.ppf(0.975, k - 1), values.mean()
    roots = np.roots([1 + t * t / m, -2 * p - t * t / m, p * p])  # where |x - p| = t sqrt(x (1 - x) / m)
    return min(roots), max(roots)


def mean_interval(values, names):
    sums = np.array([(values[names == name] - values.mean()).sum() for name in dict.fromkeys(names)])
    k = len(sums)
    margin = stats.t.ppf(0.975, k - 1) * np.sqrt(k / (k - 1) * (sums**2).sum()) / len(values)
    return values.mean() - margin, values.mean() + margin


@pytest.mark.slow
def test_the_summary_is_scipy_s(scores):
    summary, checked = tables.summarise(scores), 0
    for row in summary[(summary.relation == "") & (summary.group != "kept")].itertuples():
        same = (scores[list(tables.CELL)] == [getattr(row, c) for c in tables.CELL]).all(axis=1)
        rows = scores[same & (scores.metric == row.metric) & (scores.group == row.group)]
        for side, ends in (("erased", (row.low, row.high)), ("original", (row.base_low, row.base_high))):
            ours = rows[(rows.side == side) & (rows.status == "ok")]
            measure = mean_interval if row.evaluator == "clip_score" else rate_interval
            found = [measure(ours.value.to_numpy(), ours.cluster.to_numpy())]
            if side == "erased" and ours.weights.nunique() > 1:
                found.append(measure(ours.value.to_numpy(), ours.weights.to_numpy()))
            expected = min(low for low, _ in found), max(high for _, high in found)
            assert ends == pytest.approx(expected, abs=1e-7, nan_ok=True)
            checked += 1
        erased = rows[(rows.side == "erased") & (rows.status == "ok")]
        assert (row.n, row.n_failed) == (len(erased), int(((rows.side == "erased") & (rows.status != "ok")).sum()))
        assert row.mean == pytest.approx(erased.value.mean()) and row.clusters == erased.cluster.nunique()
        assert (row.runs, row.trainings) == (erased.run.nunique(), erased.weights.nunique())
        pairs = erased.merge(rows[(rows.side == "original") & (rows.status == "ok")], on=["run", "prompt_id"])
        assert row.delta == pytest.approx((pairs.value_x - pairs.value_y).mean())
    assert checked > 60


def test_the_sign_flip_p_values_are_a_permutation_test_s(scores):
    rows = scores[(scores.run == "u2") & (scores.group == "attack") & (scores.judge == "j")]
    row = tables.summarise(rows).iloc[0]
    sums = rows.assign(value=rows.value * rows.side.map({"erased": 1, "original": -1})).groupby("cluster").value.sum()
    flips = np.array(list(itertools.product((1, -1), repeat=len(sums)))) @ sums.to_numpy()
    assert row.p_value == pytest.approx((np.abs(flips) >= abs(sums.sum()) - 1e-9).mean())


def test_the_board_mixes_nothing_and_blanks_nothing(scores):
    table = leaderboard(scores).table
    rows = table.set_index(["method", "settings", "judge"])
    assert sorted(rows.index) == [
        ("esd", "", "j"), ("esd", "", "k"), ("rece", "", "j"), ("sdd", "", "j"), ("sdd", "", "k"),
        ("slder", "", "nude"), ("uce", "", "j"), ("uce", "", "k"), ("uce", "steps=2", "j"), ("uce", "steps=2", "k"),
    ]  # fmt: skip
    esd = rows.loc[("esd", "", "j")]
    assert (esd.n, esd.clusters, esd.target_n, esd.fid_n) == (150, 8, 147, 48)
    assert not math.isnan(esd.fid) and not math.isnan(esd.fid_base) and not math.isnan(esd.fid_low)
    assert rows.loc[("slder", "", "nude"), "target"] == 1.0 and rows.loc[("sdd", "", "j"), "ranked_by"] != "target"
    assert (table[table.method.isin(["esd", "uce", "rece"])].ranked_by == "attack_rate").all()
    for _, contest in table.groupby(["attack", "settings", "judge", "ranked_by"]):
        for row in contest.to_dict("records"):
            name, better = row["ranked_by"], 0
            for other in contest.to_dict("records"):
                up = other[f"{name}_high"] - other[name]
                better += other[name] - row[name] + math.hypot(up, row[name] - row[f"{name}_low"]) < 0
            assert row["rank"] == 1 + better or name == "clip"
