"""A layout filled with what was measured: one table per model and task, pooled as the leaderboard pools.

Which rows are one image, whose word counts, intervals and comparisons are those of the board of methods
(``erasebench.report.board``); rows of two versions of an evaluator are two columns, never one mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from math import isnan
from typing import Any

import numpy as np
import pandas as pd

from erasebench.report import units
from erasebench.report.board import REFERENCES, apart, columns_of, measure, pairs_of, row_labels
from erasebench.report.board import Column as Measured
from erasebench.report.layouts import DIRECTIONS, Asked, Layout, fits
from erasebench.report.pairs import Pairs
from erasebench.report.pooling import ROW, Item, items
from erasebench.report.runs import NOTHING, Run
from erasebench.report.series import Fact, tables
from erasebench.report.series import Table as Series
from erasebench.report.tables import frame_of, rows_of
from erasebench.types import Score

ALL = "all"  # the block of all concepts
Wanted = Callable[[Fact, str], bool]  # whether a series of an attack's run is meant
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


def wanted_scores(found: Iterable[Run], layout: Layout) -> tuple[list[Series], dict[str, str]]:
    """The series of the runs that a layout is about, of its costs too if it asks, and the task of each run."""
    tasks = {run.key: str(run.record["config"].get("concept", {}).get("kind", "")) for run in found}
    own = [
        run
        for run in found
        if all(fits({**run.names, "task": tasks[run.key]}[key], those) for key, those in layout.where.items())
    ]
    if not own:
        return [], {}

    costs = any(fnmatchcase(COST, asked.evaluator) for asked in layout.columns)

    def means(evaluator: str, metric: str) -> bool:
        return costs or any(asked.means(evaluator, metric) for asked in layout.columns)

    parts = units.series_of(own, means)  # where costs are asked for, all: their rows take after the run's
    if costs:
        of = {run.key: run for run in own}
        parts += tables(frame_of([row for one in parts for row in _cost(of[one.run], one)]))
    return parts, {run.key: tasks[run.key] for run in own}


def _cost(run: Run, table: Series) -> list[dict[str, Any]]:
    """What the erase step of a run took, as scores: seconds, peak_rss_mb, unet_evaluations, ..., bytes."""
    erase = run.record["steps"].get("erase", {})
    spent = {**erase.get("cost", {}), "bytes": erase.get("bytes")}
    weights = [one for one, fact in zip(table.weights, table.facts, strict=True) if fact.side == "erased"]
    if not weights or run.names["method"] == NOTHING:
        return []
    scores = [
        Score(evaluator=COST, metric=name, value=float(value), group="erase", higher_is_better=False)
        for name, value in sorted(spent.items())
        if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    ]
    return rows_of(scores, run.key, "erased", table.cell, {COST: 1}, {}, (), weights[0])


def fill(layout: Layout, scores: Sequence[Series], tasks: Mapping[str, str], order: Sequence[str] = ()) -> list[Table]:
    """A table for each model and task, in their order.

    Args:
        layout: what is asked for.
        scores: of any number of runs.
        tasks: run -> kind of what it erased.
        order: methods in the order of their rows, those that are not named after them.

    Raises:
        ValueError: no column has a value, with what would fill them.
    """
    parts = [one for asked in layout.columns for one in _picked(asked, scores, tasks)]
    places = sorted({(one.model, one.task) for _, part in parts for one in part})
    if not places:
        raise ValueError(_nothing(layout, tasks))
    return [
        _table(layout, *place, [(one, [i for i in part if (i.model, i.task) == place]) for one, part in parts], order)
        for place in places
    ]


def _nothing(layout: Layout, tasks: Mapping[str, str]) -> str:
    """Why there is no table."""
    where = " ".join(f"{key}={','.join(those)}" for key, those in layout.where.items())
    names = list(dict.fromkeys(f"{one.evaluator}: {one.metric}" for one in layout.columns))
    sought = ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
    got = f"none of {len(tasks)} runs has one" if tasks else f"no run fits {where}" if where else "no run"
    advice = layout.needs or "run the evaluators that write them"
    return f"table {layout.name} - must have a value of {sought}; {got}; {advice}"


def _picked(asked: Asked, scores: Sequence[Series], tasks: Mapping[str, str]) -> list[tuple[Asked, list[Item]]]:
    """A column's items, of every relation that it asks for with a pattern; without any, one empty column."""

    @cache
    def means(evaluator: str, metric: str) -> bool:
        return asked.means(evaluator, metric)

    def wanted(fact: Fact, attack: str) -> bool:
        if not means(fact.evaluator, fact.metric) or not fits(fact.group, asked.group):
            return False
        if fact.group == "attack" and not fits(attack, asked.attack):
            return False
        if asked.relation is None:
            related = not fact.whole or not fact.relation
        else:
            related = fits(fact.relation, asked.relation)
        return related and asked.side in ("both", fact.side)

    kinds = {(id(one.facts), one.cell["attack"]): one for one in scores}  # most runs have the same facts
    own = [f for (_, attack), one in kinds.items() for f in one.facts if wanted(f, attack)]
    if asked.relation is None or not any(set("*?[") & set(pattern) for pattern in asked.relation):
        return [(asked, _items(asked, own, wanted, scores, tasks))]
    found: list[tuple[Asked, list[Item]]] = []
    for name in sorted({fact.relation for fact in own} - {""}):
        one = replace(asked, label=f"{asked.label} {name}".strip())
        part = [fact for fact in own if fact.relation == name]
        found.append((one, _items(one, part, partial(_related, wanted, name), scores, tasks)))
    return found or [(asked, [])]


