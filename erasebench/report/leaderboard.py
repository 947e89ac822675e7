"""The leaderboard as a pure function of the tables: one row per cell and judge, one column per headline.

Contests are ranked with ties. Which columns there are, in which order, direction and unit, is what the evaluators
declared. Runs whose evaluators differ in version are never pooled: they get rows of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import isnan, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from erasebench.report.checks import difference
from erasebench.report.codes import records
from erasebench.report.printing import number, too_few
from erasebench.report.tables import CELL, read_summaries, summarise

SIDES = {
    "": "mean",
    "_low": "low",
    "_high": "high",
    "_base": "base",
    "_n": "n",
    "_few": "_few",
}  # suffix of a column -> column of the summary
OWN = ("judge", "rank", "ranked_by", "n", "clusters", "resolves")  # of a row, beside its cell and its columns
CONTEST = ("model", "concept", "attack", "budget", "strength", "settings")  # rows that are compared with one another
NAMES = (
    "model", "concept", "attack", "budget", "strength", "rank", "method", "recipe", "settings", "n", "clusters",
)  # fmt: skip


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

    The table has the names of the cell, ``judge``, ``rank``, the row's own headline (``ranked_by``, its ``n``,
    ``clusters`` and ``resolves``, the smallest difference between two such rows that their intervals tell apart), and
    for each column ``name``, ``name_low`` and ``name_high`` (the 95 % interval), ``name_base`` (the original model),
    ``name_n``, ``name_few`` (too few clusters for an interval) and ``name_metric``; last, the evaluators' versions.
    Rates are fractions; everything is in full precision.
    """

    table: pd.DataFrame
    columns: tuple[Column, ...]


def leaderboard(scores: pd.DataFrame, files: Mapping[str, Path] | None = None) -> Board:
    """Tidy scores -> the board; in a contest the best first by its own headline: the attack's rate, else the target's.

    A row's rank is one more than the number of rows of its contest and judge that are shown to be better (the 95 %
    interval of the difference of the two, by cluster, leaves out 0); rows that nothing tells apart share it. Without
    rates of the erased concept the ``mean`` headline ranks, else the first there is.
    What needs no judge (a similarity, a distance) stands in the row of every judge of its cell.

    Args:
        scores: headline rows.
        files: run -> its ``summary.csv``, where there is one; cells of one run are not summarised again.
    """
    scores = scores if scores.place.notna().all() else scores[scores.place.notna()]
    return board_of([(v, cell_summaries(part, files or {})) for v, part in by_versions(scores)])


