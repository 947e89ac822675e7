"""SDD against itself written out one latent and one call of the UNet at a time."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.store import workspace
from erasebench.types import Concept
from methods import fine_tuning
from methods.fine_tuning import layer_names
from methods.sdd import SDD

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_training.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
QUICK = {"iterations": 3, "steps": 5, "batch_size": 2, "lr": 1e-3, "seed": 4, "decay": 0.6}


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


def by_hand(pipe, unet, teacher, method, draws):
    found, wanted = [], []
    for draw in draws:
        timesteps = slow.ddim(pipe, method.steps).timesteps.tolist()[: draw.taken]
        text = slow.states(pipe, draw.drawn)
        z = slow.drawn(pipe, teacher, slow.noise_of(draw, pipe), text, timesteps, method.steps, method.guidance_scale)
        with torch.no_grad():
            wanted.append(slow.ask(unet, z, draw.timestep, slow.states(pipe, "")))
        found.append(slow.ask(unet, z, draw.timestep, slow.states(pipe, draw.target)))
    return slow.mean_square(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"phrases": "all"}, {"phrases": "all", "joined": "target"}])
def test_the_loss_is_the_literal_one(double_pipe, fields):
    method = SDD(steps=10, batch_size=4, guidance_scale=2.5, **fields)
    model, unet, teacher = method.denoiser(double_pipe), slow.copied(double_pipe, 0.02), slow.copied(double_pipe, 0.01)
    found = method.loss(model, unet, teacher, method.draws(model, CAT, 3))
    expected = by_hand(double_pipe, unet, teacher, method, method.draws(model, CAT, 3))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_erasing_is_clipped_adamw_and_the_average_is_returned(double_pipe):
    method = SDD(**(QUICK | {"clip": 1e-4, "weight_decay": 0.5}))
    unet, teacher = copy.deepcopy(double_pipe.unet), copy.deepcopy(double_pipe.unet)
    trained = [p.requires_grad_(True) for name, p in unet.named_parameters() if "attn2" in name]
    optimiser, model = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.5), method.denoiser(double_pipe)
    for step in range(3):
        optimiser.zero_grad()
        by_hand(double_pipe, unet, teacher, method, method.draws(model, CAT, step)).backward()
        assert torch.nn.utils.clip_grad_norm_(trained, 1e-4) > 1e-4
        optimiser.step()
        with torch.no_grad():
            for mean, p in zip(teacher.parameters(), unet.parameters(), strict=True):
                mean.mul_(0.6).add_(p, alpha=0.4)
    erased = method.erase(double_pipe, CAT)
    for (name, one), other in zip(erased.unet.named_parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-4, atol=1e-6, msg=name)
    assert changed_tensors(erased, double_pipe).keys() == {
        f"unet.{name}" for name in layer_names(double_pipe.unet, "xattn")
    }


def test_the_timestep_is_where_the_latent_is(double_pipe):
    draws = SDD(batch_size=500).draws(SDD().denoiser(double_pipe), CAT, 0)
    assert {draw.taken for draw in draws} == set(range(50))
    assert all(980 - 20 * draw.taken <= draw.timestep < 1000 - 20 * draw.taken for draw in draws)


def test_several_phrases_take_turns_and_are_joined(double_pipe):
    method = SDD(phrases="all", batch_size=3)
    model = method.denoiser(double_pipe)
    texts = [(d.drawn, d.target) for step in range(2) for d in method.draws(model, CAT, step)]
    assert texts == [("cat, kitty", word) for word in ("cat", "kitty", "cat", "kitty", "cat", "kitty")]
    turned = SDD(phrases="all", joined="target").draws(model, CAT, 1)
    assert [(d.drawn, d.target) for d in turned] == [("kitty", "cat, kitty")]


@pytest.mark.slow
def test_the_seed_decides_every_bit_and_the_original_is_left_alone(tiny_pipe):
    before = copy.deepcopy(tiny_pipe.unet.state_dict())
    one, again, other = (SDD(**(QUICK | {"seed": seed})).erase(tiny_pipe, CAT) for seed in (4, 4, 5))
    assert not changed_tensors(one, again) and changed_tensors(one, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_pipe.unet.state_dict().items())


@pytest.mark.slow
def test_killed_and_resumed_ends_in_the_same_bits(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fine_tuning, "SAVE_SHARE", float("inf"))
    method, loss, asked = SDD(**(QUICK | {"iterations": 4})), SDD.loss, []
    whole = method.erase(tiny_pipe, CAT)

    def killed(*args):
        asked.append(1)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(SDD, "loss", killed)
    with pytest.raises(KeyboardInterrupt), workspace.use(tmp_path / "work"):
        method.erase(tiny_pipe, CAT)
    with workspace.use(tmp_path / "work"):
        resumed = method.erase(tiny_pipe, CAT)
    assert len(asked) == 4 + 1
    assert not changed_tensors(whole, resumed)


@pytest.mark.slow
def test_training_makes_the_concept_say_what_no_text_says(tiny_pipe):
    method = SDD(iterations=20, lr=3e-3, steps=5, batch_size=4, decay=0.7)
    model = method.denoiser(tiny_pipe)
    erased = method.erase(tiny_pipe, CAT)
    with torch.no_grad():
        before, after = (
            sum(
                float(method.loss(model, unet, tiny_pipe.unet, method.draws(model, CAT, step)))
                for step in range(99, 103)
            )
            for unet in (tiny_pipe.unet, erased.unet)
        )
    assert after < 0.5 * before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": 1.0}, "decay must be a finite number >= 0 and < 1; got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number >= 0"),
        ({"clip": 0.0}, "clip must be a finite number > 0"),
        ({"joined": "both"}, "joined must be one of latents, target"),
        ({"iterations": -1}, "iterations must be an integer >= 1"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        SDD(**changes)
