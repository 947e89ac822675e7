"""The closed forms against literal sums, their own optimality conditions, and the invariants of the algebra."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.closed_form import derive, edited_weight, grams, shared_matrix, tensor_matrices

SCALES = st.floats(0.05, 20)
few = settings(max_examples=25, deadline=None)


def problem(seed: int, n: int = 5, d: int = 6, pairs: int = 2) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Random pairs of rows, preserved rows and a weight, float64."""
    g = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, d, generator=g, dtype=torch.float64)

    return [(draw(n), draw(n)) for _ in range(pairs)], draw(3), draw(9)


def solve(pairs, kept, lamb=0.5, e=1.0, q=1.0) -> Tensor:
    return shared_matrix(pairs, kept.T @ kept, lamb=lamb, erase_scale=e, preserve_scale=q)


def loss(edited: Tensor, weight: Tensor, pairs, kept, lamb: float, e: float, q: float) -> Tensor:
    """The objective of UCE for one layer, in its own words."""
    erased = sum((edited @ c - weight @ a).square().sum() for C, A in pairs for c, a in zip(C, A, strict=True))
    held = sum((edited @ p - weight @ p).square().sum() for p in kept)
    return e * erased + q * held + lamb * (edited - weight).square().sum()


@few
@given(st.integers(0, 10**6), SCALES, SCALES, SCALES)
def test_shared_matrix_minimises_the_objective_of_every_layer(seed, lamb, e, q):
    pairs, kept, weight = problem(seed)
    edit = solve(pairs, kept, lamb, e, q)
    for layer in (weight, weight.flip(0) * 3, weight[:2]):
        edited = (layer @ edit).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(edited, layer, pairs, kept, lamb, e, q), edited)
        assert gradient.abs().max() < 1e-8 * max(lamb, e, q) * layer.abs().max()


@few
@given(st.integers(0, 10**6), SCALES, SCALES)
def test_no_erasure_is_the_identity_exactly(seed, lamb, q):
    pairs, kept, weight = problem(seed)
    assert torch.equal(weight @ solve(pairs, kept, lamb, 0.0, q), weight)
    tensors = tensor_matrices([weight], pairs, kept.T @ kept, lamb=lamb, erase_scale=0.0, preserve_scale=q)
    assert torch.equal(weight @ next(iter(tensors)), weight)


@few
@given(st.integers(0, 10**6))
def test_order_of_concepts_does_not_matter(seed):
    pairs, kept, _ = problem(seed, pairs=3)
    torch.testing.assert_close(solve(pairs, kept), solve(pairs[::-1], kept), rtol=1e-12, atol=1e-12)


def test_a_large_ridge_leaves_the_weights_as_they_are():
    pairs, kept, _ = problem(0)
    change = [(solve(pairs, kept, lamb=lamb) - torch.eye(6)).norm() for lamb in (1e2, 1e5, 1e8)]
    assert change[0] > change[1] > change[2] and change[2] < 1e-6


def test_erased_rows_reach_their_anchors_as_ridge_and_preservation_vanish():
    pairs, kept, _ = problem(1, n=2)
    (c1, a1), (c2, a2) = pairs

    def distance(small: float) -> Tensor:
        edit = solve(pairs, kept, lamb=small, q=small)
        return ((c1 @ edit.T - a1).norm() + (c2 @ edit.T - a2).norm()).detach()

    distances = [distance(small) for small in (1.0, 1e-2, 1e-4, 1e-8)]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-5


def test_preserved_rows_stay_as_their_scale_grows():
    pairs, kept, _ = problem(2)
    moved = [(kept @ solve(pairs, kept, q=q).T - kept).norm() for q in (1.0, 1e3, 1e6)]
    assert moved[0] > moved[1] > moved[2] and moved[2] < 1e-4


def test_tensor_targets_have_nothing_of_the_concept_left():
    (pair, *_), kept, weight = problem(3, n=2)
    concept, _ = pair
    weak = {"lamb": 1e-10, "erase_scale": 1.0, "preserve_scale": 0.0}
    (edit,) = tensor_matrices([weight], [pair], kept.T @ kept, **weak)
    before, after = concept @ weight.T, concept @ (weight @ edit).T
    assert abs((before * after).sum()) < 1e-7 * before.norm() * after.norm()


def test_derived_rows_minimise_reces_objective():
    _, _, weight = problem(4)
    layers = [(weight @ (torch.eye(6) + 0.3 * problem(s)[2][:6]), weight) for s in (5, 6)]
    concept = problem(7)[0][0][0]
    square, cross = grams(layers)
    for regulariser, centre in (("zero", torch.zeros_like(concept)), ("standard", concept)):
        back = derive(square, cross, regular_scale=0.7, regulariser=regulariser)
        x = (concept @ back.T).requires_grad_()
        value = sum((x @ new.T - concept @ old.T).square().sum() for new, old in layers)
        (gradient,) = torch.autograd.grad(value + 0.7 * (x - centre).square().sum(), x)
        assert gradient.abs().max() < 1e-10 * square.abs().max()


def test_without_regulariser_derive_inverts_the_edit():
    pairs, kept, weight = problem(8)
    edit = solve(pairs, kept)
    square, cross = grams([(weight @ edit, weight)])
    gaps = [(derive(square, cross, regular_scale=r) @ edit - torch.eye(6)).norm() for r in (1e-2, 1e-5, 1e-8, 0.0)]
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] and gaps[3] < 1e-8


def test_a_large_standard_regulariser_returns_the_concept_itself():
    _, _, weight = problem(9)
    square, cross = grams([(weight * 2, weight)])
    torch.testing.assert_close(
        derive(square, cross, regular_scale=1e12, regulariser="standard"), torch.eye(6, dtype=torch.float64)
    )


def test_global_precision_switches_change_nothing():
    pairs, kept, _ = problem(10)
    exact = solve(pairs, kept)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(solve(pairs, kept), exact) and exact.dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)


def test_nan_and_singular_systems_are_errors():
    pairs, kept, weight = problem(11)
    with pytest.raises(ArithmeticError, match="must be finite"):
        solve(pairs, kept * float("nan"))
    with pytest.raises(ArithmeticError, match="singular"):
        derive(torch.zeros(6, 6).double(), torch.eye(6).double(), regular_scale=0.0)
    nothing = [(torch.zeros_like(c), a) for c, a in pairs]
    edits = tensor_matrices([weight], nothing, kept.T @ kept, lamb=1.0, erase_scale=1.0, preserve_scale=1.0)
    layer = torch.nn.Linear(6, 9, bias=False).double()
    with pytest.raises(ArithmeticError, match="edited weight must be finite"):
        edited_weight(layer, next(iter(edits)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_edited_weight_keeps_the_dtype_and_refuses_overflow(dtype):
    layer = torch.nn.Linear(4, 3, bias=False).to(dtype)
    before = layer.weight.clone()
    new = edited_weight(layer, 2 * torch.eye(4, dtype=torch.float64))
    assert new.dtype == dtype and not new.requires_grad
    assert torch.equal(new, before * 2) and torch.equal(layer.weight, before)
    with pytest.raises(ArithmeticError, match="finite in"):
        edited_weight(layer, torch.full((4, 4), 1e308, dtype=torch.float64) * 10)