def _related(wanted: Wanted, relation: str, fact: Fact, attack: str) -> bool:
    return fact.relation == relation and wanted(fact, attack)


def _items(
    asked: Asked,
    own: Sequence[Fact],
    wanted: Wanted,
    scores: Sequence[Series],
    tasks: Mapping[str, str],
) -> list[Item]:
    """A column's series, each image or number once, as the board has them: ``erasebench.report.pooling``."""
    if not own:
        return []
    whole = [fact for fact in own if fact.whole]
    if len({fact.group for fact in whole}) > 1 or 0 < len(whole) < len(own):
        groups = ", ".join(sorted({fact.group for fact in own}))
        raise ValueError(
            f"column {asked.label!r} - must be about one group where a metric is one number for each; got {groups}; "
            "name one as its group"
        )
    percent = any(fact.unit == "%" for fact in own) or all(fact.rate for fact in own)
    unit = asked.unit if asked.unit is not None else "%" if percent else ""
    most = 1.0 if unit == "%" else 100.0

    def choose(facts: Sequence[Fact], attack: str) -> list[tuple[int, Fact]]:
        found = []
        for i, fact in enumerate(facts):
            if wanted(fact, attack):
                better = DIRECTIONS[asked.direction] if asked.direction else fact.higher_is_better
                better = not better if asked.complement and better is not None else better
                place = 10**6 if fact.place is None else fact.place
                head = asked.label or asked.metric
                found.append((i, fact._replace(head=head, unit=unit, place=place, higher_is_better=better)))
        return found

    return items(scores, tasks, choose, (lambda values: most - values) if asked.complement else None)


def _table(
    layout: Layout, model: str, task: str, parts: Sequence[tuple[Asked, Sequence[Item]]], order: Sequence[str]
) -> Table:
    columns = [one for asked, part in parts for one in _columns(asked, part)]
    filled = [one for _, _, own in columns for one in own]
    keys = sorted({one.row for one in filled})
    first = {name: i for i, name in enumerate(dict.fromkeys([*REFERENCES, *order]))}
    keys.sort(key=lambda key: (first.get(key[0], len(first)), key))
    labels = row_labels(pd.DataFrame(keys, columns=list(ROW)))
    concepts = tuple(sorted({one.concept for one in filled}))
    blocks = [""] if layout.rows == ("method",) else [*concepts, *([ALL] if len(concepts) > 1 else [])]
    rows = []
    for block in blocks:
        cells = [_cells(column, _inside(own, block), keys, layout.marks) for _, column, own in columns]
        for key, label, line in zip(keys, labels, zip(*cells, strict=True), strict=True):
            if any(line):
                rows.append(Row(block, label, key[0], line))
    return Table(layout, model, task, concepts, tuple(shown for shown, _, _ in columns), tuple(rows))


def _inside(own: Sequence[Item], block: str) -> Sequence[Item]:
    return own if block in ("", ALL) else [one for one in own if one.concept == block]


def _columns(asked: Asked, part: Sequence[Item]) -> Iterable[tuple[Shown, Measured | None, Sequence[Item]]]:
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
        whole = all(one.fact.whole for one in own)
        yield Shown(asked, column.title, attack, column.unit, column.better, whole), column, own


def _cells(
    column: Measured | None, own: Sequence[Item], keys: Sequence[tuple[str, ...]], marks: bool
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
