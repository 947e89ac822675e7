"""Method against method: differences on the same prompts with the same noise, which two intervals do not show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from erasebench.report import clusters
from erasebench.report.codes import joined, plain, sorted_words
from erasebench.report.influence import by_image
from erasebench.report.printing import number
from erasebench.report.runs import NOTHING
from erasebench.report.summary import difference
from erasebench.report.tables import METRIC, read_results

CONTEST = ("model", "concept", "attack", "budget", "strength", "settings")  # what compared rows share
SAME = ("group", "relation", "prompt_id", "seed")  # one image of either model: its prompt and its noise
SHOWN = ("present", "kept", "success", "similarity", "distance", "likeness")
COLUMNS = (
    *CONTEST, *METRIC, "group", "head", "unit", "first", "second", "n", "clusters", "trainings", "first_mean",
    "second_mean", "delta", "low", "high", "p_value", "p_holm", "resolves", "says",
)  # fmt: skip


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that hold for all of them together (Holm, Scandinavian Journal of Statistics 6, 1979).

    The i-th smallest of m is multiplied by m - i + 1, and none is less than one before it; NaN stays and counts not.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p == p)
    out, least = [nan] * len(p_values), 0.0
    for place, (p, i) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - place)))
        out[i] = least
    return out


def compare_methods(
    results: str | Path | pd.DataFrame, methods: Sequence[str] = (), heads: Sequence[str] = ()
) -> pd.DataFrame:
    """Paired differences of erased models, first minus second, one row per pair of methods and headline.

    Two models are compared where model, concept, attack, budget and settings are the same, on the images that both have
    of the same prompt with the same noise (for an attack: that started from the same prompt). Rates: the paired
    interval and the exact test by cluster (:mod:`erasebench.report.clusters`), McNemar's where each text is one image;
    means, and distances between sets of images to first order (:mod:`erasebench.report.influence`): Student's interval
    and test. Several trainings are clusters too. ``p_holm`` is adjusted for all rows of the
    table, ``resolves`` is half the interval: smaller differences these images cannot show.

    Args:
        results: a results folder, or its tidy scores.
        methods: only these, ``uce`` or ``uce (recipe)``; all but the null method if none is named.
        heads: only headlines with these heads, such as ``target``; all if none is named.

    Raises:
        FileNotFoundError: a folder without results.
        ValueError: fewer than two methods to compare, or two runs with the same prompts and noise.
    """
    scores = results if isinstance(results, pd.DataFrame) else read_results(results, headlines=True)
    scores = sorted_words(scores)
    scores = joined([scores, sorted_words(by_image(scores))])  # distances, an image at a time
    rows = scores[
        (scores.side == "erased") & (scores.status == "ok") & scores.role.isin(SHOWN) & (scores["head"] != "")
    ]
    rows = plain(rows[rows.prompt_id.notna()])
    rows = rows.assign(name=_names(rows))
    rows = rows[rows.name.isin(methods) | rows.method.isin(methods)] if methods else rows[rows.method != NOTHING]
    rows = rows[rows["head"].isin(heads)] if heads else rows
    place = [*CONTEST, *METRIC, "group", "head", "unit"]
    rows = rows[list(dict.fromkeys([*place, *SAME, "name", "cluster", "weights", "rate", "value"]))]
    own = rows.cluster.where(rows.cluster != "", rows.prompt_id + " " + rows.seed.astype("string").fillna(""))
    codes = {"own": pd.factorize(own)[0], "trained": pd.factorize(rows.weights)[0]}
    rows = rows.assign(image=rows.groupby(list(SAME), dropna=False).ngroup(), **codes)
    found: list[dict[str, Any]] = []
    for key, part in rows.groupby(place, sort=True):
        at = dict(zip(place, key, strict=True))
        rate = bool(part.rate.eq(True).any() or (part.rate.isna().all() and part.value.isin((0.0, 1.0)).all()))
        own = dict(list(part.groupby("name", sort=True)))
        for one in own.values() if len(own) > 1 else ():
            _once(one)
        sides = {name: _Side(one) for name, one in own.items()} if len(own) > 1 else {}
        for first, second in combinations(sides, 2):
            found.append(at | _pair(sides[first], sides[second], first, second, rate))
    if not found:
        named = ", ".join(sorted(set(rows.name))) or "none"
        raise ValueError(
            f"two methods are needed to compare, with one model, concept, attack and settings; got {named}; name "
            "others with method=A,B or leave the filters out"
        )
    better = scores.groupby("metric").higher_is_better.first()
    table = pd.DataFrame(found).assign(p_holm=holm([one["p_value"] for one in found]))
    table["says"] = [_sentence(row, better[row["metric"]]) for row in table.to_dict("records")]
    return table[list(COLUMNS)]


def _names(rows: pd.DataFrame) -> pd.Series[str]:
    """The method, with its recipe where the table has several of it."""
    several = rows.groupby("method").recipe.transform("nunique") > 1
    return rows.method + (" (" + rows.recipe + ")").where(several, "")


def _once(part: pd.DataFrame) -> None:
    if (double := part.image.duplicated()).any():
        raise ValueError(
            f"{part.name.iloc[0]} must have one image of a prompt and its noise; got two of "
            f"{part[double].prompt_id.iloc[0]}; name one seed with seed="
        )


class _Side:
    """One method's images of a headline: which, their values, clusters and trainings, [images] each."""

    def __init__(self, part: pd.DataFrame) -> None:
        self.image, self.own, self.trained = (part[name].to_numpy() for name in ("image", "own", "trained"))
        self.value = part.value.to_numpy(float)
        self.index = pd.Index(self.image)


