"""A layout filled with what was measured: one table per model and task, pooled as the leaderboard pools.

Which rows are one image, whose word counts, intervals and comparisons are those of the board of methods
(``erasebench.report.board``); rows of two versions of an evaluator are two columns, never one mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import isnan
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from erasebench.limits import open_parquet
from erasebench.report.board import REFERENCES, apart, columns_of, measure, pairs_of, row_labels
from erasebench.report.board import Column as Measured
from erasebench.report.codes import coded, codes, firsts, joined, plain, sorted_words
from erasebench.report.layouts import DIRECTIONS, Asked, Layout, fits
from erasebench.report.pairs import Pairs
from erasebench.report.pooling import ROW, items
from erasebench.report.runs import NOTHING, Run
from erasebench.report.tables import CELL, frame_of, read_coded, rows_of
from erasebench.types import Score

ALL = "all"  # the block of all concepts
COST = "cost"  # the evaluator of what runs recorded of their erase steps


@dataclass(frozen=True)
class Value:
    """A cell: a mean with interval and standard error, of ``n`` images or erasures; ``mark`` is best, second or ""."""

    value: float
    low: float
    high: float
    error: float
    n: int
    mark: str = ""


@dataclass(frozen=True)
class Shown:
    """A column as it is printed: what was asked for, its head, the attack it is about, what was measured."""

    asked: Asked
    title: str
    attack: str = ""
    unit: str = ""
    better: bool | None = None
    whole: bool = False


@dataclass(frozen=True)
class Row:
    """A line: its block (a concept, :data:`ALL`, or "" without blocks), its name, its method, its cells."""

    block: str
    label: str
    method: str
    cells: tuple[Value | None, ...]


@dataclass(frozen=True)
class Table:
    """A filled layout."""

    layout: Layout
    model: str
    task: str
    concepts: tuple[str, ...]
    columns: tuple[Shown, ...]
    rows: tuple[Row, ...]


def wanted_scores(found: Iterable[Run], layout: Layout) -> tuple[pd.DataFrame, dict[str, str]]:
    """The scores that some column is about, of the runs that a layout is about, and the task of each run."""
    tasks = {run.key: str(run.record["config"].get("concept", {}).get("kind", "")) for run in found}
    own = [
        run
        for run in found
        if all(fits({**run.names, "task": tasks[run.key]}[key], those) for key, those in layout.where.items())
    ]
    if not own:
        return pd.DataFrame(), {}

    def means(evaluator: str, metric: str) -> bool:
        return any(asked.means(evaluator, metric) for asked in layout.columns)

    parts = [read_coded([run.folder / "scores.parquet" for run in own], means=means).reset_index(drop=True)]
    if any(fnmatchcase(COST, asked.evaluator) for asked in layout.columns):
        costs = sorted_words(frame_of([row for run in own for row in _cost(run)]))
        parts.append(costs[[means(*pair) for pair in zip(costs.evaluator, costs.metric, strict=True)]])
    return joined(parts), {run.key: tasks[run.key] for run in own}


def _cost(run: Run) -> list[dict[str, Any]]:
    """What the erase step of a run took, as scores: seconds, peak_rss_mb, unet_evaluations, ..., bytes."""
    erase = run.record["steps"].get("erase", {})
    spent = {**erase.get("cost", {}), "bytes": erase.get("bytes")}
    with open_parquet(run.folder / "scores.parquet", [*CELL, "side", "weights"]) as file:
        table = file.read(columns=[*CELL, "side", "weights"])
    first = table.filter(pa.compute.equal(table["side"], "erased")).slice(0, 1).to_pylist()
    if not first or run.names["method"] == NOTHING:
        return []
    scores = [
        Score(evaluator=COST, metric=name, value=float(value), group="erase", higher_is_better=False)
        for name, value in sorted(spent.items())
        if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    ]
    cell = {name: first[0][name] for name in CELL}
    return rows_of(scores, run.key, "erased", cell, {COST: 1}, {}, (), first[0]["weights"])


def fill(layout: Layout, scores: pd.DataFrame, tasks: Mapping[str, str], order: Sequence[str] = ()) -> list[Table]:
    """A table for each model and task, in their order.

    Args:
        layout: what is asked for.
        scores: tidy scores of any number of runs.
        tasks: run -> kind of what it erased.
        order: methods in the order of their rows, those that are not named after them.

    Raises:
        ValueError: no column has a value, with what would fill them.
    """
    parts = [one for asked in layout.columns for one in _picked(asked, scores, tasks)] if len(scores) else []
    places = sorted({place for _, part in parts if len(part) for place in _distinct(part, ["model", "task"])})
    if not places:
        raise ValueError(_nothing(layout, scores, tasks))
    return [
        _table(layout, model, task, [(one, _at(part, model, task)) for one, part in parts], order)
        for model, task in places
    ]


def _distinct(part: pd.DataFrame, names: list[str]) -> list[tuple[str, ...]]:
    """Every combination of texts that rows have in some columns, once."""
    rows = plain(part[names].iloc[firsts(codes(part, names))])
    return [tuple(map(str, row)) for row in rows.itertuples(index=False, name=None)]


def _fitting(column: pd.Series, patterns: Sequence[str]) -> np.ndarray:
    """Whether each text is meant by one of the patterns."""
    own, values = coded(column)
    return np.array([*(fits(value, tuple(patterns)) for value in values), False])[own]


def _at(part: pd.DataFrame, model: str, task: str) -> pd.DataFrame:
    return part[part.model.eq(model) & part.task.eq(task)] if len(part) else part


def _nothing(layout: Layout, scores: pd.DataFrame, tasks: Mapping[str, str]) -> str:
    """Why there is no table."""
    where = " ".join(f"{key}={','.join(those)}" for key, those in layout.where.items())
    names = list(dict.fromkeys(f"{one.evaluator}: {one.metric}" for one in layout.columns))
    sought = ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
    got = f"none of {len(tasks)} runs has one" if tasks else f"no run fits {where}" if where else "no run"
    advice = layout.needs or "run the evaluators that write them"
    return f"table {layout.name} - must have a value of {sought}; {got}; {advice}"


def _picked(asked: Asked, scores: pd.DataFrame, tasks: Mapping[str, str]) -> list[tuple[Asked, pd.DataFrame]]:
    """A column's items, of every relation that it asks for with a pattern; without any, one empty column."""
    (evaluator, evaluators), (metric, metrics) = coded(scores.evaluator), coded(scores.metric)
    known = np.array([[asked.means(one, name) for name in metrics] for one in evaluators], bool)
    own = scores[known[evaluator, metric]]
    keep = own.status.eq("ok") & own.value.notna() & _fitting(own.group, asked.group)
    keep &= ~own.group.eq("attack") | _fitting(own.attack, asked.attack)
    keep &= own.side.eq(asked.side) if asked.side != "both" else True
    own = own[keep]
    if asked.relation is None:
        own = own[own.prompt_id.notna() | own.relation.eq("")]
        return [(asked, _items(asked, own, tasks))]
    own = own[_fitting(own.relation, asked.relation)]
    if not any(set("*?[") & set(pattern) for pattern in asked.relation):
        return [(asked, _items(asked, own, tasks))]
    names = sorted(set(own.relation) - {""})
    found = [(replace(asked, label=f"{asked.label} {name}".strip()), own[own.relation.eq(name)]) for name in names]
    return [(one, _items(one, part, tasks)) for one, part in found or [(asked, own[:0])]]


