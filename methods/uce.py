"""Unified Concept Editing: cross-attention keys and values of a concept become those of its anchor, in closed form.

Gandikota, Orgad, Belinkov, Materzynska and Bau, WACV 2024, arXiv:2308.14761. Two programs carry the name: the paper's,
which moves the last subject token and all padding (``pooling: last+pad``), and the authors' rewrite of April 2025,
which moves one vector (``pooling: last``). They erase differently, so both have a name here: ``uce`` and ``uce_v2``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor

from erasebench.diffusion import cross_attention_projections, fork
from erasebench.fields import choice, flag, number
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.closed_form import WEIGHT, Pair, edited_weight, shared_matrix, tensor_matrices, weight64
from methods.text_rows import EditTexts, expanded


@dataclass(frozen=True, kw_only=True)
class UCE(EditTexts, Method):
    r"""Edits every ``attn2.to_k`` and ``to_v`` weight W [o, d] of a diffusion model to

    .. math:: W^* = (\lambda W + e \sum_i v_i c_i^T + q \sum_j W p_j p_j^T)
                    (\lambda I + e \sum_i c_i c_i^T + q \sum_j p_j p_j^T)^{-1}

    for the rows c of the concept, n of the anchor and p of preserved texts, with v = W n (``replace``, the paper's) or
    W n without its component along W c (``tensor``).

    Deviations from the authors' program: solved in float64 instead of by a float32 inverse; under ``replace`` through
    one matrix for all layers, which is the same edit.

    Several concepts are erased jointly, as the authors do: the sums run over all of them, each with its own anchor.

    Args:
        technique: ``replace`` or ``tensor``.
        lamb: lambda > 0.
        erase_scale: e >= 0.
        preserve_scale: q >= 0, or None for the program's own max(0.1, 1 / number of preserved texts).
        expand_prompts: erase five phrases around the concept too (``art by {}`` for styles, ``photo of {}`` otherwise).
            The anchor stays bare, except with pooling ``last``, where the authors fill it in as well.

    The remaining fields are those of :class:`methods.text_rows.EditTexts`.

    Raises:
        ValueError: a negative scale, an unknown technique or pooling, or an anchor that is the concept.

    >>> UCE(technique="tensor").lamb
    0.5
    """

    technique: Literal["replace", "tensor"] = "replace"
    lamb: float = 0.5
    erase_scale: float = 1.0
    preserve_scale: float | None = None
    expand_prompts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("technique", self.technique, ("replace", "tensor"))
        number("lamb", self.lamb, above=0, hint=WEIGHT)
        number("erase_scale", self.erase_scale, least=0, hint=WEIGHT)
        if self.preserve_scale is not None:
            number("preserve_scale", self.preserve_scale, least=0, hint=WEIGHT)
        flag("expand_prompts", self.expand_prompts)

    @torch.no_grad()
    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its edited weights with ``pipe``."""
        shared, erased = self.matrix(pipe, concept), fork(pipe)
        layers = list(cross_attention_projections(erased).values())
        edits: Iterable[Tensor] = repeat(shared, len(layers))
        if shared is None:
            pairs, kept, scales = self._problem(pipe, concept)
            edits = tensor_matrices(map(weight64, layers), pairs, kept, **scales)
        for layer, edit in zip(layers, edits, strict=True):
            layer.weight = edited_weight(layer, edit)
        erased.edit_matrix = shared
        return erased

    @torch.no_grad()
    def matrix(self, pipe: Pipeline, concept: Concept) -> Tensor | None:
        """T [d, d] float64 with W* = W T in every layer; None under ``tensor``, where no such T exists."""
        if self.technique == "tensor":
            return None
        pairs, kept, scales = self._problem(pipe, concept)
        return shared_matrix(pairs, kept, **scales)

    def pairs(self, concept: Concept) -> list[tuple[str, str]]:
        pairs = super().pairs(concept)
        if not self.expand_prompts:
            return pairs
        fill, more = self.pooling == "last", list[tuple[str, str]]()
        for part in concept.singles:
            more += expanded(part.kind, super().pairs(part), fill)
        return pairs + more

    def _problem(self, pipe: Pipeline, concept: Concept) -> tuple[list[Pair], Tensor, dict[str, float]]:
        kept = self.kept(concept)
        pairs, gram = self.rows(pipe, self.pairs(concept), kept)
        keep = max(0.1, 1 / max(len(kept), 1)) if self.preserve_scale is None else self.preserve_scale
        return pairs, gram, {"lamb": self.lamb, "erase_scale": self.erase_scale, "preserve_scale": keep}
