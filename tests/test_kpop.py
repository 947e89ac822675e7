"""KPOP against both its losses written out one latent and one call of the UNet at a time."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.types import Concept, joint
from methods.fine_tuning import layer_names, student
from methods.kpop import KPOP

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"))
SUN = Concept(name="sun", phrases=("sun",))
QUICK = {"iterations": 2, "steps": 4, "batch_size": 2, "lr": 1e-3, "seed": 4}


def by_hand(pipe, unet, method, keys, draws):
    """(R, what theta minimises)."""
    recover = hide = 0
    for draw in draws:
        text, z = slow.slow.states(pipe, draw.word), slow.slow.noise_of(draw, pipe)
        timesteps = slow.slow.esd_timesteps(pipe, method.steps, draw.stage)
        z = slow.slow.drawn(pipe, unet, z, text, timesteps, method.steps, method.guidance_scale)
        t = draw.timestep
        said, empty = (slow.asked(pipe, pipe.unet, z, t, word, False) for word in (draw.word, ""))
        longer = torch.cat([text, keys[draw.word][None]], dim=1)
        assert longer.shape[1] == 77 + method.key_tokens
        recover += ((slow.asked(pipe, unet, z, t, longer) - said) ** 2).mean()
        hide += ((slow.asked(pipe, unet, z, t, text) - empty + method.eta * (said - empty)) ** 2).mean()
    return recover / len(draws), (hide + method.recover_scale * recover) / len(draws)


def test_the_losses_and_their_gradients_are_the_literal_ones(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    method = KPOP(**(QUICK | {"batch_size": 3, "eta": 1.3, "recover_scale": 0.6, "key_tokens": 3}))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn")
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    keys = method.keys(model, ["cat", "sun"])
    step = next(n for n in range(99) if len({draw.word for draw in method.stages(model, ["cat", "sun"], n)}) == 2)
    draws = [method.stages(model, ["cat", "sun"], step) for _ in range(4)]
    recover, hide = by_hand(pipe, unet, method, keys, draws[0])[0], by_hand(pipe, unet, method, keys, draws[1])[1]
    slow.same_gradients(method.recovered(model, unet, keys, draws[2]), recover, keys, 1e-6)
    slow.same_gradients(method.hidden(model, unet, keys, draws[3]), hide, weights, 1e-6)


def test_keys_depend_on_the_seed_and_the_word_and_have_the_size_of_its_rows(tiny_pipe):
    model = KPOP(**QUICK).denoiser(tiny_pipe)
    one, other = KPOP(**QUICK, key_tokens=200).keys(model, ["cat", "sun"]), KPOP(seed=5).keys(model, ["cat"])
    assert not torch.equal(one["cat"], one["sun"]) and not torch.equal(one["cat"][:4], other["cat"])
    rows = model.encode(["cat"]).states
    assert float(one["cat"].detach().square().mean() / rows.square().mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_the_key_moves_first_only_the_layers_are_handed_over_and_seed_and_kill(tiny_pipe, tmp_path, monkeypatch):
    method, kept = KPOP(**QUICK), {}
    keys = KPOP.keys
    monkeypatch.setattr(KPOP, "keys", lambda self, *rest: kept.setdefault(self.iterations, keys(self, *rest)))
    start = keys(method, method.denoiser(tiny_pipe), ["cat"])["cat"]
    method.erase(tiny_pipe, CAT)
    assert not torch.equal(kept[2]["cat"], start)
    monkeypatch.undo()
    erased = slow.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, joint([CAT, SUN]))
    names = {f"unet.{name}" for name in layer_names(tiny_pipe.unet, "xattn")}
    assert changed_tensors(erased, tiny_pipe).keys() == names
    slow.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_concept_is_hidden_and_the_key_recovers_it(tiny_pipe, monkeypatch):
    """Afterwards the model with the trained key is nearer to the original than it is with a key that was not."""
    method, kept = KPOP(**(QUICK | {"iterations": 40, "lr": 2e-3, "key_lr": 0.1, "batch_size": 4})), []
    keys = KPOP.keys
    monkeypatch.setattr(KPOP, "keys", lambda self, *rest: kept.append(keys(self, *rest)) or kept[-1])
    erased, model = method.erase(tiny_pipe, CAT), method.denoiser(tiny_pipe)
    untrained = keys(method, model, ["cat"])
    with torch.no_grad():
        found = [
            sum(float(method.recovered(model, erased.unet, key, method.stages(model, ["cat"], n))) for n in range(5))
            for key in (kept[0], untrained)
        ]
    assert found[0] < 0.9 * found[1]


def test_bad_settings_are_refused_at_once():
    for name, value in (("eta", float("nan")), ("recover_scale", -1.0), ("key_tokens", 0), ("key_lr", 0.0)):
        with pytest.raises(ValueError, match=name):
            KPOP(**{name: value})
