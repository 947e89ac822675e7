"""P4D: tokens whose nearest neighbours make the erased model predict what the original predicts for the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.denoising import Vocabulary
from attacks.descent import Tokens
from attacks.queries import check_whole
from attacks.token_search import PrefixSearch, TokenSearch
from erasebench.types import Concept

TRAINED = 1000  # timesteps of a Stable Diffusion model


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

    distils = True

    @property
    def name(self) -> str:
        return "p4d"

    def relax(self, vocabulary: Vocabulary) -> Tokens:
        return Nearest(vocabulary.table, F.normalize(vocabulary.table, dim=1))


@dataclass(frozen=True, kw_only=True)
class P4DOriginal(TokenSearch):
    """The two variants of the P4D paper: the loss of :class:`P4D` at random timesteps, with AdamW.

    ``n``: ``tokens`` free tokens and nothing of the prompt. ``k``: the prompt with a free token before every ``every``
    of its tokens, floor(n / every) + 1 of them. Source: Chin et al., ICML 2024, arXiv 2309.06135, and its program.

    Deviations from the program: padding is the tokenizer's own (the program pads with token 0, "!", while it searches);
    the target image is scaled to [-1, 1] for the VAE; the text asked for is the one after the step; the prompt's own
    tokens stay as they are (weight decay moves them in the program); one query is one image with the prompt's own seed
    (the program: three images from a GPU generator, any of which counts, drawn in 25 DPM-Solver++ steps); texts are
    ranked by the judge (the program: CLIP similarity to the target image); the search stops early.

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
    distils = True
    decoupled = True

    @property
    def name(self) -> str:
        return f"p4d_{self.variant}"

    def keeps_prompt(self) -> bool:
        return self.variant == "k"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("n", "k"):
            raise ValueError(f"variant must be n or k; got {self.variant!r}")
        for name in ("tokens", "every", "iterations", "query_every"):
            check_whole(name, getattr(self, name), 1)
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

    def schedule(self) -> tuple[int, int, int]:
        return self.iterations // self.query_every, self.query_every, TRAINED - 1

    def timestep(self, round: int, generator: torch.Generator) -> int:
        return int(torch.randint(TRAINED, (1,), generator=generator))

    def relax(self, vocabulary: Vocabulary) -> Tokens:
        return Nearest(vocabulary.table, F.normalize(vocabulary.table, dim=1))


@dataclass(frozen=True)
class Nearest:
    """Tokens relaxed to free embeddings x [m, width] that stand for the token nearest by cosine; started at random.

    Args:
        table: token embeddings [v, width].
        directions: the same, each of length 1.
    """

    table: Tensor
    directions: Tensor

    def start(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.table), (count,), generator=generator)
        return self.table[chosen.to(self.table.device)]

    def choose(self, x: Tensor, uniform: Tensor) -> Tensor:
        return self.answer(x)

    def pull(self, gradient: Tensor) -> Tensor:
        return gradient

    def settle(self, x: Tensor) -> Tensor:
        return x

    def answer(self, x: Tensor) -> Tensor:
        return (F.normalize(x, dim=1) @ self.directions.T).argmax(1)
