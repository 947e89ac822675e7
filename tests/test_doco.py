"""DoCo against itself written out one latent at a time: both losses, the projection, and whose turn it is."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.types import Concept, joint
from methods.doco import DoCo, discriminator
from methods.fine_tuning import layer_names, slopes, student

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"iterations": 4, "warm_up": 1, "steps": 2, "batch_size": 2, "lr": 1e-3, "seed": 4, "images": 3,
         "templates": ("a {}",)}  # fmt: skip


def by_hand(pipe, unet, judge, method, few):
    """(D's loss, theta's first term, theta's second), probabilities written out."""
    judged = erase = prior = 0
    for picture, z, noise, t in slow.rows(few):
        a = pipe.scheduler.alphas_cumprod.double()[t]
        real, made = (
            (z - (1 - a).sqrt() * slow.asked(pipe, u, z, t, text)) / a.sqrt()
            for u, text in ((pipe.unet, picture.text), (unet, picture.asked))
        )
        p_real, p_made = (torch.sigmoid(judge(x)) for x in (real.detach(), made.detach()))
        judged += -(1 - p_real).log().mean() - p_made.log().mean()
        erase += -(1 - torch.sigmoid(judge(made))).log().mean()
        prior += method.prior_weight * ((slow.asked(pipe, unet, z, t, picture.text) - noise) ** 2).mean()
    return tuple(x / len(few.pictures) for x in (judged, erase, prior))


@pytest.mark.parametrize("projection", ["paper", "program"])
def test_the_losses_and_gradients_are_the_literal_ones(make_pipe, projection):
    pipe = make_pipe(dtype=torch.float64)
    method = DoCo(**(QUICK | {"batch_size": 3, "projection": projection, "surgery": 0.7, "prior_weight": 0.5}))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn_strict")
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    judge = discriminator(4, 0).double()
    pictures = method.pictures(pipe, [("dog", "cat"), ("moon", "sun")])
    few = method.noised(model, pictures, 5)
    judged, erase, prior = by_hand(pipe, unet, judge, method, few)
    slow.same_gradients(method.judging(model, unet, judge, few), judged, dict(judge.named_parameters()))
    parameters = list(weights.values())
    found, gradients = method.surgical(
        *slopes(lambda _: method.erasing(model, unet, judge, few), parameters, 3, "rows")
    )
    torch.testing.assert_close(found, (erase + prior).detach())
    against = 0
    for weight, ours in zip(parameters, gradients, strict=True):
        g, k = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (erase, prior))
        cosine = torch.cosine_similarity(g.flatten(), k.flatten(), 0)
        if cosine < 0:
            against += 1
            g = g - 0.7 * cosine * (g.norm() if projection == "paper" else 1) * k / k.norm()
        torch.testing.assert_close(ours, g + k, rtol=1e-6, atol=1e-12)
    assert 0 < against < len(weights)


def test_the_discriminator_learns_alone_first_and_then_in_turns():
    turns = [DoCo(iterations=5, warm_up=2).turn(step)[0] for step in range(8)]
    assert "".join(turns) == "dd" + "dw" * 3


def test_the_discriminator_depends_on_the_seed_alone_and_takes_any_size():
    torch.manual_seed(1)
    one, again, other = (discriminator(4, seed) for seed in (3, 3, 4))
    assert torch.equal(one[0].weight, again[0].weight) and not torch.equal(one[0].weight, other[0].weight)
    assert one(torch.zeros(2, 4, 64, 64)).shape == (2, 1, 8, 8) and one(torch.zeros(1, 4, 4, 4)).shape == (1, 1, 1, 1)


@pytest.mark.slow
def test_only_keys_and_values_move_and_seed_and_kill(tiny_pipe, tmp_path, monkeypatch):
    method = DoCo(**QUICK)
    erased = slow.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, joint([CAT, SUN]))
    names = {f"unet.{name}" for name in layer_names(tiny_pipe.unet, "xattn_strict")}
    assert changed_tensors(erased, tiny_pipe).keys() == names
    slow.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch, at=4)


def test_bad_settings_are_refused_at_once():
    for name, value in (
        ("warm_up", -1), ("warm_up", 2000), ("discriminator_lr", 0.0), ("surgery", -1.0), ("projection", "x"),
        ("prior_weight", -1.0), ("weight_decay", -1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            DoCo(**{name: value})
    with pytest.raises(ValueError, match="concept 'sun' must have an anchor"):
        DoCo().check(Concept(name="sun", phrases=("sun",)), {})
