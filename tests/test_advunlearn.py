"""AdvUnlearn against itself written out one latent and one step of the attack at a time."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.types import Concept, joint
from methods.advunlearn import AdvUnlearn, encoded, pupil
from methods.fine_tuning import uniform

shared = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
slow = shared.slow
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"iterations": 4, "steps": 5, "batch_size": 2, "lr": 1e-3, "seed": 4, "warm_up": 1, "attack_steps": 2,
         "retain": ("a dog", "a tree"), "retain_batch": 2, "attack_lr": 0.05}  # fmt: skip


def with_prefix(pipe, text, prefix):
    """The encoder's states of [start, prefix, text, end ...], by way of its own embeddings argument."""
    ids = pipe.tokenizer([text], padding="max_length", max_length=77, return_tensors="pt").input_ids
    rows = pipe.text_encoder.get_input_embeddings().weight[ids]
    rows = torch.cat([rows[:, :1], prefix, rows[:, 1 : 77 - prefix.shape[1]]], 1)
    handle = pipe.text_encoder.get_input_embeddings().register_forward_hook(lambda *_: rows)
    states = pipe.text_encoder(ids)[0]
    handle.remove()
    return states


def latent(pipe, method, draw):
    timesteps = slow.esd_timesteps(pipe, method.steps, draw.stage)
    text, noise = slow.states(pipe, draw.word), slow.noise_of(draw, pipe)
    return slow.drawn(pipe, pipe.unet, noise, text, timesteps, method.steps, method.guidance_scale)


def by_hand(pipe, taught, method, model, words, kept, step):
    erase = keep = 0
    none = torch.zeros(1, 0, 32, dtype=torch.float64)
    for draw in method.stages(model, words, step, "erase"):
        z, t = latent(pipe, method, draw), draw.timestep
        with torch.no_grad():
            empty, given = (slow.ask(pipe.unet, z, t, slow.states(pipe, text)) for text in ("", draw.word))
        prefix, table = none, taught.text_encoder.get_input_embeddings().weight.detach()
        if step >= method.warm_up:
            prefix = torch.stack([table[uniform(0, len(table), draw.generator)] for _ in range(method.prefix)])[None]
            for _ in range(method.attack_steps):
                prefix = prefix.clone().requires_grad_()
                near = ((slow.ask(pipe.unet, z, t, with_prefix(taught, draw.word, prefix)) - given) ** 2).mean()
                prefix = (prefix - method.attack_lr * torch.autograd.grad(near, prefix)[0].sign()).detach()
        found = slow.ask(pipe.unet, z, t, with_prefix(taught, draw.word, prefix))
        erase += ((found - (empty - method.eta * (given - empty))) ** 2).mean() / method.batch_size
    for draw in method.stages(model, kept, step, "retain", places=range(method.retain_batch)):
        x, t = latent(pipe, method, draw), draw.timestep
        with torch.no_grad():
            same = slow.ask(pipe.unet, x, t, slow.states(pipe, draw.word))
        found = slow.ask(pipe.unet, x, t, with_prefix(taught, draw.word, none))
        keep += ((found - same) ** 2).mean() / method.retain_batch
    return erase + method.retain_scale * keep


@pytest.mark.slow
@pytest.mark.parametrize(("step", "fields"), [(0, {}), (3, {}), (3, {"prefix": 2, "eta": 1.5, "phrases": "all"})])
def test_the_loss_and_its_gradient_are_the_literal_ones(make_pipe, step, fields):
    pipe = make_pipe(dtype=torch.float64)
    method = AdvUnlearn(**(QUICK | {"batch_size": 3} | fields))
    model, (taught, weights) = method.denoiser(pipe), pupil(pipe)
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    words, kept = method.words(CAT), method.kept(CAT)
    literal = by_hand(pipe, taught, method, model, words, kept, step)
    shared.same_gradients(method.loss(model, taught, CAT, kept, step), literal, weights, 1e-6)


def test_a_fresh_pupil_encodes_as_the_original(tiny_pipe):
    taught, _ = pupil(tiny_pipe)
    found = encoded(taught, ["a cat", ""]).states
    assert torch.equal(found, torch.cat([slow.states(tiny_pipe, text) for text in ("a cat", "")]))


@pytest.mark.slow
def test_only_the_text_encoder_moves_and_seed_and_kill(tiny_pipe, tmp_path, monkeypatch):
    method = AdvUnlearn(**QUICK)
    erased = shared.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, joint([CAT, SUN]))
    changed = set(changed_tensors(erased, tiny_pipe))
    assert changed and all(name.startswith("text_encoder.") for name in changed)
    assert len(changed) == len(list(tiny_pipe.text_encoder.parameters()))
    shared.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)


def test_nothing_that_is_erased_is_kept_and_sdxl_is_refused_before_weights_load():
    method = AdvUnlearn(retain=("a photo of a Cat", "a catfish", "a sun"))
    assert method.kept(CAT) == ["a catfish", "a sun"]
    with pytest.raises(ValueError, match="retain must hold a text without 'cat'"):
        AdvUnlearn(retain=("a cat",)).check(CAT, {})
    with pytest.raises(ValueError, match="model must have one text encoder"):
        AdvUnlearn().check(CAT, {"text_encoder_2.x.weight": (1,)})


def test_bad_settings_are_refused_at_once():
    for name, value in (
        ("layers", "xattn"), ("eta", "x"), ("retain_scale", -1.0), ("retain", ()), ("retain_batch", 0), ("prefix", 0),
        ("attack_steps", -1), ("attack_lr", 0.0), ("warm_up", -1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            AdvUnlearn(**{name: value})
