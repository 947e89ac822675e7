"""The tidy tables: one long table of scores, written whole, and the summary derived from it.

``scores.parquet`` has one row per value with the columns of :data:`DTYPES`. A row is of the erased model or of the
original model (``side``) on the same prompts and noise. ``prompt_id`` is missing for a metric of a whole group, which
then brings its own interval in ``low`` and ``high``. Everything else people read is a function of these rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from erasebench.report.intervals import bootstrap_mean, cluster_bootstrap, mcnemar, newcombe_paired, wilson
from erasebench.store.files import replacing
from erasebench.types import Prompt, Score, Status

__all__ = [
    "COLUMNS", "DTYPES", "KEYS", "SUMMARY", "bootstrap_mean", "cluster_bootstrap", "mcnemar", "newcombe_paired",
    "read_results", "read_scores", "scores_frame", "summarise", "wilson", "write_csv", "write_scores",
]  # fmt: skip

DTYPES: Mapping[str, str] = {
    "run": "str", "model": "str", "concept": "str", "method": "str", "recipe": "str", "attack": "str", "access": "str",
    "group": "str", "relation": "str", "evaluator": "str", "evaluator_version": "int64", "metric": "str",
    "prompt_id": "str", "seed": "Int64", "value": "float64", "status": "str", "side": "str",
    "low": "float64", "high": "float64", "higher_is_better": "boolean",
}  # fmt: skip
COLUMNS = tuple(DTYPES)
CELL = ("model", "concept", "method", "recipe", "attack", "access")
KEYS = (*CELL, "group", "relation", "evaluator", "evaluator_version", "metric")
SUMMARY = (
    *KEYS, "n", "n_failed", "mean", "low", "high", "base", "base_low", "base_high", "delta", "delta_low", "delta_high",
    "p_value", "higher_is_better",
)  # fmt: skip
SIDES = ("erased", "original")
_IDENTITY = ["run", *KEYS, "side", "prompt_id"]
_ARROW = {"str": pa.string(), "int64": pa.int64(), "Int64": pa.int64(), "float64": pa.float64(), "boolean": pa.bool_()}
_SCHEMA = pa.schema([(name, _ARROW[dtype]) for name, dtype in DTYPES.items()])


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
    model: str,
    concept: str,
    method: str,
    attack: str,
    access: str,
    side: str,
    versions: Mapping[str, int],
    recipe: str = "",
    prompts: Iterable[Prompt] = (),
) -> pd.DataFrame:
    """Scores of one side of one run as rows of the tidy table.

    Args:
        scores: what the evaluators returned.
        run, model, concept, method, recipe, attack, access: the cell, the same for every row.
        side: "erased" or "original".
        versions: evaluator -> version of its definition.
        prompts: where the seeds are looked up, by group and id.

    Raises:
        ValueError: an unknown side or status, a value that contradicts its status, a missing version, or two values
            for one metric of one prompt.
    """
    if side not in SIDES:
        raise ValueError(f"side must be erased or original; got {side!r}")
    scores = list(scores)
    for score in scores:
        _check(score, versions)
    seeds: dict[tuple[str, str | None], int] = {(p.group, p.id): p.seed for p in prompts}
    cell = {"run": run, "model": model, "concept": concept, "method": method, "recipe": recipe, "attack": attack}
    rows = [
        {
            **cell, "access": access, "group": s.group, "relation": s.relation, "evaluator": s.evaluator,
            "evaluator_version": versions[s.evaluator], "metric": s.metric, "prompt_id": s.prompt_id,
            "seed": seeds.get((s.group, s.prompt_id)), "value": s.value, "status": s.status, "side": side,
            "low": s.low, "high": s.high, "higher_is_better": s.higher_is_better,
        }
        for s in scores
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)  # integers beside None never pass through floats
    return _typed(frame, f"run {run}")


def _typed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame with the schema's columns, dtypes and row order; one value per metric, prompt and side."""
    absent = [c for c in COLUMNS if c not in frame.columns]
    if absent:
        raise ValueError(f"{name} has no column {absent[0]!r}; found {', '.join(map(str, frame.columns))}")
    frame = frame[list(COLUMNS)].astype(dict(DTYPES))
    double = frame.duplicated(_IDENTITY)
    if double.any():
        row = frame[double].iloc[0]
        raise ValueError(
            f"{name} must have one value per metric, prompt and side; got two of {row.metric} for "
            f"{row.prompt_id} ({row.side})"
        )
    return frame.sort_values(_IDENTITY, kind="stable", na_position="first").reset_index(drop=True)


