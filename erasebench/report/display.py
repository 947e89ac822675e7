"""What a run says at its end: one table for the eye, the flags, and where everything lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from erasebench.report.printing import as_text, number, too_few
from erasebench.report.tables import METRIC


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
        *([f"judge   {judge['name']}: {judge['about']}"] if (judge := record.get("judge")) else []),
        f"grid    {result.folder / 'grid.png'}",
        f"tables  {result.folder}/{{scores.parquet, summary.csv, run.json}}",
    ]
    return "\n".join(lines)


def table(summary: pd.DataFrame) -> list[str]:
    """Lines of the table: original, erased and attacked model, each with its 95 % interval.

    ``clusters`` are the distinct texts, searches, words or concepts among the n images: intervals go by them.

    Every headline with a label is a row, in the order of their places: first those of the run's own judge and those
    without one, then each further judge's.
    """
    rows = [["", "n", "clusters", "original model", "erased model", "under attack"]]
    whole = summary[(summary.relation == "") & (summary.label != "")]
    known: set[str] = set()
    for judge, part in _by_judge(whole):
        if known & set(part.label):  # the same rows in other eyes
            rows.append([f"by {judge}:", "", "", "", "", ""])
        known |= set(part.label)
        for row in part.to_dict("records"):
            rows.append(_row(row, summary))
            if row["role"] == "kept":
                rows += _relations(row, summary)
    return as_text(rows, rule=False).split("\n")


def _by_judge(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The judges' rows, the one with the smallest place first together with what needs no judge."""
    rows = rows.sort_values(["place", "metric"], kind="stable")
    judges = list(dict.fromkeys(rows.judge[rows.judge != ""])) or [""]
    yield judges[0], rows[rows.judge.isin([judges[0], ""])]
    for judge in judges[1:]:
        yield judge, rows[rows.judge == judge]


def _row(row: Mapping[str, Any], summary: pd.DataFrame) -> list[str]:
    """A headline: an attack's numbers stand under the attack, and so does the attacked side of a target's presence."""
    unit, attack = row["unit"], row["group"] == "attack"
    under = _cell(row, "mean", unit) if attack else ""
    if row["role"] == "present" and row["group"] == "target":
        beside = _matching(summary, row, group="attack", relation="").to_dict("records")
        under = _cell(beside[0], "mean", unit) if beside else ""
    counts = ["" if row["role"] == "mean" else str(row["n"]), str(row["clusters"])]
    if row["role"] in ("distance", "mean"):  # of sets of images
        counts[1] = ""
    return [row["label"], *counts, _cell(row, "base", unit), "" if attack else _cell(row, "mean", unit), under]


def _relations(row: Mapping[str, Any], summary: pd.DataFrame) -> list[list[str]]:
    part = _matching(summary, row, group=row["group"])
    return [
        [
            f"  {r['relation']}",
            str(r["n"]),
            str(r["clusters"]),
            _cell(r, "base", r["unit"]),
            _cell(r, "mean", r["unit"]),
            "",
        ]
        for r in part[~part.relation.isin(["", row["group"]])].to_dict("records")
    ]


def _matching(summary: pd.DataFrame, row: Mapping[str, Any], **where: str) -> pd.DataFrame:
    """Rows of the same metric and judge elsewhere."""
    for name, value in ({name: row[name] for name in METRIC} | where).items():
        summary = summary[summary[name] == value]
    return summary


def _cell(row: Mapping[str, Any], side: str, unit: str) -> str:
    """Value and interval, e.g. ``96.0 % [86.5, 98.9]``."""
    low, high = ("low", "high") if side == "mean" else (f"{side}_low", f"{side}_high")
    shown = number(row[side], row[low], row[high], unit, digits=1, few=too_few(row))
    value, bracket, interval = shown.partition(" [")
    return "none" if value == "-" else f"{value}{' %' if unit == '%' else ''}{bracket}{interval}"
