"""Figures in one style, for papers and for the report: PNG and PDF, colours and marks that all eyes tell apart."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from erasebench.report.board import REFERENCES, Board, Column
from erasebench.report.budget import COLOURS, GREY
from erasebench.store.files import replacing

MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))
KINDS = (".png", ".pdf")
LONGEST = 60  # characters of a name in a legend


def save(figure: Any, path: Path, lasting: bool = True) -> list[Path]:
    """Write a figure as PNG and PDF beside each other, or as the one its name ends in; equal ones give equal files.

    ``lasting``: see :func:`erasebench.store.files.replacing`.
    """
    undated = {".png": {"Software": None}, ".pdf": {"CreationDate": None}}
    files = [path] if path.suffix in KINDS else [path.with_name(path.name + end) for end in KINDS]
    for file in files:
        with replacing(file, lasting) as work:
            figure.savefig(work, format=file.suffix[1:], metadata=undated[file.suffix])
    return files


def axes(title: str, xlabel: str, ylabel: str, size: tuple[float, float] = (6, 4)) -> tuple[Any, Any]:
    """An empty figure of the common style and its axes."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it complains of homes it cannot write to, and goes on
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    one: Any = figure.add_subplot()
    one.set(xlabel=xlabel, ylabel=ylabel)
    one.set_title("\n".join(textwrap.wrap(title[:200], 90)), fontsize=9)
    one.spines[["top", "right"]].set_visible(False)
    one.grid(alpha=0.25)
    return figure, one


def worst(board: Board, role: str, most: bool) -> list[tuple[float, float, float]]:
    """Of each row, the value with its interval that is worst among the columns of a role, controls apart."""
    columns = [c for c in board.columns if c.role == role and c.facts["control"] != "True" and c.unit == "%"]
    if role == "kept":
        columns = [c for c in columns if not c.facts["attack"]]
    return [_worst(row, columns, most) for row in board.table.to_dict("records")]


def _worst(row: Mapping[str, Any], columns: Sequence[Column], most: bool) -> tuple[float, float, float]:
    found = [(row[c.name], row[f"{c.name}_low"], row[f"{c.name}_high"]) for c in columns if not isnan(row[c.name])]
    return (max if most else min)(found, key=lambda one: one[0], default=(np.nan, np.nan, np.nan))


def tradeoff(board: Board) -> Any:
    """Erasure against preservation: one mark per method, filled on the front; None where nothing can be drawn.

    Across: how often the concept is seen where it is seen most, in plain prompts, synonyms or under an attack. Up: how
    often other concepts are drawn where they suffer most. Lines are the 95 % intervals of the two.
    """
    back, kept = worst(board, "present", True), worst(board, "kept", False)
    rows = [
        (row, x, y)
        for row, x, y in zip(board.table.to_dict("records"), back, kept, strict=True)
        if not isnan(x[0]) and not isnan(y[0])
    ]
    if not rows:
        return None
    figure, one = axes(f"{board.name}: erasure against preservation", "concept seen at worst, % (low is better)",
                       "other concepts kept at worst, %", (7, 4.2))  # fmt: skip
    for i, (row, x, y) in enumerate(rows):
        reference = row["method"] in REFERENCES
        colour = GREY if reference else COLOURS[i % len(COLOURS)]
        for value, other, line in ((x, y, one.hlines), (y, x, one.vlines)):
            if not isnan(value[1]):
                line(100 * other[0], 100 * value[1], 100 * value[2], color=colour, lw=0.8, alpha=0.6)
        face = colour if row["front"] or reference else "white"
        one.plot(
            100 * x[0],
            100 * y[0],
            MARKS[i % len(MARKS)],
            ms=8,
            color=colour,
            mfc=face,
            label=row["row"][:LONGEST],
            zorder=3,
        )
    one.set(xlim=(-4, 104), ylim=(-4, 104))
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def threshold(title: str, scores: Mapping[str, Sequence[float]]) -> Any:
    """The share of images whose score is at least t, for every t from 0 to 1; None without scores."""
    known = {name: np.sort(np.asarray(values, float)) for name, values in scores.items() if len(values)}
    if not known:
        return None
    figure, one = axes(title, "threshold of the judge's score", "images that reach it, %", (7, 4))
    at = np.linspace(0, 1, 201)
    for i, (name, values) in enumerate(known.items()):
        share = 100 * (1 - np.searchsorted(values, at, side="left") / len(values))
        dash = DASHES[i // len(COLOURS) % len(DASHES)]
        colour = GREY if i == 0 else COLOURS[(i - 1) % len(COLOURS)]
        one.step(at, share, where="pre", color=colour, ls=dash, lw=1.8, label=name[:LONGEST])
    one.set(xlim=(0, 1), ylim=(-3, 103))
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


BINS = 6  # of as many images each, of a curve over distances


def spillover(title: str, kept: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """How often other concepts are still drawn, over how far their names are from the erased one's.

    Args:
        kept: name of a line -> of each image the distance of its text and whether its concept is seen.

    Points are the concepts' means, lines the means of :data:`BINS` parts with as many images each. None without images.
    """
    known = {name: np.asarray(pairs, float) for name, pairs in kept.items() if len(pairs)}
    if not known:
        return None
    figure, one = axes(title, "distance of the text from the erased concept, 1 - cosine", "still drawn, %", (7, 4))
    for i, (name, pairs) in enumerate(known.items()):
        colour = GREY if i == 0 else COLOURS[(i - 1) % len(COLOURS)]
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        far = np.unique(pairs[:, 0])
        one.plot(
            far,
            [100 * pairs[pairs[:, 0] == d, 1].mean() for d in far],
            MARKS[i % len(MARKS)],
            ms=4,
            color=colour,
            alpha=0.45,
        )
        parts = np.array_split(pairs, min(BINS, len(far)))
        centre = np.array([part.mean(0) for part in parts])
        dash = DASHES[i // len(COLOURS) % len(DASHES)]
        one.plot(centre[:, 0], 100 * centre[:, 1], color=colour, ls=dash, lw=1.8, label=name[:LONGEST])
    one.set(ylim=(-4, 104))
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
