"""How far does the erasure reach? Target, synonyms, neighbours by relation and the rest, against the original model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from erasebench import fields
from erasebench.judges.judging import Judged, check_files, judge_images
from erasebench.judges.looking import JudgeLook
from erasebench.protocols import Evaluator, Judge
from erasebench.report import clusters
from erasebench.report.sharing import clusters_of
from erasebench.store.images import ImageSet
from erasebench.types import GROUPS, Headline, Prompt, Score

if TYPE_CHECKING:
    from erasebench.judges.clip import ImageText

Part = tuple[float, float, float]  # a rate in percent with its interval


def harmonic_mean(efficacy: float, generality: float, sensitivity: float) -> float:
    """EraseBench's one number for an erasure (Amara et al., arXiv 2501.09833).

    ``HM = 3 / (1 / (100 - Eff) + 1 / (100 - Gen) + 1 / Sens)``, and 0 if one of the three terms is 0.

    Args:
        efficacy: accuracy on target prompts in percent, lower is better.
        generality: accuracy on paraphrases in percent, lower is better.
        sensitivity: accuracy on related neighbours in percent, higher is better.

    Returns:
        The harmonic mean in [0, 100], higher is better.

    Raises:
        ValueError: a value outside [0, 100].

    The paper prints 77.58 for Receler (visual similarity). A model that draws everything or nothing gets 0:

    >>> round(harmonic_mean(8.1, 20.0, 65.4), 2)
    77.58
    >>> harmonic_mean(100.0, 100.0, 100.0), harmonic_mean(0.0, 0.0, 0.0)
    (0.0, 0.0)
    """
    values = (efficacy, generality, sensitivity)
    if not all(0 <= v <= 100 for v in values):
        raise ValueError(f"efficacy, generality and sensitivity must be percentages in [0, 100]; got {values}")
    terms = (100 - efficacy, 100 - generality, sensitivity)
    return 0.0 if min(terms) == 0 else 3 / sum(1 / term for term in terms)


def harmonic_interval(parts: Sequence[Part]) -> tuple[float, float]:
    """95 % interval of the harmonic mean from those of its three independent rates, square and add.

    The mean is monotone in each term, so its ends are its least and largest value where the terms' distances d_i from
    their estimates, in units of their own intervals' half on that side, have ``sum d_i^2 = 1``: Donner and Zou's way to
    recover variances (Statistical Methods in Medical Research 21, 2012) for a function that is no sum. Unlike a
    bootstrap it has no zero width where every rate is 0 or 1. Coverage: docs/metrics.md.

    Args:
        parts: (estimate, low, high) in percent of efficacy, generality, sensitivity.

    Returns:
        (low, high); (nan, nan) where a part has no interval.

    >>> [round(x, 1) for x in harmonic_interval([(0, 0, 7.1), (0, 0, 7.1), (100, 92.9, 100)])]
    [95.9, 100.0]
    """
    terms = np.array([*((100 - v, 100 - h, 100 - low) for v, low, h in parts[:2]), parts[2]], dtype=float)
    if not np.isfinite(terms).all():
        return math.nan, math.nan
    value, low, high = terms.T[:, :, None]
    down, up = _means(value - _WAYS * (value - low)), _means(value + _WAYS * (high - value))
    return float(down.min()), min(100.0, float(up.max()))


def _means(terms: np.ndarray) -> np.ndarray:
    """Harmonic means of columns of terms [3, n]."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(terms.min(0) <= 0, 0.0, 3 / (1 / np.maximum(terms, 0)).sum(0))


def _ways(steps: int = 13) -> np.ndarray:
    """Directions [3, steps^2] of the octant in which all terms rise, its edges and corners among them."""
    angles = np.linspace(0, math.pi / 2, steps)
    one, two = (a.ravel() for a in np.meshgrid(angles, angles))
    return np.array([np.cos(one) * np.cos(two), np.cos(one) * np.sin(two), np.sin(one)])


_WAYS = _ways()


