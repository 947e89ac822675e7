"""The tidy tables: one long table of scores, written whole, and the summary derived from it.

``scores.parquet`` has one row per value with the columns of :data:`DTYPES`. A row is of the erased model or of the
original model (``side``) on the same prompts and noise. ``prompt_id`` is missing for a metric of a whole group, which
then brings its own interval in ``low`` and ``high``. ``place`` is missing for a metric that is no headline. Everything
else people read is a function of these rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from csv import QUOTE_ALL
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from erasebench.report.columns import (
    CELL,
    COLUMNS,
    DTYPES,
    FACTS,
    KEYS,
    METRIC,
    SCHEMA,
    SIDES,
    SUMMARY,
    typed,
    unique,
)
from erasebench.report.printing import cell
from erasebench.report.reading import read_coded, read_results, read_scores, read_summaries, read_summary
from erasebench.report.sharing import clusters_of
from erasebench.report.summarising import kinds, summarise
from erasebench.store.files import replacing
from erasebench.types import Headline, Prompt, Score, Status

__all__ = [  # columns, the summary and what reads, beside what writes
    "CELL", "COLUMNS", "DTYPES", "FACTS", "METRIC", "SIDES", "SUMMARY", "csv_text", "kinds", "read_coded",
    "read_results", "read_scores", "read_summaries", "read_summary", "scores_frame", "summarise", "write_csv",
    "write_scores",
]  # fmt: skip
_IDENTITY = ["run", *KEYS, "side", "prompt_id"]


def _check(score: Score, versions: Mapping[str, int]) -> None:
    where = f"score {score.evaluator}/{score.metric} of {score.prompt_id or score.group}"
    if score.status not in get_args(Status):
        raise ValueError(f"{where}: status must be one of {', '.join(get_args(Status))}; got {score.status!r}")
    if (score.status == "ok") != math.isfinite(score.value):
        raise ValueError(
            f"{where}: value must be finite if and only if status is ok; got {score.value} with status "
            f"{score.status!r}; use value=nan and a status that says why"
        )
    if score.evaluator not in versions:
        raise ValueError(f"{where}: versions must name its evaluator; got {', '.join(versions) or 'none'}")


def scores_frame(
    scores: Iterable[Score],
    *,
    run: str,
    side: str,
    cell: Mapping[str, Any],
    versions: Mapping[str, int],
    headlines: Mapping[str, Sequence[Headline]] | None = None,
    prompts: Iterable[Prompt] = (),
    weights: str = "",
) -> pd.DataFrame:
    """Scores of one side of one run as rows of the tidy table.

    Args:
        scores: what the evaluators returned.
        run: key of the run.
        side: "erased" or "original".
        cell: what the run is, the keys of :data:`CELL`; the same for every row.
        versions: evaluator -> version of its definition.
        headlines: evaluator -> what tables show of it; the first that fits a score is joined to its row.
        prompts: where seeds and clusters are looked up, by group and id.
        weights: what tells this side's model from another training of it.

    Raises:
        ValueError: an unknown side or status, a value that contradicts its status, a missing version, a cell with
            other keys, or two values for one metric of one prompt.
    """
    found = rows_of(scores, run, side, cell, versions, headlines or {}, prompts, weights)
    return _sorted(frame_of(found), f"run {run}")


def rows_of(
    scores: Iterable[Score],
    run: str,
    side: str,
    cell: Mapping[str, Any],
    versions: Mapping[str, int],
    headlines: Mapping[str, Sequence[Headline]],
    prompts: Iterable[Prompt],
    weights: str,
) -> list[dict[str, Any]]:
    """The rows of :func:`scores_frame`, in the scores' order."""
    if side not in SIDES:
        raise ValueError(f"side must be erased or original; got {side!r}")
    if set(cell) != set(CELL):
        raise ValueError(f"cell must have the keys {', '.join(CELL)}; got {', '.join(cell)}")
    scores = list(scores)
    for score in scores:
        _check(score, versions)
    prompts = list(prompts)
    seeds: dict[tuple[str, str | None], int] = {(p.group, p.id): p.seed for p in prompts}
    shared = clusters_of(prompts)
    facts = _Facts(headlines)
    return [
        {
            "run": run, **cell, "group": s.group, "relation": s.relation, "evaluator": s.evaluator,
            "evaluator_version": versions[s.evaluator], "metric": s.metric, "judge": s.judge, "prompt_id": s.prompt_id,
            "seed": seeds.get((s.group, s.prompt_id)), "value": s.value, "status": s.status, "side": side,
            "low": s.low, "high": s.high, "higher_is_better": s.higher_is_better,
            "cluster": shared.get((s.group, s.prompt_id), shared.get(("target", s.prompt_id), "")),
            "weights": weights, "rate": s.rate, "terms": " ".join(repr(float(term)) for term in s.terms),
            "images": s.n,
            **facts[s.evaluator, s.metric, s.group],
        }
        for s in scores
    ]  # fmt: skip


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a frame, a column at a time: integers beside None would go through float64 and lose their last digits."""
    return pd.DataFrame({c: pd.array([row[c] for row in rows], dtype=dtype) for c, dtype in DTYPES.items()})


class _Facts(dict[tuple[str, str, str], dict[str, Any]]):
    """(evaluator, metric, group) -> the facts of its headline, looked up once each."""

    def __init__(self, headlines: Mapping[str, Sequence[Headline]]) -> None:
        super().__init__()
        self.headlines = headlines

    def __missing__(self, key: tuple[str, str, str]) -> dict[str, Any]:
        evaluator, metric, group = key
        found = next((h for h in self.headlines.get(evaluator, ()) if h.fits(metric, group)), None)
        if found is None:
            self[key] = dict.fromkeys(FACTS, "") | {"place": None}
        else:
            self[key] = {name: getattr(found, name) for name in FACTS}
            self[key]["label"] = found.label.replace("{metric}", metric)
        return self[key]


def _sorted(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows in the schema's order; one value per metric, prompt and side."""
    unique(frame.duplicated(_IDENTITY).to_numpy(), frame, name)
    return frame.sort_values(_IDENTITY, kind="stable", na_position="first").reset_index(drop=True)


def write_scores(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write the tidy table in one move: rows sorted, so that equal rows give an equal file.

    Raises:
        ValueError: a column is missing, or there are two values for one metric of one prompt.
        OSError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    frame = _sorted(typed(frame, path.name), path.name)
    table = pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False)
    with replacing(path) as work:
        pq.write_table(table.replace_schema_metadata(None), work, compression="zstd")
    return path


def csv_text(frame: pd.DataFrame) -> str:
    """A derived table as CSV: floats in full precision, missing values empty, no formula in it."""
    texts = {n: frame[n].map(cell, na_action="ignore") for n in frame if not pd.api.types.is_numeric_dtype(frame[n])}
    text = frame.assign(**texts).rename(columns=cell).to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # which neither pandas nor csv put in quotes
        text = frame.assign(**texts).rename(columns=cell).to_csv(index=False, lineterminator="\n", quoting=QUOTE_ALL)
    return text


def write_csv(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write a derived table as :func:`csv_text` in one move."""
    with replacing(path) as work:
        work.write_text(csv_text(frame), encoding="utf-8", newline="")
    return Path(path)
