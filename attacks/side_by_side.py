"""Some prompts under a white-box attack, side by side in one batch of the model.

Each has its own rows, noise, timestep, loss and optimiser's moments, so that no result depends on the others; what
comes and goes between two rounds are the prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attacks import denoising
from attacks.free_tokens import Layout, Vocabulary
from erasebench import diffusion
from erasebench.types import Pipeline, Prompt

HALF_SCALE = 1024.0  # a float16 loss is multiplied by this, so that small gradients do not underflow


@dataclass(eq=False)
class Slot:
    """One prompt under attack: where its tokens are, how far it is, and what it has found."""

    index: int
    prompt: Prompt  # with the text that fits
    layout: Layout
    latents: Tensor  # [channels, h, w] of the original model's image
    x: Tensor  # rows that stand for the free tokens, [m, n]
    record: dict[str, Any]
    moments: dict[str, Tensor] = field(default_factory=dict)  # of the optimiser
    round: int = 0
    states: Tensor | None = None  # [tokens, width] of the prompt in the original model, once they were asked for


class Batch:
    """One round of some prompts.

    Args:
        pipe, original: the model under attack and the one before.
        vocabulary: the tokens to choose from.
        slots: the prompts.
        seed: of the noise, with a prompt's own seed, its round and the step.
    """

    def __init__(
        self, pipe: Pipeline, original: Pipeline, vocabulary: Vocabulary, slots: Sequence[Slot], seed: int
    ) -> None:
        self.pipe, self.original, self.vocabulary, self.slots, self.seed = pipe, original, vocabulary, slots, seed
        self.table = vocabulary.table  # [v, width]
        self.sizes = [len(slot.x) for slot in slots]  # m of each
        device = self.table.device
        images = [torch.full((m,), i) for i, m in enumerate(self.sizes)]
        self._places = torch.cat(images).to(device), torch.cat([slot.layout.free for slot in slots]).to(device)
        ids = torch.stack([slot.layout.ids for slot in slots]).to(device)
        self._embeddings = diffusion.token_table(pipe).detach()[ids]  # [n, tokens, width]
        self._x0 = torch.stack([slot.latents for slot in slots]).to(self.table)
        self._alive, self._broken = (torch.zeros(sum(self.sizes), dtype=torch.bool, device=device) for _ in range(2))
        self._total = torch.zeros(len(slots), dtype=self.table.dtype, device=device)
        self._forward = self._backward = 0

    @property
    def x(self) -> Tensor:
        """Rows of all prompts' free tokens, those of the first prompt first, [sum of m, n]."""
        return torch.cat([slot.x.detach() for slot in self.slots])

    @x.setter
    def x(self, rows: Tensor) -> None:
        for slot, own in zip(self.slots, rows.split(self.sizes), strict=True):
            slot.x.data = own

    def optimizer(self, kind: type[torch.optim.Optimizer], **settings: Any) -> torch.optim.Optimizer:
        """One of torch's over all prompts; each has its own step and moments, which stay with it after the round."""
        made = kind([slot.x for slot in self.slots], **settings)
        for slot in self.slots:
            made.state[slot.x] = slot.moments
        return made

    def draw(self, step: int, timestep: Callable[[int, torch.Generator], int]) -> tuple[Tensor, Tensor, Tensor]:
        """Noise [n, channels, h, w], a uniform number for each row [sum of m], and timesteps [n] of one step."""
        draws = [denoising.generator(self.seed, s.prompt.seed, s.round, step) for s in self.slots]
        shape = self._x0.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=g) for g in draws])
        each = zip(self.sizes, draws, strict=True)
        uniform = torch.cat([torch.rand(m, generator=g, dtype=torch.float64) for m, g in each])
        t = torch.tensor([timestep(s.round, g) for s, g in zip(self.slots, draws, strict=True)])
        return noise.to(self.table), uniform.to(self.table.device), t.to(self.table.device)

    def noised(self, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The original's images with noise, x_t, and what training asks for there; see :func:`denoising.noised`."""
        return denoising.noised(self.pipe.scheduler, self._x0, noise, t)

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """The erased model's prediction [n, channels, h, w], with embeddings [sum of m, width] for the free tokens."""
        self._forward += 1
        embeddings = self._embeddings.index_put(self._places, tokens.to(self._embeddings.dtype))
        return denoising.predict(self.pipe, x_t, t, diffusion.encode_embeddings(self.pipe, embeddings))

    @torch.no_grad()
    def predict_original(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The original model's prediction [n, channels, h, w] for the plain prompts."""
        self._forward += 1
        for slot in self.slots:
            if slot.states is None:
                slot.states = diffusion.encode(self.original, [slot.prompt.text])[0]
        states = torch.stack([slot.states for slot in self.slots if slot.states is not None])
        return denoising.predict(self.original, x_t, t, states)

    def backward(self, losses: Tensor, leaf: Tensor, most: float = math.inf) -> None:
        """Gives the rows of each prompt the gradient of its own loss at ``leaf``: straight through, as if it were x.

        Args:
            losses: [n].
            leaf: what the forward pass used in place of the rows, [sum of m, n].
            most: gradients are cut to +- this; a row whose gradient is not finite gets none.
        """
        scale = HALF_SCALE if self.pipe.unet.dtype == torch.float16 else 1.0
        (found,) = torch.autograd.grad(scale * losses.sum(), leaf)
        found = found / scale
        bad = ~found.isfinite().all(1)
        self._alive, self._broken = self._alive | (found != 0).any(1), self._broken | bad
        self._total += losses.detach()
        self._backward += 1
        found = found.masked_fill(bad[:, None], 0).clamp(-most, most)
        for slot, own in zip(self.slots, found.split(self.sizes), strict=True):
            slot.x.grad = own

    def close(self) -> None:
        """Ends the round: adds to each record what it cost and what its gradients were like."""
        parts = (self._total / max(self._backward, 1), self._alive.split(self.sizes), self._broken.split(self.sizes))
        for slot, loss, alive, broken in zip(self.slots, *parts, strict=True):
            record = slot.record
            record["forward"] += self._forward
            record["backward"] += self._backward
            record["loss"] = float(loss) if math.isfinite(loss) else None
            if broken.any() or record["gradient"] == "nan":
                record["gradient"] = "nan"
            else:
                record["gradient"] = "ok" if alive.any() or record["gradient"] == "ok" else "zero"
            slot.round += 1
