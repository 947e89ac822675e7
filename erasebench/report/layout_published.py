"""Numbers that papers printed as lines of a layout, where its columns say which of them they are about.

They are never marked and never pooled: what one source prints of one thing several times is shown as a range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from erasebench.report.layout_tables import ALL, Shown, Table
from erasebench.report.layouts import Patterns, fits
from erasebench.report.published import SCALES


@dataclass(frozen=True)
class Printed:
    """A line: its block, name, cells, and the key of its source in ``published.bib``."""

    block: str
    label: str
    cells: tuple[str, ...]
    key: str


def printed(table: Table, published: pd.DataFrame) -> list[Printed]:
    """The published lines that fit a table: its methods, or those its layout names, in its columns.

    A column that is about one attack, and a block that is about one concept, take what the layout says this one is
    called elsewhere.

    Args:
        table: filled.
        published: see :func:`erasebench.report.published.read_published`.
    """
    methods = {row.method: i for i, row in reversed(list(enumerate(table.rows)))}
    wanted = table.layout.published_methods
    others = published.method.map(lambda name: bool(wanted) and fits(name, wanted)).astype(bool)
    known = published[published.ours.isin(list(methods)) | others]
    order = known.ours.map(methods).fillna(len(table.rows))
    known = known.assign(order=order).sort_values(["order", "method", "key", "base_model"], kind="stable")
    found = []
    for block in dict.fromkeys(row.block for row in table.rows):
        cells: dict[tuple[str, str, str], dict[int, str]] = {}
        for i, column in enumerate(table.columns):
            part = known[_fit(column, known, table.concepts, block)]
            for place, rows in part.groupby(["method", "base_model", "key"], sort=False):
                cells.setdefault(place, {})[i] = _cell(rows, column)
        places = [tuple(one) for one in known[["method", "base_model", "key"]].drop_duplicates().to_numpy()]
        for method, base, key in (place for place in places if place in cells):
            line = tuple(cells[method, base, key].get(i, "-") for i in range(len(table.columns)))
            found.append(Printed(block, method if base == method else f"{method} ({base})", line, key))
    return found


def _fit(column: Shown, known: pd.DataFrame, concepts: Iterable[str], block: str) -> pd.Series:
    """[rows] bool: which published numbers are this column's in a block."""
    names = {"concept": tuple(concepts) if block in ("", ALL) else (block,), "attack": (column.attack,)}
    keep = pd.Series(bool(column.asked.published), index=known.index)
    for key, wanted in column.asked.published.items():
        if isinstance(wanted, Mapping):
            called: Patterns = tuple(one for name in names[key] for one in wanted.get(name, ()))
            keep &= known[key].map(lambda text, called=called: bool(called) and fits(text, called)).astype(bool)
        else:
            keep &= known[key].map(lambda text, wanted=wanted: fits(text, wanted)).astype(bool)
    if block not in ("", ALL) and not isinstance(column.asked.published.get("concept"), Mapping):
        return keep & False
    return keep


def _cell(rows: pd.DataFrame, column: Shown) -> str:
    """A number as it was printed, in this table's unit: shares in %, cosines times 100; a range of several."""
    values = rows.value * rows.unit.map(SCALES).fillna(1.0)
    values = 100 - values if column.asked.complement else values
    ends = list(dict.fromkeys(f"{value:.6g}" for value in (values.min(), values.max())))
    return "–".join(ends) + (" †" if rows.doubt.ne("").any() else "")
