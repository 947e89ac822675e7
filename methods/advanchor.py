"""Adversarial anchors: train the model to answer a concept's text as it answers a text nearby that lost it.

Zhao, Zhang, Zheng, Kong and Yin, "AdvAnchor: Enhancing Diffusion Model Unlearning with Adversarial Anchors",
arXiv:2501.00054.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erasebench import fields
from erasebench.diffusion.encoding import Encoding
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import student, with_weights
from methods.on_policy import Denoiser
from methods.training_images import FromImages, Noised, Picture, token_columns


@dataclass(frozen=True, kw_only=True)
class AdvAnchor(FromImages, Method):
    r"""Trains some layers of the UNet, theta, on noised pictures z_t of the concept c to minimise

    .. math:: |\epsilon_\theta(z_t, c) - \epsilon_{\theta*}(z_t, c + \delta)|^2
              + \lambda\,|\epsilon_\theta(z_t, k) - \epsilon_{\theta*}(z_t, k)|^2

    with theta* the original weights, k a text to keep, and delta noise on the rows of the concept's own tokens in the
    text's encoding, found anew for every update: up to ``inner_steps`` steps of Adam from 1e-7 that lower, until it is
    below zero, the likeness to the concept

    .. math:: \mathrm{mean}\,\epsilon(c + \delta)\,\epsilon(c) \quad\text{(adv1)} \qquad\text{or}\qquad
              \mathrm{mean}\,(\epsilon(c + \delta) - \epsilon(\varnothing))(\epsilon(c) - \epsilon(\varnothing))
              \quad\text{(adv2)}

    Official program: github.com/Mengnan-Zhao-Happy/AdvAnchor at 53514b4, which does not run as it is (it calls a
    function of the Stable Diffusion code with arguments that the shipped code does not take). Of its three schedules
    this is the one that alternates between delta and theta.

    Deviations: both likenesses are the original model's; of a batch every latent has its own delta and stops for
    itself; pictures' latents are the posteriors' means; with several phrases each has its pictures. Random numbers come
    from CPU generators of (seed, step).

    Cost of an update, in evaluations of the UNet on one latent: up to 30 forward and backward passes for delta, 3 or 4
    for targets, and two forward and backward passes; before that the pictures, 2 x ``steps`` each.

    Args:
        likeness: ``adv1`` or ``adv2``.
        inner_steps: of Adam for delta, at most, >= 0.
        inner_lr: of Adam for delta, > 0.
        preserve_scale: lambda >= 0.
        kept: k; the program has ``painting`` for styles.

    The remaining fields are those of :class:`methods.training_images.FromImages`.

    Raises:
        ValueError: a value out of its range, a template in which the concept is no word of its own.
        FloatingPointError: a loss that is NaN or infinite.

    >>> AdvAnchor(inner_steps=-1)
    Traceback (most recent call last):
    ValueError: inner_steps must be an integer >= 0; got -1
    """

    iterations: int = 50
    images: int = 50
    likeness: Literal["adv1", "adv2"] = "adv2"
    inner_steps: int = 30
    inner_lr: float = 1e-4
    preserve_scale: float = 10.0
    kept: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.choice("likeness", self.likeness, ("adv1", "adv2"))
        fields.integer("inner_steps", self.inner_steps, least=0)
        fields.number("inner_lr", self.inner_lr, above=0)
        fields.number("preserve_scale", self.preserve_scale, least=0)
        object.__setattr__(self, "kept", fields.text("kept", self.kept))

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        model = self.denoiser(pipe)
        unet, weights = student(pipe, self.layers, model.half)
        pictures = self.pictures(pipe, [(word, word) for word in self.words(concept)])
        rows = {
            template.format(word): token_columns(pipe, template.format(word), word)
            for word in self.words(concept)
            for template in self.templates
        }
        self.training(concept, weights).run(partial(self.loss, model, unet, pictures, rows), rows=self.batch_size)
        return with_weights(pipe, weights)

    def loss(
        self, model: Denoiser, unet: Any, pictures: Sequence[Picture], rows: dict[str, list[int]], step: int,
        places: range | None = None,
    ) -> Tensor:  # fmt: skip
        """Mean squares over the latents of a step, or those at some places; only ``unet`` gets gradients."""
        few = self.noised(model, pictures, step, places=places)
        text, kept = model.encode([p.text for p in few.pictures]), model.encode([self.kept] * len(few.pictures))
        anchor, z, times = self.anchor(model, few, text, rows), few.z, few.timesteps
        with torch.no_grad():
            goal, same = (model.epsilon(model.pipe.unet, z, times, asked) for asked in (anchor, kept))
        erase = F.mse_loss(model.epsilon(unet, z, times, text), goal)
        return erase + self.preserve_scale * F.mse_loss(model.epsilon(unet, z, times, kept), same)

    def anchor(self, model: Denoiser, few: Noised, text: Encoding, rows: dict[str, list[int]]) -> Encoding:
        """c + delta, one for each latent: [b, tokens, width]."""
        states = text.states.to(model.dtype)
        mask = torch.zeros_like(states[:, :, :1])
        for row, picture in enumerate(few.pictures):
            mask[row, rows[picture.text]] = 1
        delta = torch.full_like(states, 1e-7).requires_grad_()
        adam, original = torch.optim.Adam([delta], lr=self.inner_lr), model.pipe.unet
        with torch.no_grad():
            concept = model.epsilon(original, few.z, few.timesteps, text)
            empty = torch.zeros_like(concept)
            if self.likeness == "adv2":
                empty = model.epsilon(original, few.z, few.timesteps, model.encode([""] * len(states)))
        for _ in range(self.inner_steps):
            found = model.epsilon(original, few.z, few.timesteps, Encoding(states + mask * delta, text.pooled))
            alike = ((found - empty) * (concept - empty)).mean(dim=(1, 2, 3))
            if not (alike >= 0).any():
                break
            (delta.grad,) = torch.autograd.grad(alike[alike >= 0].sum(), [delta])
            before = delta.detach().clone()
            adam.step()
            with torch.no_grad():
                delta.copy_(torch.where((alike >= 0).view(-1, 1, 1), delta, before))
        return Encoding((states + mask * delta).detach(), text.pooled)
