"""The leaderboard as a pure function of the tables: one row per cell and judge, one column per headline.

Which columns there are, in which order, direction and unit, is what the evaluators declared. Runs whose evaluators
differ in version are never pooled: they get rows of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import isnan, nan
from typing import Any

import pandas as pd

from erasebench.report.printing import number
from erasebench.report.tables import CELL, summarise

SIDES = {"": "mean", "_low": "low", "_high": "high", "_base": "base"}  # suffix of a column -> column of the summary
CONTEST = ("model", "concept", "attack", "budget", "strength", "settings")  # rows that are compared with one another
NAMES = ("model", "concept", "attack", "budget", "strength", "method", "recipe", "settings", "n")


@dataclass(frozen=True)
class Column:
    """A headline as a column: ``name`` in the CSV, ``head`` on the board, "" if it is in the CSV only."""

    name: str
    head: str
    labels: tuple[str, ...]
    unit: str
    role: str
    higher_is_better: bool | None

    @property
    def title(self) -> str:
        """``target ↓``."""
        return self.head if self.higher_is_better is None else f"{self.head} {'↑' if self.higher_is_better else '↓'}"


@dataclass(frozen=True)
class Board:
    """The wide table and what its columns are.

    The table has the names of the cell, ``judge``, ``n``, and for each column ``name``, ``name_low`` and ``name_high``
    (the 95 % interval), ``name_base`` (the original model) and ``name_metric``; last, the evaluators' versions.
    Rates are fractions; everything is in full precision.
    """

    table: pd.DataFrame
    columns: tuple[Column, ...]


def leaderboard(scores: pd.DataFrame) -> Board:
    """Tidy scores -> the board; best ``mean`` headline first within a contest, if there is one.

    What needs no judge (a similarity, a distance) stands in the row of every judge of its cell.
    """
    scores = scores[scores.place.notna()]
    run = scores.run.map(_versions(scores)) if len(scores) else scores.run
    parts = [(str(v), _headlines(summarise(part))) for v, part in scores.groupby(run, sort=True)]
    columns = _columns(pd.concat([part for _, part in parts])) if parts else ()
    rows = [row for versions, part in parts for row in _rows(part, versions)]
    wide = [column.name + side for column in columns for side in (*SIDES, "_metric")]
    table = pd.DataFrame(rows, columns=[*CELL, "judge", "n", *wide, "versions"])
    return Board(_ordered(table, columns), columns)


def _versions(scores: pd.DataFrame) -> dict[str, str]:
    """Run -> ``asr 1, classifier 1``."""
    pairs = scores[["run", "evaluator", "evaluator_version"]].drop_duplicates().sort_values(["run", "evaluator"])
    named: dict[str, list[str]] = {}
    for run, evaluator, version in pairs.itertuples(index=False):
        named.setdefault(run, []).append(f"{evaluator} {version}")
    return {run: ", ".join(names) for run, names in named.items()}


def _headlines(summary: pd.DataFrame) -> pd.DataFrame:
    """Whole groups only, each with the name of its column."""
    summary = summary[(summary.relation == "") & summary.place.notna()]
    titles = summary["head"].where(summary["head"] != "", summary.label)
    names = [_name(title, unit) for title, unit in zip(titles, summary.unit, strict=True)]
    return _in_place(summary.assign(column=names))


def _in_place(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(["place", "metric", "group"], kind="stable")


def _name(title: str, unit: str) -> str:
    """``HM`` -> ``hm``; what is the name of another column already is told from it: ``attack`` -> ``attack_rate``."""
    name = re.sub(r"\W+", "_", title.lower()).strip("_")
    return f"{name}_{'rate' if unit == '%' else 'value'}" if name in (*CELL, "judge", "n", "versions") else name


def _columns(headlines: pd.DataFrame) -> tuple[Column, ...]:
    found = []
    for name, rows in _in_place(headlines).groupby("column", sort=False):
        first, direction = rows.iloc[0], rows.higher_is_better.dropna()
        better = bool(direction.iloc[0]) if len(direction) else None
        labels = tuple(dict.fromkeys(rows.label[rows.label != ""]))
        found.append(Column(str(name), first["head"], labels, first.unit, first.role, better))
    return tuple(found)


def _rows(headlines: pd.DataFrame, versions: str) -> Iterator[dict[str, Any]]:
    def cell(one: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(one[name] for name in CELL)

    records = headlines.to_dict("records")
    for _, group in groupby(sorted(records, key=cell), key=cell):  # stable: each cell's stay in their places
        found = list(group)
        for judge in list(dict.fromkeys(one["judge"] for one in found if one["judge"])) or [""]:
            row = {name: found[0][name] for name in CELL} | {"judge": judge, "versions": versions}
            row["n"] = next(one["n"] for one in found if one["judge"] == judge)
            for one in found:
                if one["judge"] in (judge, "") and f"{one['column']}_metric" not in row:  # the smallest place
                    row |= {one["column"] + side: one[source] for side, source in SIDES.items()}
                    row[f"{one['column']}_metric"] = f"{one['metric']} on {one['group']}"
            yield row


def _ordered(table: pd.DataFrame, columns: Iterable[Column]) -> pd.DataFrame:
    """By contest, in it by the mean headline, best first, then by name."""
    best = next((c for c in columns if c.role == "mean"), None)
    key = 0 if best is None else table[best.name] * (-1 if best.higher_is_better else 1)
    by = [*CONTEST, "_best", "method", "recipe", "judge", "versions"]
    order = table.assign(_best=key).sort_values(by, kind="stable", na_position="last").index
    return table.loc[order].reset_index(drop=True)


def grid(board: Board) -> list[list[str]]:
    """The board as text cells, heads first; a name's column only where it says something."""
    table = board.table
    shown = [name for name in NAMES if _says(table, name)]
    if table.judge.nunique() > 1:
        shown = ["judge", *shown]
    heads = [c for c in board.columns if c.head and table[c.name].notna().any()]
    more = ["versions"] if table.versions.nunique() > 1 else []
    lines = [[*shown, *(c.title for c in heads), *("evaluator versions" for _ in more)]]
    for row in table.to_dict("records"):
        lines.append([*(str(row[name]) for name in shown), *(_cell(row, c) for c in heads), *(row[m] for m in more)])
    return lines


def _says(table: pd.DataFrame, name: str) -> bool:
    """Settings and budget are shown where one is not the usual."""
    usual = {"settings": ("",), "budget": ("", "paper")}.get(name)
    return usual is None or not table[name].isin(usual).all()


def _cell(row: Mapping[str, Any], column: Column) -> str:
    value, low, high, base = (float(row[column.name + side]) for side in SIDES)
    shown = number(value, low, high, column.unit)
    return shown if isnan(value) or isnan(base) else f"{shown} ({number(base, nan, nan, column.unit)})"


def legend(board: Board) -> str:
    """What cells and columns are, in the evaluators' own words."""
    told = []
    for column in board.columns:
        if column.head and column.labels:
            labels = column.labels if len(column.labels) < 3 else (column.labels[0], "...")
            told.append(f"{column.head}: {' or '.join(labels)}{', %' if column.unit else ''}")
    return (
        f"Cells: erased model [95 % interval] (original model). {'; '.join(told)}. Full precision, judges, metrics and "
        "what is not shown here: leaderboard.csv."
    )
