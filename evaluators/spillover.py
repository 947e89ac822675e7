"""How far does the erasure reach? Target, synonyms, neighbours by relation and the rest, against the original model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from erasebench import fields
from erasebench.judges.judging import Judged, check_files, judge_images
from erasebench.protocols import Evaluator, Judge
from erasebench.report.intervals import wilson
from erasebench.store.images import ImageSet
from erasebench.types import GROUPS, Headline, Score

Outcome = tuple[int, int]  # images whose concept is seen, images judged


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


def harmonic_interval(outcomes: Sequence[Outcome], draws: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the harmonic mean over resampled prompts.

    The number of successes among n prompts drawn with replacement is binomial(n, k / n), so it is drawn directly.

    Args:
        outcomes: (k, n) of target, paraphrase and neighbour.
        draws: bootstrap samples.
        seed: of the generator.
    """
    generator = np.random.default_rng(seed)
    rates = [100 * generator.binomial(n, k / n, size=draws) / n for k, n in outcomes]
    samples = [harmonic_mean(*map(float, row)) for row in zip(*rates, strict=True)]
    low, high = np.quantile(samples, (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Spillover(Evaluator):
    """EraseBench's spillover measures on our own concepts, with a judge's top-1 accuracy, all in percent.

    - ``efficacy.<judge>`` (group target) and ``generality.<judge>`` (paraphrase): how often the erased concept is still
      seen, lower is better;
    - ``sensitivity.<judge>`` (neighbour): how often related concepts are seen, pooled (relation "") and per relation;
    - ``retention.<judge>`` (neighbour, unrelated, coco): of the prompts the original model draws rightly, the share
      that the erased model still draws rightly from the same noise. Unlike an accuracy it does not blame the erasure
      for what the original model cannot draw;
    - ``hm.<judge>`` (group "all"): see :func:`harmonic_mean`; absent where a group is.

    Intervals are Wilson's, for ``hm`` a bootstrap over prompts. Images that could not be made are left out of the
    counts; a measure without any image is a status, not a number. A reconstruction: the paper (arXiv 2501.09833)
    published neither its concepts nor its prompts and used CLIP zero-shot accuracy, so its values are not comparable.

    Args:
        judge: says which concept is seen; its name is part of every metric's name.
        bootstrap: samples for the interval of ``hm``.
        seed: of the bootstrap.
        groups: prompt groups needed.
        version: of this definition.
    """

    judge: Judge
    bootstrap: int = 2000
    seed: int = 0
    groups: tuple[str, ...] = ("target", "paraphrase", "neighbour", "unrelated", "coco")
    version: int = 1

    headlines: ClassVar[tuple[Headline, ...]] = (
        Headline(metric="hm", group="all", label="{metric}", head="HM", place=90, role="mean"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", fields.chosen("evaluator.spillover.groups", self.groups, GROUPS, least=1))
        fields.integer("evaluator.spillover.bootstrap", self.bootstrap, least=100, hint="fewer give no interval")
        fields.integer("evaluator.spillover.seed", self.seed, least=0)

    def check(self) -> None:
        """The judge's files can be read, as far as it says how to find out."""
        check_files(self.judge)

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
            scores.append(self._harmonic([_count(parts[where]) for where in named.values()]))
        return scores

    def _rate(self, name: str, rows: Sequence[Judged], where: tuple[str, str]) -> Score:
        successes, n = _count(rows)
        low, high = wilson(successes, n) if n else (math.nan, math.nan)
        return Score(
            evaluator="spillover",
            metric=f"{name}.{self.judge.name}",
            value=100 * successes / n if n else math.nan,
            group=where[0],
            relation=where[1],
            higher_is_better=name in ("sensitivity", "retention"),
            status="ok" if n else "error",
            low=100 * low if n else None,
            high=100 * high if n else None,
            judge=self.judge.name,
        )

    def _harmonic(self, outcomes: Sequence[Outcome]) -> Score:
        known = all(n for _, n in outcomes)
        low, high = harmonic_interval(outcomes, self.bootstrap, self.seed) if known else (None, None)
        return Score(
            evaluator="spillover",
            metric=f"hm.{self.judge.name}",
            value=harmonic_mean(*(100 * k / n for k, n in outcomes)) if known else math.nan,
            group="all",
            higher_is_better=True,
            status="ok" if known else "error",
            low=low,
            high=high,
            judge=self.judge.name,
        )


def _count(rows: Iterable[Judged]) -> Outcome:
    seen = [verdict.present for _, verdict, _ in rows if verdict is not None]
    return sum(seen), len(seen)


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
