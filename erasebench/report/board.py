"""The board of methods: one row per method, pooled over concepts and seeds, ranked only where a difference is shown.

A pure function of the tidy scores and of what runs recorded about cost and flags; one board per model and task (the
kind of what is erased). The un-erased model is always a row, the model that never knew where it was run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from erasebench.report.clusters import FEWEST
from erasebench.report.pairs import Pairs, compare_all
from erasebench.report.pooling import COLUMN, ROW, Item, items
from erasebench.report.runs import NOTHING, ORACLE, Run
from erasebench.report.series import Table, tables
from erasebench.report.summary import NORMAL, interval, standard_error, widest

REFERENCES = (NOTHING, ORACLE)  # rows that are measured, not ranked
COST = ("seconds", "memory_mb", "bytes")  # of the erase step, the mean over its runs
VALUE = ("low", "high", "here_low", "here_high", "n", "concepts", "clusters")  # beside each value, as name_low
RANGES = {"mean": (0.0, 100.0), "distance": (0.0, np.inf)}  # that a role's interval is cut to


@dataclass(frozen=True)
class Column:
    """A column of a board: a headline, of an attack if ``attack`` is one, by one judge and one version.

    ``floor``: the smallest difference of two methods that these images tell apart before adjusting for their number
    (half the narrowest 95 % interval); NaN where no two methods have it.
    """

    name: str
    title: str
    unit: str
    role: str
    better: bool | None
    facts: Mapping[str, str]
    label: str = ""
    floor: float = nan


@dataclass(frozen=True)
class Board:
    """One model and task.

    ``table``: one row per method with ``row`` (its label), ``method``, ``recipe``, ``settings``, ``front``,
    ``behind`` (who is shown better in something and worse in nothing), ``measured``, ``asked``, ``flags``,
    :data:`COST`, and for each column ``name``, ``name_rank`` and those of :data:`VALUE`: the 95 % interval for such
    concepts, the one about these concepts alone (``here``), counts. Shares are fractions, all in full precision.
    """

    model: str
    task: str
    concepts: tuple[str, ...]
    columns: tuple[Column, ...]
    table: pd.DataFrame

    @property
    def name(self) -> str:
        return f"{self.model}, {self.task}" if self.task else self.model


def boards(scores: pd.DataFrame, runs: pd.DataFrame) -> list[Board]:
    """Tidy scores -> a board for each model and task, in their order.

    Args:
        scores: headline rows of any number of runs; what stands there twice (the plain prompts of a method that was
            attacked twice) counts once.
        runs: one row per run, with ``run``, ``task``, ``flags`` (names, separated by blanks) and :data:`COST`.
    """
    return boards_of(tables(scores), scores[[*ROW, "run"]].drop_duplicates(), runs)


def boards_of(found: Sequence[Table], ran: pd.DataFrame, runs: pd.DataFrame) -> list[Board]:
    """:func:`boards` of the series of runs.

    Args:
        found: of each run.
        ran: each run's method, recipe and settings.
        runs: see :func:`boards`.
    """
    facts, parts = runs.set_index("run"), dict[tuple[str, str], list[Item]]()
    for one in items(found, dict(zip(runs.run, runs.task, strict=True))):
        parts.setdefault((one.model, one.task), []).append(one)
    return [
        _board(*place, part, ran[ran.run.isin({one.run for one in part})], facts)
        for place, part in sorted(parts.items(), key=lambda pair: pair[0])
    ]


def run_facts(found: Iterable[Run]) -> pd.DataFrame:
    """What :func:`boards` needs to know of runs besides their scores, from their records."""
    rows = []
    for run in found:
        erase = run.record["steps"].get("erase", {})
        spent = erase.get("cost", {})
        cost = (spent.get("seconds"), spent.get("peak_rss_mb"), erase.get("bytes"))
        task = str(run.record["config"].get("concept", {}).get("kind", ""))
        flags = " ".join(sorted({str(flag["flag"]) for flag in run.record.get("flags", [])}))
        rows.append({"run": run.key, "task": task, "flags": flags, **dict(zip(COST, cost, strict=True))})
    table = pd.DataFrame(rows, columns=["run", "task", "flags", *COST]).drop_duplicates("run")
    return table.astype(dict.fromkeys(COST, "float64"))


def _board(model: str, task: str, part: Sequence[Item], runs: pd.DataFrame, facts: pd.DataFrame) -> Board:
    rows = sorted({one.row for one in part})
    table = pd.DataFrame(rows, columns=list(ROW))
    table.insert(0, "row", row_labels(table))
    ranked = [i for i, row in enumerate(rows) if row[0] not in REFERENCES]
    ahead, columns, values_of = np.zeros((len(rows), len(rows)), bool), [], dict[str, np.ndarray]()
    for column, own in columns_of(part):
        values, found = measure(column, own, rows)
        pairs = pairs_of(values, ranked)
        if column.better is not None:
            better = pairs.better(len(ranked), column.better)
            ahead[np.ix_(ranked, ranked)] |= better
            found["rank"] = np.full(len(rows), nan)
            has = [i for i, row in enumerate(ranked) if not np.isnan(found["value"][row])]
            found["rank"][[ranked[i] for i in has]] = 1 + better.sum(0)[has]
        margins = pairs.margin[(pairs.margin > 0)]
        columns.append(Column(**{**column.__dict__, "floor": float(margins.min()) if len(margins) else nan}))
        values_of |= {column.name + ("" if k == "value" else f"_{k}"): v for k, v in found.items() if k != "error"}
    told = {**_standing(table, ahead, ranked), **_told(table, part, runs, facts), **values_of}
    table = pd.concat([table, pd.DataFrame(told)], axis=1)
    return Board(model, task, tuple(sorted({one.concept for one in part})), tuple(columns), _ordered(table, columns))


def row_labels(table: pd.DataFrame) -> list[str]:
    """What a row is called: its recipe and settings only where the board has several of its method."""
    several = table.groupby("method").method.transform("size") > 1
    names = {NOTHING: "original model", ORACLE: "never knew (oracle)"}
    out = []
    for row, more in zip(table.to_dict("records"), several, strict=True):
        told = ", ".join(filter(None, (row["recipe"], row["settings"]))) if more else ""
        out.append(names.get(row["method"], row["method"]) + (f" ({told})" if told else ""))
    return out


def columns_of(
    part: Sequence[Item], title: Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], str] | None = None
) -> Iterable[tuple[Column, list[Item]]]:
    """The columns in their evaluators' order, attacks by access and name; one of a kind goes by the head alone."""
    parts: dict[tuple[Any, ...], list[Item]] = {}
    for one in part:
        parts.setdefault(one.column, []).append(one)
    places = sorted(parts, key=lambda key: (min(one.fact.place or 0 for one in parts[key]), key))
    heads = [dict(zip(COLUMN, key, strict=True)) for key in places]
    titles = [(title or _title)(one, heads) for one in heads]
    for key, facts, named in zip(places, heads, titles, strict=True):
        own = parts[key]
        better = next((one.fact.higher_is_better for one in own if one.fact.higher_is_better is not None), None)
        label = " or ".join(sorted({one.fact.label for one in own} - {""})[:2])
        yield Column(_name(named), named, own[0].fact.unit, own[0].fact.role, better, facts, label), own


