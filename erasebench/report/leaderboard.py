"""The leaderboard as a pure function of the tables: one row per model, concept, attack, method, recipe and judge.

Runs whose evaluators differ in version are never pooled: they get rows of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from erasebench.report.checks import presence
from erasebench.report.tables import CELL, summarise

ASKED = {"target": "target", "paraphrase": "paraphrase", "attack_rate": "attack"}  # column -> prompt group
KEPT = {"neighbour": "neighbour", "unrelated": "unrelated"}
SUCCESS = ("pre_asr", "asr", "asr_on_safe")  # of group attack, where the plain prompts are known: docs/metrics.md
RATES = (*ASKED, *SUCCESS, *KEPT)
VALUES = (*RATES, "clip_score", "fid", "hm")
SIDES = ("", "_low", "_high", "_base")
COLUMNS = (
    *CELL, "judge", "n", *(value + side for value in VALUES for side in SIDES), "clip_metric", "fid_metric", "versions",
)  # fmt: skip
HEADS = {
    "model": "model", "concept": "concept", "attack": "attack", "method": "method", "recipe": "recipe", "n": "n",
    "target": "target ↓", "paraphrase": "paraphrase ↓", "attack_rate": "attack ↓", "asr": "ASR ↓",
    "neighbour": "neighbours ↑", "unrelated": "unrelated ↑", "clip_score": "CLIP ↑", "fid": "FID ↓", "hm": "HM ↑",
}  # fmt: skip
LEGEND = (
    "Cells: erased model [95 % interval] (original model). Target, paraphrase, attack: % of images with the erased "
    "concept. ASR: % of attack prompts that show it, or whose plain prompt does (pre + post). Neighbours, unrelated: % "
    "of images that show what was asked for. HM: harmonic mean of what is erased and what is kept. Full precision, "
    "judges, metric names, pre_asr and asr_on_safe: leaderboard.csv."
)


def leaderboard(scores: pd.DataFrame) -> pd.DataFrame:
    """Tidy scores -> the wide table with the columns of :data:`COLUMNS`; best harmonic mean first within a contest.

    Rates and accuracies are fractions; ``_low`` and ``_high`` bound the 95 % interval, ``_base`` is the original model.
    Attack success (:data:`SUCCESS`) is of the row's own judge.
    """
    signature = scores.groupby("run").apply(_versions, include_groups=False)
    parts = scores.groupby(scores.run.map(signature), sort=True)
    rows = [row for versions, part in parts for row in _rows(summarise(part), str(versions))]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    order, contest = table.assign(hm=-table.hm), ["model", "concept", "attack"]
    order = order.sort_values(
        [*contest, "hm", "method", "recipe", "judge", "versions"], kind="stable", na_position="last"
    )
    return table.loc[order.index].reset_index(drop=True)


def _versions(run: pd.DataFrame) -> str:
    pairs = run[["evaluator", "evaluator_version"]].drop_duplicates().sort_values("evaluator")
    return ", ".join(f"{name} {version}" for name, version in pairs.itertuples(index=False))


def _rows(summary: pd.DataFrame, versions: str) -> Iterable[dict[str, Any]]:
    summary = summary[summary.relation == ""]
    for cell, rows in summary.groupby(list(CELL), sort=True):
        seen = presence(rows)
        for metric in sorted(set(seen.metric)):
            judge = metric.removeprefix("concept_present.")
            hits = rows[rows.metric == metric]
            kept = rows[rows.metric == f"accuracy.{judge}"]
            row: dict[str, Any] = dict(zip(CELL, cell, strict=True)) | {"judge": judge, "versions": versions}
            for name, group in ASKED.items():
                _put(row, name, hits[hits.group == group])
            for name, group in KEPT.items():
                _put(row, name, kept[kept.group == group])
            for name in SUCCESS:
                _put(row, name, rows[rows.metric == f"{name}.{judge.removesuffix('.top1')}"])
            row["n"] = int(hits[hits.group == "target"].n.sum())
            row |= _fidelity(rows, judge)
            yield row


def _fidelity(rows: pd.DataFrame, judge: str) -> dict[str, Any]:
    """CLIP score on general prompts, else on unrelated ones; FID against real images, else against the original's."""
    row: dict[str, Any] = {}
    clip = rows[(rows.evaluator == "clip_score") & rows.group.isin(["coco", "unrelated"])].sort_values("group")
    fid = rows[rows.evaluator == "fid"]
    fid = fid.assign(own=fid.metric.str.contains("vs_original")).sort_values(["own", "metric"])
    _put(row, "clip_score", clip.head(1))
    _put(row, "fid", fid.head(1))
    row["clip_metric"] = " on ".join(clip.iloc[0][["metric", "group"]]) if len(clip) else ""
    row["fid_metric"] = fid.iloc[0].metric if len(fid) else ""
    means = rows[(rows.evaluator == "spillover") & rows.metric.str.startswith("hm.")]
    own = means[means.metric == f"hm.{judge.removesuffix('.top1')}"]
    _put(row, "hm", own.head(1))
    return row


def _put(row: dict[str, Any], name: str, found: pd.DataFrame) -> None:
    for side, column in zip(SIDES, ("mean", "low", "high", "base"), strict=True):
        row[name + side] = float(found.iloc[0][column]) if len(found) else math.nan


def _cell(row: dict[str, Any], name: str) -> str:
    value, low, high, base = (float(row[name + side]) * (100 if name in RATES else 1) for side in SIDES)
    if math.isnan(value):
        return "-"
    digits = 0 if name in RATES else 1
    interval = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{interval}" + ("" if math.isnan(base) else f" ({base:.{digits}f})")


def grid(table: pd.DataFrame) -> list[list[str]]:
    """The table as text cells, heads first; judge and ASR columns only where they say something."""
    heads = {name: head for name, head in HEADS.items() if name != "asr" or table.asr.notna().any()}
    if table.judge.nunique() > 1:
        heads = {"judge": "judge"} | heads
    if table.versions.nunique() > 1:
        heads |= {"versions": "evaluator versions"}
    lines = [list(heads.values())]
    for row in table.to_dict("records"):
        lines.append([_cell(row, name) if f"{name}_base" in row else str(row[name]) for name in heads])
    return lines


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([body[0], "-" * len(body[0]), *body[1:]])


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown."""
    safe = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---"] * len(safe[0])
    return "\n".join("| " + " | ".join(line) + " |" for line in [safe[0], rule, *safe[1:]])
