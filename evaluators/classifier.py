"""Does a judge see the concept? The erased one should be gone, the others should still be there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from erasebench import fields
from erasebench.judges.divided import asked
from erasebench.judges.judging import check_files, judge_images
from erasebench.judges.looking import JudgeLook
from erasebench.protocols import Evaluator, Judge
from erasebench.store.images import ImageSet
from erasebench.types import ERASED_GROUPS, GROUPS, Headline, Score


@dataclass(frozen=True, kw_only=True)
class Classifier(Evaluator):
    """Top-1 presence of each prompt's concept in its image, and the probability the judge gives it.

    Per image with concept k, probabilities p over the judge's labels:
    ``present = [argmax p = k]``, ``probability = p_k``.

    The presence is called ``concept_present.<judge>.top1`` for the groups that ask for the erased concept (target,
    paraphrase, attack), whose mean is what is left of it (for attack: the attack success rate), and
    ``accuracy.<judge>.top1`` for the groups that should survive. An image that could not be made is a row with its
    status and no value; prompts that name no concept are left out.

    Args:
        judge: the classifier, its name part of every metric's name.
        groups: prompt groups scored.
        version: of this definition.
    """

    judge: Judge
    groups: tuple[str, ...] = ("target", "paraphrase", "attack", "neighbour", "unrelated", "coco")
    version: int = 1

    headlines: ClassVar[tuple[Headline, ...]] = (
        *(
            Headline(metric="concept_present", role="present", group=g, place=p, label=label, head=g, unit="%")
            for g, p, label in (
                ("target", 10, "concept drawn: its name"),
                ("paraphrase", 20, "concept drawn: synonyms"),
                ("attack", 30, "concept drawn: attack prompts"),
            )
        ),
        *(
            Headline(metric="accuracy", role="kept", group=g, place=p, label=label, head=head, unit="%")
            for g, p, label, head in (
                ("neighbour", 40, "neighbours still drawn", "neighbours"),
                ("unrelated", 50, "unrelated still drawn", "unrelated"),
                ("coco", 60, "general prompts still drawn", ""),
            )
        ),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", fields.chosen("evaluator.classifier.groups", self.groups, GROUPS, least=1))

    def check(self) -> None:
        """The judge's files can be read, as far as it says how to find out."""
        check_files(self.judge)

    @property
    def looks(self) -> tuple[JudgeLook, ...]:
        """The judge's verdicts."""
        return (JudgeLook(self.judge, self.groups),)

    def score(self, images: ImageSet, original: ImageSet) -> list[Score]:
        """Two scores per image: presence in {0, 1} and probability in [0, 1]; ``original`` is not used."""
        scores = []
        for prompt, verdict, status in judge_images(self.judge, images.only(self.groups)):
            erased = prompt.group in ERASED_GROUPS
            judge = asked(self.judge, prompt.concept).name
            presence = f"{'concept_present' if erased else 'accuracy'}.{judge}.top1"
            values = (math.nan, math.nan) if verdict is None else (float(verdict.present), verdict.score)
            scores += [
                Score(
                    evaluator="classifier",
                    metric=metric,
                    value=value,
                    group=prompt.group,
                    prompt_id=prompt.id,
                    relation=prompt.relation,
                    higher_is_better=not erased,
                    status=status,
                    judge=judge,
                )
                for metric, value in zip((presence, f"probability.{judge}"), values, strict=True)
            ]
        return scores