def _title(one: Mapping[str, Any], heads: Sequence[Mapping[str, Any]]) -> str:
    """The head, or the attack's name under it, and whatever tells it from another column of that name."""
    base = str(one["attack"] or one["head"])
    if one["attack"] and one["role"] != "present":
        base = f"{one['attack']} {one['head']}"
    if one["control"] == "True":
        base = f"{base} (control)"
    return f"{base}{apart(one, heads)}"


def apart(one: Mapping[str, Any], heads: Sequence[Mapping[str, Any]]) -> str:
    """`` (v2)``: whatever tells a column from the others of its head and attack; "" if nothing has to."""
    same = [h for h in heads if (h["attack"], h["head"]) == (one["attack"], one["head"])]
    usual = {"budget": ("", "paper"), "strength": ("", "paper"), "evaluator_version": ()}
    more = [
        f"{'v' if name == 'evaluator_version' else ''}{one[name]}"
        for name in COLUMN
        if name not in ("attack", "head") and len({str(h[name]) for h in same}) > 1
        if str(one[name]) not in usual.get(name, ())
    ]
    return f" ({', '.join(more)})" if more else ""


def _name(title: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in title.lower()).strip("_")


def measure(column: Column, own: Sequence[Item], rows: Sequence[tuple[str, ...]]) -> tuple[Any, dict[str, np.ndarray]]:
    """Every row's values side by side [rows, items] with the items' clusters, and each row's pooled value.

    The latter are ``value``, those of :data:`VALUE` and ``error``, its standard error.
    """
    place = {row: i for i, row in enumerate(rows)}
    where, text, concept = _places(own)
    whole = all(one.fact.whole for one in own)
    matrix, trained = np.full((len(rows), len(text)), nan), np.full((len(rows), len(text)), -1)
    weights = {name: i for i, name in enumerate(dict.fromkeys(one.weights for one in own))}
    only: dict[int, Item] = {}
    for one, item in zip(own, where, strict=True):
        row = place[one.row]
        matrix[row, item], trained[row, item] = one.value, weights[one.weights]
        only.setdefault(row, one)
    found = {key: np.full(len(rows), nan) for key in ("value", *VALUE, "error")}
    for i in range(len(rows)):
        has = ~np.isnan(matrix[i])
        if has.any():
            ways = _ways(text[has], concept[has], trained[i][has], whole)
            rate = column.unit == "%" and bool(np.isin(matrix[i][has], (0.0, 1.0)).all())
            each = [interval(matrix[i][has], rate, [way]) for way in ways]
            bounds = [(low, high) for _, low, high in each]
            value, (low, high) = each[0][0], widest(bounds)
            found["error"][i] = standard_error(matrix[i][has], rate, ways, bounds)
            least, most = RANGES.get(column.role, (-np.inf, np.inf))
            least = min(least, value)  # an unbiased distance may be negative
            found["value"][i], found["low"][i], found["high"][i] = value, max(low, least), min(high, most)
            if not whole:
                found["here_low"][i], found["here_high"][i] = each[0][1:]
            found["n"][i], found["concepts"][i] = has.sum(), len(np.unique(concept[has]))
            found["clusters"][i] = len(np.unique(text[has]))
            if whole and has.sum() == 1:
                low, high = only[i].low, only[i].high
                found["low"][i], found["high"][i], found["error"][i] = low, high, (high - low) / 2 / NORMAL
    return (matrix, text, concept, whole), found


