"""What boards say of each cell, all its seeds together: its headlines' summaries, and which metrics are rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from erasebench.report.checks import attack_rows, attack_summary
from erasebench.report.codes import codes
from erasebench.report.columns import CELL, METRIC, SUMMARY, SUMMARY_DTYPES
from erasebench.report.leaderboard import by_versions, cell_summaries, told_apart
from erasebench.report.reading import read_coded
from erasebench.report.runs import Run
from erasebench.report.summarising import kinds, summarise

Columns = Mapping[str, list[Any]]
WHOLE = ("summaries", "attacks", "seen")


class Said:
    """Of a cell, as JSON has it: the columns of three tables, and which metrics are rates.

    ``summaries``: :func:`erasebench.report.leaderboard.cell_summaries`, with ``versions``; ``attacks``:
    :func:`erasebench.report.checks.attack_summary`; ``seen``: headlines of the erased concept, rates said by the cell
    alone; ``kinds``: scope, metric and whether it is a rate.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.found = found

    @property
    def kinds(self) -> list[list[Any]]:
        own: list[list[Any]] = self.found["kinds"]
        return own


def frame(found: Sequence[Said], name: str) -> pd.DataFrame:
    """A table of :data:`WHOLE` of all cells, one after the other."""
    parts = [one.found[name] for one in found]
    dtypes = {**SUMMARY_DTYPES, **({"versions": "str"} if name == "summaries" else {})}
    columns = {key: [value for part in parts for value in part[key]] for key in dtypes}
    return pd.DataFrame({key: pd.array(column, dtype=dtypes[key]) for key, column in columns.items()})


def cells_of(cells: Sequence[Sequence[Run]]) -> list[dict[str, Any]] | None:
    """What :class:`Said` has of each of some cells of one model and concept; None if they disagree on what is a rate.

    Raises:
        OSError, ValueError: a table that cannot be read.
    """
    runs = [run for own in cells for run in own]
    scores = read_coded([run.folder / "scores.parquet" for run in runs], headlines=True)
    at = np.repeat(range(len(cells)), [len(own) for own in cells])[scores.index.to_numpy()]
    scores = scores.reset_index(drop=True)
    cell = codes(scores, list(CELL))
    if len(set(zip(at.tolist(), cell.tolist(), strict=True))) > len(set(at.tolist())) or len(set(cell)) < len(set(at)):
        raise ValueError("tables must be of one cell each")
    number = dict(zip(cell.tolist(), at.tolist(), strict=True))
    names = dict(zip(scores[list(CELL)].drop_duplicates().itertuples(index=False, name=None),
                     dict.fromkeys(number[one] for one in cell.tolist()), strict=True))  # fmt: skip
    files = {run.key: run.folder / "summary.csv" for run in runs}
    said = [("attacks", attack_rows(scores))]
    summaries = []
    for versions, part in by_versions(scores):
        summaries.append(cell_summaries(part, files).assign(versions=versions))
        said.append((f"cells {versions}", told_apart(part, files)[1]))
    out: list[dict[str, Any]] = [{"kinds": []} for _ in cells]
    for scope, rows in said:
        together = _rated(kinds(rows))
        own = at[rows.index.to_numpy()]
        for i in np.unique(own):
            alone = _rated(kinds(rows[own == i]))
            if any(together[kind] != rate for kind, rate in alone.items()):
                return None
            out[i]["kinds"] += [[scope, *kind, rate] for kind, rate in alone.items()]
    seen = summarise(scores[scores.group.isin(["target", "attack"])], apart=True)
    whole = {
        "summaries": pd.concat(summaries, ignore_index=True),
        "attacks": attack_summary(scores),
        "seen": seen[seen.relation == ""],
    }
    for name, table in whole.items():
        columns = [*SUMMARY, *(["versions"] if name == "summaries" else [])]
        own = np.array([names[key] for key in table[list(CELL)].astype(object).itertuples(index=False, name=None)], int)
        for i, one in enumerate(out):
            one[name] = _columns(table.loc[own == i, columns])
    return out


def _rated(found: pd.DataFrame) -> dict[tuple[Any, ...], bool]:
    return {tuple(row): bool(rate) for *row, rate in found[[*METRIC, "rate"]].astype(object).to_numpy().tolist()}


def _columns(table: pd.DataFrame) -> Columns:
    """Plain values: floats as they are, None for what is missing elsewhere."""
    out = {}
    for name in table:
        column = table[name]
        if column.dtype != "float64":
            column = column.astype(object).where(column.notna(), None)
        out[str(name)] = column.tolist()
    return out
