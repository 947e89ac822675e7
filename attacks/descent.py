"""One round of a white-box search: the free tokens of some prompts, moved together down the denoising loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from attacks import denoising
from attacks.denoising import Layout, Stack, Vocabulary
from erasebench.protocols import Judge
from erasebench.types import Concept, Pipeline, Prompt

STATE = ("x", "mean", "square")  # of a slot: its tokens' continuous stand-ins and their moments


class Tokens(Protocol):
    """How free tokens are made continuous: rows x [m, n] that stand for them."""

    def start(self, count: int, generator: torch.Generator) -> Tensor:
        """The first rows of ``count`` tokens."""
        ...

    def choose(self, x: Tensor, uniform: Tensor) -> Tensor:
        """The token, as a row of the vocabulary [m], that a forward pass uses; ``uniform`` [m] in [0, 1) decides."""
        ...

    def pull(self, gradient: Tensor) -> Tensor:
        """Gradient [m, n] of the rows from that of the chosen tokens' embeddings [m, width]."""
        ...

    def settle(self, x: Tensor) -> Tensor:
        """Rows after a step, back where they must lie."""
        ...

    def answer(self, x: Tensor) -> Tensor:
        """The tokens that the rows stand for, as rows of the vocabulary [m]."""
        ...


@dataclass(eq=False)
class Slot:
    """One prompt under attack: where its tokens are, how far it is, and what it has found."""

    index: int
    prompt: Prompt  # with the text that fits
    layout: Layout
    latents: Tensor  # [channels, h, w] of the original model's image
    states: Tensor | None  # [tokens, width] of the prompt in the original model, where the goal needs it
    state: dict[str, Tensor]
    record: dict[str, Any]
    round: int = 0


@dataclass(frozen=True)
class Models:
    """What a search is given, with what it derives from it once."""

    pipe: Pipeline
    original: Pipeline
    concept: Concept
    judge: Judge
    vocabulary: Vocabulary
    tokens: Tokens
    prompts: Sequence[Prompt]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How a round descends.

    Args:
        iterations: steps of a round.
        timestep: (round, generator) -> timestep of a step.
        lr, decay, decoupled: see :func:`adam`.
        distils: the goal is the original model's prediction for the prompt, else what the training loss asks for.
        seed: of the noise, with the prompt's own seed, the round and the step.
    """

    iterations: int
    timestep: Callable[[int, torch.Generator], int]
    lr: float
    decay: float
    decoupled: bool
    distils: bool
    seed: int


def descend(models: Models, slots: Sequence[Slot], steps: Steps) -> None:
    """Advances a batch of prompts by one round: forward, backward, step, and back to where their rows must lie."""
    tokens, table = models.tokens, models.vocabulary.table
    sizes = [len(slot.layout.free) for slot in slots]
    stack = Stack.of([slot.layout for slot in slots], table.device)
    x, mean, square = (torch.cat([slot.state[name] for slot in slots]) for name in STATE)
    x0 = torch.stack([slot.latents for slot in slots]).to(table)
    states = torch.stack([s.states for s in slots if s.states is not None]) if steps.distils else None
    done = torch.tensor([slot.round * steps.iterations for slot in slots]).repeat_interleave(torch.tensor(sizes))
    alive, broken = (torch.zeros(len(x), dtype=torch.bool, device=x.device) for _ in range(2))
    total = torch.zeros(len(slots), dtype=table.dtype, device=table.device)
    for i in range(steps.iterations):
        noise, uniform, t = _draw(slots, sizes, steps, i)
        t = t.to(table.device)
        x_t, goal = denoising.noised(models.pipe.scheduler, x0, noise.to(table), t)
        if states is not None:
            with torch.no_grad():
                goal = denoising.predict(models.original, x_t, t, states)
        chosen = table[tokens.choose(x, uniform.to(table.device))]
        losses, slope = denoising.gradient(models.pipe, stack, chosen, x_t, t, goal)
        bad = ~slope.isfinite().all(1)
        alive, broken = alive | (slope != 0).any(1), broken | bad
        x, mean, square = adam(
            x, tokens.pull(slope.masked_fill(bad[:, None], 0)), mean, square, done + i + 1,
            lr=steps.lr, decay=steps.decay, decoupled=steps.decoupled,
        )  # fmt: skip
        x, total = tokens.settle(x), total + losses
    parts = (total / steps.iterations, *(v.split(sizes) for v in (alive, broken, x, mean, square)))
    for slot, loss, lives, breaks, *rows in zip(slots, *parts, strict=True):
        slot.state = dict(zip(STATE, rows, strict=True))
        slot.round += 1
        _account(slot.record, steps, float(loss), bool(lives.any()), bool(breaks.any()))


def _draw(slots: Sequence[Slot], sizes: Sequence[int], steps: Steps, i: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise [n, channels, h, w], one uniform number per free token, and timesteps [n] of one iteration."""
    draws = [denoising.generator(steps.seed, s.prompt.seed, s.round, i) for s in slots]
    noise = torch.stack([torch.randn(s.latents.shape, generator=g) for s, g in zip(slots, draws, strict=True)])
    uniform = torch.cat([torch.rand(m, generator=g, dtype=torch.float64) for m, g in zip(sizes, draws, strict=True)])
    t = torch.tensor([steps.timestep(s.round, g) for s, g in zip(slots, draws, strict=True)])
    return noise, uniform, t


def _account(record: dict[str, Any], steps: Steps, loss: float, lives: bool, breaks: bool) -> None:
    """Adds a round's passes to a record, and what its gradients were like."""
    record["forward"] += (1 + steps.distils) * steps.iterations
    record["backward"] += steps.iterations
    record["loss"] = loss if math.isfinite(loss) else None
    if breaks or record["gradient"] == "nan":
        record["gradient"] = "nan"
    elif lives or record["gradient"] == "ok":
        record["gradient"] = "ok"
    else:
        record["gradient"] = "zero"


def adam(
    x: Tensor, slope: Tensor, mean: Tensor, square: Tensor, step: Tensor, *, lr: float, decay: float, decoupled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Adam (or AdamW if ``decoupled``) in which every row may be at another ``step``.

    The same as ``torch.optim.Adam(lr=lr, weight_decay=decay)`` row by row; torch keeps one step count for a tensor,
    but here prompts that are done make room for others in the same batch.

    Args:
        x, slope, mean, square: rows, their gradients and their moments, [m, n].
        step: how many steps each row has made with this one, >= 1; [m].

    Returns:
        the new rows and moments.
    """
    if decoupled:
        x = x * (1 - lr * decay)
    else:
        slope = slope + decay * x
    mean = mean.lerp(slope, 0.1)
    square = square.mul(0.999).addcmul_(slope, slope, value=0.001)
    step = step.to(x.device, x.dtype)[:, None]
    width = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
    return x - lr * (mean / (1 - 0.9**step)) / width, mean, square