def _items(asked: Asked, own: pd.DataFrame, tasks: Mapping[str, str]) -> pd.DataFrame:
    """The rows of a column, each image or number once, as the board has them: ``erasebench.report.pooling``."""
    if not len(own):
        return pd.DataFrame()
    whole = own[own.prompt_id.isna()]
    if whole.group.nunique() > 1 or 0 < len(whole) < len(own):
        groups = ", ".join(sorted(set(own.group)))
        raise ValueError(
            f"column {asked.label!r} - must be about one group where a metric is one number for each; got {groups}; "
            "name one as its group"
        )
    percent = own.unit.eq("%").any() or own.rate.fillna(False).astype(bool).all()
    unit = asked.unit if asked.unit is not None else "%" if percent else ""
    own = own.assign(head=asked.label or asked.metric, unit=unit, place=own.place.fillna(10**6))
    if asked.direction:
        own["higher_is_better"] = pd.array([DIRECTIONS[asked.direction]] * len(own), dtype="boolean")
    if asked.complement:
        most = 1.0 if unit == "%" else 100.0
        turned = {"value": most - own.value, "low": most - own.high, "high": most - own.low}
        own = own.assign(**turned, higher_is_better=~own.higher_is_better)
    return items(own, tasks)


def _table(
    layout: Layout, model: str, task: str, parts: Sequence[tuple[Asked, pd.DataFrame]], order: Sequence[str]
) -> Table:
    columns = [one for asked, part in parts for one in _columns(asked, part)]
    filled = [own for _, _, own in columns if len(own)]
    keys = sorted({key for own in filled for key in _distinct(own, list(ROW))})
    first = {name: i for i, name in enumerate(dict.fromkeys([*REFERENCES, *order]))}
    keys.sort(key=lambda key: (first.get(key[0], len(first)), key))
    labels = row_labels(pd.DataFrame(keys, columns=list(ROW)))
    concepts = tuple(sorted({concept for own in filled for (concept,) in _distinct(own, ["concept"])}))
    blocks = [""] if layout.rows == ("method",) else [*concepts, *([ALL] if len(concepts) > 1 else [])]
    rows = []
    for block in blocks:
        cells = [_cells(column, _inside(own, block), keys, layout.marks) for _, column, own in columns]
        for key, label, line in zip(keys, labels, zip(*cells, strict=True), strict=True):
            if any(line):
                rows.append(Row(block, label, key[0], line))
    return Table(layout, model, task, concepts, tuple(shown for shown, _, _ in columns), tuple(rows))


