"""Latents that several trainings learn at: drawn part of the way with a text, at ESD's places and timesteps.

Gandikota et al., arXiv:2303.07345, as in the program at github.com/rohitgandikota/erasing, a2189e9: i is uniform over
0..49, latents take DDIM steps 48, ..., max(i - 1, 0) of 50 (the noisiest is left out), and t is uniform over
20 i <= t < 20 (i + 1), which is 39 to 58 timesteps noisier than the latents are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erasebench.diffusion.encoding import Encoding
from methods.fine_tuning import FineTuning, generator, uniform
from methods.on_policy import Denoiser


class Draw(NamedTuple):
    """What is random in one latent of a training step."""

    word: str
    stage: int  # i: where on its way the latent is
    timestep: int
    generator: torch.Generator  # of the latent's noise, and of whatever else the method draws after it


@dataclass(frozen=True, kw_only=True)
class Partway(FineTuning):
    """Fields of every erasure that learns at such latents: those of :class:`methods.fine_tuning.FineTuning`."""

    def stages(
        self, model: Denoiser, words: Sequence[str], step: int, *what: str, places: range | None = None
    ) -> list[Draw]:
        """The random numbers of a step: a word, a place and a timestep for each of ``batch_size`` (or some) latents.

        They depend on the seed, the step, the place in the batch and, where a step has latents of several kinds, what
        kind they are of.
        """
        found = []
        for row in range(self.batch_size) if places is None else places:
            draw = generator(self.seed, step, row, *what)
            word, stage = words[uniform(0, len(words), draw)], uniform(0, self.steps, draw)
            low, high = (round(i / self.steps * model.total) for i in (stage, stage + 1))
            found.append(Draw(word, stage, uniform(low, high, draw), draw))
        return found

    def drawn(
        self, model: Denoiser, unet: Any, draws: Sequence[Any], text: Encoding | None = None
    ) -> tuple[Tensor, list[int], Encoding]:
        """Latents [b, channels, h, w] drawn by ``unet`` with their words (or other texts), timesteps, and the texts."""
        text = model.encode([draw.word for draw in draws]) if text is None else text
        last = [max(draw.stage - 1, 0) for draw in draws]
        noise = model.noise([draw.generator for draw in draws])
        return model.descend(unet, noise, text, self.steps - 2, last), [draw.timestep for draw in draws], text
