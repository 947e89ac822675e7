"""How far does the erasure reach? Target, synonyms, neighbours by relation and the rest, against the original model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from erasebench import fields
from erasebench.judges.judging import Judged, check_files, judge_images
from erasebench.judges.looking import JudgeLook
from erasebench.protocols import Evaluator, Judge
from erasebench.report import clusters
from erasebench.report.harmonic import harmonic_interval, harmonic_mean
from erasebench.report.sharing import clusters_of
from erasebench.store.images import ImageSet
from erasebench.types import GROUPS, Headline, Prompt, Score

if TYPE_CHECKING:
    from erasebench.judges.clip import ImageText

Rows = Sequence[Judged]


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
    - ``drop.<judge>`` (neighbour and each of its relations, unrelated) and ``drop.<concept>.<judge>`` (one for each
      neighbour): points of accuracy lost on the same prompts and noise, the original's less this model's, with the
      paired interval of :func:`erasebench.report.clusters.paired_rates`; of one neighbour by its texts;
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
        admit: least accuracy of the original model on a text that counts, in 0..1; 0 counts all.
        version: of this definition.
    """

    judge: Judge
    text: ImageText
    groups: tuple[str, ...] = ("target", "paraphrase", "neighbour", "unrelated", "coco")
    admit: float = 0.0
    version: int = 3

    headlines: ClassVar[tuple[Headline, ...]] = (
        Headline(metric="hm", group="all", label="{metric}", head="HM", place=90, role="mean"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", fields.chosen("evaluator.spillover.groups", self.groups, GROUPS, least=1))
        fields.number("evaluator.spillover.admit", self.admit, least=0, most=1)

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
        accuracy = _accuracies(before)
        parts = {
            where: [row for row in rows if accuracy.get(_text(row[0]), (0.0, 0))[0] >= self.admit]
            for where, rows in _parts(judged).items()
        }
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
        scores += self._drops(parts, before)
        return scores + self._admitted(accuracy) + self._distances(images.only(self.groups).prompts)

    @property
    def _who(self) -> str:
        """The end of every metric's name: whose word it is, and about which texts."""
        return self.judge.name + (f".admitted@{self.admit:g}" if self.admit else "")

    def _drops(self, parts: Mapping[tuple[str, str], Rows], before: Rows) -> list[Score]:
        """Points lost, for each part of what should survive and each neighbour."""
        drawn: dict[tuple[str, str], bool] = {(p.group, p.id): v.present for p, v, _ in before if v is not None}
        scores = []
        for (group, relation), rows in parts.items():
            if group not in ("neighbour", "unrelated"):
                continue
            scores.append(self._drop("drop", rows, drawn, (group, relation)))
            for concept in dict.fromkeys(p.concept for p, _, _ in rows if relation):
                own = [row for row in rows if row[0].concept == concept]
                scores.append(self._drop(f"drop.{_plain(concept)}", own, drawn, (group, relation), alone=True))
        return scores

    def _drop(
        self, name: str, rows: Rows, drawn: Mapping[tuple[str, str], bool], where: tuple[str, str], alone: bool = False
    ) -> Score:
        """``alone``: of one concept, whose clusters are its texts."""
        shared = clusters_of([prompt for prompt, _, _ in rows])
        both = [(p, verdict) for p, verdict, _ in rows if verdict is not None and (p.group, p.id) in drawn]
        first = [drawn[p.group, p.id] for p, _ in both]
        second = [verdict.present for _, verdict in both]
        names = [p.text if alone else shared[p.group, p.id] for p, _ in both]
        low, high = (100 * x for x in clusters.paired_rates(first, second, names)) if both else (math.nan, math.nan)
        return Score(
            evaluator="spillover",
            metric=f"{name}.{self._who}",
            value=100 * (sum(first) - sum(second)) / len(both) if both else math.nan,
            group=where[0],
            relation=where[1],
            higher_is_better=False,
            status="ok" if both else "error",
            low=None if math.isnan(low) else low,
            high=None if math.isnan(high) else high,
            judge=self.judge.name,
            rate=False,
            n=len(both),
        )

    def _admitted(self, accuracy: Mapping[tuple[str, str, str], tuple[float, int]]) -> list[Score]:
        """What the original model draws of each text, and of how many texts enough; nothing without a threshold."""
        if not self.admit:
            return []
        scores = [
            Score(
                evaluator="spillover", metric=f"base_accuracy.{_plain(text)}.{self.judge.name}", value=100 * share,
                group=group, relation=relation, higher_is_better=True, judge=self.judge.name, rate=False, n=n,
            )
            for (group, relation, text), (share, n) in accuracy.items()
        ]  # fmt: skip
        for group in dict.fromkeys(group for group, *_ in accuracy):
            shares = [share for (of, *_), (share, _) in accuracy.items() if of == group]
            value = 100 * sum(share >= self.admit for share in shares) / len(shares)
            scores.append(Score(
                evaluator="spillover", metric=f"admitted.{self._who}", value=value, group=group,
                judge=self.judge.name, rate=False, n=len(shares),
            ))  # fmt: skip
        return scores

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
            metric=f"{name}.{self._who}",
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
            metric=f"{'hm_by_relation' if relation else 'hm'}.{self._who}",
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


def _text(prompt: Prompt) -> tuple[str, str, str]:
    """What is admitted or not: group, relation and text; of a paraphrase its synonym, else the concept."""
    group, relation = _place(prompt)
    word = prompt.info.get("word") if group == "paraphrase" else None
    return group, relation if group == "neighbour" else "", str(word or prompt.concept)


def _accuracies(before: Rows) -> dict[tuple[str, str, str], tuple[float, int]]:
    """Text -> the share of its images in which the concept is seen, 0 where none could be judged, and their number."""
    found: dict[tuple[str, str, str], list[bool]] = {}
    for prompt, verdict, _ in before:
        found.setdefault(_text(prompt), []).extend([] if verdict is None else [verdict.present])
    return {text: (sum(seen) / len(seen) if seen else 0.0, len(seen)) for text, seen in found.items()}


def _plain(text: str) -> str:
    """A text as a part of a metric's name.

    >>> _plain("a cup of tea")
    'a_cup_of_tea'
    """
    return "_".join(text.replace(".", "").split())


def _place(prompt: Prompt) -> tuple[str, str]:
    """Group and relation; what is called an unrelated neighbour is unrelated."""
    if prompt.group == "neighbour" and prompt.relation == "unrelated":
        return "unrelated", "unrelated"
    return prompt.group, prompt.relation


def _seen(rows: Sequence[Judged]) -> tuple[list[bool], list[str]]:
    """Whether the concept is in each image that was judged, and the image's cluster."""
    shared = clusters_of([prompt for prompt, _, _ in rows])
    found = [(verdict.present, shared[prompt.group, prompt.id]) for prompt, verdict, _ in rows if verdict is not None]
    return [present for present, _ in found], [name for _, name in found]


def _parts(judged: Iterable[Judged]) -> dict[tuple[str, str], list[Judged]]:
    """(group, relation) -> rows; relation "" is the whole group, only neighbours are split further."""
    parts: dict[tuple[str, str], list[Judged]] = {}
    for row in judged:
        group, relation = _place(row[0])
        parts.setdefault((group, ""), []).append(row)
        if group == "neighbour" and relation:
            parts.setdefault((group, relation), []).append(row)
    return parts
