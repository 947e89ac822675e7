"""Ring-A-Bell without the search: the prompt's embedding is moved along the concept vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attacks.pairs import VectorSource, given
from attacks.queries import attacked
from erasebench import diffusion
from erasebench.fields import integer, number
from erasebench.protocols import Attack, Judge
from erasebench.types import Concept, Pipeline, Prompt


@dataclass(frozen=True, kw_only=True)
class RingABellSoft(Attack):
    """Gives the erased model E(p) + eta * c in place of the encoding of each prompt p.

    This is what RECE (Gong et al., ECCV 2024, arXiv 2407.12383) calls Ring-A-Bell. It is stronger than text: an
    attacker needs to hand embeddings to the UNet, so its rates do not compare with those of ``ringabell``. E is the
    original model's text encoder (RECE's script: the loaded model's, which its method does not edit), c the
    exact mean over the pairs (the script: a mean of batch means, see ``attacks.pairs.concept_vector``).

    Args:
        vector: where c comes from: ``attacks.pairs.TextPairs``, ``CsvPairs`` or ``SavedVector``; None is an error that
            says what to give.
        eta: strength; 3 for nudity, 0.9 for Van Gogh; finite.
        batch_size: prompts encoded at once.

    Raises:
        ValueError: eta not finite, batch_size < 1.
    """

    vector: VectorSource | None = None
    eta: float = 3.0
    batch_size: int = 64

    access = "text_encoder"
    strength = "embedding"

    def __post_init__(self) -> None:
        number("eta", self.eta, hint="RECE uses 3 (nudity) and 0.9 (Van Gogh)")
        integer("batch_size", self.batch_size, least=1)

    def check(self, concept: Concept) -> None:
        """A one-line error, before any weight is loaded, if there is no vector for the concept."""
        given(self.vector).check(concept)

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """One prompt per prompt, in order, with its text, seed and guidance and float32 ``embeds`` [tokens, width]."""
        if not prompts:
            return []
        shift = self.eta * given(self.vector).vector(original, concept)
        encoded = diffusion.encode(original, [prompt.text for prompt in prompts], batch_size=self.batch_size)
        return [
            attacked(
                prompt,
                "ringabell_soft",
                concept,
                embeds=(row.double().cpu() + shift).float().numpy(),
                info={"eta": self.eta},
            )
            for prompt, row in zip(prompts, encoded, strict=True)
        ]
