"""All but One against itself written out one latent and one call of the UNet at a time."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.types import Concept, joint
from methods.all_but_one import AllButOne
from methods.fine_tuning import layer_names, student

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",))
QUICK = {"iterations": 4, "steps": 4, "batch_size": 2, "lr": 1e-3, "seed": 4}
ANCHORS = {"cat": "dog", "kitty": "dog", "sun": ""}


def by_hand(pipe, unet, method, draws):
    total = 0
    for draw in draws:
        z = slow.slow.noise_of(draw, pipe)
        timesteps = slow.slow.esd_timesteps(pipe, method.steps, draw.stage)
        text = slow.slow.states(pipe, draw.word)
        z = slow.slow.drawn(pipe, unet, z, text, timesteps, method.steps, method.guidance_scale)

        def guidance(net, word, grad, z=z, t=draw.timestep):
            alone = slow.asked(pipe, net, z, t, "", grad)
            return slow.asked(pipe, net, z, t, word, grad) - alone, alone

        found, alone = guidance(unet, draw.word, True)
        goal, pinned = guidance(pipe.unet, ANCHORS[draw.word], False)
        total += ((found - goal) ** 2).mean() + method.preserve_scale * ((alone - pinned) ** 2).mean()
    return total / len(draws)


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_the_loss_and_its_gradient_are_the_literal_ones(make_pipe, scale):
    pipe = make_pipe(dtype=torch.float64)
    method = AllButOne(**(QUICK | {"batch_size": 3, "preserve_scale": scale, "phrases": "all"}))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn")
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    words = method.words(joint([CAT, SUN]))
    step = next(n for n in range(99) if {draw.word for draw in method.stages(model, words, n)} > {"sun"})
    draws = [method.stages(model, words, step) for _ in range(2)]  # with an anchor and without
    found = method.loss(model, unet, ANCHORS, draws[0])
    slow.same_gradients(found, by_hand(pipe, unet, method, draws[1]), weights, 1e-6)


@pytest.mark.slow
def test_it_turns_the_guidance_and_keeps_the_rest_and_seed_and_kill(tiny_pipe, tmp_path, monkeypatch):
    method = AllButOne(**QUICK)
    erased = slow.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, joint([CAT, SUN]))
    assert changed_tensors(erased, tiny_pipe).keys() == {
        f"unet.{name}" for name in layer_names(tiny_pipe.unet, "xattn")
    }
    slow.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)
    longer = replace(method, iterations=30, lr=3e-3, batch_size=4)
    erased, model = longer.erase(tiny_pipe, CAT), longer.denoiser(tiny_pipe)
    draws = [[longer.stages(model, ["cat"], step) for step in range(99, 102)] for _ in range(2)]
    with torch.no_grad():
        before, after = (
            sum(float(longer.loss(model, unet, ANCHORS, few)) for few in steps)
            for unet, steps in zip((tiny_pipe.unet, erased.unet), draws, strict=True)
        )
    assert after < 0.85 * before


def test_bad_settings_are_refused_at_once():
    with pytest.raises(ValueError, match="preserve_scale must be a finite number >= 0"):
        AllButOne(preserve_scale=-1.0)
