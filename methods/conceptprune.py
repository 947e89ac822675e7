"""ConceptPrune: the few feed-forward weights that answer a concept more than its absence are set to zero.

Chavhan, Li and Hospedales, arXiv:2405.19237. Program: github.com/ruchikachavhan/concept-prune at 72927d9.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasebench import fields, progress
from erasebench.diffusion import apply_tensors, fork
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import generator
from methods.on_policy import Denoiser

LAYER = ".ff.net.2"  # the second linear layer of every feed-forward network


@dataclass(frozen=True, kw_only=True)
class ConceptPrune(Method):
    r"""Sets weights W_oj of the second linear layer of every feed-forward network to zero: those with

    .. math:: S^c_{oj}(t) \text{ among the largest share of row } o \quad \text{and} \quad S^c_{oj}(t) > S^b_{oj}(t),
              \qquad S_{oj}(t) = |W_{oj}| \, |x_j(t)|,

    at one of the first ``until`` denoising steps t at least (or at more than ``votes`` of them). x(t) are the layer's
    inputs at step t, one row for every pixel, prompt and half of the guidance, each row scaled to length 1; |x_j| is
    the length of column j. c are prompts with the concept, b the same with a base word in its place, from the same
    noise.

    arXiv:2405.19237; the score is Wanda's (arXiv:2306.11695). Nothing is trained and no hook remains: the result is
    weights.

    Deviations from the program: the base word is the concept's anchor and the sentences are ``templates`` (the program
    has lists of pairs of prompts for each of its concepts); drawing stops after ``until`` steps, for later ones are
    not used; the pipeline's own scheduler draws (there PNDM, whose 50 steps ask the model 51 times); float32, there
    float16; a share of a row is one weight at least.

    Cost, in evaluations of the UNet: 4 x ``until`` for every prompt.

    Args:
        share: of each row that may be pruned, > 0, < 1; at least one weight.
        until: tau, denoising steps >= 1, below ``steps``.
        votes: share of those steps that must agree, in [0, 1): a weight is pruned if more do.
        steps: denoising steps of a whole drawing.
        guidance_scale: of drawing.
        images: noises for each template, >= 1.
        templates: sentences with ``{}`` where the word stands.
        base: word of the base prompts; null: the concept's anchor.
        phrases: prune for the ``name`` (the concept's first phrase) or for ``all`` its phrases.
        seed: of the noises, >= 0.

    Raises:
        ValueError: a value out of its range; no base word; a model without such layers.

    Several concepts: what is pruned for each, together.

    >>> ConceptPrune(until=50)
    Traceback (most recent call last):
    ValueError: until must be below steps, 50; got 50
    """

    share: float = 0.01
    until: int = 10
    votes: float = 0.0
    steps: int = 50
    guidance_scale: float = 7.5
    images: int = 1
    templates: Sequence[str] = ("a photo of a {}",)
    base: str | None = None
    phrases: str = "name"
    seed: int = 0

    together = ("joint", "sequence")

    def __post_init__(self) -> None:
        fields.number("share", self.share, above=0, below=1)
        fields.number("votes", self.votes, least=0, below=1)
        fields.number("guidance_scale", self.guidance_scale)
        for name, least in (("until", 1), ("steps", 2), ("images", 1), ("seed", 0)):
            fields.integer(name, getattr(self, name), least=least)
        if self.until >= self.steps:
            raise ValueError(f"until must be below steps, {self.steps}; got {self.until}")
        object.__setattr__(self, "templates", fields.texts("templates", self.templates, least=1))
        for template in self.templates:
            if template.count("{}") != 1 or template.count("{") != 1:
                raise ValueError(f"templates must each hold {{}} once, where the word stands; got {template!r}")
        if self.base is not None:
            fields.text("base", self.base, empty=False)
        fields.choice("phrases", self.phrases, ("name", "all"))

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for part in concept.singles:
            if not (self.base or part.anchor.strip()):
                raise ValueError(
                    f"concept {part.name!r} must have an anchor to compare with; got none; write concept.anchor= or "
                    "method.base="
                )
        if shapes and not any(f"{LAYER}.weight" in name for name in shapes):
            raise ValueError("model must have feed-forward networks ff.net.2; found none; choose a UNet with attention")

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but the pruned layers with ``pipe``."""
        self.check(concept, {})
        unet = fork(pipe).unet.requires_grad_(False)
        layers = {name: layer for name, layer in unet.named_modules() if name.endswith(LAYER)}
        if not layers:
            raise ValueError("model must have feed-forward networks ff.net.2; found none; choose a UNet with attention")
        model = Denoiser(pipe, steps=self.steps, guidance_scale=self.guidance_scale)
        pruned = {name: torch.zeros_like(layer.weight, dtype=torch.bool) for name, layer in layers.items()}
        many = None if self.phrases == "all" else 1
        for part in concept.singles:
            for word in part.phrases[:many]:
                found = [self.norms(model, unet, layers, text) for text in (word, self.base or part.anchor)]
                for name, layer in layers.items():
                    votes = sum(
                        skilled(layer.weight, target, base, self.share).int()
                        for target, base in zip(*(norms[name] for norms in found), strict=True)
                    )
                    pruned[name] |= votes > self.votes * self.until
        changed = {f"unet.{name}.weight": layers[name].weight.masked_fill(mask, 0) for name, mask in pruned.items()}
        return apply_tensors(pipe, changed)

    def norms(self, model: Denoiser, unet: Any, layers: Mapping[str, nn.Module], word: str) -> dict[str, list[Tensor]]:
        """Layer -> the lengths of its inputs' columns [columns] at every step that counts."""
        squares: dict[str, list[Tensor]] = {name: [] for name in layers}
        asked = [(t.format(word), i, copy) for i, t in enumerate(self.templates) for copy in range(self.images)]
        with progress.bar(total=len(asked), desc=f"conceptprune {word}", unit="drawing") as bar:
            for text, i, copy in asked:
                with inputs(layers) as seen:
                    model.pipeline_latents(unet, [generator(self.seed, i, copy)], model.encode([text]), [self.until])
                for name, rows in seen.items():
                    found = [F.normalize(x.double(), dim=-1).flatten(0, -2).square().sum(0) for x in rows]
                    before = squares[name] or [torch.zeros_like(total) for total in found]
                    squares[name] = [a + b for a, b in zip(before, found, strict=True)]
                bar.update()
        return {name: [total.sqrt() for total in steps] for name, steps in squares.items()}


def skilled(weight: Tensor, target: Tensor, base: Tensor, share: float) -> Tensor:
    """Which weights [o, j] score among the largest share of their row, and higher than for the base.

    >>> skilled(torch.tensor([[1.0, -3.0, 2.0]]), torch.ones(3), torch.tensor([0.0, 0.5, 2.0]), 0.5).tolist()
    [[False, True, False]]
    """
    ours, theirs = weight.double().abs() * target, weight.double().abs() * base
    largest = ours.topk(max(1, int(share * weight.shape[1])), dim=1).indices
    return torch.zeros_like(weight, dtype=torch.bool).scatter_(1, largest, True) & (ours > theirs)


@contextmanager
def inputs(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """What goes into some layers within the block, call by call."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def watch(rows: list[Tensor]) -> Any:
        return lambda module, args: rows.append(args[0].detach())

    handles = [layer.register_forward_pre_hook(watch(seen[name])) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
