"""The values of a board, each once: which rows of many runs are one image, whose word counts, what is one column."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

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
    images, wholes = [], []
    for _, part in scores[list(USED)].groupby(["model", "concept"], sort=False):  # no item is in two; saves memory
        table = _named(part, tasks)
        images.append(table[~table.whole].drop_duplicates(once))
        wholes.append(_whole(table[table.whole], once))
    if not images:
        return _named(scores[list(USED)], tasks)
    return pd.concat([*images, *wholes], ignore_index=True)


def _named(scores: pd.DataFrame, tasks: Mapping[str, str]) -> pd.DataFrame:
    """The rows that count, with the columns of :func:`items`; what several runs hold is there several times."""
    scores = scores[scores["head"].ne("") & scores.role.ne("influence") & scores.status.eq("ok") & scores.place.notna()]
    scores = _one_judge(scores.reset_index(drop=True))
    attacked = scores.group.eq("attack") | scores.role.eq("success")
    original = scores.side.eq("original")
    adaptive = attacked & scores.access.isin(ADAPTIVE)
    scores = scores[~original | (~adaptive & scores.role.ne("success"))]
    attacked, original = attacked[scores.index], original[scores.index]
    blank = {name: scores[name].astype("str").where(attacked, "") for name in ATTACK}
    method = {
        "method": scores.method.where(~original, NOTHING),
        "recipe": scores.recipe.where(~original & scores.method.ne(NOTHING), ""),
        "settings": scores.settings,
    }
    whole = scores.prompt_id.isna()
    tasks = {run: tasks.get(run, "") for run in scores.run.unique()}
    seed = scores.seed.astype("string").fillna("")
    item = scores.concept + "\x1f" + scores.group + "\x1f" + scores.relation + "\x1f" + scores.prompt_id.fillna("")
    item = (item + "\x1f" + seed).where(~whole, scores.concept)
    text = scores.concept + "\x1f" + scores.cluster.where(scores.cluster != "", scores.prompt_id.fillna("") + seed)
    return scores.assign(
        **blank, **method, whole=whole, item=item, text=text, task=scores.run.map(dict(tasks)).astype("str")
    )


def _whole(table: pd.DataFrame, once: list[str]) -> pd.DataFrame:
    """One number per concept: the mean of its runs' distinct ones; the interval that an only one brings."""
    table = table.drop_duplicates([*once, "value"])
    several = table.groupby(once, sort=False, dropna=False).value.transform("size") > 1
    mean = table.groupby(once, sort=False, dropna=False).value.transform("mean")
    bounds = {side: table[side].mask(several) for side in ("low", "high")}
    return table.assign(value=mean, **bounds).drop_duplicates(once)


def _one_judge(scores: pd.DataFrame) -> pd.DataFrame:
    """Of every run the first judge, and of every head the metric that comes first."""
    ordered = scores.sort_values(["place", "metric"], kind="stable")
    named = ordered[ordered.judge != ""].drop_duplicates("run").set_index("run").judge
    scores = scores[scores.judge.eq("") | scores.judge.eq(scores.run.map(named))]
    ordered = scores.sort_values(["place", "metric"], kind="stable")
    first = ordered.drop_duplicates(["run", "head", "group"])[["run", "head", "group", "metric"]]
    kept = scores.reset_index().merge(first, on=["run", "head", "group", "metric"])["index"]
    return scores.loc[sorted(kept)]
