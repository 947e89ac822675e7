"""MACE: its closed forms against stacked least squares, its loss against attention written out, what it changes."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors, encode, last_token
from erasebench.types import Concept, joint
from methods.closed_form import fused
from methods.low_rank import Shift, shifted, with_changes, zero_ups
from methods.mace import MACE, _map, _shrunk

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog", preserve=("sun", "Cat"))
OWL = Concept(name="owl", phrases=("owl",), anchor="bird")
QUICK = MACE(iterations=2, steps=2, batch_size=2, lr=1e-2, seed=4, images=2, templates=("a {} by a tree",), pads=2)


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


def sentence(pipe, word, template, pads):
    """The rows from the last token of the word on, and where they start."""
    first = int(last_token(pipe, [template.split("{}")[0] + word]))
    end = int(last_token(pipe, [template.replace("{}", word)])) + 1
    return encode(pipe, [template.replace("{}", word)])[0, first : end + pads + 1]


def test_the_refinement_maps_the_words_after_the_concept(double_pipe):
    pairs = [("cat", "dog"), ("owl", "bird")]
    kept = sentence(double_pipe, "sun", QUICK.templates[0], 2)
    found = replace(QUICK, preserve_scale=0.3, lamb=0.2).refinement(double_pipe, pairs, kept.T @ kept)
    own, other = (
        torch.cat([sentence(double_pipe, pair[i], QUICK.templates[0], 2)[1:] for pair in pairs]) for i in (0, 1)
    )
    assert len(own) == len(other) == 2 * (len("byatree") + 3)  # bytes are tokens
    left = torch.cat([own, 0.3**0.5 * kept, 0.2**0.5 * torch.eye(32)])
    right = torch.cat([other, 0.3**0.5 * kept, 0.2**0.5 * torch.eye(32)])
    torch.testing.assert_close(found, torch.linalg.lstsq(left, right).solution.T, rtol=1e-6, atol=1e-8)


def test_the_fusion_does_on_each_concept_s_rows_what_its_adapter_does():
    draw = torch.Generator().manual_seed(0)
    rows, kept = (
        torch.randn(2, 3, 12, generator=draw, dtype=torch.float64),
        torch.randn(4, 12, generator=draw).double(),
    )
    changes = [{"a": torch.randn(5, 12, generator=draw).double(), "b": torch.randn(7, 12, generator=draw).double()}
               for _ in rows]  # fmt: skip
    squares = [r.T @ r for r in rows]
    found = fused(changes, squares, kept.T @ kept, lamb=0.1, preserve_scale=0.5)
    for name in ("a", "b"):
        left = torch.cat([*rows, 0.5**0.5 * kept, 0.1**0.5 * torch.eye(12)])
        goals = [r @ change[name].T for r, change in zip(rows, changes, strict=True)]
        right = torch.cat([*goals, torch.zeros(16, len(found[name]), dtype=torch.float64)])
        torch.testing.assert_close(found[name], torch.linalg.lstsq(left, right).solution.T)
    exact = fused(changes, squares, kept.T @ kept, lamb=1e-10, preserve_scale=1.0)
    for r, change in zip(rows, changes, strict=True):  # 10 rows fit into 12 directions
        torch.testing.assert_close(r @ exact["a"].T, r @ change["a"].T, rtol=1e-5, atol=1e-5)
    assert (kept @ exact["a"].T).abs().max() < 1e-6
    with pytest.raises(ArithmeticError, match="singular"):
        fused(changes[:1], [0 * squares[0]], 0 * squares[0], lamb=0.0, preserve_scale=1.0)


def watched(pipe, unet, z, t, text, columns, mask):
    """Masked squared probabilities head by head, from what hooks see of every cross-attention."""
    inputs, handles = [], []
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            handles.append(module.register_forward_pre_hook(lambda m, args: inputs.append((m, args[0]))))
    slow.asked(pipe, unet, z, t, text)
    for handle in handles:
        handle.remove()
    total, states = 0, slow.slow.states(pipe, text)
    for attn, x in inputs:
        q, k = attn.to_q(x)[0], attn.to_k(states)[0]
        width, side = q.shape[1] // attn.heads, int(len(q) ** 0.5)
        small = torch.nn.functional.adaptive_avg_pool2d(mask[None], side)[0] >= 0.5
        for h in range(attn.heads):
            part = slice(h * width, (h + 1) * width)
            a = ((q[:, part] @ k[:, part].T) / width**0.5).softmax(1)
            for j in columns:
                for pixel in small.flatten().nonzero()[:, 0].tolist():
                    total = total + a[pixel, j] ** 2
    return total


def test_the_loss_and_its_gradient_are_the_literal_ones(double_pipe):
    pipe, draw = double_pipe, torch.Generator().manual_seed(2)
    model, ups = QUICK.denoiser(pipe), zero_ups(pipe, 2)
    downs = {n: torch.randn(2, 32, generator=draw, dtype=torch.float64, requires_grad=True) for n in ups}
    for up in ups.values():
        up.data.normal_(generator=draw)
    unet = shifted(pipe, None, {n: (up, downs[n]) for n, up in ups.items()})
    pictures = QUICK.pictures(pipe, [("cat", "cat")])
    masks = [(torch.rand(8, 8, generator=draw) > 0.5).double() for _ in pictures]
    loss = QUICK.loss(model, unet, list(zip(pictures, masks, strict=True)), "cat", 3)
    few = QUICK.noised(model, pictures, 3, "cat")
    literal = sum(
        watched(pipe, unet, z, t, p.text, [2, 3, 4], masks[next(i for i, q in enumerate(pictures) if q is p)])
        for p, z, _, t in slow.rows(few)
    )
    torch.testing.assert_close(loss, literal / 2)
    names = list(ups)[::2]  # keys
    both = [torch.autograd.grad(v, [*(ups[n] for n in names), *(downs[n] for n in names)], allow_unused=True)
            for v in (loss, literal / 2)]  # fmt: skip
    for ours, theirs in zip(*both, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


def test_masks_are_where_the_original_looks(double_pipe):
    method = replace(QUICK, threshold=0.4)
    model = method.denoiser(double_pipe)
    (picture, *_) = method.pictures(double_pipe, [("cat", "cat")])
    mask = method.seen(model, picture, "cat")
    assert mask.shape == (8, 8) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(mask, method.seen(model, picture, "cat"))
    assert mask.sum() >= method.__class__.seen(replace(method, threshold=0.9), model, picture, "cat").sum() > 0
    assert replace(method, mask="whole").seen(model, picture, "cat").min() == 1
    assert not any(type(m).__name__ == "_Watched" for m in double_pipe.unet.attn_processors.values())
    wide = torch.zeros(4, 8)
    wide[:, 4:] = 1
    assert _shrunk(wide, 8).tolist() == [0, 0, 1, 1] * 2 and _map(torch.arange(8.0), (4, 8)).shape == (4, 8)


def test_shifted_weights_share_all_else_and_changes_are_added(tiny_pipe):
    ups = zero_ups(tiny_pipe, 1)
    unet = shifted(tiny_pipe, None, {n: (up, torch.ones(1, 32)) for n, up in ups.items()})
    assert sum(isinstance(m, Shift) for m in unet.modules()) == len(ups) == 14
    assert not any(isinstance(m, Shift) for m in tiny_pipe.unet.modules())
    name, up = next(iter(ups.items()))
    with torch.no_grad():
        up += 1
        torch.testing.assert_close(unet.get_submodule(name).weight, tiny_pipe.unet.get_submodule(name).weight + 1)
    changed = changed_tensors(with_changes(tiny_pipe, {name: torch.ones(len(up), 32)}), tiny_pipe)
    assert list(changed) == [f"unet.{name}.weight"]
    with pytest.raises(ArithmeticError, match="must be finite"):
        with_changes(tiny_pipe, {name: torch.full((len(up), 32), float("inf"))})


def test_the_whole_edit_of_two_concepts_put_together_by_hand(double_pipe):
    erased = QUICK.erase(double_pipe, joint([CAT, OWL]))
    changed = changed_tensors(erased, double_pipe)
    assert len(changed) == 14 and all(n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in changed)
    assert not changed_tensors(QUICK.erase(double_pipe, joint([CAT, OWL])), erased)
    assert changed_tensors(replace(QUICK, seed=5).erase(double_pipe, joint([CAT, OWL])), erased)
    assert QUICK.kept(CAT) == ["sun"]


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bits(tiny_pipe, tmp_path, monkeypatch):
    slow.same_bits_when_killed(replace(QUICK, iterations=4), tiny_pipe, CAT, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "xattn"}, "layers must be one of xattn_strict"),
        ({"rank": 0}, "rank must be an integer >= 1"),
        ({"mask": "sam"}, "mask must be one of attention, whole"),
        ({"threshold": 1}, "threshold must be"),
        ({"lamb": 0}, "lamb must be a finite number > 0"),
        ({"fuse_preserve_scale": -1}, "fuse_preserve_scale must be"),
        ({"pads": -1}, "pads must be"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        MACE(**changes)


def test_a_concept_without_an_anchor_is_refused_before_weights_load():
    with pytest.raises(ValueError, match="must have an anchor"):
        QUICK.check(Concept(name="cat", phrases=("cat",)), {})
