"""UnlearnDiffAtk: gradient search for a few tokens before the prompt that make the erased model denoise the concept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.free_tokens import Vocabulary
from attacks.side_by_side import Batch
from attacks.token_search import PrefixSearch


@torch.enable_grad()
def descend(attack: UnlearnDiffAtk, batch: Batch) -> None:
    """One round of n prompts, each at its own timestep; ``batch.x`` is u, the m rows of all their free tokens."""
    optimizer = batch.optimizer(torch.optim.Adam, lr=attack.lr, weight_decay=attack.weight_decay)
    for step in range(attack.iterations):
        e, uniform, t = batch.draw(step, attack.timestep)  # [n, channels, h, w], [m], [n]
        x_t, e = batch.noised(e, t)  # of a model that predicts v, e is v
        hot = F.one_hot(sample(batch.x, uniform), len(batch.table)).to(batch.table).requires_grad_()  # [m, v]
        losses = (batch.predict(x_t, t, hot @ batch.table) - e).square().mean((1, 2, 3))  # [n]
        batch.backward(losses, hot, most=1)  # straight through: u gets the gradient of the one-hot rows, clipped
        optimizer.step()
        batch.x = project_simplex(batch.x)


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
    ValueError: timesteps must hold at least one integer >= 0; got (); write timesteps=[500]
    """

    name = "unlearndiffatk"

    def start(self, vocabulary: Vocabulary, count: int, generator: torch.Generator) -> Tensor:
        """Every token equally likely."""
        return torch.full((count, len(vocabulary.table)), 1 / len(vocabulary.table), dtype=vocabulary.table.dtype)

    def descend(self, batch: Batch) -> None:
        descend(self, batch)

    def answer(self, vocabulary: Vocabulary, x: Tensor) -> Tensor:
        """The most likely tokens."""
        return x.argmax(1)


def sample(u: Tensor, uniform: Tensor) -> Tensor:
    """A token [m] of each row of probabilities u [m, v], by the inverse of its distribution function.

    >>> sample(torch.tensor([[0.5, 0.0, 0.5]] * 3), torch.tensor([0.0, 0.49, 0.5])).tolist()
    [0, 0, 2]
    """
    steps = u.double().cumsum(1)
    return torch.searchsorted(steps, uniform[:, None] * steps[:, -1:], right=True)[:, 0].clamp(max=u.shape[1] - 1)


def project_simplex(x: Tensor) -> Tensor:
    """The nearest point of {u >= 0, sum u = 1} to each row: u = max(x - s, 0) with the one s that makes the sum 1.

    Newton's method on s from below (Michelot 1986): the mean excess of the positive entries is taken off until none
    turns negative; exact after finitely many passes, a handful in practice.

    Args:
        x: [m, v].

    >>> project_simplex(torch.tensor([[0.5, 1.5, -3.0], [0.2, 0.3, 0.5]])).tolist()
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