def write_scores(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write the tidy table in one move: rows sorted, so that equal rows give an equal file.

    Raises:
        ValueError: a column is missing, or there are two values for one metric of one prompt.
        OSError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    table = pa.Table.from_pandas(_typed(frame, path.name), schema=_SCHEMA, preserve_index=False)
    with replacing(path) as work:
        pq.write_table(table.replace_schema_metadata(None), work, compression="zstd")
    return path


def read_scores(path: str | Path) -> pd.DataFrame:
    """The tidy table of one run, with the dtypes of :data:`DTYPES`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a Parquet file of scores.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run the cell first")
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not a readable Parquet file; delete it and run its cell again") from error
    mapper = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get
    return _typed(table.to_pandas(types_mapper=mapper), str(path))


def read_results(root: str | Path) -> pd.DataFrame:
    """All scores under a results folder, ``runs/**/scores.parquet``, in path order.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(Path(root).glob("runs/**/scores.parquet"))
    if not paths:
        raise FileNotFoundError(
            f"no scores.parquet under {Path(root) / 'runs'}; run `python -m erasebench` first, or name another "
            "folder with results=DIR"
        )
    return pd.concat([read_scores(path) for path in paths], ignore_index=True)


def write_csv(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write a derived table as CSV in one move, floats in full precision, missing values empty."""
    with replacing(path) as work:
        frame.to_csv(work, index=False, lineterminator="\n")
    return Path(path)


# --- the summary ---


def _interval(values: np.ndarray, rate: bool) -> tuple[float, float, float]:
    """Mean with its interval: Wilson for a rate, bootstrap otherwise."""
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    low, high = wilson(int(values.sum()), len(values)) if rate else bootstrap_mean(values.tolist())
    return float(values.mean()), low, high


def _difference(erased: np.ndarray, original: np.ndarray, rate: bool) -> dict[str, float]:
    """Paired difference erased - original of the same prompts, with interval and, for rates, p-value."""
    if len(erased) == 0:
        return dict.fromkeys(("delta", "delta_low", "delta_high", "p_value"), math.nan)
    if rate:
        both, gained = int((erased * original).sum()), int((erased * (1 - original)).sum())
        lost = int(((1 - erased) * original).sum())
        low, high = newcombe_paired(both, gained, lost, len(erased) - both - gained - lost)
        p_value = mcnemar(gained, lost)
    else:
        (low, high), p_value = bootstrap_mean(erased - original), math.nan
    return {"delta": float((erased - original).mean()), "delta_low": low, "delta_high": high, "p_value": p_value}


def _summarise_prompts(erased: pd.DataFrame, original: pd.DataFrame, rate: bool) -> dict[str, Any]:
    pairs = erased.merge(original, on=["run", "prompt_id"], suffixes=("", "_original"))
    mean, low, high = _interval(erased.value.to_numpy(), rate)
    base, base_low, base_high = _interval(original.value.to_numpy(), rate)
    difference = _difference(pairs.value.to_numpy(), pairs.value_original.to_numpy(), rate)
    return {
        "mean": mean, "low": low, "high": high, "base": base, "base_low": base_low, "base_high": base_high, **difference
    }  # fmt: skip


def _summarise_whole(erased: pd.DataFrame, original: pd.DataFrame) -> dict[str, Any]:
    """A metric of the whole group: its own interval is kept; several runs are averaged and have none."""

    def side(rows: pd.DataFrame) -> tuple[float, float, float]:
        own = (rows.low.iloc[0], rows.high.iloc[0]) if len(rows) == 1 else (math.nan, math.nan)
        return rows.value.mean(), *own

    (mean, low, high), (base, base_low, base_high) = side(erased), side(original)
    return {
        "mean": mean, "low": low, "high": high, "base": base, "base_low": base_low, "base_high": base_high,
        "delta": mean - base, "delta_low": math.nan, "delta_high": math.nan, "p_value": math.nan,
    }  # fmt: skip


def _summary_row(keys: Sequence[Any], rows: pd.DataFrame, rate: bool) -> dict[str, Any]:
    ok, erased = rows.status == "ok", rows.side == "erased"
    summary = _summarise_whole if rows.prompt_id.isna().all() else lambda a, b: _summarise_prompts(a, b, rate)
    directions = rows.higher_is_better.dropna()
    return {
        **dict(zip(KEYS, keys, strict=True)),
        "n": int((erased & ok).sum()),
        "n_failed": int((erased & ~ok).sum()),
        **summary(rows[erased & ok], rows[~erased & ok]),
        "higher_is_better": bool(directions.iloc[0]) if len(directions) else None,
    }


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Scores -> one row per cell, group, relation and metric, with the columns of :data:`SUMMARY`.

    ``mean`` is of the erased model, ``base`` of the original one, each over its ok rows; ``n`` counts the erased
    model's ok rows and ``n_failed`` its others, which enter nothing else. ``delta`` is the mean of erased - original
    over the prompts that are ok on both sides, so it can differ from mean - base when images failed.
    A metric whose values are all 0 or 1 is a rate: Wilson intervals, Newcombe's paired interval for the difference
    and McNemar's exact p-value. Other metrics get percentile bootstrap intervals and no p-value. Prompts with a
    relation are summarised per relation and, with relation "", together. A metric of a whole group (no prompt_id)
    keeps its own interval and has n = 1 per run: its name carries how many images it saw.

    Raises:
        ValueError: columns are missing, or there are two values for one metric of one prompt.
    """
    frame = _typed(frame, "scores")
    related = frame[(frame.relation != "") & frame.prompt_id.notna()]
    frame = pd.concat([frame, related.assign(relation="")], ignore_index=True)
    metric = ["evaluator", "evaluator_version", "metric"]
    rates = frame[frame.status == "ok"].groupby(metric).value.agg(lambda v: v.isin((0.0, 1.0)).all())
    rows = [
        _summary_row(keys, group, bool(rates.get(keys[-3:], False)))
        for keys, group in frame.groupby(list(KEYS), sort=True)
    ]
    table = pd.DataFrame(rows, columns=list(SUMMARY))
    dtypes = {name: DTYPES[name] for name in KEYS} | {"n": "int64", "n_failed": "int64", "higher_is_better": "boolean"}
    return table.astype(dtypes | dict.fromkeys(SUMMARY[len(KEYS) + 2 : -1], "float64"))
