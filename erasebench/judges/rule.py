"""Any evaluator's number as a judge: the concept is there where the number of an image reaches a threshold."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erasebench import fields
from erasebench.protocols import Evaluator, Judge
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt, Verdict

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class RuleJudge(Judge):
    """A concept is present where ``metric`` of an image is at least ``threshold`` (``above``) or at most (not above).

    The evaluator sees each image as the target prompt of its concept, so a metric that depends on the prompt's text (a
    CLIP score) is asked about the concept's name.

    Args:
        evaluator: any evaluator that scores single images of group ``target``.
        metric: the metric's name, or its beginning up to a dot; there must be one.
        threshold: in the metric's own unit.
        above: whether large values mean that the concept is there.
        concepts: the concepts the rule is for; empty: any.

    Raises:
        ValueError: a threshold that is no number; when asked, an evaluator without that metric.
    """

    evaluator: Evaluator
    metric: str
    threshold: float
    above: bool = True
    concepts: Sequence[str] = ()

    def __post_init__(self) -> None:
        fields.number("judge.threshold", self.threshold)
        fields.flag("judge.above", self.above)
        object.__setattr__(self, "concepts", fields.texts("judge.concepts", self.concepts))

    @property
    def name(self) -> str:
        return f"{self.metric}{'>=' if self.above else '<='}{self.threshold:g}"

    @property
    def about(self) -> str:
        """The rule in words."""
        side = "at least" if self.above else "at most"
        return f"{self.metric} of {type(self.evaluator).__name__} is {side} {self.threshold:g}"

    def check(self, concepts: Collection[str]) -> None:
        """Refuse a concept that the rule is not for."""
        if self.concepts and (other := sorted(set(concepts) - set(self.concepts))):
            raise ValueError(
                f"judge {self.name} is for {', '.join(self.concepts)}; got {other[0]!r}; choose another judge"
            )

    def __call__(self, images: Sequence[Image.Image], concepts: Sequence[str]) -> list[Verdict]:
        """One verdict per image; the score is the metric's value, the label the rule."""
        self.check(set(concepts))
        if not images:
            return []
        prompts = tuple(
            Prompt(id=str(i), text=concept.replace("_", " "), seed=i, group="target", concept=concept)
            for i, concept in enumerate(concepts)
        )
        with tempfile.TemporaryDirectory() as folder:
            write_shard(folder, 0, [(p.digest(), image, "ok") for p, image in zip(prompts, images, strict=True)])
            drawn = ImageSet(key="judged", folder=Path(folder), prompts=prompts)
            found = {s.prompt_id: s.value for s in self.evaluator.score(drawn, drawn) if self._is_it(s.metric)}
        if absent := [p.id for p in prompts if p.id not in found]:
            raise ValueError(
                f"judge.metric must be one that the evaluator gives each image; got {self.metric!r}, which "
                f"{len(absent)} of {len(prompts)} images lack; name one of its metrics"
            )
        values = [found[p.id] for p in prompts]
        hits = [v >= self.threshold if self.above else v <= self.threshold for v in values]
        return [Verdict(present=h, score=float(v), label=self.name) for h, v in zip(hits, values, strict=True)]

    def _is_it(self, metric: str) -> bool:
        return metric == self.metric or metric.startswith(f"{self.metric}.")
