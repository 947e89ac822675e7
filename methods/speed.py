"""SPEED: a closed-form edit of the values inside the null space of what is to be kept.

Li, Wang, Hu, Jiang, Liang, Hao, Ma and Feng, "SPEED: Scalable, Precise, and Efficient Concept Erasure for Diffusion
Models", ICLR 2026, arXiv:2503.07392; official program: github.com/Ouxiang-Li/SPEED.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from erasebench.diffusion import cross_attention_projections, edited_weight, fork, weight64
from erasebench.fields import choice, flag, integer, number
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.fine_tuning import generator
from methods.text_rows import BareTexts, EditTexts, Pooling, Rows, encoded


@dataclass(frozen=True, kw_only=True)
class SPEED(EditTexts, Method):
    r"""Edits every ``attn2.to_v`` (or ``to_k`` too) weight W [o, d] to W + X, with X of

    .. math:: \min_X \|X c - W (a - c)\|^2 + \rho \|X\|_F^2, \qquad X = X P, \quad X K_2 = 0,

    in closed form, for the rows c of all concepts and a of their anchors:

    .. math:: X = W (\Sigma_a - \Sigma_t) P [I - M K_2 (K_2^T P M K_2 + \lambda I)^{-1} K_2^T P] M, \qquad
              M = (\Sigma_t P + \rho I)^{-1}, \quad \Sigma_a = \sum a c^T, \quad \Sigma_t = \sum c c^T .

    P projects onto the eigenvectors of the kept rows' Gram matrix with eigenvalues below ``threshold``. K_2 is what
    must stay as it is: the start token and the centres of k-means on the other rows of ``""``. lambda > 0 makes this a
    penalty of ``|X K_2|^2 / lambda``; 0 is exact.

    Kept rows are chosen for each layer. Filtering keeps those that the edit without any constraint (P = I, rho = 1)
    moves by more than their mean, in ``|W D p|^2``. Augmentation adds, to each of these, ``augment`` rows
    p + P_min e with e ~ N(0, I) and P_min the projector on W's least right singular vectors, filtered likewise.

    Deviations from paper and program: float64 throughout; at lambda = 0, K_2 is replaced by an orthonormal basis of
    P K_2, which is the same constraint and has no singular system; noise comes from a generator of (seed, layer);
    k-means is scipy's, started by k-means++ from a fixed seed. Where filtering happens twice, each time uses its own
    mean. Whether the program's Gram matrix is a sum or a mean was not seen; here it is a sum. Not compared with the
    program either: the filter's ridge of 1, the filtering of augmentations, and ``null_rank`` 1.

    Cost: one eigendecomposition and two solves of d x d for each layer, and no evaluation of the UNet.

    Several concepts are erased jointly, as the authors do.

    Args:
        layers: ``value`` (the program's default) or ``key_and_value``.
        retain_scale: rho > 0, ridge towards no change.
        invariant_scale: lambda >= 0.
        centres: k-means centres of the rows of ``""`` after the start token, >= 0.
        threshold: eigenvalues below it count as null space, > 0.
        filter: influence-based prior filtering.
        augment: directed augmentations of each kept row, >= 0.
        null_rank: least singular directions that augmentation moves along, >= 1.
        seed: of the augmentation, >= 0.

    The remaining fields are those of :class:`methods.text_rows.EditTexts`; preserved texts have the same pooling as
    the concept.

    Raises:
        ValueError: a value out of its range, or an anchor that is the concept.
        ArithmeticError: weights or embeddings that are not finite.

    >>> SPEED(retain_scale=0)
    Traceback (most recent call last):
    ValueError: retain_scale must be a finite number > 0; got 0; the authors use 0.05 to 1
    """

    pooling: Pooling | Rows = "last"
    preserve: tuple[str, ...] = ()
    layers: Literal["value", "key_and_value"] = "value"
    retain_scale: float = 1.0
    invariant_scale: float = 0.0
    centres: int = 3
    threshold: float = 0.1
    filter: bool = True
    augment: int = 10
    null_rank: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("layers", self.layers, ("value", "key_and_value"))
        number("retain_scale", self.retain_scale, above=0, hint="the authors use 0.05 to 1")
        number("invariant_scale", self.invariant_scale, least=0, hint="the authors use 0 and 0.5")
        number("threshold", self.threshold, above=0, hint="the authors use 0.1")
        for name, least in (("centres", 0), ("augment", 0), ("null_rank", 1), ("seed", 0)):
            integer(name, getattr(self, name), least=least)
        flag("filter", self.filter)

    @torch.no_grad()
    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but its edited weights with ``pipe``."""
        rows = BareTexts(self.pooling) if isinstance(self.pooling, str) else self.pooling
        pairs, kept = rows.pairs(pipe, self.pairs(concept)), self.kept(concept)
        concepts, anchors = torch.cat([c for c, _ in pairs]), torch.cat([a for _, a in pairs])
        same = rows.pairs(pipe, [(text, text) for text in kept]) if kept else []
        retained = torch.cat([concepts[:0], *(row for row, _ in same)])
        fixed, free = invariants(pipe, self.centres), torch.eye(concepts.shape[1], dtype=torch.float64)
        unbound = null_space_edit(concepts, anchors, free, fixed[:0], retain_scale=1.0, invariant_scale=0.0)
        erased = fork(pipe)
        for name, layer in cross_attention_projections(erased).items():
            if self.layers == "key_and_value" or name.endswith("to_v"):
                held = self.refined(retained, weight64(layer), unbound, name)
                edit = null_space_edit(
                    concepts,
                    anchors,
                    null_space(held.T @ held, self.threshold),
                    fixed,
                    retain_scale=self.retain_scale,
                    invariant_scale=self.invariant_scale,
                )
                layer.weight = edited_weight(layer, free + edit)
        return erased

    def refined(self, rows: Tensor, weight: Tensor, unbound: Tensor, name: str) -> Tensor:
        """The rows [m, d] that the layer ``name`` keeps: filtered, and their augmentations filtered likewise."""
        held = self._influenced(rows, weight @ unbound)
        if not self.augment or not len(held):
            return held
        least = torch.linalg.eigh(weight.T @ weight).eigenvectors[:, : self.null_rank]
        shape = (self.augment * len(held), rows.shape[1])
        noise = torch.randn(shape, generator=generator(self.seed, name), dtype=torch.float64)
        moved = held.repeat(self.augment, 1) + noise @ least @ least.T
        return torch.cat([held, self._influenced(moved, weight @ unbound)])

    def _influenced(self, rows: Tensor, change: Tensor) -> Tensor:
        if not self.filter or not len(rows):
            return rows
        shift = (rows @ change.T).square().sum(dim=1)
        return rows[shift > shift.mean()]


def null_space(gram: Tensor, threshold: float) -> Tensor:
    """Projector [d, d] on the eigenvectors of a Gram matrix whose eigenvalues are below ``threshold``.

    >>> null_space(torch.diag(torch.tensor([4.0, 0.0])), 0.1).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    if not torch.isfinite(gram).all():
        raise ArithmeticError("kept rows must be finite; got nan or inf; check the text encoder's weights")
    values, vectors = torch.linalg.eigh(gram)
    free = vectors[:, values < threshold]
    return free @ free.T


def null_space_edit(
    concepts: Tensor,
    anchors: Tensor,
    projector: Tensor,
    fixed: Tensor,
    *,
    retain_scale: float,
    invariant_scale: float,
) -> Tensor:
    """D [d, d] float64 with X = W D, the closed form of :class:`SPEED`, for every W [o, d].

    Args:
        concepts, anchors: rows [n, d] float64, aligned.
        projector: P [d, d] float64.
        fixed: rows [m, d] float64 of K_2; m may be 0.
        retain_scale: rho > 0.
        invariant_scale: lambda >= 0.
    """
    eye = torch.eye(concepts.shape[1], dtype=torch.float64)
    inner = torch.linalg.solve(concepts.T @ concepts @ projector + retain_scale * eye, eye)
    held = projector @ fixed.T
    if invariant_scale == 0 and len(fixed):
        basis, sizes, _ = torch.linalg.svd(held, full_matrices=False)
        held = basis[:, sizes > 1e-10 * fixed.norm()]
    within = held.T @ inner @ held + invariant_scale * torch.eye(held.shape[1], dtype=torch.float64)
    released = inner - inner @ held @ torch.linalg.solve(within, held.T @ inner)
    edit = (anchors - concepts).T @ concepts @ projector @ released
    if not torch.isfinite(edit).all():
        raise ArithmeticError("closed form must be finite; got nan or inf; check the weights and text embeddings")
    return edit


def invariants(pipe: Pipeline, centres: int) -> Tensor:
    """Rows [1 + centres, d] float64: the start token's, and k-means centres of the other rows of ``""``."""
    (empty,) = encoded(pipe, [""])
    if not centres:
        return empty[:1]
    found, _ = kmeans2(empty[1:].numpy(), centres, minit="++", rng=np.random.default_rng(0))
    return torch.cat([empty[:1], torch.from_numpy(found)])
