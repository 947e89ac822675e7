"""Modular LoRA against low-rank weights put in by hand, and what each of its three ways trains on what."""

from __future__ import annotations

import copy
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors, fingerprint
from erasebench.types import Concept, joint
from methods import modular_lora
from methods.fine_tuning import frozen
from methods.low_rank import adapter, attach, changes, parameters, with_changes
from methods.modular_lora import ModularLora

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"iterations": 3, "tuning_iterations": 3, "steps": 3, "batch_size": 2, "lr": 1e-2, "seed": 4, "images": 3,
         "templates": ("a {}",), "rank": 2}  # fmt: skip


def moved(found, seed=1):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, up in found.values():
            up += 0.1 * torch.randn(up.shape, generator=draw, dtype=up.dtype)
    return found


def by_weights(pipe, found):
    """The UNet with W + B A in place of W, a deep copy; gradients reach B and A."""
    unet = copy.deepcopy(pipe.unet)
    for name, (down, up) in found.items():
        layer, old = unet.get_submodule(name.removesuffix(".weight")), pipe.unet.get_parameter(name).detach()
        del layer.weight
        layer.weight = old + up @ down
    return unet


def test_an_adapter_answers_as_changed_weights_do_and_can_be_switched_off(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    before, unet, on = fingerprint(pipe), frozen(pipe), [True]
    found = adapter(pipe, "xattn", 2, "seed")
    assert len(found) == 28 and all(name.endswith(".weight") and ".attn2." in name for name in found)
    attach(unet, found, lambda: on[0])
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, start = (slow.asked(pipe, net, z, 7, "a cat") for net in (pipe.unet, unet))
    assert torch.equal(plain, start)  # B is zero
    moved(found)
    one, other = (slow.asked(pipe, net, z, 7, "a cat") for net in (unet, by_weights(pipe, found)))
    slow.same_gradients(one.square().sum(), other.square().sum(), parameters(found, "x"), 1e-6)
    on[0] = False
    assert torch.equal(slow.asked(pipe, unet, z, 7, "a cat"), plain) and not torch.allclose(one, plain)
    assert fingerprint(pipe) == before
    with torch.no_grad():
        both = moved(adapter(pipe, "xattn", 2, "other"), 2)
        summed = with_changes(pipe, changes(found, both)).unet
        for name in found:
            change = sum(up @ down for down, up in (found[name], both[name]))
            torch.testing.assert_close(summed.get_parameter(name), pipe.unet.get_parameter(name) + change)
            assert torch.linalg.matrix_rank(change) == 4


def test_both_losses_and_gradients_are_the_literal_ones(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    method = ModularLora(**(QUICK | {"batch_size": 3, "eta": 1.4}))
    model, unet, found = method.denoiser(pipe), frozen(pipe), moved(adapter(pipe, "xattn", 2, "seed"))
    attach(unet, found)
    other = by_weights(pipe, found)
    draws = [method.stages(model, ["cat", "sun"], 3) for _ in range(2)]
    total = 0
    for draw in draws[0]:
        text, z = slow.slow.states(pipe, draw.word), slow.slow.noise_of(draw, pipe)
        timesteps = slow.slow.esd_timesteps(pipe, method.steps, draw.stage)
        z = slow.slow.drawn(pipe, other, z, text, timesteps, method.steps, method.guidance_scale)
        said, empty = (slow.asked(pipe, pipe.unet, z, draw.timestep, word, False) for word in (draw.word, ""))
        goal = empty - 1.4 * (said - empty)
        total += ((slow.asked(pipe, other, z, draw.timestep, text) - goal) ** 2).mean() / 3
    slow.same_gradients(method.safety(model, unet, draws[1]), total, parameters(found, "safe"), 1e-5)
    pictures = method.remaining(pipe, CAT)
    few, other = method.noised(model, pictures, 7, "tuned"), by_weights(pipe, found)
    literal = sum(((slow.asked(pipe, other, z, t, p.text) - e) ** 2).mean() / 3 for p, z, e, t in slow.rows(few))
    slow.same_gradients(method.tuning(model, unet, pictures, 7), literal, parameters(found, "safe"), 1e-5)


@pytest.mark.slow
def test_fine_tuning_apart_never_sees_the_safety_adapter_and_fine_tuning_after_does(tiny_pipe, monkeypatch):
    kept = {}
    monkeypatch.setattr(modular_lora, "changes", lambda *found: kept.update(new=found) or changes(*found))
    results = {}
    for tuned in ("never", "apart", "after"):
        erased = ModularLora(**QUICK, tuned=tuned).erase(tiny_pipe, CAT)
        results[tuned] = (*kept["new"], erased)
    safe = {tuned: parameters(found[0], "safe") for tuned, found in results.items()}
    for name, weight in safe["never"].items():
        assert torch.equal(weight, safe["apart"][name]) and torch.equal(weight, safe["after"][name])
    ups = {t: torch.cat([up.flatten() for _, up in found[1].values()]) for t, found in results.items()}
    assert not ups["never"].any() and ups["apart"].any() and not torch.equal(ups["apart"], ups["after"])
    alone = ModularLora(**(QUICK | {"eta": -1.0}), tuned="apart")  # another safety, the same fine-tuning
    alone.erase(tiny_pipe, CAT)
    assert torch.equal(torch.cat([up.flatten() for _, up in kept["new"][1].values()]), ups["apart"])


@pytest.mark.slow
@pytest.mark.parametrize("tuned", ["never", "after"])
def test_only_linear_weights_move_by_the_rank_and_seed_and_kill(tiny_pipe, tmp_path, monkeypatch, tuned):
    method = ModularLora(**QUICK, tuned=tuned)
    erased = slow.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, joint([CAT, SUN]))
    changed = changed_tensors(erased, tiny_pipe)
    assert changed.keys() == {f"unet.{name}" for name in adapter(tiny_pipe, "xattn", 2)}
    for name, weight in changed.items():
        difference = weight.double() - tiny_pipe.unet.get_parameter(name.removeprefix("unet.")).double()
        rank = int((torch.linalg.svdvals(difference) > 1e-5).sum())
        assert 0 < rank <= (2 if tuned == "never" else 4)
    slow.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch, at=1 if tuned == "never" else 4)


def test_bad_settings_are_refused_at_once():
    for name, value in (("rank", 0), ("eta", float("inf")), ("tuned", "before"), ("tuning_iterations", 0)):
        with pytest.raises(ValueError, match=name):
            ModularLora(**{name: value})
    moon = Concept(name="moon", phrases=("moon",))
    ModularLora().check(moon, {})
    with pytest.raises(ValueError, match="concept 'moon' must have an anchor"):
        ModularLora(tuned="after").check(moon, {})
