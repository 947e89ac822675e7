"""Concept ablation: train the model to answer a concept's text as it answers an anchor's.

Kumari, Zhang, Wang, Shechtman, Zhang and Zhu, "Ablating Concepts in Text-to-Image Diffusion Models", ICCV 2023,
arXiv:2303.13516.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erasebench import fields
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import Layers, student, with_weights
from methods.on_policy import Denoiser, joined
from methods.training_images import FromImages, Picture


@dataclass(frozen=True, kw_only=True)
class CA(FromImages, Method):
    r"""Trains some layers of the UNet, theta, on noised pictures z_t of the anchor a (cat: bear) to minimise

    .. math:: |\epsilon_\theta(z_t, c, t) - \mathrm{sg}\,\epsilon_\theta(z_t, a, t)|^2 \quad\text{(model-based)}
              \qquad\text{or}\qquad |\epsilon_\theta(z_t, c, t) - \epsilon|^2 \quad\text{(noise-based)}

    with c the concept in the anchor's sentence, sg no gradient and eps the noise in z_t; plus, where there is a prior
    weight, the denoising loss of the same pictures with their own texts.

    Official program: github.com/nupurkmr9/concept-ablation at c11fb1b. It asks a chat model for 200 sentences about the
    anchor and draws 1000 pictures of them; here sentences are ``templates`` and all else is as ``images`` says.

    Deviations: pictures are not enlarged, shrunk or masked at random (the program's augmentation); their latents are
    the posteriors' means; the prior's pictures are the anchor's own; a velocity model is compared by the noise it
    predicts; random numbers come from CPU generators of (seed, step). The anchor is the concept's (``concept.anchor``)
    and may not be empty. The layers of the program's recipe for nudity (every attention) are no set of ours.

    Cost of an update, in evaluations of the UNet on one latent: 1 for the target (none if noise-based), and one forward
    and backward pass, two with a prior; before that the pictures, 2 x ``steps`` each, once for all methods.

    Args:
        target: ``model`` or ``noise``.
        prior_weight: of the denoising loss on the anchor's pictures, >= 0.
        weight_decay: AdamW's, >= 0.

    The remaining fields are those of :class:`methods.training_images.FromImages`.

    Raises:
        ValueError: a value out of its range, a concept without an anchor; a model that cannot be trained so.
        FloatingPointError: a loss that is NaN or infinite.

    >>> CA(target="anchor")
    Traceback (most recent call last):
    ValueError: target must be one of model, noise; got 'anchor'; correct its spelling
    """

    layers: Layers = "xattn_strict"
    iterations: int = 100
    lr: float = 8e-6
    batch_size: int = 4
    guidance_scale: float = 6.0
    images: int = 1000
    target: Literal["model", "noise"] = "model"
    prior_weight: float = 0.0
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.choice("target", self.target, ("model", "noise"))
        fields.number("prior_weight", self.prior_weight, least=0)
        fields.number("weight_decay", self.weight_decay, least=0)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.anchored(concept)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        pairs, model = self.anchored(concept), self.denoiser(pipe)
        unet, weights = student(pipe, self.layers, model.half)
        pictures = self.pictures(pipe, [(anchor, word) for word, anchor in pairs])
        adam = torch.optim.AdamW(weights.values(), lr=self.lr, weight_decay=self.weight_decay)
        self.training(concept, weights, weights=adam).run(
            partial(self.loss, model, unet, pictures), rows=self.batch_size
        )
        return with_weights(pipe, weights)

    def loss(
        self, model: Denoiser, unet: Any, pictures: Sequence[Picture], step: int, places: range | None = None
    ) -> Tensor:
        """Mean square over the latents of a step, or those at some places; only ``unet`` gets gradients."""
        few, z, noise, times = self.noised(model, pictures, step, places=places)
        concept, anchor = (model.encode(texts) for texts in _texts(few))
        with torch.no_grad():
            goal = model.epsilon(unet, z, times, anchor) if self.target == "model" else noise
        if not self.prior_weight:
            return F.mse_loss(model.epsilon(unet, z, times, concept), goal)
        both = model.epsilon(unet, torch.cat([z, z]), times + times, joined(concept, anchor))
        erased, kept = both.chunk(2)
        return F.mse_loss(erased, goal) + self.prior_weight * F.mse_loss(kept, noise)


def _texts(pictures: Sequence[Picture]) -> tuple[list[str], list[str]]:
    return [picture.asked for picture in pictures], [picture.text for picture in pictures]
