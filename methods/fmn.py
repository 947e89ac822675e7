"""Forget-me-not: train the model to look away from a concept's tokens.

Zhang, Wang, Xu, Wang and Shi, CVPR 2024 workshops, arXiv:2303.17591.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from erasebench import fields
from erasebench.diffusion import last_token
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.attention_maps import attention
from methods.fine_tuning import Gradients, Layers, student, with_weights
from methods.on_policy import Denoiser
from methods.training_images import FromImages, Picture, token_columns


@dataclass(frozen=True, kw_only=True)
class FMN(FromImages, Method):
    r"""Trains the UNet, theta, on noised pictures z_t of the concept c to minimise the Frobenius norm

    .. math:: \Big\| \big(A_l^h(z_t, c)_{:, j}\big)_{l, h, j} \Big\|, \qquad
              A_l^h = \mathrm{softmax}(Q_l^h {K_l^h}^T / \sqrt{d})

    of all its cross-attention probabilities (layers l, heads h) at the tokens j of the concept. There is no other term.

    Official program: github.com/SHI-Labs/Forget-Me-Not at a4a81e8. It can learn the concept as new tokens first
    (textual inversion, 500 steps), from pictures that the user has; here the concept's own tokens are suppressed and
    the pictures are the model's. Others could not reproduce it for nudity (its issue #4; the authors of AGE).

    Deviations: no textual inversion; pictures' latents are the posteriors' means; random numbers come from CPU
    generators of (seed, step). Weights behind the last cross-attention's keys get no gradient and never change.

    Cost of an update, in evaluations of the UNet on one latent: one forward and backward pass; before that the
    pictures, 2 x ``steps`` each.

    Args:
        end: suppress the end token too, at which the text encoder's pooled output is read (``use_pooler``).
        weight_decay: AdamW's, >= 0.
        clip: largest norm of the gradient, > 0, or None.

    The remaining fields are those of :class:`methods.training_images.FromImages`.

    Raises:
        ValueError: a value out of its range, a template in which the concept is no word of its own.
        FloatingPointError: a loss that is NaN or infinite.

    >>> FMN(clip=0)
    Traceback (most recent call last):
    ValueError: clip must be a finite number > 0; got 0
    """

    layers: Layers = "full"
    iterations: int = 35
    lr: float = 2e-6
    guidance_scale: float = 7.5
    images: int = 8
    end: bool = True
    weight_decay: float = 0.01
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.flag("end", self.end)
        fields.number("weight_decay", self.weight_decay, least=0)
        if self.clip is not None:
            fields.number("clip", self.clip, above=0)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        model = self.denoiser(pipe)
        unet, weights = student(pipe, self.layers, model.half)
        columns = self.columns(pipe, concept)
        pictures = self.pictures(pipe, [(word, word) for word in self.words(concept)])
        adam = torch.optim.AdamW(weights.values(), lr=self.lr, weight_decay=self.weight_decay)
        training = self.training(concept, weights, clip=self.clip, weights=adam)
        training.run(partial(self.squares, model, unet, pictures, columns), rows=self.batch_size, mix=self.norm)
        return with_weights(pipe, weights)

    def columns(self, pipe: Pipeline, concept: Concept) -> dict[str, list[int]]:
        """Text -> indices of the tokens that are suppressed in it."""
        texts = {template.format(word): word for word in self.words(concept) for template in self.templates}
        ends = (last_token(pipe, list(texts)) + 1).tolist()
        return {
            text: token_columns(pipe, text, word) + [end] * self.end
            for (text, word), end in zip(texts.items(), ends, strict=True)
        }

    def squares(
        self, model: Denoiser, unet: Any, pictures: Sequence[Picture], columns: dict[str, list[int]], step: int,
        places: range | None = None,
    ) -> Tensor:  # fmt: skip
        """The sum of squares of a latent, mean over those of a step or at some places of it."""
        few = self.noised(model, pictures, step, places=places)
        with attention(unet) as found:
            model.epsilon(unet, few.z, few.timesteps, model.encode([picture.text for picture in few.pictures]))
        squares = [
            probabilities[row, :, :, columns[picture.text]].square().sum()
            for probabilities in found
            for row, picture in enumerate(few.pictures)
        ]
        return torch.stack(squares).sum() / len(few.pictures)

    def norm(self, values: Tensor, gradients: list[Gradients]) -> tuple[Tensor, Gradients]:
        """The norm over all latents of a step, and its gradient, from the mean of their sums of squares."""
        norm = (self.batch_size * values[0]).sqrt()
        return norm, [None if g is None else g * (self.batch_size / (2 * norm)) for g in gradients[0]]
