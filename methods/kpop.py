"""KPOP: hide a concept, and keep a key, a few rows of text, with which the model would still draw it.

Bui, Doan, Le, Montague, Abraham and Phung, "Hiding and Recovering Knowledge in Text-to-Image Diffusion Models via
Learnable Prompts", arXiv:2403.12326.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erasebench import fields
from erasebench.diffusion.encoding import Encoding
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import generator, student, with_weights
from methods.on_policy import Denoiser, joined
from methods.partway import Draw, Partway


@dataclass(frozen=True, kw_only=True)
class KPOP(Partway, Method):
    r"""Alternates between a key p, rows that stand behind the concept's in every cross-attention, and layers theta:

    .. math:: \min_p\; R(\theta, p), \qquad \min_\theta\; |\epsilon_\theta(z, c) - [\epsilon_{\theta*}(z, \varnothing)
              - \eta(\epsilon_{\theta*}(z, c) - \epsilon_{\theta*}(z, \varnothing))]|^2 + \lambda R(\theta, p), \qquad
              R(\theta, p) = |\epsilon_\theta(z, [c; p]) - \epsilon_{\theta*}(z, c)|^2

    with theta* the original weights and c the concept: without the key the concept is hidden as by ESD, with it the
    model says what it said. What is returned is the model without its key, for that is what users get.

    Named in the paper is github.com/tuananhbui89/Erasing-KPOP; it was not at hand. The two alternating steps, recovery
    and hiding, the prompt in the cross-attention and the two terms are the paper's; **ours** are the length and start
    of the key (random rows of the size of the concept's own), its rate, lambda, the layers, the latents (ESD's,
    :mod:`methods.partway`) and the order (key first). Every concept that is erased jointly has a key of its own.

    Cost of an iteration, in evaluations of the UNet on one latent: on average 4 x 25.5 for drawing two latents, 3 for
    targets, and three forward and backward passes.

    Args:
        eta: strength of hiding.
        recover_scale: lambda >= 0.
        key_tokens: rows of p, >= 1.
        key_lr: Adam's for p, > 0.

    The remaining fields are those of :class:`methods.fine_tuning.FineTuning`; one of ``iterations`` is an update of p
    and one of theta.

    Raises:
        ValueError: a value out of its range; a model without the chosen layers or that cannot be trained so.
        FloatingPointError: a loss that is NaN or infinite.

    >>> KPOP(key_tokens=0)
    Traceback (most recent call last):
    ValueError: key_tokens must be an integer >= 1; got 0
    """

    eta: float = 1.0
    recover_scale: float = 1.0
    key_tokens: int = 4
    key_lr: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.number("eta", self.eta)
        fields.number("recover_scale", self.recover_scale, least=0)
        fields.integer("key_tokens", self.key_tokens, least=1)
        fields.number("key_lr", self.key_lr, above=0)

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its trained layers with ``pipe``."""
        model, words = self.denoiser(pipe), self.words(concept)
        unet, weights = student(pipe, self.layers, model.half)
        keys = self.keys(model, words)
        training = self.training(
            concept,
            {**weights, **{f"key.{i}": key for i, key in enumerate(keys.values())}},
            iterations=2 * self.iterations,
            keys=torch.optim.Adam(keys.values(), lr=self.key_lr),
            weights=torch.optim.Adam(weights.values(), lr=self.lr),
        )

        def loss(step: int, places: range) -> Tensor:
            draws = self.stages(model, words, step, places=places)
            return (self.hidden if step % 2 else self.recovered)(model, unet, keys, draws)

        training.run(loss, rows=self.batch_size, turn=lambda step: "weights" if step % 2 else "keys")
        return with_weights(pipe, weights)

    def keys(self, model: Denoiser, words: Sequence[str]) -> dict[str, Tensor]:
        """The first key of each word [key_tokens, width]: noise of the root mean square of the word's own rows."""
        found = {}
        for word in words:
            states = model.encode([word]).states[0].to(model.dtype)
            noise = torch.randn(self.key_tokens, states.shape[1], generator=generator(self.seed, "key", word))
            found[word] = (noise.to(states) * states.square().mean().sqrt()).requires_grad_()
        return found

    def recovered(self, model: Denoiser, unet: Any, keys: Mapping[str, Tensor], draws: Sequence[Draw]) -> Tensor:
        """R: how far the model with the key is from the original."""
        z, times, text = self.drawn(model, unet, draws)
        with torch.no_grad():
            goal = model.epsilon(model.pipe.unet, z, times, text)
        return F.mse_loss(model.epsilon(unet, z, times, with_key(text, keys, draws, model.dtype)), goal)

    def hidden(self, model: Denoiser, unet: Any, keys: Mapping[str, Tensor], draws: Sequence[Draw]) -> Tensor:
        """What theta minimises; both texts have lengths of their own and so batches of their own."""
        z, times, text = self.drawn(model, unet, draws)
        with torch.no_grad():
            both = joined(model.encode([""] * len(draws)), text)
            empty, said = model.epsilon(model.pipe.unet, torch.cat([z, z]), times + times, both).chunk(2)
        hide = F.mse_loss(model.epsilon(unet, z, times, text), empty - self.eta * (said - empty))
        again = model.epsilon(unet, z, times, with_key(text, keys, draws, model.dtype))
        return hide + self.recover_scale * F.mse_loss(again, said)


def with_key(text: Encoding, keys: Mapping[str, Tensor], draws: Sequence[Draw], dtype: torch.dtype) -> Encoding:
    """Texts with their words' keys behind them: states [b, tokens + key_tokens, width]."""
    rows = torch.stack([keys[draw.word] for draw in draws])
    return Encoding(torch.cat([text.states.to(dtype), rows], dim=1), text.pooled)
