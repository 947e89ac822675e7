"""The algebra that UCE and RECE share: pure functions of float64 tensors, none of which knows a text or a model.

A cross-attention projection W [o, d] (``attn2.to_k`` or ``to_v``) turns a text row c [d] into a key or value W c. Rows
of texts are stacked as [n, d]: C of concepts, N of their anchors, P of preserved texts, so that a sum of outer
products n c^T over rows is ``N.T @ C``.

**One matrix edits every layer.** Where targets and kept values are the layer's own (W n and W p), the edited weight is
W T with one T [d, d] for all layers:

    T = (lamb I + e N^T C + q P^T P) (lamb I + e C^T C + q P^T P)^-1

Editing 32 matrices costs one d x d solve, and is the same as mapping every text embedding c to T c.

All of it runs on the CPU in float64, whatever the device and dtype of the model. The 77 rows of a text are nearly
parallel, so the second factor is badly conditioned: inverted in float32 it leaves visible errors in the weights, in
TF32 (a global switch of torch) it destroys them. Float64 on the CPU knows no such switch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from erasebench.diffusion import edited_weight as edited_weight  # the run applies a stored matrix by the same code
from erasebench.diffusion import weight64 as weight64
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline

Pair = tuple[Tensor, Tensor]  # rows of a concept and, aligned with them, rows of its anchor: both [n, d] float64
Regulariser = Literal["zero", "standard"]
WEIGHT = "give a weight of a sum of squares"  # what every scale of an edit is


class SharedEdit(Method, Protocol):
    """A method that multiplies every projection by one and the same matrix from the right."""

    def matrix(self, pipe: Pipeline, concept: Concept) -> Tensor | None:
        """T [d, d] float64 with W_new = W T in every layer, or None where the edit differs from layer to layer."""
        ...


def shared_matrix(
    pairs: Sequence[Pair], kept: Tensor, *, lamb: float, erase_scale: float, preserve_scale: float
) -> Tensor:
    r"""The T that minimises, for every layer W at once,

    .. math:: e \sum_i \|W T c_i - W n_i\|^2 + q \sum_j \|W T p_j - W p_j\|^2 + \lambda \|W T - W\|_F^2 .

    Unified Concept Editing, Gandikota et al. 2024, arXiv:2308.14761, with its targets v* = W n.

    Args:
        pairs: rows of the concepts and of their anchors, [n, d] float64 each.
        kept: P^T P, the Gram matrix of the preserved rows, [d, d] float64.
        lamb: ridge towards no change, > 0; large values leave the weights as they are.
        erase_scale: e >= 0; 0 gives the identity exactly.
        preserve_scale: q >= 0.

    Returns:
        T [d, d] float64; weights are edited as ``W @ T``.

    Raises:
        ArithmeticError: the system is singular or its solution is not finite.

    The order of the concepts does not matter, and what is erased lands on its anchor:

    >>> c, a = torch.eye(3, dtype=torch.float64)[:1], torch.eye(3, dtype=torch.float64)[1:2]
    >>> edit = shared_matrix([(c, a)], torch.zeros_like(torch.eye(3)), lamb=1e-9, erase_scale=1.0, preserve_scale=1.0)
    >>> [round(x, 6) for x in (edit @ c[0]).tolist()]
    [0.0, 1.0, 0.0]
    """
    towards = sum((c.T @ (a - c) for c, a in pairs), torch.zeros_like(kept))
    system = _system(pairs, kept, lamb, erase_scale, preserve_scale)
    return _identity(kept) + _solve(system, erase_scale * towards).T


def tensor_matrices(
    weights: Iterable[Tensor],
    pairs: Sequence[Pair],
    kept: Tensor,
    *,
    lamb: float,
    erase_scale: float,
    preserve_scale: float,
) -> Iterable[Tensor]:
    r"""One T_l per layer for UCE's ``tensor`` technique, whose targets have the concept's direction removed.

    With U = W C^T / ||W C^T||_F over all rows of a pair, the target of row i is ``W n_i - <U, W N^T> u_i``. That is
    ``W (n_i - s c_i)`` with ``s = <W C^T, W N^T> / ||W C^T||_F^2``: only the number s depends on the layer.

    Arguments and errors are those of :func:`shared_matrix`; ``weights`` are the layers' [o, d] float64 matrices.
    Yields T_l [d, d] float64 in the same order.
    """
    base = shared_matrix(pairs, kept, lamb=lamb, erase_scale=erase_scale, preserve_scale=preserve_scale)
    system = _system(pairs, kept, lamb, erase_scale, preserve_scale)
    removals = [_solve(system, erase_scale * (c.T @ c)).T for c, _ in pairs]
    for weight in weights:
        edit = base.clone()
        for (concept, anchor), removal in zip(pairs, removals, strict=True):
            value = concept @ weight.T
            share = (value * (anchor @ weight.T)).sum() / value.square().sum()
            edit -= share * removal
        yield edit


def grams(layers: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sums over layers of W^T W and of W^T W_orig, [d, d] float64 each, from (W, W_orig), both [o, d] float64.

    Where W is W_orig itself the product is formed once.
    """
    square, cross = torch.zeros(()), torch.zeros(())
    for edited, original in layers:
        product = edited.T @ edited
        square = square + product
        cross = cross + (product if edited is original else edited.T @ original)
    return square, cross


