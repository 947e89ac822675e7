"""DUGE: concepts unlearnt one after another, by looking at their pictures as if no text were there.

Thakral, Glaser, Hassner, Vatsa and Singh, "Continual Unlearning for Foundational Text-to-Image Models without
Generalization Erosion", arXiv:2503.13769.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasebench import fields
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.attention_maps import attention
from methods.fine_tuning import Layers, student, with_weights
from methods.on_policy import Denoiser
from methods.training_images import Picture, Remembering, denoising


@dataclass(frozen=True, kw_only=True)
class DUGE(Remembering, Method):
    r"""Trains some layers of the UNet, theta, on noised pictures z_t of the concept c and x_t of others r to minimise

    .. math:: \frac{1}{M} \sum_l |A_l^\theta(z_t, c) - A_l^\phi(z_t, \varnothing)|^2
              + \lambda\,|\epsilon_\theta(x_t, r, t) - \epsilon|^2 + \mu\,|\theta - \phi|^2

    with phi the model it is given, A_l the probabilities of the M cross-attentions (squares summed over tokens, mean
    over pixels and heads), and theta - phi over the trained layers. The first term is the unlearning, the second keeps
    what is remembered, the third holds the model near the one before.

    Continual is ``together=sequence``: every concept starts from the model that is without those before, which is phi.

    No program is public and the paper's text was not at hand: its abstract names the three losses, and a review of it
    has the first as the squared difference of the attention with the concept from that of the frozen model without a
    text, and the second as the denoising loss of a small memory of pictures. **Ours** are the third's form, the
    pictures (the model's own), the layers, the weights of the terms and every number.

    Cost of an update, in evaluations of the UNet on one latent: 1 for the target and two forward and backward passes;
    before that the pictures, 2 x ``steps`` each.

    Args:
        prior_scale: lambda >= 0.
        drift_scale: mu >= 0.

    The remaining fields are those of :class:`methods.training_images.Remembering`.

    Raises:
        ValueError: a value out of its range, nothing left to keep.
        FloatingPointError: a loss that is NaN or infinite.

    >>> DUGE(drift_scale=-1.0)
    Traceback (most recent call last):
    ValueError: drift_scale must be a finite number >= 0; got -1.0
    """

    layers: Layers = "xattn"
    guidance_scale: float = 7.5
    prior_scale: float = 1.0
    drift_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.number("prior_scale", self.prior_scale, least=0)
        fields.number("drift_scale", self.drift_scale, least=0)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.others(concept)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        model = self.denoiser(pipe)
        unet, weights = student(pipe, self.layers, model.half)
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        forget = self.pictures(pipe, [(word, word) for word in self.words(concept)])
        memory = self.remaining(pipe, concept)

        def loss(step: int, places: range) -> Tensor:
            drift = torch.stack([(weights[name] - old).square().sum() for name, old in before.items()]).sum()
            return self.loss(model, unet, forget, memory, step, places) + self.drift_scale * drift

        self.training(concept, weights).run(loss, rows=self.batch_size)
        return with_weights(pipe, weights)

    def loss(
        self, model: Denoiser, unet: Any, forget: Sequence[Picture], memory: Sequence[Picture], step: int,
        places: range | None = None,
    ) -> Tensor:  # fmt: skip
        """The first two terms over the latents of a step, or those at some places; only ``unet`` gets gradients."""
        few = self.noised(model, forget, step, places=places)
        text, empty = (model.encode(texts) for texts in ([p.text for p in few.pictures], [""] * len(few.pictures)))
        with torch.no_grad(), attention(model.pipe.unet) as unguided:
            model.epsilon(model.pipe.unet, few.z, few.timesteps, empty)
        with attention(unet) as found:
            model.epsilon(unet, few.z, few.timesteps, text)
        away = [(a - b).square().sum(-1).mean() for a, b in zip(found, unguided, strict=True)]  # [b, heads, pixels, n]
        prior = denoising(model, unet, self.noised(model, memory, step, "remain", places))
        return torch.stack(away).mean() + self.prior_scale * prior
