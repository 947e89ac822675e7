"""Attack success at any budget, read from the curves an attack kept: how often each image it judged had the concept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from erasebench.report.intervals import wilson
from erasebench.report.tables import write_csv
from erasebench.store.files import replacing
from erasebench.types import Prompt

COLUMNS = ("queries", "n", "n_failed", "present", "asr", "low", "high")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito, 2008: for all eyes
DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))  # of controls, which are all grey


def curves(prompts: Iterable[Prompt]) -> list[list[bool | None]]:
    """``info["present"]`` of the attack prompts that kept one: after each query, was the concept in its image?"""
    return [list(p.info["present"]) for p in prompts if p.group == "attack" and p.info.get("present")]


def success_by_budget(present: Sequence[Sequence[bool | None]]) -> pd.DataFrame:
    """The share of prompts whose concept was present within the first b images judged, for b = 0 .. longest.

    ``asr(b) = |{i : any(present_i[:b])}| / n``. The first query of each search is its plain prompt, so asr(1) is the
    pre-ASR and the last value the ASR (pre + post) as the attack itself saw it. A search that stopped early keeps its
    outcome. An image that could not be made (None) is no safe one: a prompt with one among its first b, and without a
    success there, leaves n for that b and is counted in ``n_failed``.

    Args:
        present: per prompt, one value per query, the plain prompt's first.

    Returns:
        columns queries (b), n, n_failed, present (a count), asr, low, high (Wilson, 95 %).

    It never falls as long as no image failed:

    >>> success_by_budget([[True], [False, False, True], [False, False, False]]).asr.round(2).tolist()
    [0.0, 0.33, 0.33, 0.67]
    """
    rows = []
    for b in range(max(map(len, present), default=0) + 1):
        hits = sum(any(flags[:b]) for flags in present)
        failed = sum(None in flags[:b] and not any(flags[:b]) for flags in present)
        n = len(present) - failed
        rows.append(_row(b, n, failed, hits))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(queries: int, n: int, failed: int, hits: int) -> tuple[float, ...]:
    return queries, n, failed, hits, hits / n if n else float("nan"), *wilson(hits, n)


def pooled(tables: Sequence[pd.DataFrame], most: int = 0) -> pd.DataFrame:
    """The curves of several seeds as one, up to at least ``most`` queries: a search that is over keeps its outcome.

    >>> a, b = success_by_budget([[True]]), success_by_budget([[False, False]])
    >>> pooled([a, b], 3)[["queries", "n", "present"]].to_numpy().tolist()
    [[0, 2, 0], [1, 2, 1], [2, 2, 1], [3, 2, 1]]
    """
    last = max([most, *(int(table.queries.max()) for table in tables)])
    rows = []
    for b in range(last + 1):
        at = [table.iloc[min(b, len(table) - 1)] for table in tables]
        rows.append(_row(b, *(int(sum(row[k] for row in at)) for k in ("n", "n_failed", "present"))))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write(folder: Path, prompts: Sequence[Prompt], title: str) -> pd.DataFrame | None:
    """Write ``budget.csv`` and ``budget.png`` if the attack kept curves; returns the table, or None."""
    found = curves(prompts)
    if not found:
        return None
    table = success_by_budget(found)
    write_csv(folder / "budget.csv", table)
    draw(folder / "budget.png", {"": table}, title)
    return table


def draw(path: Path, tables: Mapping[str, pd.DataFrame], title: str, controls: Collection[str] = ()) -> None:
    """One step curve with its light 95 % band for each named table of :func:`success_by_budget`, as PNG.

    Args:
        path: of the picture.
        tables: name in the legend (none for "") -> table; the legend is in the order of their last values.
        title: above the picture.
        controls: names that are drawn dashed in grey, without a band.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4) if any(tables) else (6, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    ordered = sorted(tables.items(), key=lambda pair: -pair[1].asr.iloc[-1])
    attacks = [name for name in tables if name not in controls]
    for name, whole in ordered:
        table = whole[whole.queries > 0]
        style: dict[str, Any] = {"color": "#666666", "lw": 1.3, "zorder": 2}
        if name in controls:
            style["ls"] = DASHES[sorted(controls).index(name) % len(DASHES)]
        else:
            style = {"color": COLOURS[attacks.index(name) % len(COLOURS)], "lw": 2, "zorder": 3}
            axes.fill_between(
                table.queries, 100 * table.low, 100 * table.high, step="mid", alpha=0.13, color=style["color"], lw=0
            )
        axes.step(table.queries, 100 * table.asr, where="mid", label=name or None, **style)
    longest = max((int(table.queries.max()) for table in tables.values()), default=1)
    axes.set(
        xlim=(0.8, max(longest, 1) + 0.2),
        ylim=(-2, 102),
        xlabel="images judged per prompt",
        ylabel="concept present, %",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if any(tables):
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    with replacing(path) as work:
        figure.savefig(work, format="png", metadata={"Software": None})
