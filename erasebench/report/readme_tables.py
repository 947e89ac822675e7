"""The tables of README and docs/methods.md: methods with what they keep, and what the erase step cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from erasebench.report.printing import number, too_few
from erasebench.report.runs import NOTHING, Run, method_names
from erasebench.report.tables import read_summary

ROLES = ("present", "kept", "similarity", "distance", "likeness")  # of the headlines that are columns


def methods(found: Sequence[Run], wanted: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """One row per run, the original model's before the first of each concept; a column for each head.

    Column ``clusters``: of each group with fewer clusters than images, in the order of the columns, how many there are
    (distinct texts, searches, words, concepts), by which the intervals go; not said again where they are the same.
    """
    named = method_names(found)
    chosen = [(run, _headlines(read_summary(run.folder / "summary.csv"))) for run in found if run.is_(wanted)]
    together = pd.concat([rows for _, rows in chosen]) if chosen else pd.DataFrame(columns=["head", "place"])
    heads = list(dict.fromkeys(together.sort_values("place", kind="stable")["head"]))
    lines = [["concept", "method", "n", "clusters", *heads]]
    seen: dict[str, str] = {}  # concept -> the clusters of its first row
    for run, rows in chosen:
        concept = run.names["concept"]
        n = str(int(rows.n[rows.group == "target"].max())) if (rows.group == "target").any() else "-"
        shared = _clusters(rows, heads)
        if concept not in seen:
            seen[concept] = shared
            lines.append([concept, "*original model*", n, shared, *(_value(rows, head, "base") for head in heads)])
        if run.names["method"] != NOTHING:
            said = "" if shared == seen[concept] else shared
            lines.append([concept, named[run.key], n, said, *(_value(rows, head, "mean") for head in heads)])
    return lines


def _clusters(rows: pd.DataFrame, heads: Sequence[str]) -> str:
    """``paraphrase 2, neighbour 5``: the groups whose images share texts, words or concepts."""
    shared = rows[rows["head"].isin(heads) & (rows.clusters < rows.n) & (rows.group != "kept")]
    shared = shared.sort_values("place", kind="stable").drop_duplicates("group")
    return ", ".join(f"{row.group} {row.clusters}" for row in shared.itertuples())


def _headlines(summary: pd.DataFrame) -> pd.DataFrame:
    """The run's own judge's headlines with a head, and those without a judge, the first of each head."""
    rows = summary[(summary.relation == "") & (summary["head"] != "") & summary.role.isin(ROLES)]
    rows = rows.sort_values(["place", "metric"], kind="stable")
    judges = rows.judge[rows.judge != ""]
    return rows[rows.judge.isin(["", *judges[:1]])].drop_duplicates("head")


def _value(rows: pd.DataFrame, head: str, side: str) -> str:
    rows = rows[rows["head"] == head]
    if not len(rows):
        return "-"
    row, (low, high) = rows.iloc[0], ("low", "high") if side == "mean" else (f"{side}_low", f"{side}_high")
    return number(row[side], row[low], row[high], row.unit, few=too_few(row))


def cost(found: Sequence[Run], wanted: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """What the erase step of each run took."""
    named = method_names(found)
    lines = [["method", "concept", "seconds", "peak MB", "UNet evaluations", "of them with gradient", "stored bytes"]]
    keys = ("seconds", "peak_rss_mb", "unet_evaluations", "unet_with_gradient_evaluations")
    for run in found:
        if run.is_(wanted) and run.names["method"] != NOTHING:
            erase = run.record["steps"].get("erase", {})
            spent = erase.get("cost", {})
            lines.append(
                [named[run.key], run.names["concept"], *(str(spent.get(k, "-")) for k in keys), str(erase.get("bytes"))]
            )
    return lines
