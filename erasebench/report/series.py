"""Scores as series: rows of one table that differ in their prompts alone, their facts said once, values as an array.

A thousand runs of a thousand prompts are millions of rows and some ten thousand series, most of which have the same
facts and the same prompts: boards and layouts are made of these. Rows that are not ok, or have no value, are in none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from erasebench.report.codes import coded, codes, plain, together
from erasebench.report.columns import CELL, DTYPES

NAMES = (
    "group", "relation", "evaluator", "evaluator_version", "metric", "judge", "side", "higher_is_better", "rate",
    "role", "label", "head", "unit", "place",
)  # fmt: skip


class Fact(NamedTuple):
    """What the rows of a series share beside their run: the columns of that name; ``whole``: of a group, no prompt."""

    group: str
    relation: str
    evaluator: str
    evaluator_version: int
    metric: str
    judge: str
    side: str
    higher_is_better: bool | None
    rate: bool | None
    role: str
    label: str
    head: str
    unit: str
    place: int | None
    whole: bool


@dataclass(frozen=True)
class Places:
    """Prompts in their order: id (None for a whole group), seed and cluster of each. Equal ones are one object."""

    ids: tuple[str | None, ...]
    seeds: tuple[int | None, ...]
    clusters: tuple[str, ...]

    def items(self) -> list[tuple[str | None, int | None]]:
        """What tells images of one group apart."""
        return list(zip(self.ids, self.seeds, strict=True))

    def only(self, kept: Sequence[int]) -> Places:
        """Some of them."""
        return places(*(tuple(own[i] for i in kept) for own in (self.ids, self.seeds, self.clusters)))


places = cache(Places)


@dataclass(frozen=True, eq=False)
class Table:
    """The series of one run.

    ``run``: its key; ``cell``: the names of ``CELL``; ``facts``, ``places`` and ``weights``, of each series one, equal
    ones of several runs being one object; ``value`` [rows] float64, one series after the other; ``bounds``: low and
    high [2, prompts] of those series that have any.
    """

    run: str
    cell: Mapping[str, Any]
    facts: tuple[Fact, ...]
    places: tuple[Places, ...]
    weights: tuple[str, ...]
    value: np.ndarray
    bounds: Mapping[int, np.ndarray]

    @cached_property
    def ends(self) -> list[int]:
        """Where each series begins in the values, and where the last ends."""
        return [0, *accumulate(len(one.ids) for one in self.places)]

    def values(self, i: int) -> np.ndarray:
        """[prompts] of a series."""
        return self.value[self.ends[i] : self.ends[i + 1]]


_facts = cache(lambda *found: found)


def tables(scores: pd.DataFrame) -> list[Table]:
    """Tidy scores as series: a table for each run and cell, in the order of their first rows.

    Args:
        scores: of any number of runs; texts may be codes into sorted categories.
    """
    scores = scores[(scores.status.eq("ok") & scores.value.notna()).to_numpy(bool)]
    if not len(scores):
        return []
    whole = scores.prompt_id.isna().to_numpy(bool)
    own = together([codes(scores, ["run", *CELL, *NAMES, "weights"]), whole.astype(np.int64)])
    if (np.diff(own) < 0).any():  # rows that are in no order: by the first row of each series
        first, again = np.unique(own, return_index=True, return_inverse=True)[1:]
        order = np.argsort(first[again], kind="stable")
        scores, own, whole = scores.iloc[order], own[order], whole[order]
    starts = np.flatnonzero(np.diff(own, prepend=own[0] - 1))
    named = plain(scores[["run", *CELL, *NAMES, "weights"]].iloc[starts])
    lists = _Lists(scores)
    numbers = scores[["low", "high"]].to_numpy(float).T
    value, bounded = scores.value.to_numpy(float), ~np.isnan(numbers).all(0)
    found: dict[tuple[Any, ...], list[tuple[Fact, Places, str, slice]]] = {}
    columns = {name: [_plain(one) for one in named[name].tolist()] for name in named}
    columns |= {name: [one or "" for one in columns[name]] for name in columns if DTYPES[name] == "str"}
    ends = [*starts[1:].tolist(), len(own)]
    for i, (start, stop) in enumerate(zip(starts.tolist(), ends, strict=True)):
        fact = Fact(*[*(columns[name][i] for name in NAMES), bool(whole[start])])
        where = lists.places(start, stop)
        key = tuple(columns[name][i] for name in ("run", *CELL))
        found.setdefault(key, []).append((fact, where, columns["weights"][i], slice(start, stop)))
    out = []
    for (run, *cell), parts in found.items():
        facts, where, weights, rows = zip(*parts, strict=True)
        bounds = {i: numbers[:, one] for i, one in enumerate(rows) if bounded[one].any()}
        of = np.concatenate([value[one] for one in rows])
        out.append(Table(run, dict(zip(CELL, cell, strict=True)), _facts(*facts), where, weights, of, bounds))
    return out


class _Lists:
    """The prompts of a frame's rows, those of equal rows found by their numbers."""

    def __init__(self, scores: pd.DataFrame) -> None:
        self.prompt, self.prompts = coded(scores.prompt_id)
        self.cluster, self.clusters = coded(scores.cluster)
        seed = scores.seed
        self.none = seed.isna().to_numpy(bool)
        self.seed = seed.fillna(0).to_numpy(np.int64)
        self.known: dict[bytes, Places] = {}

    def places(self, start: int, stop: int) -> Places:
        parts = [one[start:stop] for one in (self.prompt, self.cluster, self.seed, self.none)]
        key = b"".join(part.tobytes() for part in parts)
        if (found := self.known.get(key)) is None:
            prompt, cluster, seed, none = (part.tolist() for part in parts)
            found = self.known[key] = places(
                tuple(None if i < 0 else self.prompts[i] for i in prompt),
                tuple(None if gone else one for one, gone in zip(seed, none, strict=True)),
                tuple("" if i < 0 else self.clusters[i] for i in cluster),
            )
        return found


