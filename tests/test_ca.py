"""Concept ablation against itself written out one latent and one call of the UNet at a time."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.types import Concept, joint
from methods.ca import CA
from methods.fine_tuning import layer_names, student

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"iterations": 4, "steps": 2, "batch_size": 2, "lr": 1e-3, "seed": 4, "images": 3, "templates": ("a {}",)}


def by_hand(pipe, unet, method, few):
    total = 0
    for picture, z, noise, t in slow.rows(few):
        goal = noise
        if method.target == "model":
            goal = slow.asked(pipe, unet, z, t, picture.text, grad=False)
        total += ((slow.asked(pipe, unet, z, t, picture.asked) - goal) ** 2).mean()
        total += method.prior_weight * ((slow.asked(pipe, unet, z, t, picture.text) - noise) ** 2).mean()
    return total / len(few.pictures)


@pytest.mark.parametrize("fields", [{}, {"target": "noise"}, {"prior_weight": 0.7, "phrases": "all"}])
def test_the_loss_and_its_gradient_are_the_literal_ones(make_pipe, fields):
    pipe = make_pipe(dtype=torch.float64)
    method = CA(**(QUICK | {"batch_size": 3} | fields))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn_strict")
    pictures = method.pictures(pipe, [("dog", "cat"), ("moon", "sun")])
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    found = method.loss(model, unet, pictures, 5)
    slow.same_gradients(found, by_hand(pipe, unet, method, method.noised(model, pictures, 5)), weights)


@pytest.mark.slow
def test_the_anchors_pictures_are_asked_for_as_the_concept_and_only_keys_and_values_move(tiny_pipe, monkeypatch):
    seen, pictures = [], CA.pictures
    monkeypatch.setattr(CA, "pictures", lambda self, pipe, pairs: seen.append(pairs) or pictures(self, pipe, pairs))
    erased = CA(**(QUICK | {"iterations": 1})).erase(tiny_pipe, joint([CAT, SUN]))
    assert seen == [[("dog", "cat"), ("moon", "sun")]]
    assert changed_tensors(erased, tiny_pipe).keys() == {
        f"unet.{name}" for name in layer_names(tiny_pipe.unet, "xattn_strict")
    }


@pytest.mark.slow
def test_seed_and_kill(tiny_pipe, tmp_path, monkeypatch):
    method = CA(**QUICK)
    slow.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, CAT)
    slow.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)


@pytest.mark.slow
def test_training_makes_the_concept_say_what_the_anchor_says(tiny_pipe):
    method = CA(**(QUICK | {"iterations": 30, "lr": 3e-3, "batch_size": 4}))
    erased, model = method.erase(tiny_pipe, CAT), method.denoiser(tiny_pipe)
    pictures = method.pictures(tiny_pipe, [("dog", "cat")])
    with torch.no_grad():
        before, after = (
            sum(float(method.loss(model, unet, pictures, step)) for step in range(99, 103))
            for unet in (tiny_pipe.unet, erased.unet)
        )
    assert after < 0.6 * before


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"target": "x"}, "target must be one of model, noise"), ({"prior_weight": -1.0}, "prior_weight must be a finite"),
     ({"weight_decay": -0.1}, "weight_decay must be a finite number >= 0")],
)  # fmt: skip
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        CA(**changes)


def test_a_concept_without_an_anchor_is_refused_before_weights_load():
    with pytest.raises(ValueError, match="concept 'sun' must have an anchor, which takes its place"):
        CA().check(Concept(name="sun", phrases=("sun",)), {})
