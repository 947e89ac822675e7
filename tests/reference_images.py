"""What tests of erasures that learn from pictures share: a slow denoising, kills, and gradients side by side."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from erasebench.diffusion import changed_tensors
from erasebench.store import workspace
from methods import fine_tuning
from methods.fine_tuning import Training

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_training.py"))))


def rows(few):
    """(picture, z, noise, timestep) of each latent of a step, a batch of one each."""
    return [(p, few.z[i : i + 1], few.noise[i : i + 1], few.timesteps[i]) for i, p in enumerate(few.pictures)]


def asked(pipe, unet, z, t, text, grad=True):
    with torch.set_grad_enabled(grad):
        return slow.ask(unet, z, t, slow.states(pipe, text) if isinstance(text, str) else text)


def same_gradients(found, literal, weights, rtol=1e-7):
    """Two losses and their gradients in some weights are equal, and the gradients are not all zero."""
    torch.testing.assert_close(found, literal, rtol=1e-9, atol=0)
    ours, theirs = (torch.autograd.grad(value, list(weights.values()), allow_unused=True) for value in (found, literal))
    assert sum(float(g.abs().max()) for g in ours if g is not None) > 0
    for name, one, other in zip(weights, ours, theirs, strict=True):
        one, other = (torch.zeros(()) if g is None else g for g in (one, other))
        torch.testing.assert_close(one.double(), other.double().expand_as(one), rtol=rtol, atol=1e-11, msg=name)


def same_seed_same_bits(method, other, pipe, concept):
    """The method twice gives the same weights, and ``other``, of another seed, gives others; returns the first."""
    one, again = method.erase(pipe, concept), method.erase(pipe, concept)
    assert not changed_tensors(one, again) and changed_tensors(one, other.erase(pipe, concept))
    return one


def same_bits_when_killed(method, pipe, concept, folder, monkeypatch, at=2):
    """Stopped before update ``at`` and started again, a training ends in the bits it ends in when left alone."""
    monkeypatch.setattr(fine_tuning, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fine_tuning, "SAVE_SHARE", float("inf"))
    whole, update, taken = method.erase(pipe, concept), Training._update, []

    def killed(self, step, *rest):
        taken.append(step)
        if taken.count(step) == 1 and step == at:
            raise KeyboardInterrupt
        return update(self, step, *rest)

    monkeypatch.setattr(Training, "_update", killed)
    with pytest.raises(KeyboardInterrupt), workspace.use(folder / "work", folder):
        method.erase(pipe, concept)
    with workspace.use(folder / "work", folder):
        resumed = method.erase(pipe, concept)
    assert taken == [*range(at + 1), *range(at, max(taken) + 1)] and max(taken) > at
    assert not changed_tensors(whole, resumed)
