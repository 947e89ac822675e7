"""The values of a board, each once: which rows of many runs are one image, whose word counts, what is one column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from erasebench.report.codes import coded, codes, firsts, joined, plain, put, sorted_words, spelled, words
from erasebench.report.runs import NOTHING

ROW = ("method", "recipe", "settings")
ATTACK = ("attack", "budget", "strength", "access", "control")
COLUMN = (*ATTACK, "head", "role", "metric", "judge", "evaluator_version")
ADAPTIVE = ("queries", "model")  # access of attacks whose prompts depend on the model they look at
USED = (
    "run", "model", "concept", *ROW, *ATTACK, "group", "relation", "metric", "judge", "evaluator_version", "prompt_id",
    "seed", "value", "status", "side", "low", "high", "higher_is_better", "cluster", "weights", "role", "label", "head",
    "unit", "place",
)  # fmt: skip


def items(scores: pd.DataFrame, tasks: Mapping[str, str]) -> pd.DataFrame:
    """Rows of scores -> one row per method, column and image (or whole-group number), with what it is.

    Columns: :data:`ROW`, :data:`COLUMN`, model, task, concept, run, ``item`` (which image of which concept), ``text``
    (its cluster, told apart by concept), ``weights``, ``whole``, value, low, high, unit, role, place, higher_is_better.
    Ok rows only. In one run a head is the metric of the smallest place, by the judge of the smallest place. The
    original model is the method none: its images of every run, but of attacks that look at the model only those that
    attacked it.

    Args:
        tasks: run -> what its board is called beside the model.
    """
    once = ["model", "task", *ROW, *COLUMN, "item"]
    scores = sorted_words(scores[list(USED)])
    concept = codes(scores, ["model", "concept"])  # no item is in two
    images, wholes = [], []
    for one in concept[firsts(concept)]:
        table = _named(scores[concept == one], tasks)
        own = table[~table.whole]
        images.append(own.iloc[firsts(codes(own, once))])
        wholes.append(_whole(table[table.whole], once))
    return joined([*images, *wholes]) if images else _named(scores, tasks)


def _named(scores: pd.DataFrame, tasks: Mapping[str, str]) -> pd.DataFrame:
    """The rows that count, with the columns of :func:`items`; what several runs hold is there several times."""
    scores = scores[scores["head"].ne("") & scores.role.ne("influence") & scores.status.eq("ok") & scores.place.notna()]
    scores = _one_judge(scores.reset_index(drop=True))
    original, success = scores.side.eq("original").to_numpy(), scores.role.eq("success").to_numpy()
    attacked = scores.group.eq("attack").to_numpy() | success
    own = ~original | ~((attacked & scores.access.isin(ADAPTIVE).to_numpy()) | success)
    scores, attacked, original = scores[own], attacked[own], original[own]
    control = np.where(attacked, 1 + scores.control.to_numpy(int), 0)
    blank = {name: put(scores[name], ~attacked, "") for name in ATTACK if name != "control"}
    unerased = original | scores.method.eq(NOTHING).to_numpy()
    whole = scores.prompt_id.isna().to_numpy()
    run, runs = coded(scores.run)
    named = [tasks.get(one, "") for one in runs]
    known = sorted(set(named))
    item = codes(scores, ["concept", "group", "relation", "prompt_id", "seed"])
    text = codes(scores, ["concept", "cluster", "prompt_id", "seed"])
    return scores.assign(
        **blank,
        control=words(control, ["", "False", "True"]),
        method=put(scores.method, original, NOTHING),
        recipe=put(scores.recipe, unerased, ""),
        whole=whole,
        item=spelled(scores, np.where(whole, -1 - codes(scores, ["concept"]), item), _item),
        text=spelled(scores, text, _text),
        task=words(np.array([known.index(one) for one in named], np.int64)[run], known),
    )


def _item(rows: pd.DataFrame) -> pd.Series[str]:
    places = [rows[name] for name in ("group", "relation")] + [rows.prompt_id.fillna(""), _seed(rows)]
    return rows.concept + _joined("", *places).where(rows.prompt_id.notna(), "")


def _text(rows: pd.DataFrame) -> pd.Series[str]:
    return rows.concept + _joined("", rows.cluster.where(rows.cluster != "", rows.prompt_id.fillna("") + _seed(rows)))


def _joined(first: str, *rest: pd.Series[str]) -> Any:
    whole: Any = first
    for one in rest:
        whole = whole + "\x1f" + one
    return whole


def _seed(rows: pd.DataFrame) -> pd.Series[str]:
    return rows.seed.astype("string").fillna("").astype("str")


def _whole(table: pd.DataFrame, once: list[str]) -> pd.DataFrame:
    """One number per concept: the mean of its runs' distinct ones; the interval that an only one brings."""
    table = table.iloc[firsts(codes(table, [*once, "value"]))]
    same = codes(table, once)
    several = table.groupby(same, sort=False).value.transform("size") > 1
    mean = table.groupby(same, sort=False).value.transform("mean")
    bounds = {side: table[side].mask(several) for side in ("low", "high")}
    return table.assign(value=mean, **bounds).iloc[firsts(same)]


def _one_judge(scores: pd.DataFrame) -> pd.DataFrame:
    """Of every run the first judge, and of every head the metric that comes first."""
    kinds = ["run", "head", "group", "metric", "judge", "place"]
    few = scores[kinds].iloc[firsts(codes(scores, kinds))].sort_values(["place", "metric"], kind="stable")
    judges = plain(few[few.judge != ""].drop_duplicates("run")).set_index("run").judge
    run, runs = coded(scores.run)
    judge, known = coded(scores.judge)
    place = {name: i for i, name in enumerate(known)}
    own = np.array([place[judges[one]] if one in judges.index else -1 for one in runs], np.int64)[run]
    scores = scores[scores.judge.eq("").to_numpy() | (judge == own)]
    few = scores[kinds].iloc[firsts(codes(scores, kinds))].sort_values(["place", "metric"], kind="stable")
    chosen = few.iloc[firsts(codes(few, ["run", "head", "group"]))]
    own = codes(pd.concat([scores[kinds[:4]], chosen[kinds[:4]]]), kinds[:4])
    return scores[np.isin(own[: len(scores)], own[len(scores) :])]
