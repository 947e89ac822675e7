"""DUGE against attention written out head by head, and what holds it near the model it is given."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.types import Concept, joint
from methods.duge import DUGE
from methods.fine_tuning import layer_names, student

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"iterations": 4, "steps": 2, "batch_size": 2, "lr": 1e-3, "seed": 4, "images": 3, "templates": ("a {}",)}


def maps(pipe, unet, z, t, text):
    """Probabilities [pixels, tokens] of every cross-attention and head, from the inputs that hooks see."""
    inputs, handles = [], []
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            handles.append(module.register_forward_pre_hook(lambda m, args: inputs.append((m, args[0]))))
    slow.asked(pipe, unet, z, t, text)
    for handle in handles:
        handle.remove()
    states, found = slow.slow.states(pipe, text), []
    for attn, x in inputs:
        q, k = attn.to_q(x)[0], attn.to_k(states)[0]
        width = q.shape[1] // attn.heads
        parts = [slice(h * width, (h + 1) * width) for h in range(attn.heads)]
        found.append([((q[:, part] @ k[:, part].T) / width**0.5).softmax(1) for part in parts])
    return found


def test_the_loss_and_its_gradient_are_the_literal_ones(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    method = DUGE(**(QUICK | {"batch_size": 3, "prior_scale": 0.4, "remain": ("car", "tree")}))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn")
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    forget, memory = method.pictures(pipe, [("cat", "cat")]), method.remaining(pipe, CAT)
    total, few = 0, method.noised(model, forget, 5)
    for picture, z, _, t in slow.rows(few):
        with torch.no_grad():
            goals = maps(pipe, pipe.unet, z, t, "")
        layers = maps(pipe, unet, z, t, picture.text)
        assert len(layers) == len(goals) == 7
        for heads, others in zip(layers, goals, strict=True):
            squares = [((a - b) ** 2).sum(1).mean() for a, b in zip(heads, others, strict=True)]
            total += sum(squares) / len(squares) / 7 / 3
    kept = slow.rows(method.noised(model, memory, 5, "remain"))
    total += 0.4 * sum(((slow.asked(pipe, unet, z, t, p.text) - e) ** 2).mean() for p, z, e, t in kept) / 3
    slow.same_gradients(method.loss(model, unet, forget, memory, 5), total, weights)


@pytest.mark.slow
def test_only_its_layers_move_less_far_if_held_and_seed_and_kill(tiny_pipe, tmp_path, monkeypatch):
    method = DUGE(**QUICK)
    erased = slow.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, joint([CAT, SUN]))
    names = {f"unet.{name}" for name in layer_names(tiny_pipe.unet, "xattn")}
    assert changed_tensors(erased, tiny_pipe).keys() == names
    slow.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)
    far = {}
    for scale in (0.0, 100.0):
        changed = changed_tensors(replace(method, drift_scale=scale, iterations=8).erase(tiny_pipe, CAT), tiny_pipe)
        before = {name: tiny_pipe.unet.get_parameter(name.removeprefix("unet.")) for name in changed}
        far[scale] = sum(float((weight - before[name]).square().sum()) for name, weight in changed.items())
    assert far[100.0] < 0.7 * far[0.0]


def test_bad_settings_are_refused_at_once():
    for name, value in (("prior_scale", -1.0), ("drift_scale", -1.0), ("remain", ())):
        with pytest.raises(ValueError, match=name):
            DUGE(**{name: value})
    with pytest.raises(ValueError, match="concept 'moon' must have an anchor"):
        DUGE().check(Concept(name="moon", phrases=("moon",)), {})