def _inside(own: pd.DataFrame, block: str) -> pd.DataFrame:
    return own if block in ("", ALL) or not len(own) else own[own.concept == block]


def _columns(asked: Asked, part: pd.DataFrame) -> Iterable[tuple[Shown, Measured | None, pd.DataFrame]]:
    """A printed column for each attack, judge, metric and version; one without values if there is none."""
    if not len(part):
        better = DIRECTIONS.get(asked.direction)
        yield Shown(asked, asked.label, better=better if better is None else better != asked.complement), None, part
        return

    def title(one: Mapping[str, Any], heads: Sequence[Mapping[str, Any]]) -> str:
        alone = len(asked.attack) == 1 and not set("*?[") & set(asked.attack[0])
        name = "" if alone else str(one["attack"])
        control = " (control)" if name and one["control"] == "True" else ""
        return f"{name} {asked.label}".strip() + control + apart(one, heads)

    for column, own in columns_of(part, title):
        attack = str(column.facts["attack"])
        yield Shown(asked, column.title, attack, column.unit, column.better, bool(own.whole.all())), column, own


def _cells(
    column: Measured | None, own: pd.DataFrame, keys: Sequence[tuple[str, ...]], marks: bool
) -> list[Value | None]:
    """A column's cells, None where nothing was measured."""
    if column is None or not len(own):
        return [None] * len(keys)
    values, found = measure(column, own, keys)
    ranked = [i for i, key in enumerate(keys) if key[0] not in REFERENCES and not isnan(found["value"][i])]
    marked: dict[int, str] = {}
    if marks and column.better is not None and len(ranked) > 1:
        marked = {
            ranked[k]: mark
            for k, mark in marks_of(found["value"][ranked], pairs_of(values, ranked), column.better).items()
        }
    numbers = zip(*(found[name] for name in ("value", "low", "high", "error", "n")), strict=True)
    return [
        None if isnan(value) else Value(value, low, high, error, int(n), marked.get(i, ""))
        for i, (value, low, high, error, n) in enumerate(numbers)
    ]


def marks_of(values: np.ndarray, pairs: Pairs, higher_is_better: bool) -> dict[int, str]:
    """Row -> ``best`` or ``second``; rows that are not shown to be worse than the best share its mark.

    The best is the row of the best value that no other is shown to be better than. The second is the best of those
    that are shown to be worse than it. A row that too few clusters compare with it has no mark, and where that is so of
    all others neither has the best: nothing was shown.

    Args:
        values: [rows] pooled values.
        pairs: all pairs of these rows.
        higher_is_better: direction.
    """
    ahead = pairs.better(len(values), higher_is_better)
    tested = np.zeros(ahead.shape, bool)
    tested[pairs.first, pairs.second] = tested[pairs.second, pairs.first] = ~np.isnan(pairs.p)
    rest, marked = list(range(len(values))), dict[int, str]()
    for mark in ("best", "second"):
        free = [i for i in rest if not ahead[rest, i].any()] or rest
        if not free:
            break
        top = max(free, key=lambda i: values[i] if higher_is_better else -values[i])
        if mark == "best" and not tested[top].any():
            break
        marked |= {i: mark for i in rest if i == top or (tested[top, i] and not ahead[top, i])}
        rest = [i for i in rest if ahead[top, i]]
    return marked
