"""How far are an erased model's predictions from those of the model that never knew, along that model's way?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from erasebench import fields
from erasebench.diffusion.trajectories import noise_distances
from erasebench.protocols import Evaluator, Method
from erasebench.store.images import ImageSet
from erasebench.types import GROUPS, Headline, Score


@dataclass(frozen=True, kw_only=True)
class OracleNoise(Evaluator):
    """``oracle_noise``: distance of the predicted noise, per prompt ``sum_t |e - e_oracle|^2 / sum_t |e_oracle|^2``.

    Both models predict at the latents that the oracle goes through from the prompt's noise to its image, with guidance
    (and a defence that works while drawing), at every step the run draws with. So nothing that one step changes is
    counted again in the next, and there is neither judge nor decoder in it. 0: the oracle itself; 1: as far as a model
    that predicts nothing. The original's row says how far knowing the concept is from never having met it.

    Costs two drawings of every prompt of each model, of which nothing is kept. A prediction that is not finite is a row
    with status ``nan`` and no value. Models that predict a velocity are compared by it. No paper defines this.

    Args:
        oracle: how the model that never knew is made of the original; it refuses concepts without one.
        groups: prompt groups scored.
        version: of this definition.
    """

    oracle: Method
    groups: tuple[str, ...] = ("target", "paraphrase", "attack", "neighbour", "unrelated")
    version: int = 1

    beside: ClassVar[str] = "oracle"

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", fields.chosen("evaluator.oracle_noise.groups", self.groups, GROUPS, least=1))

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """Every group in the closing table; on the leaderboard all but attack prompts."""
        words = {"target": "its name", "paraphrase": "synonyms", "attack": "attack prompts", "coco": "general prompts"}
        return tuple(
            Headline(
                metric="oracle_noise", group=group, label=f"distance to the oracle's noise: {words.get(group, group)}",
                head="" if group == "attack" else f"oracle noise: {group}", place=140 + place, unit="%",
                role="likeness",
            )
            for place, group in enumerate(GROUPS)
        )  # fmt: skip

    def score(self, images: ImageSet, original: ImageSet) -> list[Score]:
        """One score per prompt; ``original`` is the oracle's side, see ``beside``.

        Raises:
            ValueError: image sets without their models (of a folder of images).
        """
        ours, theirs = images.only(self.groups), original.only(self.groups)
        if ours.model is None or theirs.model is None:
            raise ValueError(
                "evaluator.oracle_noise needs the models and not their images alone; run it with method=..., or use "
                "evaluator=[oracle]"
            )
        found = noise_distances(ours.model, theirs.model, ours.prompts, **ours.how).tolist()
        return [
            Score(
                evaluator="oracle_noise", metric="oracle_noise", value=value, group=prompt.group, prompt_id=prompt.id,
                relation=prompt.relation, higher_is_better=False, rate=False,
                status="nan" if math.isnan(value) else "ok",
            )
            for prompt, value in zip(ours.prompts, found, strict=True)
        ]  # fmt: skip
