"""The summaries of attacked cells, all seeds of each pooled, a concept at a time where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from erasebench.report import units
from erasebench.report.runs import Run
from erasebench.report.tables import CELL, read_scores, summarise

Summary = tuple[dict[str, Any], tuple[Run, ...], pd.DataFrame]  # of a cell: its names, its runs, its headlines


def summaries(found: Sequence[Run]) -> list[Summary]:
    """The cells of some runs in the order of these, a concept at a time where they are many."""
    known = units.of_runs(found)
    parts = units.derived(known, "attacks", _unit) if known is not None else None
    if parts is None:
        return _of_cells(found)
    by_key, out = {run.key: run for run in found}, []
    for part in parts:
        cells, rows = units.plain(part["cells"]), units.plain(part["rows"])
        own = dict(iter(rows.groupby("cell", sort=False)))
        for one, these in cells.groupby("cell", sort=False):
            names = {name: these.iloc[0][name] for name in CELL}
            summary = own[one].drop(columns="cell").set_axis(own[one]["at"]).drop(columns="at")
            out.append((names, tuple(by_key[run] for run in these.run), summary))
    place = {run.key: i for i, run in enumerate(found)}
    return sorted(out, key=lambda one: place[one[1][0].key])


def _unit(found: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """:func:`_of_cells` as frames: which runs are of which cell, and the rows of all, with the cell's number."""
    parts = _of_cells(found)
    if not parts:
        raise ValueError("tables must have rows of target or attack prompts")
    cells = [{"cell": i, "run": run.key, **names} for i, (names, runs, _) in enumerate(parts) for run in runs]
    words = {name: "str" for name in ("run", *CELL) if name != "control"}
    rows = [rows.assign(cell=i, at=rows.index) for i, (*_, rows) in enumerate(parts)]
    return {"cells": pd.DataFrame(cells).astype(words), "rows": pd.concat(rows, ignore_index=True)}


def _of_cells(found: Sequence[Run]) -> list[Summary]:
    grouped: dict[tuple[Any, ...], list[tuple[Run, pd.DataFrame]]] = {}
    for run in found:
        scores = read_scores(run.folder / "scores.parquet", headlines=True)
        scores = scores[scores.group.isin(["target", "attack"])]
        if len(scores):
            grouped.setdefault(tuple(scores.iloc[0][list(CELL)]), []).append((run, scores))
    out = []
    for cell, parts in grouped.items():
        runs, scores = zip(*parts, strict=True)
        summary = summarise(pd.concat(scores))
        out.append((dict(zip(CELL, cell, strict=True)), runs, summary[summary.relation == ""]))
    return out
