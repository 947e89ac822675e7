"""AGE's targets against themselves written out one latent at a time; its loop and pools are EAP's (test_eap.py)."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.types import Concept
from methods.age import AGE
from methods.eap import EAP
from methods.fine_tuning import student

shared = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
slow = shared.slow
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
WORDS = ("dog", "sun", "moon", "car", "kitty", "tree")
QUICK = {"iterations": 2, "steps": 5, "batch_size": 2, "lr": 1e-3, "seed": 4, "pool": WORDS, "centres": 4}


def by_hand(pipe, unet, pools, method, draws):
    total = 0
    for draw in draws:
        pool, start = pools[draw.word], slow.noise_of(draw, pipe)
        gumbel = -torch.log(-torch.log(draw.uniform.double() + 1e-10) + 1e-10)
        word = pool.words[int((pool.logits + gumbel).argmax())]
        timesteps = slow.esd_timesteps(pipe, method.steps, draw.stage)
        c, r = slow.states(pipe, draw.word), slow.states(pipe, word)
        z, z_r = (slow.drawn(pipe, unet, start, x, timesteps, method.steps, method.guidance_scale) for x in (c, r))
        a = pipe.scheduler.alphas_cumprod.double()[slow.ddim(pipe, method.steps).timesteps.tolist()[::-1][draw.stage]]

        def clean(model, latent, text, a=a, t=draw.timestep):
            return (latent - (1 - a).sqrt() * slow.ask(model, latent, t, text)) / a.sqrt()

        with torch.no_grad():
            towards = clean(pipe.unet, z, r)
            goal = towards - method.eta * (clean(pipe.unet, z, c) - towards)
            kept = clean(pipe.unet, z_r, r)
        total += ((clean(unet, z, c) - goal) ** 2).mean()
        total += method.preserve_scale * ((clean(unet, z_r, r) - kept) ** 2).mean()
    return total / len(draws)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"eta": 1.7, "preserve_scale": 0.3}])
def test_the_loss_and_its_gradient_are_the_literal_ones(make_pipe, fields):
    pipe = make_pipe(dtype=torch.float64)
    method = AGE(steps=8, batch_size=3, guidance_scale=2.5, pool=WORDS, centres=5, **fields)
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn")
    pools = {"cat": method.candidates(model, "cat", CAT)}
    found = method.weights_loss(model, unet, pools, method.draws(model, pools, 3))
    shared.same_gradients(found, by_hand(pipe, unet, pools, method, method.draws(model, pools, 3)), weights, 1e-6)


def test_the_choice_is_moved_by_what_moves_eaps(make_pipe):
    """The program detaches the word in the first term, so that what is left is EAP's."""
    assert AGE.concept_loss is EAP.concept_loss and AGE.candidates is EAP.candidates


@pytest.mark.slow
def test_seed_and_kill(tiny_pipe, tmp_path, monkeypatch):
    method = AGE(**QUICK)
    shared.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, CAT)
    shared.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)


def test_bad_settings_are_refused_at_once():
    for changes in ({"temperature": 0.0}, {"closest": 0}, {"pool": ()}, {"eta": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            AGE(**changes)
