"""SalUn against itself written out one latent at a time: its mask, its loss, and what may not move."""

from __future__ import annotations

import copy
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.types import Concept, joint
from methods.fine_tuning import generator, student
from methods.salun import SalUn
from methods.training_images import noised

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"iterations": 4, "steps": 2, "batch_size": 2, "lr": 1e-3, "seed": 4, "images": 3, "templates": ("a {}",),
         "layers": "xattn"}  # fmt: skip


def denoising(pipe, unet, few):
    return sum(((slow.asked(pipe, unet, z, t, p.text) - noise) ** 2).mean() for p, z, noise, t in slow.rows(few)) / len(
        few.pictures
    )


def test_the_loss_and_its_gradient_are_the_literal_ones(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    method = SalUn(**(QUICK | {"batch_size": 3, "alpha": 0.3, "remain": ("car", "tree")}))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn")
    forget, remain = method.pictures(pipe, [("cat", "dog")]), method.pictures(pipe, [("car", "car"), ("tree", "tree")])
    total, few = 0, method.noised(model, forget, 5)
    for picture, z, _, t in slow.rows(few):
        assert (picture.text, picture.asked) == ("a cat", "a dog")
        goal = slow.asked(pipe, unet, z, t, "a dog", grad=False)
        total += ((slow.asked(pipe, unet, z, t, "a cat") - goal) ** 2).mean() / 3
    total += 0.3 * denoising(pipe, unet, method.noised(model, remain, 5, "remain"))
    slow.same_gradients(method.loss(model, unet, forget, remain, 5), total, weights)


def test_salient_are_the_weights_with_the_largest_summed_gradient(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    method = SalUn(**(QUICK | {"salient": 0.3}))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn")
    forget = method.pictures(pipe, [("cat", "dog")])
    total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for i, picture in enumerate(forget):
        loss = denoising(pipe, unet, noised(model, [picture], [generator(4, "saliency", i)]))
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += gradient
    ranked = torch.cat([tensor.abs().flatten() for tensor in total.values()]).sort(descending=True).values
    least = ranked[round(0.3 * len(ranked)) - 1]
    mask = method.mask(model, unet, weights, forget)
    assert sum(int(m.sum()) for m in mask.values()) == round(0.3 * len(ranked))
    assert all(torch.equal(mask[name], total[name].abs() >= least * (1 - 1e-9)) for name in mask)


@pytest.mark.slow
def test_erasing_is_adam_on_masked_gradients(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    method = SalUn(**(QUICK | {"iterations": 3, "salient": 0.3}))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn")
    forget, remain = method.pictures(pipe, [("cat", "dog")]), method.pictures(pipe, [("dog", "dog")])
    mask, before = method.mask(model, unet, weights, forget), copy.deepcopy(dict(weights))
    adam = torch.optim.Adam(weights.values(), lr=1e-3)
    for step in range(3):
        gradients = torch.autograd.grad(method.loss(model, unet, forget, remain, step), list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            weight.grad = gradient * mask[name]
        adam.step()
    erased = dict(method.erase(pipe, CAT).unet.named_parameters())
    for name, weight in weights.items():
        torch.testing.assert_close(erased[name].detach(), weight.detach(), rtol=1e-7, atol=1e-10, msg=name)
        assert torch.equal(erased[name][~mask[name]], before[name][~mask[name]])
    assert all(torch.equal(p, dict(pipe.unet.named_parameters())[n]) for n, p in erased.items() if n not in weights)


@pytest.mark.slow
def test_seed_and_kill_and_several_concepts(tiny_pipe, tmp_path, monkeypatch):
    method = SalUn(**QUICK)
    slow.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, joint([CAT, SUN]))
    slow.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)


def test_nothing_that_is_erased_is_kept():
    method = SalUn(remain=("Kitty", "sun", "car"))
    assert method.others(CAT) == ["sun", "car"] and method.others(joint([CAT, SUN])) == ["car"]
    assert SalUn().others(joint([CAT, SUN])) == ["dog", "moon"]
    with pytest.raises(ValueError, match="remain must name a subject that is not 'cat'"):
        SalUn(remain=("cat",)).check(CAT, {})


def test_bad_settings_are_refused_at_once():
    for name, value in (("salient", 0.0), ("salient", 1.5), ("alpha", -1.0), ("remain", ())):
        with pytest.raises(ValueError, match=name):
            SalUn(**{name: value})
