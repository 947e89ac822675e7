"""SepME: the texts it must not touch, its loss written out, where it stops, and the sum of two concepts' changes."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors, cross_attention_projections, encode, last_token
from erasebench.types import Concept, joint
from methods.low_rank import shifted, zero_ups
from methods.sepme import SepME

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="", neighbours={"visual": ("lion", "CAT")})
OWL = Concept(name="owl", phrases=("owl",))
QUICK = SepME(iterations=3, steps=2, batch_size=2, seed=4, images=2, templates=("a {}",), pads=1, threshold=-1e9)


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


def rows(pipe, text, pads):
    return encode(pipe, [text])[0, : int(last_token(pipe, [text])) + 2 + pads]


def test_other_texts_read_the_same_keys_and_values_and_the_concept_does_not(double_pipe):
    erased, before = QUICK.erase(double_pipe, CAT), cross_attention_projections(double_pipe)
    for name, layer in cross_attention_projections(erased).items():
        for text, most in (("", 1e-12), ("lion", 1e-12)):
            x = rows(double_pipe, text, 1)
            assert (layer(x) - before[name](x)).abs().max() < most
        x = rows(double_pipe, "a cat", 1)
        assert (layer(x) - before[name](x)).abs().max() > 1e-7


def test_the_basis_is_orthonormal_and_as_large_as_it_can_be(double_pipe):
    basis = QUICK.basis(double_pipe, ["", "lion"], ["cat"])
    held = torch.cat([rows(double_pipe, "", 1), rows(double_pipe, "lion", 1)])
    assert len(basis) == 32 - int(torch.linalg.matrix_rank(held))
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)).double())
    assert (basis @ held.T).abs().max() < 1e-9
    with pytest.raises(ValueError, match="others must leave 'cat' a direction of the text rows' 32; 3 texts with"):
        replace(QUICK, pads=75).basis(double_pipe, ["", "lion", "tree"], ["cat"])


def test_two_concepts_are_held_against_each_other_and_their_changes_add_up(double_pipe):
    both = joint([CAT, OWL])
    assert QUICK.held(both, CAT) == ["", "lion", "owl"] and QUICK.held(both, OWL) == ["", "cat"]
    model, total = QUICK.denoiser(double_pipe), {}
    for part in (CAT, OWL):
        found = QUICK.change(
            double_pipe, model, part, QUICK.basis(double_pipe, QUICK.held(both, part), part.phrases), both
        )
        total = {name: total.get(name, 0) + change for name, change in found.items()}
    before = cross_attention_projections(double_pipe)
    for name, layer in cross_attention_projections(QUICK.erase(double_pipe, both)).items():
        torch.testing.assert_close(layer.weight.data, before[name].weight + total[name])


def test_the_loss_and_its_gradient_are_the_literal_ones(double_pipe):
    pipe, draw = double_pipe, torch.Generator().manual_seed(2)
    model, ups, basis = QUICK.denoiser(pipe), zero_ups(pipe, 6), torch.linalg.qr(torch.randn(32, 6).double()).Q.T
    for up in ups.values():
        up.data.normal_(generator=draw)
    unet = shifted(pipe, None, {n: (up, 0.01 * basis) for n, up in ups.items()})
    pictures = QUICK.pictures(pipe, [("cat", "cat")])
    first, second = QUICK.loss(model, unet, pictures, 5)
    terms = []
    for p, z, _, t in slow.rows(QUICK.noised(model, pictures, 5)):
        now, was = (slow.asked(pipe, net, z, t, p.text) - slow.asked(pipe, net, z, t, "") for net in (unet, pipe.unet))
        terms.append((now * was).mean())
    literal = sum(terms) / len(terms)
    torch.testing.assert_close(first, literal)
    torch.testing.assert_close(second, sum((up @ (0.01 * basis)).abs().sum() for up in ups.values()))
    for ours, theirs in zip(*(torch.autograd.grad(v, list(ups.values())) for v in (first, literal)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_it_stops_below_the_threshold_and_stays_there(tiny_pipe):
    soon = replace(QUICK, threshold=1e9)  # reached after the first update
    once, long = (replace(soon, iterations=n).erase(tiny_pipe, CAT) for n in (1, 3))
    assert not changed_tensors(long, once)
    assert changed_tensors(replace(QUICK, iterations=3).erase(tiny_pipe, CAT), once)


@pytest.mark.slow
def test_only_keys_and_values_change_by_the_seed_and_a_kill_changes_nothing(tiny_pipe, tmp_path, monkeypatch):
    slow.same_seed_same_bits(QUICK, replace(QUICK, seed=5), tiny_pipe, joint([CAT, OWL]))
    slow.same_bits_when_killed(replace(QUICK, iterations=4), tiny_pipe, CAT, tmp_path, monkeypatch)
    changed = changed_tensors(QUICK.erase(tiny_pipe, CAT), tiny_pipe)
    assert len(changed) == 14 and all(n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in changed)


@pytest.mark.parametrize(
    ("name", "value"),
    [("basis_scale", 0), ("beta", -1), ("momentum", 1), ("pads", -1), ("layers", "full"), ("threshold", "no")],
)
def test_bad_settings_are_refused_at_once(name, value):
    with pytest.raises(ValueError, match=name):
        SepME(**{name: value})
