"""AdvAnchor against itself written out one latent and one step of Adam at a time."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.types import Concept, joint
from methods.advanchor import AdvAnchor
from methods.fine_tuning import layer_names, student

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"iterations": 4, "steps": 2, "batch_size": 2, "lr": 1e-3, "seed": 4, "images": 2, "templates": ("a {}",),
         "inner_steps": 3, "inner_lr": 0.1}  # fmt: skip
ROWS = {"a cat": [2, 3, 4], "a sun": [2, 3, 4]}


def anchor_by_hand(pipe, method, picture, z, t):
    """(c + delta, steps taken), Adam by its formula."""
    states, e = slow.slow.states(pipe, picture.text), pipe.unet
    concept = slow.asked(pipe, e, z, t, picture.text, grad=False)
    empty = slow.asked(pipe, e, z, t, "", grad=False) if method.likeness == "adv2" else torch.zeros_like(concept)
    delta = torch.full_like(states[:, 2:5], 1e-7)
    m, v, taken = torch.zeros_like(delta), torch.zeros_like(delta), 0
    for k in range(1, method.inner_steps + 1):
        delta = delta.detach().requires_grad_()
        changed = torch.cat([states[:, :2], states[:, 2:5] + delta, states[:, 5:]], 1)
        alike = ((slow.asked(pipe, e, z, t, changed) - empty) * (concept - empty)).mean()
        if alike < 0:
            break
        (g,) = torch.autograd.grad(alike, [delta])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        delta = delta - method.inner_lr * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
        taken = k
    return torch.cat([states[:, :2], states[:, 2:5] + delta.detach(), states[:, 5:]], 1), taken


def by_hand(pipe, unet, method, few):
    erase, keep, taken = 0, 0, []
    for picture, z, _, t in slow.rows(few):
        anchor, steps = anchor_by_hand(pipe, method, picture, z, t)
        goal = slow.asked(pipe, pipe.unet, z, t, anchor, grad=False)
        erase += ((slow.asked(pipe, unet, z, t, picture.text) - goal) ** 2).mean()
        same = slow.asked(pipe, pipe.unet, z, t, method.kept, grad=False)
        keep += ((slow.asked(pipe, unet, z, t, method.kept) - same) ** 2).mean()
        taken.append(steps)
    return (erase + method.preserve_scale * keep) / len(taken), taken


@pytest.mark.parametrize(
    "fields", [{}, {"likeness": "adv1", "kept": "painting"}, {"inner_lr": 2.0, "inner_steps": 12}, {"inner_steps": 0}]
)
def test_the_loss_and_its_gradient_are_the_literal_ones(make_pipe, fields):
    pipe = make_pipe(dtype=torch.float64)
    method = AdvAnchor(**(QUICK | {"batch_size": 3} | fields))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn")
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    pictures = method.pictures(pipe, [("cat", "cat"), ("sun", "sun")])
    literal, taken = by_hand(pipe, unet, method, method.noised(model, pictures, 5))
    slow.same_gradients(method.loss(model, unet, pictures, ROWS, 5), literal, weights, 1e-5)
    if method.inner_lr == 2.0:
        assert min(taken) < 12  # some latent stopped early


@pytest.mark.slow
def test_only_cross_attention_moves_for_one_and_several_concepts(tiny_pipe):
    for concept in (CAT, joint([CAT, SUN])):
        erased = AdvAnchor(**(QUICK | {"iterations": 1})).erase(tiny_pipe, concept)
        names = {f"unet.{name}" for name in layer_names(tiny_pipe.unet, "xattn")}
        assert changed_tensors(erased, tiny_pipe).keys() == names


@pytest.mark.slow
def test_seed_and_kill(tiny_pipe, tmp_path, monkeypatch):
    method = AdvAnchor(**QUICK)
    slow.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, CAT)
    slow.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)


def test_bad_settings_are_refused_at_once():
    for name, value in (
        ("likeness", "x"),
        ("inner_steps", -1),
        ("inner_lr", 0.0),
        ("preserve_scale", -1.0),
        ("kept", ["a"]),
    ):
        with pytest.raises(ValueError, match=name):
            AdvAnchor(**{name: value})
