"""The summary of tidy tables: one row per cell, group, relation and metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from erasebench.report.clusters import count
from erasebench.report.codes import coded, codes, firsts, plain, together
from erasebench.report.columns import CELL, FACTS, KEYS, METRIC, SIDES, SUMMARY, SUMMARY_DTYPES, typed, unique
from erasebench.report.influence import by_image
from erasebench.report.summary import Runs, difference, summarise_prompts, summarise_whole


def summarise(frame: pd.DataFrame, *, apart: bool = False) -> pd.DataFrame:
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

    Args:
        frame: tidy scores.
        apart: each cell by itself says which of its metrics are rates, where evaluators do not.

    Raises:
        ValueError: columns are missing, or there are two values for one metric of one prompt.
    """
    frame = typed(frame, "scores").reset_index(drop=True)
    rates = _rates(frame, [*CELL, *METRIC] if apart else METRIC)
    place = codes(frame, ["model", "concept"])  # no group of rows is in two of them; saves memory
    parts = [np.flatnonzero(place == one) for one in np.unique(place)]
    if len(parts) < 2:
        return _summarised(frame, rates)
    found = [_summarised(frame.iloc[own].reset_index(drop=True), rates[own]) for own in parts]
    return pd.concat(found, ignore_index=True).astype(SUMMARY_DTYPES)


def _summarised(frame: pd.DataFrame, rates: np.ndarray) -> pd.DataFrame:
    """:func:`summarise` of some concepts; ``rates`` [rows]: whether a row's metric is a rate."""
    images, known = by_image(frame), frame.prompt_id.notna().to_numpy(bool)
    own = np.flatnonzero(frame.role.ne("influence").to_numpy(bool))
    related = own[(frame.relation.ne("").to_numpy(bool) & known)[own]]
    rows = np.concatenate([own, related])  # those with a relation once more, without it
    if not len(rows):
        return pd.DataFrame(columns=list(SUMMARY)).astype(SUMMARY_DTYPES)
    relation = np.where(np.arange(len(rows)) < len(own), _from(coded(frame.relation))[rows], 0)
    before, after = (codes(frame, names)[rows] for names in ([*CELL, "group"], METRIC))
    group = together([before, relation, after])
    pair = codes(frame, ["run", "relation", "prompt_id"])[rows]
    erased = frame.side.eq("erased").to_numpy(bool)[rows]
    order = np.lexsort((pair, ~erased, group))
    rows, group, pair, erased, relation = rows[order], group[order], pair[order], erased[order], relation[order]
    if (same := (np.diff(group) == 0) & (np.diff(pair) == 0) & (np.diff(erased.astype(int)) == 0)).any():
        again = frame.iloc[rows]
        unique(np.append(False, same), again, "scores")
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    table = plain(frame[[*KEYS, *FACTS]].iloc[rows[starts]]).reset_index(drop=True)  # keys and facts of each group
    table["relation"] = table.relation.where(relation[starts] > 0, "")
    better = frame.higher_is_better.to_numpy(float, na_value=np.nan)[rows]
    said = np.flatnonzero(~np.isnan(better))
    first = said[firsts(group[said])]
    direction = pd.Series(pd.NA, index=table.index, dtype="boolean")
    direction.iloc[np.searchsorted(group[starts], group[first])] = better[first] == 1
    numbers = _numbers(frame, rows, np.append(starts, len(rows)), pair, erased, rates[rows[starts]])
    table = pd.concat([table, numbers], axis=1).assign(higher_is_better=direction)
    for i, by in _differences(images, table):
        table.loc[i, ["clusters", "delta_low", "delta_high"]] = by["clusters"], by["delta_low"], by["delta_high"]
    return table[list(SUMMARY)].astype(SUMMARY_DTYPES)


def _from(found: tuple[np.ndarray, Any]) -> np.ndarray:
    """Codes of texts of which the empty one is 0."""
    own, values = found
    return own + (0 if len(values) and values[0] == "" else 1)


