"""The tables of README and docs/methods.md: methods with what they keep, and what the erase step cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from erasebench.report.codes import records
from erasebench.report.printing import number, too_few
from erasebench.report.runs import NOTHING, Run, method_names
from erasebench.report.tables import read_summaries

ROLES = ("present", "kept", "similarity", "distance", "likeness")  # of the headlines that are columns
Row = Mapping[str, Any]  # of a summary


def methods(found: Sequence[Run], wanted: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """One row per run, the original model's before the first of each concept; a column for each head.

    Column ``clusters``: of each group with fewer clusters than images, in the order of the columns, how many there are
    (distinct texts, searches, words, concepts), by which the intervals go; not said again where they are the same.
    """
    named = method_names(found)
    chosen = [run for run in found if run.is_(wanted)]
    together = _headlines(read_summaries([run.folder / "summary.csv" for run in chosen])) if chosen else pd.DataFrame()
    heads = list(dict.fromkeys(together.sort_values("place", kind="stable")["head"])) if chosen else []
    of: dict[int, list[Row]] = {}
    for place, row in zip(together.index, records(together), strict=True):
        of.setdefault(int(place), []).append(row)
    lines = [["concept", "method", "n", "clusters", *heads]]
    seen: dict[str, str] = {}  # concept -> the clusters of its first row
    for place, run in enumerate(chosen):
        concept, rows = run.names["concept"], {row["head"]: row for row in of.get(place, [])}
        n = str(max((int(row["n"]) for row in rows.values() if row["group"] == "target"), default="-"))
        shared = _clusters(rows.values())
        if concept not in seen:
            seen[concept] = shared
            lines.append([concept, "*original model*", n, shared, *(_value(rows, head, "base") for head in heads)])
        if run.names["method"] != NOTHING:
            said = "" if shared == seen[concept] else shared
            lines.append([concept, named[run.key], n, said, *(_value(rows, head, "mean") for head in heads)])
    return lines


def _clusters(rows: Iterable[Row]) -> str:
    """``paraphrase 2, neighbour 5``: the groups whose images share texts, words or concepts."""
    shared: dict[str, int] = {}
    for row in rows:
        if row["clusters"] < row["n"] and row["group"] != "kept":
            shared.setdefault(row["group"], row["clusters"])
    return ", ".join(f"{group} {clusters}" for group, clusters in shared.items())


def _headlines(summary: pd.DataFrame) -> pd.DataFrame:
    """Each run's own judge's headlines with a head, and those without a judge, the first of each head, in places."""
    rows = summary[(summary.relation == "") & (summary["head"] != "") & summary.role.isin(ROLES)]
    rows = rows.rename_axis("run").reset_index().sort_values(["run", "place", "metric"], kind="stable")
    judges = rows[rows.judge != ""].drop_duplicates("run").set_index("run").judge
    own = rows[(rows.judge == "") | (rows.judge == rows.run.map(judges))]
    return own.drop_duplicates(["run", "head"]).set_index("run")


def _value(rows: Mapping[str, Row], head: str, side: str) -> str:
    if head not in rows:
        return "-"
    row, (low, high) = rows[head], ("low", "high") if side == "mean" else (f"{side}_low", f"{side}_high")
    return number(row[side], row[low], row[high], row["unit"], few=too_few(row))


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
