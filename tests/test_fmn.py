"""Forget-me-not against attention written out head by head."""

from __future__ import annotations

import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors, encode
from erasebench.types import Concept, joint
from methods.attention_maps import attention
from methods.fine_tuning import layer_names, slopes, student
from methods.fmn import FMN

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"iterations": 4, "steps": 2, "batch_size": 2, "lr": 1e-3, "seed": 4, "images": 2, "templates": ("a {}",)}


def squares(pipe, unet, z, t, text, columns):
    """Sum of squared probabilities, from the inputs that hooks see of every cross-attention."""
    inputs, handles = [], []
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            handles.append(module.register_forward_pre_hook(lambda m, args: inputs.append((m, args[0]))))
    slow.asked(pipe, unet, z, t, text)
    for handle in handles:
        handle.remove()
    total, states = 0, slow.slow.states(pipe, text)
    assert len(inputs) == 7
    for attn, x in inputs:
        q, k = attn.to_q(x)[0], attn.to_k(states)[0]
        width = q.shape[1] // attn.heads
        for h in range(attn.heads):
            part = slice(h * width, (h + 1) * width)
            total += (((q[:, part] @ k[:, part].T) / width**0.5).softmax(1)[:, columns] ** 2).sum()
    return total


@pytest.mark.parametrize("end", [True, False])
def test_the_loss_and_its_gradient_are_the_literal_ones(make_pipe, end):
    pipe = make_pipe(dtype=torch.float64)
    method = FMN(**(QUICK | {"batch_size": 3, "end": end}))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn")
    columns = method.columns(pipe, joint([CAT, SUN]))
    assert columns == {"a cat": [2, 3, 4, 5][: 3 + end], "a sun": [2, 3, 4, 5][: 3 + end]}
    pictures = method.pictures(pipe, [("cat", "cat"), ("sun", "sun")])
    few = method.noised(model, pictures, 5)
    literal = sum(squares(pipe, unet, z, t, p.text, columns[p.text]) for p, z, _, t in slow.rows(few)).sqrt()
    found = slopes(partial(method.squares, model, unet, pictures, columns, 5), list(weights.values()), 3, "rows")
    value, gradients = method.norm(*found)
    torch.testing.assert_close(value, literal.detach())
    for ours, theirs in zip(
        gradients, torch.autograd.grad(literal, list(weights.values()), allow_unused=True), strict=True
    ):
        if theirs is None or ours is None:
            assert theirs is None and ours is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)


def test_watching_changes_no_prediction_and_ends_with_the_block(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    method = FMN(**QUICK)
    model, z = method.denoiser(pipe), torch.ones(1, 4, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        plain = slow.asked(pipe, pipe.unet, z, 7, encode(pipe, ["a cat"]))
        with attention(pipe.unet) as found:
            watched = model.epsilon(pipe.unet, z, [7], model.encode(["a cat"]))
    torch.testing.assert_close(plain, watched)
    assert len(found) == 7 and not any(type(m).__name__ == "_Watched" for m in pipe.unet.attn_processors.values())


@pytest.mark.slow
def test_the_whole_unet_is_trained_but_what_lies_behind_the_last_attention(tiny_pipe):
    changed = {name.removeprefix("unet.") for name in changed_tensors(FMN(**QUICK).erase(tiny_pipe, CAT), tiny_pipe)}
    never = {name for name in layer_names(tiny_pipe.unet, "full") if name not in changed}
    assert {"conv_out.weight", "conv_norm_out.weight"} <= never and "conv_in.weight" in changed
    last = "up_blocks.1.attentions.1."
    assert all(name.startswith(("conv_", "up_blocks.1.")) for name in never)
    assert f"{last}transformer_blocks.0.attn2.to_k.weight" in changed
    assert f"{last}transformer_blocks.0.attn2.to_v.weight" in never
    only = changed_tensors(FMN(**(QUICK | {"layers": "xattn", "iterations": 1})).erase(tiny_pipe, CAT), tiny_pipe)
    assert only and all("attn2" in name for name in only)


@pytest.mark.slow
def test_seed_and_kill_and_several_concepts(tiny_pipe, tmp_path, monkeypatch):
    method = FMN(**QUICK)
    slow.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, joint([CAT, SUN]))
    slow.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)


def test_bad_settings_are_refused_at_once():
    for name, value in (("end", "yes"), ("weight_decay", -1.0), ("clip", 0.0)):
        with pytest.raises(ValueError, match=name):
            FMN(**{name: value})
