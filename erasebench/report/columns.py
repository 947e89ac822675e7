"""The columns of the tidy tables and of their summaries, with their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

CELL = ("model", "concept", "method", "recipe", "attack", "budget", "settings", "access", "strength", "control")
FACTS = ("role", "label", "head", "unit", "place")  # of a headline, as its evaluator declares it
DTYPES: Mapping[str, str] = {
    "run": "str", **dict.fromkeys(CELL, "str"), "control": "bool",
    "group": "str", "relation": "str", "evaluator": "str", "evaluator_version": "int64", "metric": "str",
    "judge": "str", "prompt_id": "str", "seed": "Int64", "value": "float64", "status": "str", "side": "str",
    "low": "float64", "high": "float64", "higher_is_better": "boolean", "cluster": "str", "weights": "str",
    "rate": "boolean", "terms": "str", "images": "Int64",
    **dict.fromkeys(FACTS, "str"), "place": "Int64",
}  # fmt: skip
COLUMNS = tuple(DTYPES)
ARROW = {
    "str": pa.string(), "int64": pa.int64(), "Int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(),
    "boolean": pa.bool_(),
}  # fmt: skip
WORDS = [name for name, dtype in DTYPES.items() if dtype == "str"]
SCHEMA = pa.schema([(name, ARROW[dtype]) for name, dtype in DTYPES.items()])
CODED = pa.schema([(n, pa.dictionary(pa.int32(), pa.string()) if n in WORDS else ARROW[t]) for n, t in DTYPES.items()])
METRIC = ("evaluator", "evaluator_version", "metric", "judge")
KEYS = (*CELL, "group", "relation", *METRIC)
NUMBERS = ("mean", "low", "high", "base", "base_low", "base_high", "delta", "delta_low", "delta_high", "p_value")
COUNTS = ("n", "clusters", "n_failed", "runs", "trainings")
SUMMARY = (*KEYS, *COUNTS, *NUMBERS, "higher_is_better", *FACTS)
SIDES = ("erased", "original")
SUMMARY_DTYPES = {name: DTYPES.get(name, "int64" if name in COUNTS else "float64") for name in SUMMARY}


def typed(frame: pd.DataFrame, name: str, dtypes: Mapping[str, str] = DTYPES) -> pd.DataFrame:
    """The frame with these columns and dtypes; texts may stay categorical."""
    complete(list(map(str, frame.columns)), name, dtypes)
    words = {n for n, is_ in dtypes.items() if is_ == "str" and isinstance(frame[n].dtype, pd.CategoricalDtype)}
    return frame[list(dtypes)].astype({n: is_ for n, is_ in dtypes.items() if n not in words})


def complete(columns: Sequence[str], name: str, dtypes: Mapping[str, str] = DTYPES) -> None:
    if absent := [c for c in dtypes if c not in columns]:
        raise ValueError(
            f"{name} has no column {absent[0]!r}, an older version wrote it or it is no table of this kind; found "
            f"{', '.join(columns)}; delete it and run its cell again"
        )


def unique(double: np.ndarray, frame: pd.DataFrame, name: str) -> None:
    if double.any():
        row = frame[double].iloc[0]
        raise ValueError(
            f"{name} must have one value per metric, prompt and side; got two of {row.metric} for "
            f"{row.prompt_id} ({row.side})"
        )
