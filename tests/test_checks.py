"""Flags are raised for the doubt they name, and for nothing else."""

from __future__ import annotations

import math

import pandas as pd

from erasebench.checks import flags
from erasebench.tables import scores_frame, summarise
from erasebench.types import Score


def cell(rates, *, n=60, failed=0, method="uce", attack="ringabell", metric="concept_present.j.top1", whole=None):
    """Scores of one cell from group -> (erased rate, original rate)."""
    parts = []
    for side, at in (("erased", 0), ("original", 1)):
        rows = [
            Score(
                evaluator="classifier", metric=metric if group in ("target", "attack") else "accuracy.j.top1",
                value=math.nan if i < failed else float(i < round(pair[at] * n)), group=group, prompt_id=f"{group}-{i}",
                status="nan" if i < failed else "ok",
            )
            for group, pair in rates.items() for i in range(n)
        ]  # fmt: skip
        parts.append(
            scores_frame(
                [*rows, *(whole or [])], run=f"{method}/{attack}", model="emoji", concept="cat", method=method,
                recipe="paper", attack=attack, access="text_encoder", side=side, versions={"classifier": 1, "fid": 1},
            )
        )  # fmt: skip
    return pd.concat(parts)


GOOD = {"target": (0.05, 0.98), "attack": (0.4, 0.9), "unrelated": (0.95, 0.97), "neighbour": (0.8, 0.97)}


def names(scores):
    return [flag["flag"] for flag in flags(scores)]


def test_a_sound_cell_raises_nothing():
    assert flags(cell(GOOD)) == []


def test_each_doubt_has_its_flag():
    assert names(cell(GOOD | {"target": (0.05, 0.7)})) == ["base_unseen"]
    assert names(cell(GOOD, n=40)) == ["few_prompts"]
    assert names(cell(GOOD | {"attack": (0.05, 0.9)})) == ["attack_no_better"]
    assert names(cell(GOOD | {"unrelated": (0.8, 0.97)})) == ["wrecked"]
    assert names(cell(GOOD, n=100, failed=2)) == ["failed_images"]
    broken = Score(evaluator="fid", metric="fid.n1", value=math.nan, group="kept", status="error")
    assert names(cell(GOOD, whole=[broken])) == ["failed_metric"]


def test_a_flag_says_what_was_seen_and_what_to_do():
    (flag,) = flags(cell(GOOD | {"unrelated": (0.8, 0.95)}))
    assert (
        flag["level"] == "error"
        and flag["message"] == "accuracy on unrelated concepts fell from 95% to 80% (accuracy.j.top1)."
    )
    assert flag["what_to_do"]
    (flag,) = flags(cell(GOOD, n=100, failed=2))
    assert "8 erased nan, 8 original nan" in flag["message"]


def test_no_attack_and_no_erasure_are_no_doubt_about_the_attack():
    assert names(cell(GOOD | {"target": (0.98, 0.98), "attack": (0.9, 0.9)}, method="none")) == []
    assert names(cell(GOOD | {"attack": (0.0, 0.9)}, attack="none")) == []


def test_nudenet_speaks_where_no_classifier_does():
    metric = "nudenet.v3_4_320n.path_bgr.any@0.6"
    rates = {"target": (0.05, 0.5), "attack": (0.4, 0.9)}
    assert names(cell(rates, metric=metric)) == ["base_unseen"]
    assert names(cell(rates, metric="nudenet.v3_4_320n.path_bgr.any@0.7")) == []


def test_several_cells_are_told_apart_and_a_stored_summary_will_do(tmp_path):
    scores = pd.concat([cell(GOOD, n=40), cell(GOOD, method="rece", n=40)])
    found = flags(scores)
    assert [f["message"].split(":")[0] for f in found] == [
        "emoji/cat/rece/paper/ringabell",
        "emoji/cat/uce/paper/ringabell",
    ]
    summarise(scores).to_csv(tmp_path / "summary.csv", index=False)
    assert flags(scores, pd.read_csv(tmp_path / "summary.csv")) == found


def test_an_empty_table_has_no_flags():
    assert flags(cell({})) == []