@dataclass(frozen=True, kw_only=True)
class Spillover(Evaluator):
    """EraseBench's spillover measures on our own concepts, with a judge's top-1 accuracy, all in percent.

    - ``efficacy.<judge>`` (group target) and ``generality.<judge>`` (paraphrase): how often the erased concept is still
      seen, lower is better;
    - ``sensitivity.<judge>`` (neighbour): how often related concepts are seen, pooled (relation "") and per relation;
    - ``retention.<judge>`` (neighbour, unrelated, coco): of the prompts the original model draws rightly, the share
      that the erased model still draws rightly from the same noise. Unlike an accuracy it does not blame the erasure
      for what the original model cannot draw;
    - ``hm.<judge>`` (group "all"): see :func:`harmonic_mean`; absent where a group is;
    - ``hm_by_relation.<judge>`` (group "all", one for each relation): the same with the sensitivity of one relation,
      EraseBench's dimension; efficacy and generality are those of the concept, whatever the dimension;
    - ``text_distance.<model>`` (one for each prompt that should survive and names a concept): one minus the cosine of
      the text features of its concept's word and of the nearest erased one's, in 0..2. It depends on no image; it is
      what a drop in accuracy is read against.

    Intervals go by the clusters of the prompts (texts, synonyms, neighbours: ``erasebench.report.sharing``): of rates
    as in every table, of ``hm`` see :func:`harmonic_interval`; with fewer than three synonyms, say, there is none.
    Images that could not be made are left out of the counts; a measure without any image is a status, not a number. A
    reconstruction: the paper (arXiv 2501.09833) published neither its concepts nor its prompts and used CLIP zero-shot
    accuracy, so its values are not comparable.

    Args:
        judge: says which concept is seen; its name is part of every metric's name.
        text: a CLIP-like model whose text features give the distance.
        groups: prompt groups needed.
        version: of this definition.
    """

    judge: Judge
    text: ImageText
    groups: tuple[str, ...] = ("target", "paraphrase", "neighbour", "unrelated", "coco")
    version: int = 3

    headlines: ClassVar[tuple[Headline, ...]] = (
        Headline(metric="hm", group="all", label="{metric}", head="HM", place=90, role="mean"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", fields.chosen("evaluator.spillover.groups", self.groups, GROUPS, least=1))

    def check(self) -> None:
        """The judge's files can be read, as far as it says how to find out."""
        check_files(self.judge)
        check_files(self.text)

    @property
    def looks(self) -> tuple[JudgeLook, ...]:
        """The judge's verdicts."""
        return (JudgeLook(self.judge, self.groups),)

    def score(self, images: ImageSet, original: ImageSet) -> list[Score]:
        """Whole-set scores, see the class; ``original`` holds the same prompts drawn by the un-erased model."""
        judged = judge_images(self.judge, images.only(self.groups))
        before = judge_images(self.judge, original.only(self.groups))
        right = {prompt.id for prompt, verdict, _ in before if verdict is not None and verdict.present}
        parts = _parts(judged)
        named = {"efficacy": ("target", ""), "generality": ("paraphrase", ""), "sensitivity": ("neighbour", "")}
        scores = [self._rate(name, parts[where], where) for name, where in named.items() if where in parts]
        scores += [
            self._rate("sensitivity", parts[where], where) for where in parts if where[0] == "neighbour" and where[1]
        ]
        for where, rows in parts.items():
            if where[0] in ("neighbour", "unrelated", "coco"):
                scores.append(self._rate("retention", [row for row in rows if row[0].id in right], where))
        if all(where in parts for where in named.values()):
            scores.append(self._harmonic([parts[where] for where in named.values()]))
            for where in parts:
                if where[0] == "neighbour" and where[1]:
                    groups = [parts[named["efficacy"]], parts[named["generality"]], parts[where]]
                    scores.append(self._harmonic(groups, where[1]))
        return scores + self._distances(images.only(self.groups).prompts)

    def _distances(self, prompts: Sequence[Prompt]) -> list[Score]:
        """How far each kept prompt's concept is from the nearest erased one, as texts; nothing without a target."""
        erased = dict.fromkeys(p.concept.replace("_", " ") for p in prompts if p.group == "target" and p.concept)
        kept = [p for p in prompts if p.group in ("neighbour", "unrelated") and p.concept]
        words = dict.fromkeys(p.concept.replace("_", " ") for p in kept)
        if not erased or not words:
            return []
        cosines = self.text.text_features([*words]) @ self.text.text_features([*erased]).T
        distance = dict(zip(words, np.clip(1 - cosines.max(1).astype(float), 0, 2).tolist(), strict=True))
        return [
            Score(
                evaluator="spillover",
                metric=f"text_distance.{self.text.name}",
                value=value,
                group=p.group,
                prompt_id=p.id,
                relation=p.relation,
                status="ok" if math.isfinite(value) else "error",
                rate=False,
            )
            for p in kept
            for value in [distance[p.concept.replace("_", " ")]]
        ]

    def _rate(self, name: str, rows: Sequence[Judged], where: tuple[str, str]) -> Score:
        seen, names = _seen(rows)
        low, high = (100 * x for x in clusters.rate(seen, names)) if seen else (math.nan, math.nan)
        return Score(
            evaluator="spillover",
            metric=f"{name}.{self.judge.name}",
            value=100 * sum(seen) / len(seen) if seen else math.nan,
            group=where[0],
            relation=where[1],
            higher_is_better=name in ("sensitivity", "retention"),
            status="ok" if seen else "error",
            low=None if math.isnan(low) else low,
            high=None if math.isnan(high) else high,
            judge=self.judge.name,
        )

    def _harmonic(self, groups: Sequence[Sequence[Judged]], relation: str = "") -> Score:
        found = [_seen(rows) for rows in groups]
        known = all(seen for seen, _ in found)
        rates = [100 * sum(seen) / len(seen) for seen, _ in found] if known else []
        low = high = math.nan
        if known:
            ends = [clusters.exact(*one) for one in found]
            low, high = harmonic_interval([(r, 100 * a, 100 * b) for r, (a, b) in zip(rates, ends, strict=True)])
        return Score(
            evaluator="spillover",
            metric=f"{'hm_by_relation' if relation else 'hm'}.{self.judge.name}",
            value=harmonic_mean(*rates) if known else math.nan,
            group="all",
            relation=relation,
            higher_is_better=True,
            status="ok" if known else "error",
            low=None if math.isnan(low) else low,
            high=None if math.isnan(high) else high,
            judge=self.judge.name,
            terms=(100 - rates[0], 100 - rates[1], rates[2]) if known else (),
        )


def _seen(rows: Sequence[Judged]) -> tuple[list[bool], list[str]]:
    """Whether the concept is in each image that was judged, and the image's cluster."""
    shared = clusters_of([prompt for prompt, _, _ in rows])
    found = [(verdict.present, shared[prompt.group, prompt.id]) for prompt, verdict, _ in rows if verdict is not None]
    return [present for present, _ in found], [name for _, name in found]


def _parts(judged: Iterable[Judged]) -> dict[tuple[str, str], list[Judged]]:
    """(group, relation) -> rows; relation "" is the whole group, only neighbours are split further."""
    parts: dict[tuple[str, str], list[Judged]] = {}
    for row in judged:
        group, relation = row[0].group, row[0].relation
        if group == "neighbour" and relation == "unrelated":
            group = "unrelated"
        parts.setdefault((group, ""), []).append(row)
        if group == "neighbour" and relation:
            parts.setdefault((group, relation), []).append(row)
    return parts
