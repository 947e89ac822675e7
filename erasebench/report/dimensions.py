"""Spillover by dimension: what a method leaves of targets, synonyms and neighbours, over all concepts it erased."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from erasebench.report import clusters
from erasebench.report.harmonic import Part, harmonic_interval, harmonic_mean
from erasebench.report.printing import number

MODEL = ["model", "method", "recipe"]
COLUMNS = ("dimension", "concepts", "efficacy", "generality", "sensitivity", "hm", "drop")
NEEDED = (("efficacy", "target"), ("generality", "paraphrase"), ("sensitivity", "neighbour"), ("drop", "neighbour"))


def dimensions(scores: pd.DataFrame) -> pd.DataFrame:
    """Efficacy, generality, sensitivity, their harmonic mean and the drop, for each method and dimension.

    A concept counts in the dimensions it has neighbours of, once, whatever the number of its seeds (their mean), and
    only with all of its numbers. The rates are means over concepts with Student's interval, each concept one draw; HM
    is that of the three means, its interval as :func:`erasebench.report.harmonic.harmonic_interval` makes it. The
    dimension ``unrelated`` has a drop alone. The original model is a method of its own, ``original``.

    Args:
        scores: the tidy scores of a results folder, see :func:`erasebench.report.tables.read_results`.

    Returns:
        One row for each model, method, recipe and dimension: for each of :data:`COLUMNS` in percent the value and, with
        ``_low`` and ``_high``, its interval, NaN below three concepts, and where all concepts have one number, whose
        spread then tells nothing.

    Raises:
        ValueError: no spillover was measured, or with several thresholds of admission.
    """
    rows = scores[(scores.evaluator == "spillover") & scores.prompt_id.isna() & (scores.status == "ok")]
    rows = rows[rows.attack == "none"]
    rows = rows.assign(
        kind=rows.metric.str.split(".", n=1).str[0],
        admitted=rows.metric.str.extract(r"\.admitted@([\d.]+)$")[0].fillna("0"),
    )
    rows = rows[[m.startswith(f"{k}.{j}") for m, k, j in zip(rows.metric, rows.kind, rows.judge, strict=True)]]
    if rows.empty:
        raise ValueError("results must hold spillover's scores; found none; run with evaluator=[spillover]")
    if rows.admitted.nunique() > 1:
        found = ", ".join(sorted(rows.admitted.unique()))
        raise ValueError(f"results must have one threshold of admission; got {found}; name another folder")
    own = rows[rows.side == "erased"]
    base = rows[rows.side == "original"].assign(method="original", recipe="")
    base = base.drop_duplicates(["model", "concept", "seed", "kind", "group", "relation"])
    made = [
        dict(zip(MODEL, names, strict=True)) | row
        for part in (base, own)
        for names, one in part.groupby(MODEL, sort=True)
        for row in _of_method(one)
    ]
    return pd.DataFrame(made)


def _of_method(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of one method's table."""
    means = rows.groupby(["kind", "group", "relation", "concept"]).value.mean()
    by = {key: part.droplevel([0, 1, 2]) for key, part in means.groupby(level=[0, 1, 2])}
    whole = {name: by.get((name, group, ""), pd.Series(dtype=float)) for name, group in NEEDED}
    related = sorted(relation for kind, group, relation in by if kind == "sensitivity" and relation)
    for dimension in related:
        sensitive = by["sensitivity", "neighbour", dimension]
        drop = by.get(("drop", "neighbour", dimension), pd.Series(dtype=float))
        shared = sorted(set(sensitive.index) & set(whole["efficacy"].index) & set(whole["generality"].index))
        if not shared:
            continue
        parts = [_mean(series.loc[shared]) for series in (whole["efficacy"], whole["generality"], sensitive)]
        named = dict(zip(COLUMNS[2:5], parts, strict=True))
        named["hm"] = (harmonic_mean(*(part[0] for part in parts)), *harmonic_interval(parts))
        named["drop"] = _mean(drop.reindex(shared).dropna(), least=-100.0)
        yield _row(dimension, len(shared), named)
    unrelated = by.get(("drop", "unrelated", ""))
    if unrelated is not None:
        yield _row("unrelated", len(unrelated), {"drop": _mean(unrelated, least=-100.0)})


def _mean(values: pd.Series, least: float = 0.0) -> Part:
    """Mean over concepts with its interval, cut to what a number in percent can be."""
    drawn = values.to_numpy(float)
    if not len(drawn):
        return nan, nan, nan
    low, high = clusters.mean(drawn, list(values.index)) if np.ptp(drawn) else (nan, nan)
    return float(drawn.mean()), max(least, low) if low == low else nan, min(100.0, high) if high == high else nan


def _row(dimension: str, concepts: int, named: dict[str, Part]) -> dict[str, Any]:
    row: dict[str, Any] = {"dimension": dimension, "concepts": concepts}
    for name in COLUMNS[2:]:
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), named.get(name, (nan, nan, nan)), strict=True))
    return row


def markdown(table: pd.DataFrame) -> str:
    """The table for a page: a line for each method and dimension, ``-`` for what does not apply."""
    heads = ("method", "dimension", "concepts", "Efficacy ↓", "Generality ↓", "Sensitivity ↑", "HM ↑", "drop, points ↓")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in table.to_dict("records"):
        cells = [str(row["method"]), str(row["dimension"]), str(row["concepts"])]
        for name in COLUMNS[2:]:
            value = row[name]
            few = row["concepts"] < clusters.FEWEST
            cells.append("-" if value != value else number(value, row[f"{name}_low"], row[f"{name}_high"], "", few=few))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
