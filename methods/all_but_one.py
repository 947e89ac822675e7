"""All but One: turn the guidance towards a concept into that towards another, and leave the unguided model alone.

Hong, Lee and Woo, "All but One: Surgical Concept Erasing with Model Preservation in Text-to-Image Diffusion Models",
AAAI 2024, arXiv:2312.12807.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erasebench import fields
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import student, with_weights
from methods.on_policy import Denoiser, joined
from methods.partway import Draw, Partway


@dataclass(frozen=True, kw_only=True)
class AllButOne(Partway, Method):
    r"""Trains some layers of the UNet, theta, at latents z drawn with the concept c to minimise

    .. math:: |g_\theta(z, c) - g_{\theta*}(z, a)|^2 + \lambda\,|\epsilon_\theta(z, \varnothing)
              - \epsilon_{\theta*}(z, \varnothing)|^2, \qquad
              g(z, x) = \epsilon(z, x) - \epsilon(z, \varnothing)

    with theta* the original weights and a the anchor: the guidance term alone is moved, the unguided prediction is
    pinned. A concept without an anchor has the empty text for a, whose guidance is zero.

    No program is public. The idea is the paper's (only the guidance term is updated, towards a chosen alternative, the
    unconditional prediction being held); **ours** are the form above as one sum, lambda, which layers, the latents
    (ESD's, :mod:`methods.partway`) and every number: none of the paper's was at hand.

    Cost of an update, in evaluations of the UNet on one latent: on average 2 x 25.5 for drawing it, 2 for the targets,
    and two forward and backward passes.

    Args:
        preserve_scale: lambda >= 0.

    The remaining fields are those of :class:`methods.fine_tuning.FineTuning`.

    Raises:
        ValueError: a value out of its range; a model without the chosen layers or that cannot be trained so.
        FloatingPointError: a loss that is NaN or infinite.

    >>> AllButOne(preserve_scale=-1.0)
    Traceback (most recent call last):
    ValueError: preserve_scale must be a finite number >= 0; got -1.0
    """

    preserve_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.number("preserve_scale", self.preserve_scale, least=0)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        model = self.denoiser(pipe)
        unet, weights = student(pipe, self.layers, model.half)
        anchors = {phrase: part.anchor.strip() for part in concept.singles for phrase in part.phrases}

        def loss(step: int, places: range) -> Tensor:
            return self.loss(model, unet, anchors, self.stages(model, self.words(concept), step, places=places))

        self.training(concept, weights).run(loss, rows=self.batch_size)
        return with_weights(pipe, weights)

    def loss(self, model: Denoiser, unet: Any, anchors: dict[str, str], draws: Sequence[Draw]) -> Tensor:
        """Mean squares over the latents of a step; only ``unet`` gets gradients."""
        z, times, text = self.drawn(model, unet, draws)
        empty, other = model.encode([""] * len(draws)), model.encode([anchors[draw.word] for draw in draws])
        twice = torch.cat([z, z])
        with torch.no_grad():
            pinned, towards = model.epsilon(model.pipe.unet, twice, times + times, joined(empty, other)).chunk(2)
        alone, given = model.epsilon(unet, twice, times + times, joined(empty, text)).chunk(2)
        erase = F.mse_loss(given - alone, towards - pinned)
        return erase + self.preserve_scale * F.mse_loss(alone, pinned)
