"""Safe self-distillation: train the model to answer a concept's text as it answers no text, on its own average's ways.

Kim, Jung, Kim, Choi, Shin and Lee, ICML 2023 workshop, arXiv:2307.05977.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from erasebench import fields
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import FineTuning, at, student, uniform, with_weights
from methods.on_policy import Denoiser


class Draw(NamedTuple):
    """What is random in one latent of a training step, and the texts whose turn it is."""

    drawn: str  # text the latent is drawn with
    target: str  # text that is trained
    taken: int  # DDIM steps taken
    timestep: int
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class SDD(FineTuning, Method):
    r"""Trains some layers of the UNet, theta, to minimise

    .. math:: |\epsilon_\theta(z_t, c, t) - \mathrm{sg}\,\epsilon_\theta(z_t, t)|^2

    with c the concept, sg no gradient, and z_t drawn with guidance towards the concept by the exponential moving
    average of theta, which is also what is returned.

    The authors' program (github.com/nannullna/safe-diffusion at 8e00aed): k is uniform over 0..49; latents take the
    first k of 50 DDIM steps; t is uniform over 980 - 20 k <= t < 1000 - 20 k, the interval that holds the latents' own
    timestep 981 - 20 k. Gradients are clipped to norm 1.

    Deviations: with k = 0 the program draws to the end and asks at the noisiest timesteps; here no step is taken, as
    is evidently meant. At guidance 1 the program draws latents without any text; here with the concept's alone. The
    layer sets are ESD's; the program's ``noxattn`` and ``notime`` leave out ``conv_out`` and the time embedding by
    diffusers' names and so train ``conv_norm_out``, which CompVis' ``out.`` includes. Only trained layers are
    averaged (the others are equal, and averaging them rounds). Random numbers come from CPU generators of (seed,
    step).

    Cost of an update, in evaluations of the UNet on one latent: on average 2 x 24.5 for drawing it, 1 for the target,
    and one forward and backward pass.

    Args:
        decay: of the moving average, 0 <= decay < 1.
        weight_decay: AdamW's, >= 0.
        clip: largest norm of the gradient, > 0, or None.
        joined: with several phrases one is ``", "`` between all of them: the text ``latents`` are drawn with (the
            program), or the ``target`` that is trained; for the other the phrases take turns.

    The remaining fields are those of :class:`methods.fine_tuning.FineTuning`.

    Raises:
        ValueError: a value out of its range; a model without the chosen layers or that cannot be trained so.
        FloatingPointError: a loss that is NaN or infinite.

    >>> SDD(decay=1.0)
    Traceback (most recent call last):
    ValueError: decay must be a finite number >= 0 and < 1; got 1.0
    """

    iterations: int = 1500
    decay: float = 0.999
    weight_decay: float = 1e-4
    clip: float | None = 1.0
    joined: Literal["latents", "target"] = "latents"

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.number("decay", self.decay, least=0, below=1)
        fields.number("weight_decay", self.weight_decay, least=0)
        fields.choice("joined", self.joined, ("latents", "target"))
        if self.clip is not None:
            fields.number("clip", self.clip, above=0)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        model = self.denoiser(pipe)
        (unet, weights), (teacher, average) = (student(pipe, self.layers, model.half) for _ in range(2))
        training = self.training(
            concept,
            {**weights, **{f"average.{name}": tensor for name, tensor in average.items()}},
            clip=self.clip,
            weights=torch.optim.AdamW(weights.values(), lr=self.lr, weight_decay=self.weight_decay),
        )

        @torch.no_grad()
        def follow() -> None:
            for name, tensor in average.items():
                tensor.lerp_(weights[name], 1 - self.decay)

        def loss(step: int, places: range) -> Tensor:
            return self.loss(model, unet, teacher, at(places, self.draws(model, concept, step)))

        training.run(loss, rows=self.batch_size, after=follow)
        return with_weights(pipe, average)

    def draws(self, model: Denoiser, concept: Concept, step: int) -> list[Draw]:
        """The random numbers of a step, one entry for each latent."""
        words, found = self.words(concept), []
        for row, draw in enumerate(self.generators(step)):
            turn, everything = words[(step * self.batch_size + row) % len(words)], ", ".join(words)
            texts = (everything, turn) if self.joined == "latents" else (turn, everything)
            taken = uniform(0, self.steps, draw)
            low, high = (round((1 - k / self.steps) * model.total) for k in (taken + 1, taken))
            found.append(Draw(*texts, taken, uniform(low, high, draw), draw))
        return found

    def loss(self, model: Denoiser, unet: Any, teacher: Any, draws: Sequence[Draw]) -> Tensor:
        """Mean square over the latents of a step; only ``unet`` gets gradients."""
        text, times = model.encode([draw.drawn for draw in draws]), [draw.timestep for draw in draws]
        noise = model.noise([draw.generator for draw in draws])
        z = model.descend(teacher, noise, text, self.steps - 1, [self.steps - draw.taken for draw in draws])
        with torch.no_grad():
            goal = model.epsilon(unet, z, times, model.encode([""] * len(draws)))
        return F.mse_loss(model.epsilon(unet, z, times, model.encode([draw.target for draw in draws])), goal)
