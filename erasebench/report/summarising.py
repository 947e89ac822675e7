"""The summary of tidy tables: one row per cell, group, relation and metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from erasebench.report.columns import FACTS, KEYS, METRIC, SIDES, SUMMARY, SUMMARY_DTYPES, typed, unique
from erasebench.report.influence import by_image
from erasebench.report.summary import Runs, difference, summarise_prompts, summarise_whole


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Scores -> one row per cell, group, relation and metric, with the columns of :data:`SUMMARY`.

    ``mean`` is of the erased model, ``base`` of the original one, each over its ok rows; ``n`` counts the erased
    model's ok rows and ``n_failed`` its others, which enter nothing else. ``delta`` is the mean of erased - original
    over the prompts that are ok on both sides, so it can differ from mean - base when images failed.
    A metric whose values are all 0 or 1 is a rate: Wilson's interval, Newcombe's paired interval for the difference
    and McNemar's exact p-value. Other metrics get Student's intervals and no p-value. ``clusters`` are the distinct
    texts, searches, words or concepts behind the n values; where they are fewer than n, and where several trainings
    of one configuration are pooled, intervals and p-values are by cluster, of both ways the widest
    (``erasebench.report.clusters``). ``runs`` and ``trainings`` say over how many seeds a row goes. Prompts with a
    relation are summarised per relation and, with relation "", together. A metric of a whole group (no prompt_id)
    keeps its own interval, and its difference has one where its evaluator recorded influences
    (``erasebench.report.influence``); its n is the number of images it says it saw, else 1 per run; over several runs
    see :func:`erasebench.report.summary.over_runs`.

    Raises:
        ValueError: columns are missing, or there are two values for one metric of one prompt.
    """
    frame = typed(frame, "scores").reset_index(drop=True)
    rates = _rates(frame.loc[frame.role != "influence", [*METRIC, "status", "value", "rate"]])
    places = frame.groupby(["model", "concept"], sort=True)  # no group of rows is in two of them; saves memory
    parts = [_summarised(part, rates) for _, part in places] if places.ngroups > 1 else [_summarised(frame, rates)]
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True).astype(SUMMARY_DTYPES)


def _summarised(frame: pd.DataFrame, rates: pd.Series[bool]) -> pd.DataFrame:
    """:func:`summarise` of some concepts; ``rates``: row -> whether its metric is a rate."""
    images, frame = by_image(frame), frame[frame.role != "influence"]
    frame = frame.assign(_rate=rates)
    related = frame[(frame.relation != "") & frame.prompt_id.notna()]
    relation = pd.concat([frame.relation, related.relation], ignore_index=True)
    frame = pd.concat([frame, related.assign(relation="")], ignore_index=True)
    if not len(frame):
        return pd.DataFrame(columns=list(SUMMARY)).astype(SUMMARY_DTYPES)
    group = frame.groupby(list(KEYS), sort=True).ngroup().to_numpy()
    pair = frame.groupby(["run", relation, "prompt_id"], sort=True, dropna=False).ngroup().to_numpy()
    erased = (frame.side == "erased").to_numpy(bool)
    order = np.lexsort((pair, ~erased, group))
    frame, group, pair, erased = frame.iloc[order], group[order], pair[order], erased[order]
    same = (np.diff(group) == 0) & (np.diff(pair) == 0) & (np.diff(erased.astype(int)) == 0)
    unique(np.append(False, same), frame, "scores")
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    table = frame.iloc[starts].reset_index(drop=True)  # one row for each group of rows, with its keys and facts
    numbers = _numbers(frame, np.append(starts, len(frame)), pair, erased, frame._rate.iloc[starts].to_numpy(bool))
    direction = frame.groupby(group, sort=True).higher_is_better.first().reset_index(drop=True)
    table = pd.concat([table[[*KEYS, *FACTS]], numbers], axis=1).assign(higher_is_better=direction)
    for i, by in _differences(images, table):
        table.loc[i, ["clusters", "delta_low", "delta_high"]] = by["clusters"], by["delta_low"], by["delta_high"]
    return table[list(SUMMARY)].astype(SUMMARY_DTYPES)