def _pair(one: _Side, two: _Side, first: str, second: str, rate: bool) -> dict[str, Any]:
    found = two.index.get_indexer(one.index)
    here, there = np.flatnonzero(found >= 0), found[found >= 0]
    a, b = one.value[here], two.value[there]
    trainings = one.trained[here], two.trained[there]
    trained = pd.factorize(trainings[0] * (1 + trainings[1].max(initial=0)) + trainings[1])[0]
    several = len(trained) > 0 and int(trained.max()) > 0
    ways = [pd.factorize(one.own[here])[0], trained][: 1 + several]
    by = difference(a, b, rate, ways)
    p = by["p_value"] if rate or not len(a) else max(clusters.mean_test(a - b, way) for way in ways)
    return {
        "first": first, "second": second, "n": len(a),
        "clusters": clusters.count(ways[0]), "trainings": clusters.count(trained),
        "first_mean": float(a.mean()) if len(a) else nan, "second_mean": float(b.mean()) if len(b) else nan,
        "delta": by["delta"], "low": by["delta_low"], "high": by["delta_high"], "p_value": p,
        "resolves": (by["delta_high"] - by["delta_low"]) / 2,
    }  # fmt: skip


def _sentence(row: dict[str, Any], higher_is_better: Any) -> str:
    """What the row allows one to say."""
    if row["low"] != row["low"]:
        return "too few" if row["n"] else "nothing in common"
    if not row["p_holm"] < 0.05:
        return "not told apart"
    ahead = row["delta"] > 0 if higher_is_better is True or higher_is_better is np.True_ else row["delta"] < 0
    return f"{row['first'] if ahead else row['second']} is better"


def lines(table: pd.DataFrame) -> list[list[str]]:
    """The table as text cells, heads first: differences in points where the metric is in percent."""
    varies = [name for name in (*CONTEST, "judge") if table[name].nunique() > 1 or name == "concept"]
    out = [
        [
            *varies,
            "measure",
            "first",
            "second",
            "n",
            "clusters",
            "first",
            "second",
            "difference",
            "p",
            "p (Holm)",
            "says",
        ]
    ]
    several = table.groupby("head").group.nunique()
    for row in table.to_dict("records"):
        unit = row["unit"]
        values = [number(row[name], nan, nan, unit) for name in ("first_mean", "second_mean")]
        by = number(row["delta"], row["low"], row["high"], unit, few=row["n"] > 1)
        p = ["-" if q != q else f"{q:.3f}" if q >= 0.001 else "< 0.001" for q in (row["p_value"], row["p_holm"])]
        names = [str(row[name]) for name in varies]
        counts = [str(row["n"]), str(row["clusters"])]
        measure = row["head"] + (f" ({row['group']})" if several[row["head"]] > 1 else "")
        out.append([*names, measure, row["first"], row["second"], *counts, *values, by, *p, row["says"]])
    return out
