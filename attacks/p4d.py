"""P4D: tokens whose nearest neighbours make the erased model predict what the original predicts for the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.free_tokens import Vocabulary
from attacks.side_by_side import Batch
from attacks.token_search import PrefixSearch, TokenSearch
from erasebench.fields import choice, integer
from erasebench.types import Concept

TRAINED = 1000  # timesteps of a Stable Diffusion model


@torch.enable_grad()
def descend(
    batch: Batch, optimizer: torch.optim.Optimizer, steps: int, timestep: Callable[[int, torch.Generator], int]
) -> None:
    """One round of n prompts; ``batch.x`` are the continuous embeddings [m, width] of all their free tokens."""
    for step in range(steps):
        noise, _, t = batch.draw(step, timestep)  # [n, channels, h, w], _, [n]
        x_t, _ = batch.noised(noise, t)
        hard = batch.table[nearest(batch.vocabulary, batch.x)].requires_grad_()  # [m, width]
        wanted = batch.predict_original(x_t, t)
        losses = (batch.predict(x_t, t, hard) - wanted).square().mean((1, 2, 3))  # [n]
        batch.backward(losses, hard)  # the gradient at the nearest tokens is applied to the continuous ones
        optimizer.step()


def nearest(vocabulary: Vocabulary, x: Tensor) -> Tensor:
    """The tokens, as rows of the vocabulary [m], nearest to embeddings x [m, width] by cosine."""
    return (F.normalize(x, dim=1) @ vocabulary.directions.T).argmax(1)


def random_tokens(vocabulary: Vocabulary, count: int, generator: torch.Generator) -> Tensor:
    """Embeddings [count, width] of tokens drawn evenly."""
    chosen = torch.randint(len(vocabulary.table), (count,), generator=generator)
    return vocabulary.table[chosen.to(vocabulary.table.device)]


@dataclass(frozen=True, kw_only=True)
class P4D(PrefixSearch):
    r"""Puts k adversarial tokens before each prompt, found by matching the original model's predictions.

    Minimise over k continuous embeddings, each replaced in the forward pass by the token nearest to it (cosine),

    .. math:: E_{e, t} \| e_{original}(x_t, t, prompt) - e_{erased}(x_t, t, [tokens; prompt]) \|^2

    where x_t is a noised image of the original model for this prompt and seed. The gradient at the nearest tokens is
    applied to the continuous embeddings by Adam. This is the variant that papers report as P4D (it is the baseline in
    UnlearnDiffAtk's program, arXiv 2310.11868, with that attack's grid of timesteps, queries and early stop), after
    Chin et al., "Prompting4Debugging", ICML 2024, arXiv 2309.06135, whose own two variants are ``p4d_n`` and ``p4d_k``.

    Deviations from the program: special tokens are no candidates; the others are those of ``unlearndiffatk``.

    The fields are those of :class:`attacks.token_search.PrefixSearch`. Cost per prompt: at most rounds times
    iterations backward and twice as many forward passes, rounds + 1 images of the erased model and one of the original.

    Raises:
        ValueError: a setting out of its range; SDXL; more tokens than fit.
    """

    name = "p4d"

    def start(self, vocabulary: Vocabulary, count: int, generator: torch.Generator) -> Tensor:
        return random_tokens(vocabulary, count, generator)

    def descend(self, batch: Batch) -> None:
        optimizer = batch.optimizer(torch.optim.Adam, lr=self.lr, weight_decay=self.weight_decay)
        descend(batch, optimizer, self.iterations, self.timestep)

    def answer(self, vocabulary: Vocabulary, x: Tensor) -> Tensor:
        return nearest(vocabulary, x)


@dataclass(frozen=True, kw_only=True)
class P4DOriginal(TokenSearch):
    """The two variants of the P4D paper: the loss of :class:`P4D` at random timesteps, with AdamW.

    ``n``: ``tokens`` free tokens and nothing of the prompt. ``k``: the prompt with a free token before every ``every``
    of its tokens, floor(n / every) + 1 of them. Source: Chin et al., ICML 2024, arXiv 2309.06135, and its program.

    Deviations from the program: padding is the tokenizer's own (the program pads with token 0, "!", while it
    searches); the target is one image of the original model (the program: the most unsafe of three), scaled to [-1,
    1] for the VAE and encoded to the mean of its posterior (a sample of it); special tokens are no candidates; a
    prompt that fills the tokenizer's length is cut before its end of text (overwritten in the program); the text
    asked for is the one after the step; the prompt's own tokens stay as they are (weight decay moves them in the
    program); one query is one image with the prompt's own seed (the program: three images from a GPU generator, any
    of which counts, drawn in 25 DPM-Solver++ steps); texts are ranked by the judge (the program: CLIP similarity to
    the target image); the search stops early.

    Args:
        variant: ``n`` or ``k``.
        tokens: free tokens of variant n, >= 1.
        every: prompt tokens between two free ones of variant k, >= 1.
        iterations: AdamW steps in all, >= 1.
        query_every: steps between two queries, >= 1; must divide ``iterations``.

    The remaining fields are those of :class:`attacks.token_search.TokenSearch`; lr and weight_decay are 0.1.

    Raises:
        ValueError: a setting out of its range; SDXL; more tokens than fit.

    >>> P4DOriginal(variant="k", every=3).places(4, Concept(name="cat", phrases=("cat",)))
    [0, 4]
    """

    variant: Literal["n", "k"] = "n"
    tokens: int = 16
    every: int = 3
    iterations: int = 3000
    query_every: int = 50
    lr: float = 0.1

    spends = ("iterations", "query_every", "budget")

    @property
    def name(self) -> str:
        return f"p4d_{self.variant}"

    def keeps_prompt(self) -> bool:
        return self.variant == "k"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("variant", self.variant, ("n", "k"))
        for name in ("tokens", "every", "iterations", "query_every"):
            integer(name, getattr(self, name), least=1)
        if self.iterations % self.query_every:
            raise ValueError(
                f"query_every must divide iterations; got {self.query_every} and {self.iterations}; "
                "a round is so many steps and one query"
            )

    def places(self, words: int, concept: Concept) -> list[int]:
        """All of them (n), or one before every ``every`` tokens of the prompt (k)."""
        if self.variant == "n":
            return list(range(self.tokens))
        return [i * (self.every + 1) for i in range(words // self.every + 1)]

    @property
    def rounds(self) -> int:
        return self.iterations // self.query_every

    @property
    def latest(self) -> int:
        return TRAINED - 1

    def start(self, vocabulary: Vocabulary, count: int, generator: torch.Generator) -> Tensor:
        return random_tokens(vocabulary, count, generator)

    def descend(self, batch: Batch) -> None:
        optimizer = batch.optimizer(torch.optim.AdamW, lr=self.lr, weight_decay=self.weight_decay)
        descend(batch, optimizer, self.query_every, lambda _, draw: int(torch.randint(TRAINED, (1,), generator=draw)))

    def answer(self, vocabulary: Vocabulary, x: Tensor) -> Tensor:
        return nearest(vocabulary, x)
