"""RECE: derive the embedding that brings an erased concept back, erase that too, and repeat.

Gong, Chen, Wei, Chen and Jiang, "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models", ECCV 2024,
arXiv:2407.12383.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from erasebench.diffusion import cross_attention_projections, fork
from erasebench.fields import choice, integer, number
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.closed_form import (
    WEIGHT,
    Pair,
    Regulariser,
    SharedEdit,
    derive,
    edited_weight,
    grams,
    shared_matrix,
    weight64,
)
from methods.text_rows import EditTexts, Pooling, Rows


@dataclass(frozen=True, kw_only=True)
class RECE(EditTexts, Method):
    r"""Starts from a closed-form edit (UCE) and repeats, for ``epochs`` epochs,

    .. math:: c' = (r I + \sum_l W_l^T W_l)^{-1} \sum_l W_l^T W_l^{orig} c, \qquad
              W_l \leftarrow \arg\min_W e \|W c' - W_l n\|^2 + q \|W p - W_l p\|^2 + \lambda \|W - W_l\|^2

    for all rows c of the concept, n of the anchor and p of preserved texts. W_l^orig is the untouched model's, in every
    epoch; values are those of the current weights.

    Every step is W -> W T with one T for all layers, so an epoch is two d x d solves on T and on the Gram matrix of all
    layers, whatever their number; the layers themselves are touched once, at the end. Only where the start differs
    from layer to layer (UCE's ``tensor``) are its edited weights read too.

    Deviations from the authors' program: solved in float64; no epoch is chosen by generating images (the program keeps
    the checkpoint that scores best on a validation set, which its published time leaves out); several phrases of one
    concept share the preserved texts as given instead of repeating ``" "`` once per phrase.

    Args:
        start: the edit to start from; any method with the ``matrix`` of :class:`methods.closed_form.SharedEdit`.
        epochs: number of derive and re-edit steps >= 0; 3 for nudity, 2 for "unsafe", 1 for artists and objects.
        regular_scale: r >= 0; 1e-1 for nudity and easy objects, 1e-3 for artists and hard objects.
        regulariser: ``zero`` pulls c' to 0 (published), ``standard`` to c.
        lamb: lambda > 0 of the re-edit.
        erase_scale: e >= 0 of the re-edit.
        preserve_scale: q >= 0 of the re-edit.

    The remaining fields are those of :class:`methods.text_rows.EditTexts`, for the re-edit; ``start`` has its own.

    Raises:
        ValueError: a negative scale or number of epochs, an unknown regulariser or pooling, a start that is no
            closed-form edit, or an anchor that is the concept.

    >>> from methods.uce import UCE
    >>> RECE(start=UCE()).epochs
    3
    """

    start: SharedEdit
    epochs: int = 3
    regular_scale: float = 0.1
    regulariser: Regulariser = "zero"
    lamb: float = 0.1
    erase_scale: float = 1.0
    preserve_scale: float = 0.1
    pooling: Pooling | Rows = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(getattr(self.start, "matrix", None)):
            raise ValueError(f"start must be a closed-form edit; got {self.start!r}; give one such as methods.uce.UCE")
        integer("epochs", self.epochs, least=0, hint="the paper uses 1 to 3")
        choice("regulariser", self.regulariser, get_args(Regulariser))
        number("lamb", self.lamb, above=0, hint=WEIGHT)
        for name in ("regular_scale", "erase_scale", "preserve_scale"):
            number(name, getattr(self, name), least=0, hint=WEIGHT)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """A ValueError, before any weight is loaded, if an anchor of this or of the start is the concept itself."""
        super().check(concept, shapes)
        self.start.check(concept, shapes)

    @torch.no_grad()
    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its edited weights with ``pipe``."""
        shared, edited = self.matrix(pipe, concept), pipe
        total = shared
        if total is None:
            edited = self.start.erase(pipe, concept)
            square, cross = grams(zip(_weights(edited), _weights(pipe), strict=True))
            rows = self.rows(pipe, self.pairs(concept), self.kept(concept))
            total = self._re_edits(*rows, square, cross)
        erased = fork(edited)
        for layer in cross_attention_projections(erased).values():
            layer.weight = edited_weight(layer, total)
        erased.edit_matrix = shared
        return erased

    @torch.no_grad()
    def matrix(self, pipe: Pipeline, concept: Concept) -> Tensor | None:
        """T [d, d] float64 with W_new = W T in every layer; None where the start has no such T."""
        first = self.start.matrix(pipe, concept)
        if first is None:
            return None
        rows = self.rows(pipe, self.pairs(concept), self.kept(concept))
        gram, _ = grams((weight, weight) for weight in _weights(pipe))
        return first @ self._re_edits(*rows, first.T @ gram @ first, first.T @ gram)

    def _re_edits(self, pairs: list[Pair], kept: Tensor, square: Tensor, cross: Tensor) -> Tensor:
        """T [d, d] of all epochs together, from the sums of W^T W and W^T W_orig before the first.

        After W -> W T these sums are T^T (sum of W^T W) T and T^T (sum of W^T W_orig).
        """
        total = torch.eye(kept.shape[0], dtype=torch.float64)
        for _ in range(self.epochs):
            back = derive(
                total.T @ square @ total,
                total.T @ cross,
                regular_scale=self.regular_scale,
                regulariser=self.regulariser,
            )
            total = total @ shared_matrix(
                [(concept @ back.T, anchor) for concept, anchor in pairs],
                kept,
                lamb=self.lamb,
                erase_scale=self.erase_scale,
                preserve_scale=self.preserve_scale,
            )
        return total


def _weights(pipe: Pipeline) -> Iterator[Tensor]:
    return map(weight64, cross_attention_projections(pipe).values())
