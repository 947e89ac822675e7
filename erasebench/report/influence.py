"""Distances between sets of images, such as FID, as a mean over images, so that their differences have intervals.

An evaluator that measures a set may record how much each image moves its distance (rows of role ``influence``, named
``influence.<metric>``). To first order the distance is the mean of itself plus these. Two distances on the same prompts
and noise then differ as two means of pairs do, and far less than their own intervals, side by side, suggest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from erasebench.report import clusters
from erasebench.report.codes import codes, firsts, plain
from erasebench.report.sharing import clusters_of
from erasebench.types import Prompt, Score

PREFIX = "influence."
FEWEST = 10  # images below which no interval is given
SET = ["run", "side", "evaluator", "evaluator_version", "metric"]
FACTS = ["group", "role", "label", "head", "unit", "place", "higher_is_better"]


def by_image(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per image and distance: the distance plus the image's influence, under the distance's name and facts.

    Args:
        scores: the tidy table; distances without influences, or that could not be measured, give no rows.
    """
    ok = scores.status.eq("ok").to_numpy(bool)
    moved = np.flatnonzero(scores.role.eq("influence").to_numpy(bool) & ok)
    whole = np.flatnonzero((scores.role.eq("distance") & scores.prompt_id.isna()).to_numpy(bool) & ok)
    sets = codes(scores.iloc[moved], SET)
    first = firsts(sets)
    named = scores[SET].iloc[moved[first]].astype({"metric": "str"}).assign(set=sets[first])
    named["metric"] = named.metric.str.removeprefix(PREFIX)
    known = plain(named).merge(plain(scores[SET].iloc[whole]).assign(whole=whole), on=SET)[["set", "whole"]]
    both = pd.DataFrame({"set": sets, "moved": moved}).merge(known, on="set")
    out = scores.iloc[both.moved].reset_index(drop=True)
    of_set = {name: scores[name].iloc[both.whole].array for name in (*FACTS, "metric")}
    value = out.value.to_numpy(float) + scores.value.to_numpy(float)[both.whole]
    return out.assign(**of_set, value=value, rate=False)


def rows(
    whole: Score, prompts: Sequence[Prompt], ids: Sequence[str], moved: np.ndarray, floor: float = -math.inf
) -> list[Score]:
    """A distance with its 95 % interval by cluster, and what each image moves it by.

    Args:
        whole: the distance.
        prompts: those it is of, among others.
        ids: of the prompts whose images it is of, in order.
        moved: [n] what each of them moves it by, mean 0.
        floor: the smallest value there can be.

    Returns:
        ``whole`` with ``low`` and ``high``, unless there are fewer than 10 images or 3 clusters, and one row a prompt.
    """
    of = {p.id: p.group for p in prompts}
    groups, shared = [of[i] for i in ids], clusters_of(prompts)
    low = high = None
    if len(ids) >= FEWEST:
        by = clusters.mean(moved, [shared[g, i] or i for g, i in zip(groups, ids, strict=True)])
        low, high = (None, None) if math.isnan(by[0]) else (max(floor, whole.value + by[0]), whole.value + by[1])
    name = f"{PREFIX}{whole.metric}"
    return [
        replace(whole, low=low, high=high),
        *(
            Score(evaluator=whole.evaluator, metric=name, value=float(v), group=g, prompt_id=i, rate=False)
            for v, g, i in zip(moved, groups, ids, strict=True)
        ),
    ]
