"""Distances between sets of images, such as FID, as a mean over images, so that their differences have intervals.

An evaluator that measures a set may record how much each image moves its distance (rows of role ``influence``, named
``influence.<metric>``). To first order the distance is the mean of itself plus these. Two distances on the same prompts
and noise then differ as two means of pairs do, and far less than their own intervals, side by side, suggest.
"""

from __future__ import annotations

import pandas as pd

PREFIX = "influence."
SET = ["run", "side", "evaluator", "evaluator_version", "metric"]
FACTS = ["group", "role", "label", "head", "unit", "place", "higher_is_better"]


def by_image(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per image and distance: the distance plus the image's influence, under the distance's name and facts.

    Args:
        scores: the tidy table; distances without influences, or that could not be measured, give no rows.
    """
    moved = scores[(scores.role == "influence") & (scores.status == "ok")]
    moved = moved.assign(metric=moved.metric.str.removeprefix(PREFIX)).drop(columns=FACTS)
    whole = scores[(scores.role == "distance") & scores.prompt_id.isna() & (scores.status == "ok")]
    both = moved.merge(whole[[*SET, *FACTS, "value"]], on=SET, suffixes=("", "_of_set"))
    return both.assign(value=both.value + both.pop("value_of_set"), rate=False)[list(scores.columns)]
