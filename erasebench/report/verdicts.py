"""What a judge said of every image, read from the tables: is what was asked for, or what was erased, there?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

Seen = tuple[bool, float | None]  # is the concept in the image, and the judge's score for it if it gives one
Verdicts = Mapping[tuple[str, str], Seen]  # (group, prompt id) -> of that image


def verdicts(scores: pd.DataFrame, side: str) -> dict[tuple[str, str], Seen]:
    """Verdicts of one side of a run, by group and prompt id.

    The verdict is the per-image score of a headline with role ``present`` or ``kept``; of several judges the one with
    the smallest place, which flags listen to as well. Its score is the judge's other number about the same image.

    Args:
        scores: the tidy table of one run.
        side: ``erased`` or ``original``.
    """
    rows = scores[(scores.side == side) & (scores.status == "ok") & scores.prompt_id.notna()]
    said = rows[rows.role.isin(["present", "kept"])].sort_values("place", kind="stable")
    said = said.drop_duplicates(["group", "prompt_id"])
    image = ["group", "prompt_id", "evaluator", "judge"]
    other = rows[(rows.role == "") & rows.value.between(0, 1)].drop_duplicates(image, keep=False)
    both = said.merge(other[[*image, "value"]], on=image, how="left", suffixes=("", "_other"))
    return {
        (row.group, row.prompt_id): (bool(row.value), None if pd.isna(row.value_other) else float(row.value_other))
        for row in both.itertuples()
    }


def count(said: Verdicts, group: str, ids: Iterable[str]) -> tuple[int, int]:
    """In how many of a group's judged images the concept is seen, and how many were judged.

    >>> count({("target", "a"): (True, 0.9), ("target", "b"): (False, 0.1)}, "target", ["a", "b", "failed"])
    (1, 2)
    """
    found = [said[group, name][0] for name in ids if (group, name) in said]
    return sum(found), len(found)
