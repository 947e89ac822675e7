"""Safe Latent Diffusion: weights stay as they are, every denoising step is led away from a safety text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erasebench import fields
from erasebench.diffusion import check_length, fork
from erasebench.protocols import Guide, Method
from erasebench.types import Concept, Pipeline

# What the authors count as unsafe; their pipeline in diffusers puts "an image showing " before it, their own does not.
UNSAFE = (
    "hate", "harassment", "violence", "suffering", "humiliation", "harm", "suicide", "sexual", "nudity",
    "bodily fluids", "blood", "obscene gestures", "illegal activity", "drug use", "theft", "vandalism", "weapons",
    "child abuse", "brutality", "cruelty",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SafetyGuide(Guide):
    """What :class:`SLD` sets on the pipeline it returns; see there for the equations and the fields."""

    extra: tuple[str, ...]
    safety_scale: float
    threshold: float
    warmup: int
    momentum_scale: float
    momentum_beta: float
    empty: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", tuple(self.extra))

    def needed(self, scales: Sequence[float], step: int) -> bool:
        """Not where guidance is 0, nor during warm-up if no momentum has to be built up meanwhile."""
        guides = self.safety_scale > 0 and any(g != 0 for g in scales)
        return guides and (step >= self.warmup or self.momentum_scale != 0)

    def combine(
        self, empty: Tensor, text: Tensor, extra: Sequence[Tensor], scale: Tensor, step: int, state: dict[str, Tensor]
    ) -> Tensor:
        """``e_empty + g (e_text - e_empty - gamma)``, without gamma before step ``warmup``; keeps the momentum."""
        (safety,) = extra
        gap = text - safety
        mu = torch.where(gap < self.threshold, (self.safety_scale * gap.abs()).clamp(max=1), 0)
        momentum = state.get("momentum", torch.zeros_like(mu))
        gamma = mu * (safety - empty) + self.momentum_scale * momentum
        state["momentum"] = self.momentum_beta * momentum + (1 - self.momentum_beta) * gamma
        guidance = text - empty
        return empty + scale * (guidance - gamma if step >= self.warmup else guidance)


@dataclass(frozen=True, kw_only=True)
class SLD(Method):
    r"""Returns the pipeline with a guide that replaces each step's prediction by

    .. math:: \bar e &= e_\emptyset + g (e_p - e_\emptyset - \gamma), \\
              \gamma &= \mu (e_S - e_\emptyset) + s_m \nu, \qquad
              \nu \leftarrow \beta \nu + (1 - \beta) \gamma, \\
              \mu &= \min(1, s_S |e_p - e_S|) \text{ where } e_p - e_S < \lambda \text{ and } 0 \text{ elsewhere},

    for the predictions e of the empty text, the prompt p and the safety text S; the products are by element. During
    the first delta steps gamma is left out of the prediction, while its momentum nu, 0 at first, is built up.

    Schramowski, Brack, Deiseroth and Kersting, "Safe Latent Diffusion", CVPR 2023, arXiv:2211.05105, equations 3 to 8;
    Hyp-Weak, -Medium, -Strong and -Max are the recipes ``sld_weak`` to ``sld_max``. diffusers publishes another WEAK,
    with s_S = 20 instead of the paper's 200: ``sld_weak_diffusers``.

    Deviations. From the paper: mu is a minimum with 1 where equation 6 prints a maximum, and the difference below
    lambda keeps its sign; both as in the authors' program. From the program: prompts with guidance g <= 1 are guided
    like all others (it turns itself off there); no prediction is computed that cannot matter (the first delta steps
    of a recipe without momentum); a safety text that does not fit into 77 tokens is refused (it is cut there). The
    warm-up is counted in denoising steps from the first one, as in the program; some later red-teaming code compares
    it with the timestep, which turns it round.

    Cost: one third UNet evaluation per step beside the two of classifier-free guidance, in the same batch.

    Args:
        safety: S is the ``concept``'s phrases, or SLD's own twenty ``unsafe`` words, whatever the concept.
        prefix: put before S. Empty in the authors' repository, ``"an image showing "`` in diffusers.
        safety_scale: s_S >= 0; 0 turns SLD off.
        threshold: lambda; 1 guides nearly everywhere, 0 only where the safety text predicts more.
        warmup: delta, denoising steps >= 0. Counted for the 50 steps of the paper; with fewer, choose fewer.
        momentum_scale: s_m in [0, 1].
        momentum_beta: beta in [0, 1).

    Raises:
        ValueError: a value out of its range; a safety text that the tokenizer would cut; a pipeline that has a guide.

    Several concepts are erased jointly, by naming all of them in S; one after another they are not.

    >>> SLD().text(Concept(name="cat", phrases=("cat", "kitty")))
    'cat, kitty'
    >>> SLD(warmup=-1)
    Traceback (most recent call last):
    ValueError: warmup must be an integer >= 0; got -1; the paper uses 15, 10, 7 and 0 of 50 steps
    """

    safety: Literal["concept", "unsafe"] = "concept"
    prefix: str = ""
    safety_scale: float = 1000.0
    threshold: float = 0.01
    warmup: int = 10
    momentum_scale: float = 0.3
    momentum_beta: float = 0.4

    together = ("joint",)
    guard = True

    def __post_init__(self) -> None:
        fields.choice("safety", self.safety, ("concept", "unsafe"))
        fields.text("prefix", self.prefix, hint="write method.prefix= for none")
        fields.number("safety_scale", self.safety_scale, least=0, hint="the paper uses 200 to 5000")
        fields.number("threshold", self.threshold, hint="see the recipes sld_weak to sld_max")
        fields.number("momentum_scale", self.momentum_scale, least=0, most=1, hint="the paper uses 0 to 0.5")
        fields.number("momentum_beta", self.momentum_beta, least=0, below=1, hint="the paper uses 0 to 0.7")
        fields.integer("warmup", self.warmup, least=0, hint="the paper uses 15, 10, 7 and 0 of 50 steps")

    def text(self, concept: Concept) -> str:
        """The safety text S."""
        words = UNSAFE if self.safety == "unsafe" else [w for part in concept.singles for w in part.phrases]
        return self.prefix + ", ".join(words)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """The same weights with a guide; ``pipe`` itself gets none."""
        if getattr(pipe, "guide", None) is not None:
            raise ValueError("sld needs a pipeline without a guide; got one erased by a guide; use together=joint")
        text = self.text(concept)
        check_length(pipe, "safety text", text)
        erased = fork(pipe)
        erased.guide = SafetyGuide(
            extra=(text,),
            safety_scale=self.safety_scale,
            threshold=self.threshold,
            warmup=self.warmup,
            momentum_scale=self.momentum_scale,
            momentum_beta=self.momentum_beta,
        )
        return erased
