"""CRCE: ESD that also erases a concept's other names and keeps its neighbours, each as much as one is sure of it.

Xue, Moroshko, Chen, McDonagh and Tsaftaris, "CRCE: Coreference-Retention Concept Erasure in Text-to-Image Diffusion
Models", BMVC 2025, arXiv:2503.14232.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from erasebench import fields
from erasebench.types import Concept
from methods.esd import ESD
from methods.fine_tuning import Layers, generator, uniform
from methods.on_policy import Denoiser, joined
from methods.partway import Draw


class Other(NamedTuple):
    """A text beside the concept."""

    text: str
    certainty: float
    erased: bool  # a coreferent, or else one to keep


class Coreferring(Draw):
    """A draw of ESD with the coreferents and the texts to keep whose turn it is."""

    others: tuple[Other, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CRCE(ESD):
    r"""Trains some layers of the UNet, theta, at latents z drawn with the concept c to minimise

    .. math:: d(c) + \alpha\,\overline{w_k\, d(k)} + \beta\,\overline{w_r\,|\epsilon_\theta(z, r)
              - \epsilon_{\theta*}(z, r)|^2}, \qquad
              d(x) = |\epsilon_\theta(z, x) - [\epsilon_{\theta*}(z) - \eta(\epsilon_{\theta*}(z, x)
              - \epsilon_{\theta*}(z))]|^2

    with the bars means over a few of the coreferents k (other names of c) and of the texts r to keep, drawn at random
    for every latent, and w in [0.2, 1] how certain each is.

    Official program: github.com/vios-s/CRCE at f92eced. Its words and certainties come from a language model and, for
    some concepts, from its file CorefConcept; neither is here. Left to themselves, coreferents are the concept's other
    phrases and the texts to keep its neighbours, all with certainty 1. **These are what the columns paraphrase and
    neighbours measure**: with them those columns are training texts. Give others to measure what was not trained.

    Deviations: latents are drawn by the pipeline's own scheduler to a step from 0 to 49 (the program: DDIM, 1 to 48);
    all texts of a latent are one batch; fewer words than are to be drawn are all taken. The rest as in
    :class:`methods.esd.ESD`.

    Cost of an update, in evaluations of the UNet on one latent: on average 2 x 24.5 for drawing, 10 for the targets,
    and 9 forward and backward passes.

    Args:
        coreferents: text -> certainty; None: the concept's phrases but the first.
        retain: text -> certainty; None: the concept's neighbours.
        coreferent_scale, retain_scale: alpha and beta >= 0.
        coreferents_drawn, retain_drawn: how many of each for a latent, >= 1.

    The remaining fields are those of :class:`methods.esd.ESD`.

    Raises:
        ValueError: a value out of its range; a concept without coreferents or neighbours.
        FloatingPointError: a loss that is NaN or infinite.

    >>> CRCE(coreferents={"kitty": 0.1})
    Traceback (most recent call last):
    ValueError: coreferents.kitty must be a finite number >= 0.2 and <= 1; got 0.1
    """

    layers: Layers = "xattn_strict"
    iterations: int = 200
    lr: float = 2e-5
    sampler: Literal["ddim", "pipeline"] = "pipeline"
    coreferents: Mapping[str, float] | None = None
    retain: Mapping[str, float] | None = None
    coreferent_scale: float = 1.0
    retain_scale: float = 1.0
    coreferents_drawn: int = 5
    retain_drawn: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("coreferents", "retain"):
            words = getattr(self, name)
            if words is not None:
                for word, certainty in fields.mapping(name, words, least=1).items():
                    fields.number(f"{name}.{word}", certainty, least=0.2, most=1)
        for name in ("coreferent_scale", "retain_scale"):
            fields.number(name, getattr(self, name), least=0)
        for name in ("coreferents_drawn", "retain_drawn"):
            fields.integer(name, getattr(self, name), least=1)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for part in concept.singles:
            self.others(part)

    def others(self, concept: Concept) -> tuple[list[Other], list[Other]]:
        """Coreferents of one concept, and the texts to keep."""
        neighbours = [name for names in concept.neighbours.values() for name in names]
        again = self.coreferents or dict.fromkeys(concept.phrases[1:], 1.0)
        kept = self.retain or dict.fromkeys(neighbours, 1.0)
        for what, found, field in (("another phrase", again, "coreferents"), ("a neighbour", kept, "retain")):
            if not found:
                raise ValueError(
                    f"concept {concept.name!r} must have {what}; got none; give method.{field}={{word: 1}}"
                )
        return [Other(t, w, True) for t, w in again.items()], [Other(t, w, False) for t, w in kept.items()]

    def draws(self, model: Denoiser, concept: Concept, step: int) -> list[Draw]:
        """The random numbers of a step, one entry for each latent."""
        parts = {phrase: part for part in concept.singles for phrase in part.phrases}
        found: list[Draw] = []
        for row, draw in enumerate(super().draws(model, concept, step)):
            choose, told = generator(self.seed, step, row, "others"), Coreferring(*draw)
            again, kept = self.others(parts[draw.word])
            again = [other for other in again if other.text != draw.word]
            told.others = (*_some(again, self.coreferents_drawn, choose), *_some(kept, self.retain_drawn, choose))
            found.append(told)
        return found

    def loss(self, model: Denoiser, unet: Any, draws: Sequence[Draw]) -> Tensor:
        """Weighted mean squares over the latents of a step; only ``unet`` gets gradients."""
        z, times = self._latents(model, unet, draws)
        asked = [(row, other) for row, draw in enumerate(draws) for other in _asked(draw)]
        rows, texts = [row for row, _ in asked], model.encode([other.text for _, other in asked])
        times = times[rows] if isinstance(times, Tensor) else [times[row] for row in rows]
        predict, several = model.epsilon if self.sampler == "ddim" else model.output, z[rows]
        with torch.no_grad():
            twice = torch.cat([times, times]) if isinstance(times, Tensor) else times + times
            both = joined(model.encode([""] * len(rows)), texts)
            empty, given = predict(model.pipe.unet, torch.cat([several, several]), twice, both).chunk(2)
        away = torch.tensor([other.erased for _, other in asked], device=z.device).view(-1, 1, 1, 1)
        base = empty if self.push_from == "empty" else given
        goal = torch.where(away, base - self.eta * (given - empty), given)
        squares = (predict(unet, several, times, texts) - goal).square().mean(dim=(1, 2, 3))
        return squares @ squares.new_tensor(self._weights(asked)) / len(draws)

    def _weights(self, asked: Sequence[tuple[int, Other]]) -> list[float]:
        """What each text counts in the loss of its latent: the concept itself comes first there."""
        found = []
        for i, (row, other) in enumerate(asked):
            if i == 0 or asked[i - 1][0] != row:
                found.append(1.0)
                continue
            alike = sum(r == row and o.erased == other.erased for r, o in asked) - other.erased
            scale = self.coreferent_scale if other.erased else self.retain_scale
            found.append(scale * other.certainty / alike)
        return found


def _asked(draw: Draw) -> tuple[Other, ...]:
    assert isinstance(draw, Coreferring)
    return (Other(draw.word, 1.0, True), *draw.others)


def _some(others: list[Other], n: int, draw: torch.Generator) -> list[Other]:
    """n of them at random without repetition, or all."""
    left, found = list(others), list[Other]()
    while left and len(found) < n:
        found.append(left.pop(uniform(0, len(left), draw)))
    return found
