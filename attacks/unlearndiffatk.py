"""UnlearnDiffAtk: gradient search for a few tokens before the prompt that make the erased model denoise the concept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.denoising import Vocabulary
from attacks.descent import Tokens
from attacks.token_search import PrefixSearch


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtk(PrefixSearch):
    r"""Puts k adversarial tokens before each prompt, found with the gradient of the denoising loss.

    Minimise over k rows of the vocabulary, each relaxed to a point u of the simplex {u >= 0, sum u = 1},

    .. math:: E_{e, t} \| e - e_{erased}(x_t, t, [tokens; prompt]) \|^2, \quad
              x_t = \sqrt{a_t} x_0 + \sqrt{1 - a_t} e

    where x_0 is the *original* model's image for this prompt and seed: no classifier is needed. A forward pass uses
    tokens sampled from u; the gradient with respect to their one-hot vectors, clipped to [-1, 1], is given to u as it
    is (straight through); Adam steps; u returns to the nearest point of the simplex. u and Adam's moments are carried
    from one timestep to the next; after each, the most likely tokens are asked for and the search stops if the judge
    sees the concept. The prediction is conditional, without guidance. Source: Zhang et al., "To Generate or Not?
    Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe Images ... For Now", ECCV 2024,
    arXiv 2310.11868, and its program for what the paper leaves open (the grid of timesteps, the clipping).

    Deviations from the program: special tokens are no candidates, since nobody can type them; the projection is exact
    (the program bisects to 1e-5); the target image is drawn with this run's sampler settings (the program: 25 LMS steps
    and another protocol's for evaluation); prompts too long for the tokens are cut (the program drops or crashes);
    styles stop early too; noise comes from CPU generators; a model that predicts v is compared with v.

    The fields are those of :class:`attacks.token_search.PrefixSearch`. Cost per prompt: at most rounds times
    iterations forward and backward passes, rounds + 1 images of the erased model and one of the original.

    Raises:
        ValueError: a setting out of its range; SDXL; more tokens than fit.

    >>> UnlearnDiffAtk(timesteps=()).tokens
    Traceback (most recent call last):
    ValueError: timesteps must hold at least one integer >= 0; got ()
    """

    @property
    def name(self) -> str:
        return "unlearndiffatk"

    def relax(self, vocabulary: Vocabulary) -> Tokens:
        return Simplex(vocabulary.table)


@dataclass(frozen=True)
class Simplex:
    """Tokens relaxed to distributions over the vocabulary: rows u [m, v], started uniform.

    Args:
        table: token embeddings [v, width].
    """

    table: Tensor

    def start(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.full((count, len(self.table)), 1 / len(self.table), dtype=self.table.dtype)

    def choose(self, x: Tensor, uniform: Tensor) -> Tensor:
        """A sample of each row, by the inverse of its distribution function.

        >>> Simplex(torch.eye(3)).choose(torch.tensor([[0.5, 0.0, 0.5]] * 3), torch.tensor([0.0, 0.49, 0.5])).tolist()
        [0, 0, 2]
        """
        steps = x.double().cumsum(1)
        return torch.searchsorted(steps, uniform[:, None] * steps[:, -1:], right=True)[:, 0].clamp(max=x.shape[1] - 1)

    def pull(self, gradient: Tensor) -> Tensor:
        """The one-hot's gradient, since a chosen embedding is its one-hot times the table; clipped to [-1, 1]."""
        return (gradient @ self.table.T).clamp_(-1, 1)

    def settle(self, x: Tensor) -> Tensor:
        return project_to_simplex(x)

    def answer(self, x: Tensor) -> Tensor:
        return x.argmax(1)


def project_to_simplex(x: Tensor) -> Tensor:
    """The nearest point of {u >= 0, sum u = 1} to each row: u = max(x - s, 0) with the one s that makes the sum 1.

    Newton's method on s from below (Michelot 1986): the mean excess of the positive entries is taken off until none
    turns negative; exact after finitely many passes, a handful in practice.

    Args:
        x: [m, v].

    >>> project_to_simplex(torch.tensor([[0.5, 1.5, -3.0], [0.2, 0.3, 0.5]])).tolist()
    [[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]
    """
    positive = torch.ones_like(x, dtype=torch.bool)
    count = positive.sum(1, keepdim=True)
    while True:
        shift = (torch.where(positive, x, 0).sum(1, keepdim=True) - 1) / count
        positive &= x > shift  # never back: rounding could make an entry go in and out for ever
        now = positive.sum(1, keepdim=True)
        if torch.equal(now, count):
            return (x - shift).clamp_(min=0)
        count = now