def _plain(value: Any) -> Any:
    if value is pd.NA or value is None or value != value:
        return None
    return value.item() if hasattr(value, "item") else value


def packed(table: Table) -> dict[str, bytes]:
    """A table as bytes, by part."""
    own = list(dict.fromkeys(table.places))
    head = {
        "run": table.run, "cell": table.cell, "weights": table.weights, "bounded": list(table.bounds),
        "places": [own.index(one) for one in table.places],
    }  # fmt: skip
    parts = {
        "facts": _json(table.facts),
        "head": _json(head),
        "value": table.value.tobytes(),
        "bounds": b"".join(np.ascontiguousarray(one).tobytes() for one in table.bounds.values()),
        **{f"places {i}": _json([one.ids, one.seeds, one.clusters]) for i, one in enumerate(own)},
    }
    return {name: len(part).to_bytes(8, "big") + _codec().compress(part, asbytes=True) for name, part in parts.items()}


def unpacked(parts: Mapping[str, bytes]) -> Table:
    """The table of :func:`packed`."""
    head = json.loads(_open(parts["head"]))
    own = [_places_of(parts[f"places {i}"]) for i in range(sum(name.startswith("places ") for name in parts))]
    where = tuple([own[i] for i in head["places"]])
    left, bounds = np.frombuffer(_open(parts["bounds"])), {}
    for i in head["bounded"]:
        n = 2 * len(where[i].ids)
        bounds[i], left = left[:n].reshape(2, -1), left[n:]
    value = np.frombuffer(_open(parts["value"]))
    return Table(head["run"], head["cell"], _facts_of(parts["facts"]), where, tuple(head["weights"]), value, bounds)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@cache
def _facts_of(data: bytes) -> tuple[Fact, ...]:
    return _facts(*(Fact(*one) for one in json.loads(_open(data))))


@cache
def _places_of(data: bytes) -> Places:
    return places(*map(tuple, json.loads(_open(data))))


def _open(data: bytes) -> bytes:
    found: bytes = _codec().decompress(data[8:], decompressed_size=int.from_bytes(data[:8], "big"), asbytes=True)
    return found


@cache
def _codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=3)
