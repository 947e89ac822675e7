"""What a run says at its end: one table for the eye, the flags, and where everything lies."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

ROWS = (  # group, metric prefix, label, unit
    ("target", "concept_present.", "concept drawn: its name", "%"),
    ("paraphrase", "concept_present.", "concept drawn: synonyms", "%"),
    ("attack", "concept_present.", "concept drawn: attack prompts", "%"),
    ("neighbour", "accuracy.", "neighbours still drawn", "%"),
    ("unrelated", "accuracy.", "unrelated still drawn", "%"),
    ("coco", "accuracy.", "general prompts still drawn", "%"),
    ("target", "clip_score.", "CLIP score, its name", ""),
    ("neighbour", "clip_score.", "CLIP score, neighbours", ""),
    ("unrelated", "clip_score.", "CLIP score, unrelated", ""),
)


def closing(result: Any) -> str:
    """The closing text of a run.

    Args:
        result: an ``erasebench.one_run.Result``.
    """
    record, summary = result.record, result.summary
    names = record["identity"]["names"]
    steps = record["steps"]
    cost = ", ".join(f"{k} {v['seconds']:.0f}{' (stored)' if v.get('cached') else ''}" for k, v in steps.items())
    total = sum(v["seconds"] for v in steps.values())
    head = f"{names['concept']} erased by {names['method']} ({names['recipe']}) from {names['model']}"
    head += f", attack {names['attack']} ({names['budget']}), seed {record['config']['seed']}"
    when = "all steps stored: nothing was computed" if result.cached else f"{total:.0f} s: {cost}"
    lines = ["", head, when, "", *table(summary), ""]
    lines += [f"! {flag['flag']}: {flag['message']} {flag['what_to_do']}" for flag in record["flags"]]
    lines += [
        f"grid    {result.folder / 'grid.png'}",
        f"tables  {result.folder}/{{scores.parquet, summary.csv, run.json}}",
    ]
    return "\n".join(lines)


Row = tuple[str, ...]


def table(summary: pd.DataFrame) -> list[str]:
    """Lines of the table: original, erased and attacked model, each with its 95 % interval."""
    rows: list[Row] = [("", "n", "original model", "erased model", "under attack")]
    whole = summary[summary.relation.fillna("") == ""]
    attacked = _find(whole, "attack", "concept_present.")
    for group, prefix, label, unit in ROWS:
        if (row := _find(whole, group, prefix)) is not None:
            hit = group == "attack"
            under = (
                _cell(attacked, "mean", unit)
                if attacked is not None and (hit or (group, unit) == ("target", "%"))
                else ""
            )
            rows.append(
                (label, str(row["n"]), _cell(row, "base", unit), "" if hit else _cell(row, "mean", unit), under)
            )
            if group == "neighbour" and unit:
                rows += _relations(summary, prefix, unit)
    for row in whole[whole.evaluator.isin(["fid", "spillover"])].to_dict("records"):
        if (
            row["metric"].startswith("fid")
            or "harmonic" in row["metric"]
            or row["metric"].startswith(("hm", "spillover.hm"))
        ):
            rows.append((row["metric"], "", _cell(row, "base", ""), _cell(row, "mean", ""), ""))
    rows += _success(whole) + _nudenet(whole)
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    return [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))).rstrip()
        for r in rows
    ]


def _relations(summary: pd.DataFrame, prefix: str, unit: str) -> list[tuple[str, ...]]:
    part = summary[
        (summary.group == "neighbour") & summary.metric.str.startswith(prefix) & (summary.relation.fillna("") != "")
    ]
    return [
        (f"  {r['relation']}", str(r["n"]), _cell(r, "base", unit), _cell(r, "mean", unit), "")
        for r in part.to_dict("records")
    ]


def _success(whole: pd.DataFrame) -> list[Row]:
    """The attack success rates that need the plain prompts; the attack's plain rate is among ROWS."""
    labels = {"pre_asr.": "pre-ASR: plain prompts", "asr.": "ASR: pre + post", "asr_on_safe.": "ASR on safe prompts"}
    found = [(label, _find(whole, "attack", prefix)) for prefix, label in labels.items()]
    return [
        (label, str(row["n"]), _cell(row, "base", "%"), "", _cell(row, "mean", "%"))
        for label, row in found
        if row is not None
    ]


def _nudenet(whole: pd.DataFrame) -> list[tuple[str, ...]]:
    out: list[Row] = []
    part = whole[(whole.evaluator == "nudenet") & whole.metric.str.endswith("any@0.6")]
    attacked = next((r for r in part.to_dict("records") if r["group"] == "attack"), None)
    for row in part.to_dict("records"):
        if row["group"] == "target":
            under = _cell(attacked, "mean", "%") if attacked is not None else ""
            out.append(
                ("NudeNet: any exposed @0.6", str(row["n"]), _cell(row, "base", "%"), _cell(row, "mean", "%"), under)
            )
    return out


def _find(summary: pd.DataFrame, group: str, prefix: str) -> dict[str, Any] | None:
    part = summary[(summary.group == group) & summary.metric.str.startswith(prefix)].to_dict("records")
    return part[0] if part else None


def _cell(row: Any, side: str, unit: str) -> str:
    """Value and interval, e.g. ``96.0 % [86.5, 98.9]``."""
    low, high = ("low", "high") if side == "mean" else (f"{side}_low", f"{side}_high")
    scale = 100 if unit == "%" else 1
    numbers = [float(row[k]) * scale for k in (side, low, high)]
    if math.isnan(numbers[0]):
        return "none"
    text = f"{numbers[0]:.1f}{' %' if unit == '%' else ''}"
    return text if math.isnan(numbers[1]) else f"{text} [{numbers[1]:.1f}, {numbers[2]:.1f}]"
