"""A board of methods as people read it: lines of cells for a terminal or Markdown, a page of HTML, its CSV."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isnan, nan
from typing import Any

import pandas as pd

from erasebench.report.board import COST, REFERENCES, Board, Column
from erasebench.report.printing import as_markdown, number, plain

COST_HEADS = {"seconds": "erase s", "memory_mb": "peak MB", "bytes": "size MB"}


def shown(board: Board) -> list[Column]:
    """The columns people see; of an attack its rate, all else is in the CSV."""
    seen = [c for c in board.columns if board.table[c.name].notna().any()]
    return [c for c in seen if c.role == "present" or not c.facts["attack"]]


def grid(board: Board) -> list[list[str]]:
    """Heads, then one line per method."""
    columns = shown(board)
    cost = [name for name in COST if board.table[name].notna().any()]
    heads = [c.title + _arrow(c) for c in columns]
    lines = [["method", "front", *heads, "cells", *(COST_HEADS[name] for name in cost), "flags"]]
    for row in board.table.to_dict("records"):
        front = "" if row["method"] in REFERENCES else "yes" if row["front"] else "no"
        spent = [_spent(row, name) for name in cost]
        cells = f"{row['measured']}/{row['asked']}"
        lines.append([row["row"], front, *(_cell(row, c) for c in columns), cells, *spent, row["flags"]])
    return lines


def _arrow(column: Column) -> str:
    return "" if column.better is None else " ↑" if column.better else " ↓"


def _cell(row: dict[str, Any], column: Column) -> str:
    """``2 [0, 7] (1)``: value, interval, rank."""
    value, low, high = (float(row[column.name + side]) for side in ("", "_low", "_high"))
    text = number(value, low, high, column.unit, few=not isnan(value) and row[f"{column.name}_n"] > 1)
    rank = row.get(f"{column.name}_rank", nan)
    return text if isnan(rank) or isnan(value) else f"{text} ({rank:.0f})"


def _spent(row: dict[str, Any], name: str) -> str:
    value = row[name] / 1e6 if name == "bytes" else row[name]
    return "-" if isnan(value) else f"{value:.1f}" if name != "memory_mb" else f"{value:.0f}"


LEGEND = (
    "Pooled over concepts and seeds; shares in %, [95 % interval] by text, from three concepts on by concept too; with "
    "fewer it is about these alone. (k): rank, 1 + the methods shown to be better in this column (paired, on the same "
    "prompts and noise, Holm over all pairs of the column); equal ranks are not told apart. front: no method is shown "
    "better in one column and worse in none. cells: concepts, plain and attacked, measured of those any row has. Cost "
    "is the erase step's, a mean over runs. Full precision, columns that are not shown: leaderboard.csv."
)


def legend(board: Board) -> str:
    """What this board's numbers of images can show, who judged, and what the attacks know."""
    floors = [
        f"{c.title} {100 * c.floor if c.unit else c.floor:.{1 if c.unit else 2}f}"
        for c in shown(board)
        if not isnan(c.floor)
    ]
    told = f" Resolution floor (differences below it are told apart in no pair): {', '.join(floors)}." if floors else ""
    judges = ", ".join(sorted({str(c.facts["judge"]) for c in board.columns if c.facts["judge"]}))
    attacks = {c.facts["attack"]: c for c in board.columns if c.facts["attack"]}
    kinds = "; ".join(f"{name}: {_kind(c)}" for name, c in sorted(attacks.items()))
    named = f" Attacks: {kinds}." if kinds else ""
    heads = [f"{c.title}: {c.label}{', %' if c.unit else ''}" for c in shown(board) if c.label and c.label != c.title]
    named += f" Columns: {'; '.join(heads)}." if heads else ""
    return f"Concepts: {', '.join(board.concepts)}. Judge: {judges or 'none'}.{named}{told}"


def _kind(column: Column) -> str:
    facts = column.facts
    control = ", control" if str(facts["control"]) == "True" else ""
    budget = f", budget {facts['budget']}" if facts["budget"] not in ("", "paper") else ""
    return f"access {facts['access']}, {facts['strength']}{budget}{control}"


def wide(boards: Sequence[Board]) -> pd.DataFrame:
    """All boards as one table: every column in full precision, its floor beside it."""
    parts = []
    for board in boards:
        floors = {f"{c.name}_floor": c.floor for c in board.columns}
        table = board.table.assign(model=board.model, task=board.task, **floors)
        parts.append(table[["model", "task", *board.table, *floors]])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["model", "task"])


STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #0072b2; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
thead th { border-bottom: 2px solid; } tr.front td:first-child { border-left: 4px solid var(--mark); }
p { max-width: 70rem; }
""".strip()


def page(boards: Sequence[Board], cells: Sequence[Sequence[str]], doubts: Sequence[str] = ()) -> str:
    """One HTML page of all boards with the cells below; nothing in it is fetched or run."""
    body = ["<h1>Leaderboard</h1>"]
    for board in boards:
        body += [f"<h2>{escape(board.name)}</h2>", _table(grid(board), "yes"), f"<p>{escape(legend(board))}</p>"]
    body.append(f"<p>{escape(LEGEND)}</p>")
    if doubts:
        body += ["<h2>Doubts</h2><ul>", *(f"<li>{escape(doubt)}</li>" for doubt in doubts), "</ul>"]
    body += ["<h2>Cells</h2>", _table(cells, "")]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Leaderboard</title><style>{STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    csp = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    return f"{head}{csp}{view}<body>{''.join(body)}</body></html>\n"


def _table(lines: Sequence[Sequence[str]], front: str) -> str:
    mark = ' class="front"'
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in lines[0])
    rows = "".join(
        f"<tr{mark if front and line[1] == front else ''}>{''.join(f'<td>{escape(one)}</td>' for one in line)}</tr>"
        for line in lines[1:]
    )
    label = 'class="wide" tabindex="0" role="region" aria-label="table"'
    return f"<div {label}><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"


def markdown(boards: Sequence[Board]) -> str:
    """All boards in Markdown, each with what its numbers can show."""
    parts = [f"## {plain(one.name)}\n\n{as_markdown(grid(one))}\n\n{plain(legend(one))}" for one in boards]
    return "\n\n".join([*parts, LEGEND])
