"""SPEED against a least-squares problem in a basis of what it may change, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch

from erasebench.diffusion import changed_tensors, cross_attention_projections, encode, last_token
from erasebench.types import Concept, joint
from methods.speed import SPEED, invariants, null_space, null_space_edit

CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog", preserve=("sun", "tree", "Cat"))
SUN = Concept(name="moon", phrases=("moon",), anchor="star")
PLAIN = {"anchor": None, "filter": False, "augment": 0}


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


def last(pipe, text):
    return encode(pipe, [text])[0, int(last_token(pipe, [text]))]


def by_hand(weight, pairs, kept, fixed, rho):
    """Ridge regression on the directions that neither a kept row nor an invariant one has a part in."""
    held = torch.stack([*kept, *fixed])
    directions = torch.linalg.svd(held).Vh[torch.linalg.matrix_rank(held) :]  # [f, d]
    seen = torch.stack([directions @ c for c, _ in pairs])
    wanted = torch.stack([weight @ (a - c) for c, a in pairs])
    root = rho**0.5 * torch.eye(len(directions), dtype=weight.dtype)
    left = torch.cat([seen, root])
    right = torch.cat([wanted, torch.zeros(len(root), len(weight), dtype=weight.dtype)])
    return weight + torch.linalg.lstsq(left, right).solution.T @ directions


@pytest.mark.parametrize("concept", [CAT, joint([CAT, SUN])], ids=lambda c: c.name)
def test_the_edit_is_least_squares_outside_what_is_kept(double_pipe, concept):
    method = SPEED(**PLAIN, retain_scale=0.3, threshold=1e-6)
    pairs = [(last(double_pipe, c), last(double_pipe, a)) for c, a in method.pairs(concept)]
    kept = [last(double_pipe, text) for text in ("sun", "tree")]
    erased, fixed = method.erase(double_pipe, concept), invariants(double_pipe, 3)
    before = cross_attention_projections(double_pipe)
    for name, layer in cross_attention_projections(erased).items():
        if name.endswith("to_v"):
            expected = by_hand(before[name].weight, pairs, kept, fixed, 0.3)
            torch.testing.assert_close(layer.weight.data, expected, rtol=1e-7, atol=1e-8)
            assert (layer.weight - before[name].weight).abs().max() > 1e-4
            for row in (*kept, *fixed):
                torch.testing.assert_close(layer.weight @ row, before[name].weight @ row, rtol=1e-7, atol=1e-8)


def test_a_positive_lambda_is_a_penalty():
    draw = torch.Generator().manual_seed(1)
    c, a, fixed, p = (torch.randn(n, 9, generator=draw, dtype=torch.float64) for n in (2, 2, 3, 4))
    free = null_space(p.T @ p, 1e-9)
    edit = null_space_edit(c, a, free, fixed, retain_scale=0.4, invariant_scale=0.5)
    edit = edit.clone().requires_grad_(True)
    change = edit @ free
    loss = (c @ change.T - (a - c)).square().sum() + 0.4 * change.square().sum()
    (gradient,) = torch.autograd.grad(loss + (fixed @ change.T).square().sum() / 0.5, edit)
    torch.testing.assert_close(edit.detach() @ free, edit.detach())
    assert gradient.abs().max() < 1e-9


def test_filtering_and_augmentation_one_row_at_a_time(double_pipe):
    method, draw = SPEED(augment=4, seed=3), torch.Generator().manual_seed(2)
    rows, unbound, weight = (torch.randn(n, 6, generator=draw, dtype=torch.float64) for n in (5, 6, 8))
    shift = [float((weight @ unbound @ row).norm() ** 2) for row in rows]
    kept = [row for row, s in zip(rows, shift, strict=True) if s > sum(shift) / 5]
    found = method.refined(rows, weight, unbound, "a")
    torch.testing.assert_close(found[: len(kept)], torch.stack(kept))
    least = torch.linalg.svd(weight).Vh[-1]
    assert len(kept) < len(found) < 5 * len(kept)
    for row in found[len(kept) :]:  # each is a kept row moved along the least singular direction
        gaps = [(row - k) - least * (least @ (row - k)) for k in kept]
        assert min(float(gap.norm()) for gap in gaps) < 1e-9
    assert torch.equal(found, method.refined(rows, weight, unbound, "a"))
    assert not torch.equal(found[-1], SPEED(augment=4, seed=4).refined(rows, weight, unbound, "a")[-1])
    assert SPEED(filter=False, augment=2).refined(rows, weight, unbound, "a").shape == (15, 6)


@pytest.mark.parametrize(("layers", "ends"), [("value", ("to_v",)), ("key_and_value", ("to_k", "to_v"))])
def test_only_the_chosen_projections_change(tiny_pipe, layers, ends):
    erased = SPEED(layers=layers).erase(tiny_pipe, CAT)
    names = {f"unet.{name}.weight" for name in cross_attention_projections(tiny_pipe) if name.endswith(ends)}
    assert set(changed_tensors(erased, tiny_pipe)) == names
    assert not changed_tensors(SPEED(layers=layers).erase(tiny_pipe, CAT), erased)


def test_sdxl_and_rows_of_all_tokens(tiny_xl_pipe):
    assert changed_tensors(SPEED(pooling="all", invariant_scale=0.5).erase(tiny_xl_pipe, CAT), tiny_xl_pipe)


def test_where_everything_is_kept_nothing_changes(tiny_pipe):
    kept = tuple(f"word {i}" for i in range(80))
    erased = SPEED(preserve=kept, filter=False, augment=0, threshold=1e-12).erase(tiny_pipe, CAT)
    assert all(torch.allclose(t, tiny_pipe.unet.get_parameter(n[5:]), atol=1e-6)
               for n, t in changed_tensors(erased, tiny_pipe).items())  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "query"}, "layers must be one of value, key_and_value"),
        ({"retain_scale": 0}, "retain_scale must be a finite number > 0"),
        ({"invariant_scale": -1}, "invariant_scale must be a finite number >= 0"),
        ({"augment": -1}, "augment must be an integer >= 0"),
        ({"null_rank": 0}, "null_rank must be an integer >= 1"),
        ({"filter": "yes"}, "filter must be"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        SPEED(**changes)


def test_an_anchor_that_is_the_concept_is_refused_before_weights_load():
    with pytest.raises(ValueError, match="anchor must differ"):
        SPEED(anchor="Cat").check(CAT, {})
