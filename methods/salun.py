"""Saliency unlearning: relabel a concept's pictures, and let only the weights move that matter for them.

Fan, Liu, Zhang, Wong, Wei and Liu, "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both
Image Classification and Generation", ICLR 2024, arXiv:2310.12508.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erasebench import fields
from erasebench.devices import halving
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import Layers, generator, student, with_weights
from methods.on_policy import Denoiser
from methods.training_images import Picture, Remembering, denoising, noised


@dataclass(frozen=True, kw_only=True)
class SalUn(Remembering, Method):
    r"""Trains the salient weights of the UNet, theta, on noised pictures z_t of the concept c and x_t of others r:

    .. math:: |\epsilon_\theta(z_t, c, t) - \mathrm{sg}\,\epsilon_\theta(z_t, a, t)|^2
              + \alpha\,|\epsilon_\theta(x_t, r, t) - \epsilon|^2

    with a the anchor in the concept's sentence and sg no gradient. Salient is the share of all trained weights with the
    largest :math:`|\sum \nabla_\theta |\epsilon_\theta(z_t, c, t) - \epsilon|^2|`, summed once over the concept's
    pictures; the others stay as they were.

    Official program: github.com/OPTML-Group/Unlearn-Saliency at a6e89fd, SD. For objects it takes Imagenette's
    photographs and gives a class the next one's text; for nudity 800 drawn pictures each of ``a photo of a nude
    person`` and ``a photo of a person wearing clothes``. Here all pictures are drawn, and the anchor is the concept's.

    Deviations: weights that are not salient are put back after each update, which is Adam on masked gradients, for Adam
    treats every weight alone. Every update has one batch of each kind, and batches are drawn with replacement where the
    program goes through its pictures in epochs: ``iterations`` = epochs x pictures / batch. Pictures' latents are the
    posteriors' means; random numbers come from CPU generators of (seed, step).

    Cost of an update, in evaluations of the UNet on one latent: 1 for the target and two forward and backward passes;
    before that a forward and backward pass for every picture of the concept, and the pictures, 2 x ``steps`` each.

    Args:
        salient: share of the trained weights that may move, 0 < s <= 1.
        alpha: >= 0.

    The remaining fields are those of :class:`methods.training_images.Remembering`: with ``remain`` None the anchors are
    kept, as for nudity.

    Raises:
        ValueError: a value out of its range, a concept without an anchor, nothing left to keep.
        FloatingPointError: a loss that is NaN or infinite.

    >>> SalUn(salient=0)
    Traceback (most recent call last):
    ValueError: salient must be a finite number > 0 and <= 1; got 0
    """

    layers: Layers = "full"
    iterations: int = 500
    batch_size: int = 8
    guidance_scale: float = 7.5
    images: int = 800
    salient: float = 0.5
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.number("salient", self.salient, above=0, most=1)
        fields.number("alpha", self.alpha, least=0)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.anchored(concept)
        self.others(concept)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        pairs, model = self.anchored(concept), self.denoiser(pipe)
        unet, weights = student(pipe, self.layers, model.half)
        forget, remain = self.pictures(pipe, pairs), self.remaining(pipe, concept)
        mask = self.mask(model, unet, weights, forget)
        before = {name: tensor.detach().clone() for name, tensor in weights.items()}

        @torch.no_grad()
        def restore() -> None:
            for name, tensor in weights.items():
                tensor.copy_(torch.where(mask[name], tensor, before[name]))

        loss = partial(self.loss, model, unet, forget, remain)
        self.training(concept, weights).run(loss, rows=self.batch_size, after=restore)
        return with_weights(pipe, weights)

    def mask(
        self, model: Denoiser, unet: Any, weights: Mapping[str, Tensor], forget: Sequence[Picture]
    ) -> dict[str, Tensor]:
        """Which weights are salient: bool tensors of their shapes."""
        total = [torch.zeros_like(tensor) for tensor in weights.values()]

        def of(places: range) -> tuple[Tensor | None, ...]:
            few, draws = (
                list(forget[places.start : places.stop]),
                [generator(self.seed, "saliency", row) for row in places],
            )
            loss = len(few) * denoising(model, unet, noised(model, few, draws))
            return torch.autograd.grad(loss, list(weights.values()), allow_unused=True)

        what = "latents of salun's saliency"
        for gradients in halving(of, range(len(forget)), self.batch_size, what, model.device):
            for sum_, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sum_ += gradient
        sizes = torch.cat([tensor.abs().flatten() for tensor in total])
        kept = max(1, round(self.salient * len(sizes)))
        least = sizes.kthvalue(len(sizes) - kept + 1).values
        return {name: tensor.abs() >= least for name, tensor in zip(weights, total, strict=True)}

    def loss(
        self, model: Denoiser, unet: Any, forget: Sequence[Picture], remain: Sequence[Picture], step: int,
        places: range | None = None,
    ) -> Tensor:  # fmt: skip
        """Mean squares over the latents of a step, or those at some places; only ``unet`` gets gradients."""
        few = self.noised(model, forget, step, places=places)
        concept, anchor = (model.encode([p[i] for p in few.pictures]) for i in (0, 1))
        with torch.no_grad():
            goal = model.epsilon(unet, few.z, few.timesteps, anchor)
        erase = F.mse_loss(model.epsilon(unet, few.z, few.timesteps, concept), goal)
        return erase + self.alpha * denoising(model, unet, self.noised(model, remain, step, "remain", places))
