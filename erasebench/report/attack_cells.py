"""The summaries of attacked cells, all seeds of each pooled, from what is kept where they are many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from erasebench.report import units
from erasebench.report.cells import frame
from erasebench.report.codes import codes, firsts, plain, records
from erasebench.report.runs import Run
from erasebench.report.tables import CELL, read_coded, summarise

Rows = Sequence[Mapping[str, Any]]  # of a summary
Summary = tuple[dict[str, Any], tuple[Run, ...], Rows]  # of a cell: its names, its runs, its headlines


def summaries(found: Sequence[Run]) -> list[Summary]:
    """The cells of some runs in the order of these, with the headlines of target and attack prompts."""
    known = units.of_runs(found)
    said = units.said(known) if known is not None else None
    if known is None or said is None:
        return _cells(found, _unit(found))
    at = [i for i, one in enumerate(known.runs) if one.seen]
    return _cells(
        found, {"cells": known.cells.iloc[at][list(CELL)].assign(at=at)[["at", *CELL]], "rows": frame(said, "seen")}
    )


def _cells(found: Sequence[Run], part: Mapping[str, pd.DataFrame]) -> list[Summary]:
    runs, rows = dict[tuple[Any, ...], list[Run]](), dict[tuple[Any, ...], list[Mapping[str, Any]]]()
    for at, *cell in plain(part["cells"]).itertuples(index=False, name=None):
        runs.setdefault(tuple(cell), []).append(found[at])
    for row in records(part["rows"]):
        rows.setdefault(tuple(row[name] for name in CELL), []).append(row)
    return [(dict(zip(CELL, cell, strict=True)), tuple(own), rows.get(cell, [])) for cell, own in runs.items()]


def _unit(found: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Which run, by its place, is of which cell, and the summaries of all of them."""
    scores = read_coded([run.folder / "scores.parquet" for run in found], headlines=True)
    scores = scores[scores.group.isin(["target", "attack"])]
    first = firsts(codes(scores.assign(at=scores.index), ["at"]))
    cells = scores[list(CELL)].iloc[first].reset_index(names="at")
    order = np.argsort(cells["at"], kind="stable")
    summary = summarise(scores, apart=True)
    return {"cells": cells.iloc[order], "rows": summary[summary.relation == ""]}
