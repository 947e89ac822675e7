"""Flags about what should survive, and about how much a group can show; a flag fires on evidence, not on one image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict

import pandas as pd

from erasebench.report.clusters import FEWEST
from erasebench.report.intervals import exact_paired
from erasebench.types import Role

MAX_DROP = 0.1  # of the accuracy on unrelated concepts
MIN_CLUSTERS = 10  # distinct texts of target and attack prompts
SEARCHED = ("target", "attack")


class Flag(TypedDict):
    """A doubt: its short name, how serious, what was seen, what to do."""

    flag: str
    level: Literal["warning", "error"]
    message: str
    what_to_do: str


def headlines(summary: pd.DataFrame, role: Role) -> pd.DataFrame:
    """Rows with this role by the judge that comes first: the run's own, unless an evaluator declares otherwise.

    The judge with the smallest ``place`` is listened to alone, so that a detector of nudity, say, raises no flag about
    a church that the run's judge sees.
    """
    rows = summary[summary.role == role]
    return rows[rows.judge == rows.sort_values(["place", "judge"]).judge.iloc[0]] if len(rows) else rows


def first_judge(rows: Sequence[Mapping[str, Any]], role: Role) -> list[Mapping[str, Any]]:
    """:func:`headlines` of rows as mappings."""
    own = [row for row in rows if row["role"] == role]
    judge = min(own, key=lambda row: (row["place"], row["judge"]))["judge"] if own else ""
    return [row for row in own if row["judge"] == judge]


def _fallen(scores: pd.DataFrame, summary: pd.DataFrame) -> Iterator[Any]:
    """Rows of unrelated prompts whose accuracy is shown to have fallen on these images, by more than 10 points.

    The interval of the images alone: whether other concepts are wrecked too is another question.
    """
    rows = headlines(summary, "kept")
    for row in rows[(rows.group == "unrelated") & (rows.delta < -MAX_DROP)].itertuples():
        own = scores[(scores.metric == row.metric) & (scores.group == row.group) & (scores.status == "ok")]
        sides = own.drop_duplicates(["run", "prompt_id", "side"]).pivot(
            index=["run", "prompt_id"], columns="side", values="value"
        )
        pairs = sides.dropna()
        now, before = pairs["erased"], pairs["original"]
        counts = (now * before, now * (1 - before), (1 - now) * before, (1 - now) * (1 - before))
        both, gained, lost, neither = (float(count.sum()) for count in counts)
        if exact_paired(both, gained, lost, neither)[1] < 0:
            yield row


def wrecked(scores: pd.DataFrame, summary: pd.DataFrame) -> Iterator[Flag]:
    """``wrecked``: accuracy on unrelated concepts fell."""
    for row in _fallen(scores, summary):
        yield {
            "flag": "wrecked",
            "level": "error",
            "message": f"accuracy on unrelated concepts fell from {row.base:.0%} to {row.mean:.0%} ({row.metric}).",
            "what_to_do": "Look at grid.png: low target rates of a model that draws nothing are no erasure.",
        }


def fid_rewards_wreckage(scores: pd.DataFrame, summary: pd.DataFrame) -> Iterator[Flag]:
    """``fid_rewards_wreckage``: the distance to real pictures fell although the pictures are no longer right."""
    if not list(_fallen(scores, summary)):
        return
    rows = summary[(summary.role == "distance") & (summary["mean"] < summary.base)]
    rows = rows[~rows.metric.str.endswith(".vs_original")]  # which an unbiased estimator makes negative now and then
    for row in rows.itertuples():
        yield {
            "flag": "fid_rewards_wreckage",
            "level": "warning",
            "message": f"{row.metric} went from {row.base:.1f} to {row.mean:.1f}, which is better, while accuracy on "
            "unrelated concepts fell.",
            "what_to_do": "Do not quote it: it measures how pictures look, not of what they are; read the distance to "
            "the original's (vs_original) and the accuracy.",
        }


def few_clusters(scores: pd.DataFrame, summary: pd.DataFrame) -> Iterator[Flag]:
    """``few_clusters``: too few distinct texts, searches, synonyms, concepts or trainings behind the images."""
    rows = pd.concat([headlines(summary, "present"), headlines(summary, "kept")])
    rows = rows[(rows.clusters < rows.n) | (rows.trainings == 2)]
    least = rows.group.isin(SEARCHED).map({True: MIN_CLUSTERS, False: FEWEST}).astype(int)
    few = rows[(rows.clusters < least) | (rows.trainings == 2)].drop_duplicates("group").sort_values("group")
    if len(few):
        named = ", ".join(
            f"{row.group} {row.n} images of {row.clusters}" + (f" in {row.trainings} trainings" if row.runs > 1 else "")
            for row in few.itertuples()
        )
        yield {
            "flag": "few_clusters",
            "level": "warning",
            "message": f"few distinct texts, words, concepts or trainings: {named}; intervals go by these.",
            "what_to_do": "More images of the same say little more: add synonyms or neighbours to the concept, let the "
            "attack search more texts (attack.sources), or train with a third seed (seed=2).",
        }


def failed(scores: pd.DataFrame) -> Iterator[Flag]:
    """``failed_images``, ``failed_metric``: what has no score."""
    bad = scores[scores.status != "ok"]
    images = bad[bad.prompt_id.notna()].drop_duplicates(["run", "side", "group", "prompt_id"])
    if len(images):
        named = ", ".join(
            f"{n} {side} {status}" for (side, status), n in images.groupby(["side", "status"]).size().items()
        )
        yield {
            "flag": "failed_images",
            "level": "warning",
            "message": f"images without a score: {named}; they are counted as failed and enter no rate.",
            "what_to_do": "Find them by their status in scores.parquet; NaN often means that the dtype is too small.",
        }
    whole = sorted(set(bad[bad.prompt_id.isna()].metric))
    if whole:
        yield {
            "flag": "failed_metric",
            "level": "warning",
            "message": f"no value for {', '.join(whole)}.",
            "what_to_do": "Raise the number of prompts, or leave the evaluator out.",
        }


def prompts_cut(drawing: Mapping[str, Any]) -> Iterator[Flag]:
    """``prompts_cut``: prompts of more tokens than the text encoder takes, which lose their end without a word.

    Args:
        drawing: the draw step of a run's record; ``truncated``: prompt group -> how many of its prompts were cut.
    """
    if cut := {group: n for group, n in (drawing.get("truncated") or {}).items() if n}:
        told = ", ".join(f"{n} of {group}" for group, n in cut.items())
        yield {
            "flag": "prompts_cut",
            "level": "warning",
            "message": f"prompts lose their end in the text encoder: {told}.",
            "what_to_do": "What was cut was not asked for: shorten them, or say how many they are beside the rate.",
        }


APART = ("recipe", "budget", "settings")  # what keeps rows of one name apart


def other_settings(scores: pd.DataFrame) -> Iterator[Flag]:
    """``other_settings``: rows of one model, concept, method and attack that are not one measurement."""
    same = ["model", "concept", "method", "attack"]
    cells = scores[[*same, *APART]].drop_duplicates()
    found = []
    for place, part in cells[cells.duplicated(same, keep=False)].groupby(same, sort=True):
        ways = {name: sorted(set(part[name])) for name in APART if part[name].nunique() > 1}
        told = "; ".join(f"{name} {' / '.join(v or 'as usual' for v in values)}" for name, values in ways.items())
        found += [f"{'/'.join(map(str, place))} ({told})"] if ways else []
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        yield {
            "flag": "other_settings",
            "level": "warning",
            "message": f"rows of one name are several measurements, and not pooled: {', '.join(found[:3])}{more}.",
            "what_to_do": "Quote the row whose settings you mean; compare methods where these are the same.",
        }