def by_versions(scores: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of runs whose evaluators have the same versions, with these."""
    run = scores.run.astype("str").map(_versions(scores)) if len(scores) else scores.run
    return [(str(v), part) for v, part in scores.groupby(run, sort=True)]


def board_of(summaries: Iterable[tuple[str, pd.DataFrame]]) -> Board:
    """:func:`leaderboard` of the summaries of runs with each versions of evaluators."""
    parts = [(versions, _headlines(summary)) for versions, summary in summaries]
    columns = _columns(pd.concat([part for _, part in parts])) if parts else ()
    rows = [row for versions, part in parts for row in _rows(part, versions)]
    wide = [column.name + side for column in columns for side in (*SIDES, "_metric")]
    table = pd.DataFrame(rows, columns=[*CELL, *OWN, *wide, "versions"])
    return Board(_ordered(table, columns), columns)


def cell_summaries(scores: pd.DataFrame, files: Mapping[str, Path]) -> pd.DataFrame:
    """The summary of some runs: what is known of a cell's only run, else summarised from its scores."""
    told, rest = told_apart(scores, files)
    known = [read_summaries([files[run] for run in told])] if told else []
    return pd.concat([*known, *([summarise(rest)] if len(rest) else [])], ignore_index=True)


def told_apart(scores: pd.DataFrame, files: Mapping[str, Path]) -> tuple[list[str], pd.DataFrame]:
    """The runs whose own summary is that of their cell, and the rows of the others."""
    cells = scores[["run", *CELL]].drop_duplicates()
    alone = cells.groupby(list(CELL)).run.transform("size") == 1
    told = [run for run in cells.run[alone] if run in files]
    return told, scores[~scores.run.isin(told)] if told else scores


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
    counts = (summary[name].tolist() for name in ("n", "clusters", "trainings"))
    few = [too_few({"n": n, "clusters": k, "trainings": t}) for n, k, t in zip(*counts, strict=True)]
    return _in_place(summary.assign(column=names, _few=few))


def _in_place(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(["place", "metric", "group"], kind="stable")


def _name(title: str, unit: str) -> str:
    """``HM`` -> ``hm``; what is the name of another column already is told from it: ``attack`` -> ``attack_rate``."""
    name = re.sub(r"\W+", "_", title.lower()).strip("_")
    return f"{name}_{'rate' if unit == '%' else 'value'}" if name in (*CELL, *OWN, "versions") else name


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

    for _, group in groupby(sorted(records(headlines), key=cell), key=cell):  # stable: each cell's stay in their places
        found = list(group)
        for judge in list(dict.fromkeys(one["judge"] for one in found if one["judge"])) or [""]:
            row = {name: found[0][name] for name in CELL} | {"judge": judge, "versions": versions}
            row |= _own([one for one in found if one["judge"] in (judge, "")])
            for one in found:
                if one["judge"] in (judge, "") and f"{one['column']}_metric" not in row:  # the smallest place
                    row |= {one["column"] + side: one[source] for side, source in SIDES.items()}
                    row[f"{one['column']}_metric"] = f"{one['metric']} on {one['group']}"
            yield row


def _own(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a row is ranked by, of how many images and clusters, and the smallest difference it can show."""
    order = {"attack": 0, "target": 1}
    found = list(found)
    present = [one for one in found if one["role"] == "present" and one["group"] in order and one["n"]]
    means = [one for one in found if one["role"] == "mean"]
    judged = [one for one in found if one["judge"]] or found
    own = min(present, key=lambda one: order[one["group"]], default=(means or judged)[0])
    margin = max(own["mean"] - own["low"], own["high"] - own["mean"])
    return {"ranked_by": own["column"], "n": own["n"], "clusters": own["clusters"], "resolves": 2**0.5 * margin}


def _ordered(table: pd.DataFrame, columns: Iterable[Column]) -> pd.DataFrame:
    """By contest and judge, in it by rank, then by name."""
    directions = {c.name: -1 if c.higher_is_better else 1 for c in columns}
    signs = table.ranked_by.map(directions)
    own = [[row[row["ranked_by"] + side] for side in ("", "_low", "_high")] for row in records(table)]
    values = [value for value, *_ in own]
    table = table.assign(_value=pd.Series(values, index=table.index, dtype=float) * signs)
    ranks = dict[int, int]()
    for part in table.groupby([*CONTEST, "judge", "ranked_by"], sort=False).indices.values():
        rows = [SimpleNamespace(**dict(zip(("mean", "low", "high"), own[i], strict=True))) for i in part]
        sign = signs.iloc[part[0]] if len(part) else 1
        ranks |= {i: 1 + sum(_better(other, row, sign) for other in rows) for i, row in zip(part, rows, strict=True)}
    table["rank"] = [ranks[i] for i in range(len(table))]
    by = [*CONTEST, "judge", "rank", "_value", "method", "recipe", "versions"]
    order = table.sort_values(by, kind="stable", na_position="last").index
    ordered = table.loc[order].drop(columns="_value").reset_index(drop=True)
    return ordered.astype({"rank": "int64"})


def _better(row: Any, other: Any, sign: int) -> bool:
    """Whether a row is shown to be better than another one; without intervals nothing is."""
    low, high = difference(row, other)
    return bool(high < 0 if sign > 0 else low > 0)


def grid(board: Board) -> list[list[str]]:
    """The board as text cells, heads first; a name's column only where it says something."""
    table = board.table
    shown = [name for name in NAMES if _says(table, name)]
    if table.judge.nunique() > 1:
        shown = ["judge", *shown]
    heads = [c for c in board.columns if c.head and table[c.name].notna().any()]
    more = ["versions"] if table.versions.nunique() > 1 else []
    lines = [[*shown, *(c.title for c in heads), *("evaluator versions" for _ in more)]]
    for row in records(table):
        lines.append([*(str(row[name]) for name in shown), *(_cell(row, c) for c in heads), *(row[m] for m in more)])
    return lines


def _says(table: pd.DataFrame, name: str) -> bool:
    """Settings and budget are shown where one is not the usual."""
    usual = {"settings": ("",), "budget": ("", "paper")}.get(name)
    return usual is None or not table[name].isin(usual).all()


def _cell(row: Mapping[str, Any], column: Column) -> str:
    value, low, high, base = (float(row[column.name + side]) for side in ("", "_low", "_high", "_base"))
    shown = number(value, low, high, column.unit, few=row[f"{column.name}_few"] is True)
    return shown if isnan(value) or isnan(base) else f"{shown} ({number(base, nan, nan, column.unit)})"


def legend(board: Board) -> str:
    """What cells and columns are, in the evaluators' own words."""
    told = []
    for column in board.columns:
        if column.head and column.labels:
            labels = column.labels if len(column.labels) < 3 else (column.labels[0], "...")
            told.append(f"{column.head}: {' or '.join(labels)}{', %' if column.unit else ''}")
    percent = [c.name for c in board.columns if c.unit == "%"]
    floor = board.table.resolves[board.table.ranked_by.isin(percent)].dropna()
    floors = f"Differences below {100 * floor.min():.0f} points are told apart in no row. " if len(floor) else ""
    return (
        "Rank: 1 + the rows of one contest and judge that are shown to be better; equal ranks are ties. "
        f"{floors}clusters: distinct texts, searches, words or concepts among the n images, by which intervals go. "
        f"Cells: erased model [95 % interval] (original model). {'; '.join(told)}. Full precision, judges, metrics and "
        "what is not shown here: leaderboard.csv."
    )
