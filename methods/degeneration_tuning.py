"""Degeneration-tuning: teach the model that a concept's pictures are scrambled ones.

Ni, Wei, Li, Tang, Zhuang and Tian, "Degeneration-Tuning: Using Scrambled Grid shield Unwanted Concepts from Stable
Diffusion", ACM Multimedia 2023, arXiv:2308.02552.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from erasebench import fields
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import Layers, generator, student, with_weights
from methods.on_policy import Denoiser
from methods.training_images import Picture, Remembering, denoising


@dataclass(frozen=True, kw_only=True)
class DegenerationTuning(Remembering, Method):
    r"""Trains the UNet, theta, with the usual loss on noised pictures s_t, the concept c's own cut into a grid whose
    cells were shuffled, and x_t, whole ones of other subjects r:

    .. math:: |\epsilon_\theta(s_t, c, t) - \epsilon|^2 + \alpha\,|\epsilon_\theta(x_t, r, t) - \epsilon|^2

    so that the concept's text is answered with its colours and textures and without its shape.

    No program is public. Scrambled pictures of the model's own for the concept and regular pictures beside them are the
    paper's; **ours** are the number of cells, one shuffle for every picture, alpha, the layers and every number: none
    of the paper's was at hand. Pictures' latents are the posteriors' means; random numbers come from CPU generators of
    (seed, step) and, for a shuffle, of (seed, picture).

    Cost of an update, in evaluations of the UNet on one latent: two forward and backward passes; before that the
    pictures, 2 x ``steps`` each.

    Args:
        grid: cells along each side, >= 2; must divide the picture's sides.
        alpha: >= 0.

    The remaining fields are those of :class:`methods.training_images.Remembering`.

    Raises:
        ValueError: a value out of its range, nothing left to keep, pictures that the grid does not divide.
        FloatingPointError: a loss that is NaN or infinite.

    >>> DegenerationTuning(grid=1)
    Traceback (most recent call last):
    ValueError: grid must be an integer >= 2; got 1
    """

    layers: Layers = "full"
    guidance_scale: float = 7.5
    grid: int = 8
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.integer("grid", self.grid, least=2)
        fields.number("alpha", self.alpha, least=0)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.others(concept)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        model = self.denoiser(pipe)
        sides = [side * pipe.vae_scale_factor for side in model.shape[1:]]
        if any(side % self.grid for side in sides):
            raise ValueError(f"grid must divide the sides of a picture, {sides[0]} x {sides[1]}; got {self.grid}")
        unet, weights = student(pipe, self.layers, model.half)
        words = [(word, word) for word in self.words(concept)]
        broken, whole = self.pictures(pipe, words, altered=self.scrambled), self.remaining(pipe, concept)
        self.training(concept, weights).run(partial(self.loss, model, unet, broken, whole), rows=self.batch_size)
        return with_weights(pipe, weights)

    def scrambled(self, image: Image.Image, number: int) -> Image.Image:
        """The picture with the cells of its grid in another order, which is random by (seed, number)."""
        order = torch.randperm(self.grid**2, generator=generator(self.seed, "grid", number)).tolist()
        width, height = (side // self.grid for side in image.size)
        found = image.copy()
        for place, cell in enumerate(order):
            (row, column), (x, y) = divmod(place, self.grid), (cell % self.grid * width, cell // self.grid * height)
            found.paste(image.crop((x, y, x + width, y + height)), (column * width, row * height))
        return found

    def loss(
        self, model: Denoiser, unet: Any, broken: Sequence[Picture], whole: Sequence[Picture], step: int,
        places: range | None = None,
    ) -> Tensor:  # fmt: skip
        """Mean squares over the latents of a step, or those at some places; only ``unet`` gets gradients."""
        shield = denoising(model, unet, self.noised(model, broken, step, places=places))
        return shield + self.alpha * denoising(model, unet, self.noised(model, whole, step, "remain", places))
