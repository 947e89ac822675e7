"""CRCE against itself written out one latent and one text at a time."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.types import Concept, joint
from methods.crce import CRCE
from methods.fine_tuning import layer_names, student

shared = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
slow = shared.slow
CAT = Concept(name="cat", phrases=("cat", "kitty", "feline"), anchor="dog", neighbours={"visual": ("lion", "fox")})
SUN = Concept(name="sun", phrases=("sun", "sol"), neighbours={"visual": ("moon",)})
QUICK = {"iterations": 4, "steps": 5, "batch_size": 2, "lr": 1e-3, "seed": 4}


def by_hand(pipe, unet, method, draws):
    total = 0
    for draw in draws:
        timesteps = slow.ddim(pipe, method.steps).timesteps.tolist()
        z = slow.noise_of(draw, pipe)
        c, taken = slow.states(pipe, draw.word), timesteps[: draw.stage]
        z, t = slow.drawn(pipe, unet, z, c, taken, method.steps, method.guidance_scale), timesteps[draw.stage]
        with torch.no_grad():
            empty = slow.ask(pipe.unet, z, t, slow.states(pipe, ""))

        def distance(text, erased, z=z, t=t, empty=empty):
            with torch.no_grad():
                given = slow.ask(pipe.unet, z, t, slow.states(pipe, text))
            goal = empty - method.eta * (given - empty) if erased else given
            return ((slow.ask(unet, z, t, slow.states(pipe, text)) - goal) ** 2).mean()

        again, kept = ([o for o in draw.others if o.erased == erased] for erased in (True, False))
        total += distance(draw.word, True)
        total += method.coreferent_scale * sum(o.certainty * distance(o.text, True) for o in again) / len(again)
        total += method.retain_scale * sum(o.certainty * distance(o.text, False) for o in kept) / len(kept)
    return total / len(draws)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {
            "coreferents": {"kitty": 0.4, "puss": 1.0},
            "retain": {"dog": 0.2, "sun": 0.9},
            "retain_scale": 0.5,
            "eta": 2.0,
        },
    ],
)
def test_the_loss_and_its_gradient_are_the_literal_ones(make_pipe, fields):
    pipe = make_pipe(dtype=torch.float64)
    pipe.scheduler = slow.ddim(pipe, 6)
    method = CRCE(**(QUICK | {"steps": 6, "batch_size": 3} | fields))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn_strict")
    found = method.loss(model, unet, method.draws(model, CAT, 3))
    shared.same_gradients(found, by_hand(pipe, unet, method, method.draws(model, CAT, 3)), weights, 1e-6)


def test_a_few_of_the_words_are_drawn_each_once_and_of_the_right_part(make_pipe):
    method = CRCE(**(QUICK | {"batch_size": 40, "coreferents_drawn": 1, "retain_drawn": 2}))
    draws = method.draws(method.denoiser(make_pipe()), joint([CAT, SUN]), 0)
    seen = {d.word: {(o.text, o.erased) for e in draws if e.word == d.word for o in e.others} for d in draws}
    assert seen == {
        "cat": {("kitty", True), ("feline", True), ("lion", False), ("fox", False)},
        "sun": {("sol", True), ("moon", False)},
    }
    assert {len(d.others) for d in draws if d.word == "cat"} == {3}
    assert all(len({o.text for o in d.others}) == len(d.others) for d in draws)


@pytest.mark.slow
def test_only_keys_and_values_move_and_seed_and_kill(tiny_pipe, tmp_path, monkeypatch):
    method = CRCE(**QUICK)
    erased = shared.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, CAT)
    names = {f"unet.{name}" for name in layer_names(tiny_pipe.unet, "xattn_strict")}
    assert changed_tensors(erased, tiny_pipe).keys() == names
    shared.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)


def test_a_concept_without_other_names_or_neighbours_is_refused_before_weights_load():
    with pytest.raises(ValueError, match=r"concept 'sun' must have another phrase; got none; give method\.coreferents"):
        CRCE().check(Concept(name="sun", phrases=("sun",)), {})
    with pytest.raises(ValueError, match="concept 'sun' must have a neighbour"):
        CRCE(coreferents={"sol": 1.0}).check(Concept(name="sun", phrases=("sun",)), {})


def test_bad_settings_are_refused_at_once():
    for name, value in (
        ("coreferents", {"kitty": 0.1}), ("retain", {}), ("retain", {"dog": 2.0}), ("coreferent_scale", -1.0),
        ("retain_scale", -1.0), ("coreferents_drawn", 0), ("retain_drawn", 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            CRCE(**{name: value})
