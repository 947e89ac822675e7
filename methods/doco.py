"""DoCo: concept ablation with a discriminator for its loss, and with conflicting gradients projected.

Wu, Zhou, Yang, Wang, Hu, Zhou and Yang, "Unlearning Concepts in Diffusion Model via Concept Domain Correction and
Concept Preserving Gradient", AAAI 2025, arXiv:2405.15304.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasebench import fields
from erasebench.diffusion.encoding import Encoding
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline, seed_of
from methods.fine_tuning import Gradients, Layers, student, total, with_weights
from methods.on_policy import Denoiser
from methods.training_images import FromImages, Noised

CHANNELS = (64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class DoCo(FromImages, Method):
    r"""Alternates between a discriminator D and some layers of the UNet, theta, on noised pictures z_t of the anchor a:

    .. math:: \min_D\; \ell(D(\hat x_{\theta*}(z_t, a)), 0) + \ell(D(\hat x_\theta(z_t, c)), 1), \qquad
              \min_\theta\; \ell(D(\hat x_\theta(z_t, c)), 0) + |\epsilon_\theta(z_t, a) - \epsilon|^2

    with l the binary cross-entropy, x the clean latents that follow from predicted noise, c the concept in the anchor's
    sentence and theta* the original weights. Where, in a parameter, the gradient g of the first term points against
    the gradient k of the second, g is projected: :math:`g - \lambda \langle g, \hat k\rangle \hat k`, hats being unit
    vectors. (The program takes both as unit vectors in the product: ``projection: program``.)

    Official program: github.com/yongliang-wu/DoCo at ebf6ff4. D learns alone for ``warm_up`` updates; then each of the
    remaining ``iterations`` is one update of each.

    Deviations: concept ablation's (:class:`methods.ca.CA`): no augmentation, latents are posteriors' means, the
    prior's pictures are the anchor's own. D has the program's widths, 4-64-128-256-512-1, with kernels of 3, three
    halvings and no normalisation, which suits latents of any size (own choice). Random numbers come from CPU
    generators of (seed, step).

    Cost, in evaluations of the UNet on one latent: 2 for an update of D; 1, and two forward passes with two backward
    ones each, for one of theta; before that the pictures, 2 x ``steps`` each.

    Args:
        warm_up: of ``iterations``, those in which D learns alone, >= 0.
        discriminator_lr: Adam's, > 0.
        surgery: lambda >= 0.
        projection: ``paper`` or ``program``.
        prior_weight: of the second term of theta, >= 0.
        weight_decay: AdamW's of theta, >= 0.

    The remaining fields are those of :class:`methods.training_images.FromImages`.

    Raises:
        ValueError: a value out of its range, a concept without an anchor.
        FloatingPointError: a loss that is NaN or infinite.

    >>> DoCo(iterations=10, warm_up=10)
    Traceback (most recent call last):
    ValueError: warm_up must be less than iterations, 10; got 10
    """

    layers: Layers = "xattn_strict"
    iterations: int = 2000
    lr: float = 4.8e-5
    batch_size: int = 8
    guidance_scale: float = 6.0
    images: int = 1000
    warm_up: int = 1000
    discriminator_lr: float = 5e-4
    surgery: float = 1.0
    projection: Literal["paper", "program"] = "program"
    prior_weight: float = 1.0
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.integer("warm_up", self.warm_up, least=0)
        if self.warm_up >= self.iterations:
            raise ValueError(f"warm_up must be less than iterations, {self.iterations}; got {self.warm_up}")
        fields.number("discriminator_lr", self.discriminator_lr, above=0)
        for name in ("surgery", "prior_weight", "weight_decay"):
            fields.number(name, getattr(self, name), least=0)
        fields.choice("projection", self.projection, ("paper", "program"))

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.anchored(concept)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        pairs, model = self.anchored(concept), self.denoiser(pipe)
        unet, weights = student(pipe, self.layers, model.half)
        pictures = self.pictures(pipe, [(anchor, word) for word, anchor in pairs])
        judge = discriminator(model.shape[0], self.seed).to(model.device, model.dtype)
        training = self.training(
            concept,
            {**weights, **{f"discriminator.{name}": p for name, p in judge.named_parameters()}},
            iterations=2 * self.iterations - self.warm_up,
            discriminator=torch.optim.Adam(judge.parameters(), lr=self.discriminator_lr),
            weights=torch.optim.AdamW(weights.values(), lr=self.lr, weight_decay=self.weight_decay),
        )

        def loss(step: int, places: range) -> Tensor | tuple[Tensor, Tensor]:
            few = self.noised(model, pictures, step, places=places)
            return (self.judging if self.turn(step) == "discriminator" else self.erasing)(model, unet, judge, few)

        training.run(loss, rows=self.batch_size, turn=self.turn, mix=self.surgical)
        return with_weights(pipe, weights)

    def turn(self, step: int) -> str:
        """Whose update a step is."""
        return "weights" if step > self.warm_up and (step - self.warm_up) % 2 else "discriminator"

    def judging(self, model: Denoiser, unet: Any, judge: nn.Module, few: Noised) -> Tensor:
        """What D minimises."""
        concept, anchor = (model.encode([p[i] for p in few.pictures]) for i in (1, 0))
        with torch.no_grad():
            real = clean(model, few, model.epsilon(model.pipe.unet, few.z, few.timesteps, anchor))
            made = clean(model, few, model.epsilon(unet, few.z, few.timesteps, concept))
        return _labelled(judge(real), 0) + _labelled(judge(made), 1)

    def erasing(self, model: Denoiser, unet: Any, judge: nn.Module, few: Noised) -> tuple[Tensor, Tensor]:
        """Both terms that theta minimises."""
        concept, anchor = (model.encode([p[i] for p in few.pictures]) for i in (1, 0))

        def predicted(text: Encoding) -> Tensor:
            return model.epsilon(unet, few.z, few.timesteps, text)

        prior = F.mse_loss(predicted(anchor), few.noise)
        return _labelled(judge(clean(model, few, predicted(concept))), 0), self.prior_weight * prior

    def surgical(self, values: Tensor, gradients: list[Gradients]) -> tuple[Tensor, Gradients]:
        """Of two terms, to erase and to keep, their sum with the gradient of the projected sum; of one, itself."""
        if len(gradients) == 1:
            return total(values, gradients)
        return values.sum(), [
            k if g is None else g if k is None else self.projected(g, k) + k for g, k in zip(*gradients, strict=True)
        ]

    def projected(self, g: Tensor, k: Tensor) -> Tensor:
        """g without what of it points against k.

        >>> DoCo(projection="paper").projected(torch.tensor([3.0, -4.0]), torch.tensor([0.0, 2.0])).tolist()
        [3.0, 0.0]
        >>> DoCo().projected(torch.tensor([3.0, -4.0]), torch.tensor([0.0, 2.0])).tolist()
        [3.0, -3.2]
        """
        unit = k / k.norm().clamp_min(1e-12)
        along = (g * unit).sum()
        if self.projection == "program":
            along = along / g.norm().clamp_min(1e-12)
        return torch.where(along < 0, g - self.surgery * along * unit, g)


def clean(model: Denoiser, few: Noised, noise: Tensor) -> Tensor:
    """The clean latents that predicted noise stands for."""
    level = model.level(few.timesteps)
    return (few.z - (1 - level).sqrt() * noise) / level.sqrt()


def discriminator(channels: int, seed: int) -> nn.Sequential:
    """A patch discriminator of the seed: logits [b, 1, h / 8, w / 8] of latents [b, channels, h, w]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("discriminator", seed) >> 8)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise((channels, *CHANNELS))):
            layers += [nn.Conv2d(before, after, 3, stride=2 if i < 3 else 1, padding=1), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, nn.Conv2d(CHANNELS[-1], 1, 3, padding=1))


def _labelled(logits: Tensor, label: int) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