def _places(own: Sequence[Item]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """For each series the number of each image, and of each image numbers of its text and of its concept."""
    known: dict[tuple[Any, ...], int] = {}
    texts, concepts, text, concept = dict[tuple[str, str], int](), dict[str, int](), list[int](), list[int]()
    lists: dict[tuple[Any, ...], np.ndarray] = {}
    for one in own:
        if (key := (*one.kind, one.fact.whole, id(one.places))) in lists:
            continue
        numbers = []
        for prompt, seed, cluster in zip(one.places.ids, one.places.seeds, one.places.clusters, strict=True):
            item = (one.concept,) if one.fact.whole else (*one.kind, prompt, seed)
            if (number := known.setdefault(item, len(known))) == len(text):
                words = cluster or f"{prompt or ''}{'' if seed is None else seed}"
                text.append(texts.setdefault((one.concept, words), len(texts)))
                concept.append(concepts.setdefault(one.concept, len(concepts)))
            numbers.append(number)
        lists[key] = np.array(numbers, np.int64)
    return [lists[*one.kind, one.fact.whole, id(one.places)] for one in own], np.array(text), np.array(concept)


def _ways(text: np.ndarray, concept: np.ndarray, trained: np.ndarray, whole: bool) -> list[np.ndarray]:
    """How values go together: by text; by concept from three on; by training if a concept has several.

    A number of a whole erasure knows no texts. With one or two concepts it is about these alone.
    """
    ways = [concept if whole else text]
    concepts = len(np.unique(concept))
    if not whole and concepts >= FEWEST:
        ways.append(concept)
    if len(np.unique(trained)) > concepts:
        ways.append(trained)
    return ways


def pairs_of(values: Any, ranked: Sequence[int]) -> Pairs:
    """Every two of some rows, compared on the items that both have."""
    matrix, text, concept, whole = values
    many = len(np.unique(concept)) >= FEWEST
    ways = [concept] if whole else [text, concept] if many else [text]
    return compare_all(matrix[list(ranked)], ways, exact=not whole)


def _standing(table: pd.DataFrame, ahead: np.ndarray, ranked: Sequence[int]) -> dict[str, Any]:
    """The front: methods of whom no other is shown better in something and worse in nothing."""
    behind = [
        ", ".join(table.row[j] for j in ranked if ahead[j, i] and not ahead[i, j]) if i in ranked else ""
        for i in range(len(table))
    ]
    return {"front": [i in ranked and not told for i, told in enumerate(behind)], "behind": behind}


def _told(table: pd.DataFrame, part: Sequence[Item], runs: pd.DataFrame, facts: pd.DataFrame) -> dict[str, list[Any]]:
    """Cells (a concept, plain or attacked) measured of those any row has, flags and how many runs raise them, cost."""
    cells = {(one.row, one.concept, one.column[0]) for one in part}
    asked = {cell[1:] for cell in cells}
    out: dict[str, list[Any]] = {name: [] for name in ("measured", "asked", "flags", *COST)}
    for row in table[list(ROW)].itertuples(index=False, name=None):
        out["measured"].append(sum(cell[0] == row for cell in cells))
        out["asked"].append(len(asked))
        known = facts.loc[facts.index.intersection(runs.run[(runs[list(ROW)] == list(row)).all(axis=1)])]
        raised = pd.Series(" ".join(known["flags"]).split(), dtype="str").value_counts().sort_index()
        out["flags"].append(", ".join(f"{name} {n}" for name, n in raised.items()))
        for name in COST:
            out[name].append(float(known[name].mean()) if len(known) and row[0] != NOTHING else nan)
    return out


def _ordered(table: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """The original and the oracle first, then the front, in each those whose worst rate is least."""
    present = [c.name for c in columns if c.role == "present"]
    worst = table[present].max(axis=1) if present else pd.Series(nan, index=table.index)
    first = table.method.map({name: i for i, name in enumerate(REFERENCES)}).fillna(len(REFERENCES))
    order = pd.DataFrame({"first": first, "front": ~table.front, "worst": worst, "row": table.row})
    return table.loc[order.sort_values(list(order), kind="stable").index].reset_index(drop=True)
