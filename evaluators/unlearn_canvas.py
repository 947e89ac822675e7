"""UnlearnCanvas's three accuracies: what was unlearned, what is like it, and what is of another kind."""

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
from erasebench.types import GROUPS, Headline, Score


@dataclass(frozen=True, kw_only=True)
class UnlearnCanvas(Evaluator):
    """Unlearning, in-domain retain and cross-domain retain accuracy (UnlearnCanvas, arXiv 2402.11846), 0 or 1 an image.

    With [seen] whether the judge's first label is what the prompt asks for:

    - ``ua.<judge> = 1 - [seen]`` over the erased concept's prompts (group target);
    - ``ira.<judge> = [seen]`` over other concepts of the same domain (a style's other styles);
    - ``cra.<judge> = [seen]`` over concepts of the other domain (a style's objects).

    All three are high when good; their means times 100 are the paper's columns. Prompts that name no concept are left
    out; an image that could not be made is a status. Of a divided judge (styles by one network, objects by another)
    each metric carries the name of the one asked.

    Deviations: the paper draws "An {object} image in {style} style." over 50 styles (and Seed_Images) x 20 objects x 5
    seeds, 100 DDIM steps, guidance 9, with its own fine-tuned Stable Diffusion 1.5; here the run's prompts are drawn.
    Which group is which domain is said by the settings. Programs that came after count CRA over other images; ours is
    over the prompts of the other domain's own concepts.

    Args:
        judge: sees styles and objects.
        in_domain, cross_domain: prompt groups of the same and of the other domain.
        version: of this definition.

    Raises:
        ValueError: a group in both domains, or the target's.
    """

    judge: Judge
    in_domain: tuple[str, ...] = ("neighbour",)
    cross_domain: tuple[str, ...] = ("unrelated",)
    version: int = 1

    headlines: ClassVar[tuple[Headline, ...]] = tuple(
        Headline(metric=metric, group=group, label=f"{label}, {group}", place=place, unit="%")
        for place, (metric, label, groups) in enumerate(
            (("ua", "UA", ("target",)), ("ira", "IRA", GROUPS[2:5]), ("cra", "CRA", GROUPS[2:5])), start=260
        )
        for group in groups
    )

    def __post_init__(self) -> None:
        name, kept = "evaluator.unlearn_canvas", ("neighbour", "unrelated", "coco")
        for domain in ("in_domain", "cross_domain"):
            object.__setattr__(self, domain, fields.chosen(f"{name}.{domain}", getattr(self, domain), kept, least=1))
        if both := set(self.in_domain) & set(self.cross_domain):
            raise ValueError(
                f"{name}.in_domain and cross_domain must share no group; both hold {min(both)}; choose one"
            )

    @property
    def groups(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("target", *self.in_domain, *self.cross_domain)

    def check(self) -> None:
        """The judge's files can be read."""
        check_files(self.judge)

    @property
    def looks(self) -> tuple[JudgeLook, ...]:
        """Every judge's verdicts."""
        return (JudgeLook(self.judge, self.groups),)

    def score(self, images: ImageSet, original: ImageSet) -> list[Score]:
        """One score an image; ``original`` is not used."""
        scores = []
        for prompt, verdict, status in judge_images(self.judge, images.only(self.groups)):
            kind = "ua" if prompt.group == "target" else "ira" if prompt.group in self.in_domain else "cra"
            judge = asked(self.judge, prompt.concept).name
            value = math.nan if verdict is None else float(verdict.present != (kind == "ua"))
            scores.append(
                Score(
                    evaluator="unlearn_canvas", metric=f"{kind}.{judge}", value=value, group=prompt.group,
                    prompt_id=prompt.id, relation=prompt.relation, higher_is_better=True, status=status, judge=judge,
                    rate=True,
                )
            )  # fmt: skip
        return scores