def _differences(images: pd.DataFrame, table: pd.DataFrame) -> Iterator[tuple[int, dict[str, float]]]:
    """Row of the table -> the paired difference of its distance, where each image's part in it is known."""
    if not len(images):
        return
    at = {key: i for i, key in enumerate(table[list(KEYS)].itertuples(index=False, name=None))}
    group, image, cluster = codes(images, KEYS), codes(images, ["run", "prompt_id"]), _codes(images)
    value, trained = images.value.to_numpy(float), coded(images.weights)[0]
    side = [images.side.eq(one).to_numpy(bool) for one in SIDES]
    first = firsts(group)
    named = plain(images[list(KEYS)].iloc[first]).itertuples(index=False, name=None)
    for key, place in zip(named, first, strict=True):
        own = np.flatnonzero(group == group[place])
        here, there = (own[is_[own]] for is_ in side)
        _, i, j = np.intersect1d(image[here], image[there], assume_unique=True, return_indices=True)
        order = np.argsort(i)
        here, there = here[i[order]], there[j[order]]
        codes_of = pd.factorize(trained[here])[0]
        ways = [cluster[here], codes_of][: 1 + (count(codes_of) > 1)]
        if key in at and len(here):
            yield at[key], difference(value[here], value[there], False, ways) | {"clusters": count(cluster[here])}


def kinds(frame: pd.DataFrame) -> pd.DataFrame:
    """Each metric of a frame of scores, and in column ``rate`` whether :func:`summarise` takes it for a rate."""
    own = np.flatnonzero(frame.role.ne("influence").to_numpy(bool))
    first = own[firsts(codes(frame, METRIC)[own])]
    return plain(frame[list(METRIC)].iloc[first]).assign(rate=_rates(frame)[first])


def _rates(frame: pd.DataFrame, names: Sequence[str] = METRIC) -> np.ndarray:
    """For each row whether its metric is a rate: as its evaluator says, else all ok values 0 or 1, in every group."""
    said = frame.rate.to_numpy(float, na_value=np.nan)
    other = frame.status.eq("ok").to_numpy(bool) & ~frame.value.isin((0.0, 1.0)).to_numpy(bool)
    other = np.where(np.isnan(said), other, said == 0) & frame.role.ne("influence").to_numpy(bool)
    metric = np.unique(codes(frame, names), return_inverse=True)[1]
    rate: np.ndarray = np.bincount(metric, other)[metric] == 0
    return rate


def _numbers(
    frame: pd.DataFrame, order: np.ndarray, edges: np.ndarray, pair: np.ndarray, erased: np.ndarray, rates: np.ndarray
) -> pd.DataFrame:
    """n, n_failed and :data:`NUMBERS` of each slice of rows between two edges; they are in order of side and pair."""
    value = frame.value.to_numpy()[order]
    ok, whole = frame.status.eq("ok").to_numpy(bool)[order], frame.prompt_id.isna().to_numpy()[order]
    cluster, run = _codes(frame)[order], coded(frame.run)[0][order]
    training = pd.factorize(np.where(erased, coded(frame.weights)[0][order], -1))[0]
    images = frame.images.to_numpy(float, na_value=np.nan)[order]
    said = [frame[name].to_numpy(float)[order] for name in ("value", "low", "high")], frame.terms, order
    rows = []
    for start, stop, rate in zip(edges[:-1], edges[1:], rates, strict=True):
        good, ours = ok[start:stop], erased[start:stop]
        here, there = start + np.flatnonzero(good & ours), start + np.flatnonzero(good & ~ours)
        counts = {
            "n": len(here), "clusters": count(cluster[here]), "n_failed": int((~good & ours).sum()),
            "runs": count(run[here]), "trainings": count(training[here]),
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


def _runs(
    numbers: Sequence[np.ndarray], words: pd.Series[str], order: np.ndarray, training: np.ndarray, rows: np.ndarray
) -> Runs:
    """What several runs, each a row, say of a whole group."""
    terms = [[float(word) for word in told.split()] for told in words.iloc[order[rows]]]
    value, low, high = (column[rows] for column in numbers)
    return Runs(value, low, high, count(training[rows]), np.array(terms) if terms and all(terms) else None)


def _codes(frame: pd.DataFrame) -> np.ndarray:
    """A number for each row's cluster; a prompt of which none is known is a cluster of its own in its run."""
    cluster, values = coded(frame.cluster)
    own = codes(frame, ["run", "group", "prompt_id"])
    return np.where(frame.cluster.eq("").to_numpy(bool), len(values) + own, cluster)