def _differences(images: pd.DataFrame, table: pd.DataFrame) -> Iterable[tuple[int, dict[str, float]]]:
    """Row of the table -> the paired difference of its distance, where each image's part in it is known."""
    images = images.assign(code=_codes(images))[[*KEYS, "run", "side", "prompt_id", "value", "weights", "code"]]
    known = images.groupby(list(KEYS), sort=False, dropna=False)
    rows = {key: i for i, key in enumerate(table[list(KEYS)].itertuples(index=False, name=None))}
    for key, part in known:
        part = part[["run", "side", "prompt_id", "value", "weights", "code"]]
        erased, original = (part[part.side == side] for side in SIDES)
        both = erased.merge(original[["run", "prompt_id", "value"]], on=["run", "prompt_id"], suffixes=("", "_b"))
        trained = pd.factorize(both.weights)[0]
        ways = [both.code.to_numpy(), trained][: 1 + (len(set(trained)) > 1)]
        if key in rows and len(both):
            by = difference(both.value.to_numpy(float), both.value_b.to_numpy(float), False, ways)
            yield rows[key], by | {"clusters": len(set(ways[0]))}


def kinds(frame: pd.DataFrame) -> pd.DataFrame:
    """Each metric of a frame of scores, and in column ``rate`` whether :func:`summarise` takes it for a rate."""
    frame = frame[frame.role != "influence"]
    return frame[list(METRIC)].assign(rate=_rates(frame)).drop_duplicates()


def _rates(frame: pd.DataFrame) -> pd.Series[bool]:
    """For each row whether its metric is a rate: as its evaluator says, else all ok values 0 or 1, in every group."""
    other = ((frame.status == "ok") & ~frame.value.isin((0.0, 1.0))).mask(frame.rate.notna(), frame.rate.eq(False))
    other = other.astype(bool)
    return ~other.groupby([frame[name] for name in METRIC], sort=False).transform("any")


def _numbers(frame: pd.DataFrame, edges: np.ndarray, pair: np.ndarray, erased: np.ndarray, rates: np.ndarray) -> Any:
    """n, n_failed and :data:`NUMBERS` of each slice between two edges; rows are in order of side and pair."""
    value = frame.value.to_numpy()
    ok, whole = (frame.status == "ok").to_numpy(bool), frame.prompt_id.isna().to_numpy()
    cluster, run = _codes(frame), pd.factorize(frame.run)[0]
    training = pd.factorize(frame.weights.where(frame.side == "erased"))[0]
    images = frame.images.astype("float64").to_numpy()
    said = [frame[name].to_numpy(float) for name in ("value", "low", "high")], frame.terms.to_numpy(object)
    rows = []
    for start, stop, rate in zip(edges[:-1], edges[1:], rates, strict=True):
        good, ours = ok[start:stop], erased[start:stop]
        here, there = start + np.flatnonzero(good & ours), start + np.flatnonzero(good & ~ours)
        counts = {
            "n": len(here), "clusters": len(set(cluster[here])), "n_failed": int((~good & ours).sum()),
            "runs": len(set(run[here])), "trainings": len(set(training[here])),
        }  # fmt: skip
        if whole[start:stop].all():
            if (seen := images[here][~np.isnan(images[here])]).size:  # of several runs, the fewest that one had
                counts["n"] = counts["clusters"] = int(seen.min())
            rows.append(counts | summarise_whole(*(_runs(*said, training, i) for i in (here, there))))
        else:
            shared = np.intersect1d(pair[here], pair[there], assume_unique=True, return_indices=True)[1:]
            ways = [cluster[here], training[here]][: 1 + (counts["trainings"] > 1)], [cluster[there]]
            rows.append(counts | summarise_prompts(value[here], value[there], shared, bool(rate), ways))
    return pd.DataFrame(rows)


def _runs(numbers: Sequence[np.ndarray], words: np.ndarray, training: np.ndarray, rows: np.ndarray) -> Runs:
    """What several runs, each a row, say of a whole group."""
    terms = [[float(word) for word in told.split()] for told in words[rows]]
    value, low, high = (column[rows] for column in numbers)
    return Runs(value, low, high, len(set(training[rows])), np.array(terms) if terms and all(terms) else None)


def _codes(frame: pd.DataFrame) -> np.ndarray:
    """A number for each row's cluster; a prompt of which none is known is a cluster of its own in its run."""
    own = frame.run + "\x1f" + frame.group + "\x1f" + frame.prompt_id.fillna("")
    codes: np.ndarray = pd.factorize(own.where(frame.cluster == "", "\x1e" + frame.cluster), sort=True)[0]
    return codes
