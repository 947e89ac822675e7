"""Numbers that papers printed, each with its source, and where they disagree about one method.

They are facts to stand beside measured ones; none is reproduced by being listed. ``doubt`` says what is uncertain about
a row: a column that the source does not name, a page that is not the paper.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import pandas as pd

from erasebench.limits import read_text

COLUMNS = (
    "key", "paper", "table", "method", "ours", "base_model", "concept", "attack", "dataset", "evaluator", "metric",
    "value", "unit", "doubt", "source",
)  # fmt: skip
MAY_BE_EMPTY = ("ours", "doubt")
SETTINGS = ("dataset", "evaluator", "metric", "base_model", "table")  # what may explain a difference
FAMILIES = {
    "unsafe rate": ("ASR", "unsafe_rate", "any_exposed_rate", "nudity_rate", "inappropriate_prob"),
    "rate without attack": ("pre_ASR",),
    "FID": ("FID",),
    "CLIP score": ("CLIP",),
    "detections": ("count_Total",),
    "accuracy": ("acc",),
}  # what is measured -> the beginnings of its metrics' names
SCALES = {"%": 1.0, "frac": 100.0, "cos": 100.0, "100cos": 1.0, "fid": 1.0, "detections": 1.0}  # to %, or 100 cosines


def published_folder() -> Path:
    """``results/`` of the clone, or the copy inside an installed package."""
    package = Path(__file__).parent.parent
    clone = package.parent / "results"
    return clone if (clone / "published.csv").is_file() else package / "published"


def read_published(path: str | Path | None = None) -> pd.DataFrame:
    """The published numbers as a table with the columns of :data:`COLUMNS`; texts, and ``value`` as a number.

    Args:
        path: another file of the same columns; None for the one that comes with this package.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing or unknown, a needed text is empty, or a value is no number; names the line.
    """
    path = published_folder() / "published.csv" if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"published numbers - must be a CSV file; found no {path}; check the path")
    from io import StringIO

    try:
        table = pd.read_csv(StringIO(read_text(path)), dtype="str", keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} must be a CSV file with a line of heads; {error}".strip()) from error
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}; got {', '.join(table.columns)}")
    for name in COLUMNS:
        if name not in MAY_BE_EMPTY and (empty := table[name].str.strip() == "").any():
            raise ValueError(f"{path}, line {empty.idxmax() + 2}: {name} must be given; got nothing")
    value = pd.to_numeric(table.value, errors="coerce")
    if (bad := ~value.map(isfinite)).any():
        i = bad.idxmax()
        raise ValueError(f"{path}, line {i + 2}: value must be a number; got {table.value[i]!r}")
    return table.assign(value=value).drop_duplicates(ignore_index=True)


def family(metric: str) -> str:
    """What a metric measures, "" if it is compared with no other.

    >>> family("ASR(pre+post)"), family("pre_ASR"), family("count_Feet")
    ('unsafe rate', 'rate without attack', '')
    """
    return next((name for name, begins in FAMILIES.items() if metric.startswith(begins)), "")


def disagreement(published: pd.DataFrame) -> list[list[str]]:
    """What several papers say about one method, concept and attack, widest apart first, as lines with heads.

    Shares in %, cosines times 100. The last column names the settings in which the rows differ: what may explain it.
    A ``†`` marks ranges that rest on a doubtful row.
    """
    known = published.assign(measure=published.metric.map(family), scale=published.unit.map(SCALES))
    known = known[known.measure.ne("") & known.scale.notna()]
    known = known.assign(shown=known.value * known.scale).sort_values(["shown", "paper"], ignore_index=True)
    found = []
    for place, part in known.groupby(["method", "concept", "attack", "measure"], sort=True):
        if part.paper.nunique() < 2 or part.shown.nunique() < 2:
            continue
        low, high = part.loc[part.shown.idxmin()], part.loc[part.shown.idxmax()]
        differ = [name for name in SETTINGS[:-1] if part[name].nunique() > 1]
        mark = " †" if low.doubt or high.doubt else ""
        ends = [f"{end.shown:.2f} ({end.paper})" for end in (low, high)]
        line = [*map(str, place), *ends, f"{high.shown - low.shown:.2f}{mark}", str(part.paper.nunique())]
        found.append((high.shown - low.shown, [*line, ", ".join(differ) or "none recorded"]))
    found.sort(key=lambda one: (-one[0], one[1]))
    heads = ["method", "concept", "attack", "measure", "lowest", "highest", "apart", "papers", "settings that differ"]
    return [heads, *(line for _, line in found)]
