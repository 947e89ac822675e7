"""The values of a board, each once: which rows of many runs are one image, whose word counts, what is one column."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from erasebench.report.runs import NOTHING
from erasebench.report.series import Fact, Places, Table

ROW = ("method", "recipe", "settings")
ATTACK = ("attack", "budget", "strength", "access", "control")
COLUMN = (*ATTACK, "head", "role", "metric", "judge", "evaluator_version")
ADAPTIVE = ("queries", "model")  # access of attacks whose prompts depend on the model they look at
Chosen = Sequence[tuple[int, Fact]]  # places of series in a table, and what they are shown as
Choose = Callable[[tuple[Fact, ...], str], Chosen]  # of a table's facts and its attack
Change = Callable[[np.ndarray], np.ndarray]  # of values [prompts], or of low and high [2, prompts]


class Item(NamedTuple):
    """A series as a board has it: images of one method and column, or a number of a whole group.

    ``row``, ``column``: the values of :data:`ROW` and :data:`COLUMN`; ``value``, ``low``, ``high`` [prompts].
    """

    model: str
    task: str
    concept: str
    row: tuple[str, ...]
    column: tuple[Any, ...]
    run: str
    weights: str
    fact: Fact
    places: Places
    value: np.ndarray
    low: float
    high: float

    @property
    def kind(self) -> tuple[str, str, str]:
        """What the prompts' ids are of."""
        return self.concept, self.fact.group, self.fact.relation


def headlines(facts: tuple[Fact, ...], attack: str) -> Chosen:
    """The series of a board."""
    return [(i, fact) for i, fact in enumerate(facts) if fact.head and fact.place is not None]


def items(
    tables: Sequence[Table], tasks: Mapping[str, str], choose: Choose = headlines, change: Change | None = None
) -> list[Item]:
    """Series of many runs -> those of each method and column, each image (or whole-group number) once.

    In one run a head is the metric of the smallest place, by the judge of the smallest place. The original model is
    the method none: its images of every run, but of attacks that look at the model only those that attacked it. What
    stands in several runs is the first one's; a whole-group number is the mean of its runs' distinct ones, and has the
    interval that an only one brings. Images of concept after concept, then whole-group numbers.

    Args:
        tables: of runs, in their order.
        tasks: run -> what its board is called beside the model.
        choose: the series that are meant.
        change: what values and their bounds become.
    """
    first = {place: i for i, place in enumerate(dict.fromkeys(_place(table) for table in tables))}
    known: dict[tuple[Any, ...], list[tuple[int, Fact, tuple[Any, ...], bool]]] = {}
    seen, images, wholes = _Seen(), list[Item](), list[Item]()
    for table in sorted(tables, key=lambda one: first[_place(one)]):
        cell = table.cell
        attack = tuple(cell[name] for name in ATTACK)
        key = (id(table.facts), attack)
        if key not in known:
            known[key] = _named(_one_judge(choose(table.facts, cell["attack"])), attack)
        own = (cell["method"], cell["recipe"] if cell["method"] != NOTHING else "", cell["settings"])
        base = (NOTHING, "", cell["settings"])
        place = (cell["model"], tasks.get(table.run, ""), cell["concept"])
        for i, fact, column, original in known[key]:
            where, value = table.places[i], table.values(i)
            row = base if original else own
            if not fact.whole:
                kept = seen.new((*place, row, column, fact.group, fact.relation), where)
                if not len(kept):
                    continue
                if len(kept) < len(where.ids):
                    where, value = where.only(kept), value[kept]
            low = high = np.nan
            if i in table.bounds and fact.whole:
                low, high = (change(table.bounds[i]) if change else table.bounds[i])[:, 0].tolist()
                low, high = (high, low) if change else (low, high)
            value = change(value) if change else value
            one = Item(*place, row, column, table.run, table.weights[i], fact, where, value, low, high)
            (wholes if fact.whole else images).append(one)
    return images + _wholes(wholes)


def _place(table: Table) -> tuple[str, str]:
    return table.cell["model"], table.cell["concept"]


class _Seen:
    """Which images of a row and column were there already."""

    def __init__(self) -> None:
        self.of: dict[tuple[Any, ...], list[Places]] = {}
        self.apart: dict[tuple[int, int], bool] = {}

    def new(self, key: tuple[Any, ...], where: Places) -> Sequence[int]:
        """The places of prompts that were not; they are from now on."""
        before = self.of.setdefault(key, [])
        if any(one is where for one in before):
            return ()
        kept: Sequence[int] = range(len(where.ids))
        if not all(self._apart(one, where) for one in before) or len(set(where.items())) < len(kept):
            known = {item for one in before for item in one.items()}
            kept = [i for i, item in enumerate(where.items()) if item not in known and not known.add(item)]  # type: ignore[func-returns-value]
        before.append(where)
        return kept

    def _apart(self, one: Places, two: Places) -> bool:
        key = (id(one), id(two))
        if key not in self.apart:
            self.apart[key] = not set(one.items()) & set(two.items())
        return self.apart[key]


def _one_judge(chosen: Chosen) -> Chosen:
    """Of a run the first judge, and of every head the metric that comes first."""
    chosen = [(i, fact) for i, fact in chosen if fact.role != "influence"]
    judges = [fact.judge for _, fact in _in_place(chosen) if fact.judge]
    chosen = [(i, fact) for i, fact in chosen if fact.judge in ("", *judges[:1])]
    metrics: dict[tuple[str, str], str] = {}
    for _, fact in _in_place(chosen):
        metrics.setdefault((fact.head, fact.group), fact.metric)
    return [(i, fact) for i, fact in chosen if metrics[fact.head, fact.group] == fact.metric]


def _in_place(chosen: Chosen) -> Chosen:
    return sorted(chosen, key=lambda one: (one[1].place, one[1].metric))


def _named(chosen: Chosen, attack: tuple[Any, ...]) -> list[tuple[int, Fact, tuple[Any, ...], bool]]:
    """The series that count, each with its column and whether it is the original model's."""
    found = []
    access, control = attack[ATTACK.index("access")], str(bool(attack[ATTACK.index("control")]))
    for i, fact in chosen:
        original, success = fact.side == "original", fact.role == "success"
        attacked = fact.group == "attack" or success
        if original and (success or (attacked and access in ADAPTIVE)):
            continue
        by = (*attack[:-1], control) if attacked else ("",) * len(ATTACK)
        column = (*by, fact.head, fact.role, fact.metric, fact.judge, fact.evaluator_version)
        found.append((i, fact, column, original))
    return found


def _wholes(found: Sequence[Item]) -> list[Item]:
    """One number per concept: the mean of its runs' distinct ones; the interval that an only one brings."""
    out = []
    for _, part in groupby(found, key=lambda one: (one.model, one.concept)):
        first, number = dict[tuple[Any, ...], Item](), dict[tuple[Any, ...], int]()  # by what it is of
        apart: dict[tuple[Any, ...], tuple[int, float]] = {}  # by the value too: group and value
        for one in part:
            key = (one.task, one.row, one.column)
            first.setdefault(key, one)
            number.setdefault(key, len(number))
            for value in one.value.tolist():
                apart.setdefault((key, value), (number[key], value))
        group, values = zip(*apart.values(), strict=True)
        by = pd.Series(values).groupby(list(group))
        for one, mean, several in zip(first.values(), by.mean().tolist(), (by.size() > 1).tolist(), strict=True):
            own = one._replace(value=np.array([mean]), places=one.places.only([0]))
            out.append(own._replace(low=np.nan, high=np.nan) if several else own)
    return out
