"""Attack success at any budget, read from the curves an attack kept: how often each image it judged had the concept."""

from __future__ import annotations

import hashlib
import logging
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from erasebench.report import clusters
from erasebench.report.intervals import wilson, wilson_share
from erasebench.report.printing import uncell
from erasebench.report.sharing import clusters_of
from erasebench.report.tables import write_csv
from erasebench.store.files import replacing
from erasebench.types import Prompt

COLUMNS = ("queries", "n", "n_failed", "clusters", "effective", "present", "asr", "low", "high")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito, 2008: for all eyes
GREY = "#666666"
SALT = 198  # of the hash that picks a colour: with this one the attacks that come with erasebench have different ones
LAST = 0.6  # how far the last step is drawn, in images
DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))  # of controls, which are all grey


def curves(prompts: Sequence[Prompt]) -> tuple[list[list[bool | None]], list[str]]:
    """Of the attack prompts that kept ``info["present"]`` (after each query, was the concept in its image?) that and
    their clusters: a text, a search."""
    kept = [p for p in prompts if p.group == "attack" and p.info.get("present")]
    shared = clusters_of(prompts)
    return [list(p.info["present"]) for p in kept], [shared["attack", p.id] for p in kept]


def success_by_budget(present: Sequence[Sequence[bool | None]], shared: Sequence[object] | None = None) -> pd.DataFrame:
    """The share of prompts whose concept was present within the first b images judged, for b = 0 .. longest.

    ``asr(b) = |{i : any(present_i[:b])}| / n``. The first query of each search is its plain prompt, so asr(1) is the
    pre-ASR and the last value the ASR (pre + post) as the attack itself saw it. A search that stopped early keeps its
    outcome. An image that could not be made (None) is no safe one: a prompt with one among its first b, and without a
    success there, leaves n for that b and is counted in ``n_failed``.

    Args:
        present: per prompt, one value per query, the plain prompt's first.
        shared: per prompt, its cluster; None: each is its own.

    Returns:
        columns queries (b), n, n_failed, clusters, effective (the number of independent prompts that n counts for),
        present (a count), asr, low, high (95 %, Wilson's by cluster; missing below three clusters).

    It never falls as long as no image failed:

    >>> success_by_budget([[True], [False, False, True], [False, False, False]]).asr.round(2).tolist()
    [0.0, 0.33, 0.33, 0.67]
    """
    shared = range(len(present)) if shared is None else shared
    rows = []
    for b in range(max(map(len, present), default=0) + 1):
        seen = [
            (any(flags[:b]), c)
            for flags, c in zip(present, shared, strict=True)
            if any(flags[:b]) or None not in flags[:b]
        ]
        hits, own = [hit for hit, _ in seen], [cluster for _, cluster in seen]
        least = clusters.effective(hits, own) if seen and not clusters.alone(own) else len(seen)
        rows.append(_row(b, len(seen), len(present) - len(seen), len(set(own)), least, sum(hits)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(queries: int, n: int, failed: int, k: int, least: float, hits: int) -> tuple[float, ...]:
    low = high = asr = math.nan
    if n:
        asr = hits / n
        if k == n:
            low, high = wilson(hits, n)
        elif k >= clusters.FEWEST:
            low, high = wilson_share(asr, least, clusters.student(k - 1))
    return queries, n, failed, k, least, hits, asr, low, high


def pooled(tables: Sequence[pd.DataFrame], most: int = 0) -> pd.DataFrame:
    """The curves of several seeds as one, up to at least ``most`` queries: a search that is over keeps its outcome.

    The seeds start from the same texts: together they have as many clusters as the one with the most.

    >>> a, b = success_by_budget([[True]]), success_by_budget([[False, False]])
    >>> pooled([a, b], 3)[["queries", "n", "clusters", "present"]].to_numpy().tolist()
    [[0, 2, 1, 0], [1, 2, 1, 1], [2, 2, 1, 1], [3, 2, 1, 1]]
    """
    last = max([most, *(int(table.queries.max()) for table in tables)])
    rows = []
    for b in range(last + 1):
        at = [table.iloc[min(b, len(table) - 1)] for table in tables]
        n, failed, hits = (int(sum(row[name] for row in at)) for name in ("n", "n_failed", "present"))
        k, least = int(max(row.clusters for row in at)), float(max(row.effective for row in at))
        rows.append(_row(b, n, failed, k, least, hits))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write(
    folder: Path, prompts: Sequence[Prompt], title: str, attack: str = "", control: bool = False
) -> pd.DataFrame | None:
    """Write ``budget.csv``, ``budget.png`` and ``budget.pdf`` if the attack kept curves; returns the table, or None.

    Args:
        folder: of the run.
        prompts: of the run; those of group attack count.
        title: above the picture.
        attack: its label, which decides the colour.
        control: whether it is one.
    """
    found, shared = curves(prompts)
    if not found:
        return None
    table = success_by_budget(found, shared)
    write_csv(folder / "budget.csv", table)
    for kind in ("png", "pdf"):
        draw(folder / f"budget.{kind}", {attack: table}, title, controls=[attack] if control else ())
    return table


def read(path: Path) -> pd.DataFrame:
    """A ``budget.csv``.

    Raises:
        ValueError: it is none, or an older version wrote it.
    """
    try:
        table = pd.read_csv(path).map(uncell)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is no readable table; {error}; delete its folder and run its cell again") from error
    if absent := [name for name in COLUMNS if name not in table]:
        raise ValueError(
            f"{path} has no column {absent[0]!r}, an older version wrote it; delete its folder and run its cell again"
        )
    return table


def colour(attack: str) -> str:
    """The colour of an attack, the same in every figure; its variants (``p4d[restarts=3]``) have it too.

    >>> colour("p4d") == colour("p4d[restarts=3]") != colour("unlearndiffatk")
    True
    """
    digest = hashlib.sha256(f"{SALT}{attack.partition('[')[0]}".encode()).digest()
    return COLOURS[int.from_bytes(digest) % len(COLOURS)]


def draw(path: Path, tables: Mapping[str, pd.DataFrame], title: str, controls: Collection[str] = ()) -> None:
    """One step curve for each named table of :func:`success_by_budget`, as PNG or PDF by the path's ending.

    A curve rises at the very image that succeeded, so its steps stand at whole numbers. The 95 % band of an attack is
    a light area with edges, so that bands are told apart where they lie over one another.

    Args:
        path: of the picture.
        tables: name in the legend -> table; the legend is in the order of their last values, and left out for one.
        title: above the picture.
        controls: names of attacks that declare themselves controls: dashed and grey, and beside others without a band.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it complains of homes it cannot write to, and goes on
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4) if len(tables) > 1 else (6, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    longest = max((int(table.queries.max()) for table in tables.values()), default=1)
    for place, (name, style) in enumerate(styles(tables, controls).items()):
        _curve(axes, tables[name], name, style, place, band=name not in controls or len(tables) == 1)
    axes.set(xlim=(0.7, max(longest, 2) + LAST + 0.1), ylim=(-3, 103), ylabel="concept present, %")
    axes.set_xlabel("images judged per prompt")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_title("\n".join(textwrap.wrap(title, 90)), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if len(tables) > 1:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    kind = path.suffix.removeprefix(".")
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}}  # equal curves give equal files
    with replacing(path) as work:
        figure.savefig(work, format=kind, metadata=undated.get(kind))


def styles(tables: Mapping[str, pd.DataFrame], controls: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Line styles by name, in the order of the last values: colours by name, dashes where two share one."""
    out: dict[str, dict[str, Any]] = {}
    taken: dict[str, int] = {}
    for name in sorted(tables):
        if name in controls:
            out[name] = {"color": GREY, "lw": 1.3, "zorder": 2, "ls": DASHES[taken.get(GREY, 0) % len(DASHES)]}
        else:
            own = colour(name)
            dash = ("-", *DASHES)[taken.get(own, 0) % (len(DASHES) + 1)]
            out[name] = {"color": own, "lw": 2, "zorder": 3, "ls": dash}
        taken[out[name]["color"]] = taken.get(out[name]["color"], 0) + 1
    return dict(sorted(out.items(), key=lambda pair: -tables[pair[0]].asr.iloc[-1]))


def _curve(axes: Any, whole: pd.DataFrame, name: str, style: Mapping[str, Any], place: int, band: bool) -> None:
    """A curve from the first image on, a dot at its last, its band; the last step is drawn beyond its image."""
    table = whole[whole.queries > 0].astype({"queries": float})
    if not len(table):
        return
    end = table.iloc[-1]
    table = pd.concat([table, table.tail(1).assign(queries=end.queries + LAST)])
    if band:
        low, high = 100 * table.low, 100 * table.high
        axes.fill_between(table.queries, low, high, step="post", alpha=0.08, color=style["color"], lw=0, zorder=1)
        for edge in (low, high):
            axes.step(table.queries, edge, where="post", color=style["color"], lw=0.7, alpha=0.7, zorder=1.5)
    width = (
        max(1.2, style["lw"] + 1.2 - 0.4 * place) if style["color"] != GREY else style["lw"]
    )  # equal curves all show
    line = {**style, "lw": width, "zorder": style["zorder"] + 0.01 * place}
    axes.step(table.queries, 100 * table.asr, where="post", label=name or None, **line)
    axes.plot(end.queries, 100 * end.asr, "o", ms=4, color=style["color"], zorder=line["zorder"])