def derive(square: Tensor, cross: Tensor, *, regular_scale: float, regulariser: Regulariser = "zero") -> Tensor:
    r"""The matrix K of RECE that maps a concept's row c to the row c' = K c that brings the concept back.

    .. math:: c' = \arg\min_x \sum_l \|W_l x - W_l^{orig} c\|^2 + r \|x - x_0\|^2 ,

    with x_0 = 0 (``zero``, the published setting) or x_0 = c (``standard``). RECE, Gong et al. 2024, arXiv:2407.12383.
    As r goes to 0 and W_l = W_l^orig T, K goes to the inverse of T.

    Args:
        square: sum of W_l^T W_l over the edited layers, [d, d] float64.
        cross: sum of W_l^T W_l^orig, [d, d] float64.
        regular_scale: r >= 0.
        regulariser: ``zero`` or ``standard``.

    Returns:
        K [d, d] float64; rows are mapped as ``C @ K.T``.

    Raises:
        ArithmeticError: the system is singular or its solution is not finite.

    >>> edit = torch.diag(torch.tensor([0.5, 1.0], dtype=torch.float64))
    >>> derive(edit.T @ edit, edit.T, regular_scale=0.0).tolist()
    [[2.0, 0.0], [0.0, 1.0]]
    """
    ridge = regular_scale * _identity(square)
    return _solve(ridge + square, cross + ridge if regulariser == "standard" else cross)


def fused(
    changes: Sequence[Mapping[str, Tensor]],
    squares: Sequence[Tensor],
    kept: Tensor,
    *,
    lamb: float,
    preserve_scale: float,
) -> dict[str, Tensor]:
    r"""One change X_l of each layer that does on every concept's rows what its own change does there,

    .. math:: \min_X \sum_i \sum_{e \in E_i} \|X e - \Delta_i e\|^2 + q \sum_j \|X p_j\|^2 + \lambda \|X\|_F^2,
              \qquad X = \Big(\sum_i \Delta_i S_i\Big) \Big(\sum_i S_i + q P^T P + \lambda I\Big)^{-1} .

    MACE's fusion, Lu et al. 2024, arXiv:2403.06135. All layers are solved at once.

    Args:
        changes: for each concept i, layer -> Delta_i [o, d] float64.
        squares: S_i, the Gram matrices [d, d] of the concepts' rows E_i.
        kept: P^T P [d, d].
        lamb: >= 0; preserve_scale: q >= 0.

    Raises:
        ArithmeticError: the system is singular or its solution is not finite.

    >>> one, few = torch.ones(1, 2, dtype=torch.float64), torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    >>> fused([{"a": one}], [few], 0 * few, lamb=1e-9, preserve_scale=1.0)["a"].round(decimals=6).tolist()
    [[1.0, 0.0]]
    """
    names = list(changes[0])
    wanted = torch.cat([sum((c[n] @ s for c, s in zip(changes, squares, strict=True)), torch.zeros(())) for n in names])
    system = sum(squares, lamb * _identity(kept) + preserve_scale * kept)
    sizes = [len(changes[0][name]) for name in names]
    return dict(zip(names, _solve(system, wanted.T).T.split(sizes), strict=True))


def _system(pairs: Sequence[Pair], kept: Tensor, lamb: float, erase_scale: float, preserve_scale: float) -> Tensor:
    concepts = sum((c.T @ c for c, _ in pairs), torch.zeros_like(kept))
    return lamb * _identity(kept) + erase_scale * concepts + preserve_scale * kept


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[0], dtype=torch.float64)


def _solve(system: Tensor, right: Tensor) -> Tensor:
    try:
        solution = torch.linalg.solve(system, right)
    except torch.linalg.LinAlgError as error:
        raise ArithmeticError("closed form must have one solution; the system is singular; raise lamb or r") from error
    if not torch.isfinite(solution).all():
        raise ArithmeticError("closed form must be finite; got nan or inf; check the weights and text embeddings")
    return solution
