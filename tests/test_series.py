"""Scores as series: nothing of an ok row is lost, order does not matter, bytes give the same series back."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from erasebench.report import series
from erasebench.report.columns import CELL, DTYPES
from erasebench.report.tables import frame_of
from tests.cells import cell

SIDES = ("erased", "original")
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
BOUND = st.one_of(st.just(float("nan")), NUMBERS)
ROW = st.fixed_dictionaries(
    {
        "run": st.sampled_from("ab"),
        "group": st.sampled_from(["target", "neighbour"]),
        "metric": st.sampled_from("mn"),
        "relation": st.sampled_from(["", "visual"]),
        "prompt_id": st.sampled_from([None, "p", "q", "\u00e9"]),
        "seed": st.sampled_from([None, 0, 2**62]),
        "value": NUMBERS,
        "status": st.sampled_from(["ok", "ok", "nan"]),
        "side": st.sampled_from(SIDES),
        "low": BOUND,
        "high": BOUND,
        "higher_is_better": st.sampled_from([None, True]),
        "rate": st.sampled_from([None, False]),
        "cluster": st.sampled_from(["", "text 1"]),
        "place": st.sampled_from([None, 3]),
        "weights": st.sampled_from(["", "w"]),
    }
)


def frame(rows):
    words = {name: "" for name, dtype in DTYPES.items() if dtype == "str"}
    more = {"evaluator_version": 1, "images": None, **cell()}
    return frame_of([{**words, **more, **row} for row in rows])


def rows_of(tables):
    """Every row of series, as tuples."""
    for table in tables:
        for i, (fact, where, weights) in enumerate(zip(table.facts, table.places, table.weights, strict=True)):
            bounds = table.bounds.get(i, np.full((2, len(where.ids)), np.nan))
            values = zip(where.ids, where.seeds, where.clusters, table.values(i), *bounds, strict=True)
            for prompt, seed, cluster, value, low, high in values:
                yield repr(
                    (table.run, *fact[:-1], weights, prompt, seed, cluster, float(value), float(low), float(high))
                )


def rows_in(scores):
    named = ["run", *series.NAMES, "weights", "prompt_id", "seed", "cluster", "value", "low", "high"]
    ok = scores[scores.status == "ok"][named].astype(object)
    plain = ok.where(ok.notna() | ok.columns.isin(["low", "high"]), None)
    return [repr(tuple(row)) for row in plain.itertuples(index=False, name=None)]


@settings(max_examples=12, deadline=None)
@given(st.lists(ROW, max_size=12), st.randoms())
def test_series_hold_every_ok_row_in_any_order(rows, random):
    scores = frame(rows)
    found = series.tables(scores)
    assert sorted(rows_of(found)) == sorted(rows_in(scores))
    mixed = frame(random.sample(rows, len(rows)))
    assert sorted(rows_of(series.tables(mixed))) == sorted(rows_in(scores))
    again = [series.unpacked(series.packed(table)) for table in found]
    assert list(rows_of(again)) == list(rows_of(found))
    for one, other in zip(found, again, strict=True):
        assert one.facts is other.facts and dict(one.cell) == dict(other.cell)
        assert all(a is b for a, b in zip(one.places, other.places, strict=True))  # equal prompts are one object


def test_a_table_is_of_one_run_and_cell():
    rows = [{"run": "a", "method": method, "value": 1.0, "status": "ok", "side": "erased", "prompt_id": "p",
             "seed": 0, "low": np.nan, "high": np.nan, "higher_is_better": None, "rate": None, "place": None}
            for method in ("uce", "rece")]  # fmt: skip
    found = series.tables(frame(rows))
    assert [table.cell["method"] for table in found] == ["uce", "rece"]
    assert series.tables(frame(rows)[:0]) == [] and set(found[0].cell) == set(CELL)
    assert isinstance(found[0].value, np.ndarray) and not pd.isna(found[0].value).any()
