"""Receler against itself written out: erasers wrapped around attention, one latent at a time, the attack by hand."""

from __future__ import annotations

import copy
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from erasebench import diffusion, export
from erasebench.diffusion.adapters import attached
from erasebench.store import workspace
from erasebench.types import Concept
from methods import fine_tuning
from methods.adapters import bare, planted
from methods.receler import Eraser, Receler, _step

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_training.py"))))
several = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("test_several_concepts.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
QUICK = {"iterations": 3, "steps": 4, "batch_size": 1, "lr": 1e-2, "seed": 4, "attack_steps": 2, "rank": 4}


class Wrapped(nn.Module):
    """A cross-attention with its eraser behind it."""

    def __init__(self, attn, down, up):
        super().__init__()
        self.attn, self.down, self.up = attn, down, up

    def forward(self, x, **asked):
        h = self.attn(x, **asked)
        self.said = self.up(F.gelu(self.down(h)))
        return h + self.said


def wrapped(unet, modules):
    new = copy.deepcopy(unet)
    for path, module in modules.items():
        owner, _, leaf = path.rpartition(".")
        attn = new.get_submodule(path)
        setattr(new.get_submodule(owner), leaf, Wrapped(attn, copy.deepcopy(module.down), copy.deepcopy(module.up)))
    return new


@torch.no_grad()
def concept_mask(unet, z, t, text, tokens, threshold):
    """From queries and keys, head by head: the maps of 4 x 4 pixels, the nearest there are to a quarter of 8."""
    seen = {}
    cross = {n: m for n, m in unet.named_modules() if n.endswith("attn2")}
    handles = [m.register_forward_pre_hook(lambda _, args, n=n: seen.update({n: args[0]})) for n, m in cross.items()]
    slow.ask(unet, z, t, text)
    for handle in handles:
        handle.remove()
    maps = []
    for name, attn in cross.items():
        q, k = attn.to_q(seen[name])[0], attn.to_k(text)[0]
        if len(q) != 16:
            continue
        for head in range(attn.heads):
            d = q.shape[1] // attn.heads
            part = slice(head * d, (head + 1) * d)
            scores = q[:, part] @ k[:, part].T / d**0.5
            maps.append(scores.softmax(1)[:, 1 : tokens + 1].mean(1))
    mean = torch.stack(maps).mean(0).view(4, 4)
    return ((mean - mean.min()) / (mean.max() - mean.min()) >= threshold).double()


def test_the_loss_its_gradient_and_the_attack_are_the_literal_ones(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    method = Receler(steps=5, batch_size=2, attack_steps=3, prompt_tokens=4, eta=0.8, localisation=2.0,
                     mask_threshold=0.4, guidance_scale=2.0, rank=3)  # fmt: skip
    unet, paths = bare(pipe), [n for n, _ in pipe.unet.named_modules() if n.endswith("attn2")]
    erasers, weights = planted(unet, Eraser(rank=3), paths, 0)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.1 * torch.randn(weight.shape, generator=draw, dtype=torch.float64)
    model = method.denoiser(pipe)
    rows, ends = method.rows(model, ["cat"]), method.ends(pipe, ["cat"])
    ours = rows["cat"].detach().clone().requires_grad_()
    assert ours.min() >= 0 and ours.max() <= 1 and ends == [3]
    adversary = torch.optim.Adam(rows.values(), lr=0.1, weight_decay=0.1)
    now = method.attacked(model, unet, rows, adversary, ends, 3)
    loss = method.loss(model, unet, erasers, rows, ends, now, range(2))
    found = torch.autograd.grad(loss, list(weights.values()))

    other = wrapped(pipe.unet, erasers).requires_grad_(False)
    walls = [m for m in other.modules() if isinstance(m, Wrapped)]
    leaves = [p.requires_grad_() for w in (other.get_submodule(path) for path in paths)
              for p in (w.down.weight, w.down.bias, w.up.weight, w.up.bias)]  # fmt: skip
    cat, empty, latents = slow.states(pipe, "cat"), slow.states(pipe, ""), []
    for one in method.draws(model, 1, 3):
        timesteps = slow.esd_timesteps(pipe, 5, one.stage)
        z = slow.drawn(pipe, other, slow.noise_of(one, pipe), cat, timesteps, 5, 2.0)
        e0, ec = (slow.ask(pipe.unet, z, one.timestep, s).detach() for s in (empty, cat))
        mask = concept_mask(pipe.unet, z, one.timestep, cat, 3, 0.4)
        assert 0 < mask.sum() < 16
        latents.append((z, one.timestep, e0, ec, mask))

    def asked(z, t):
        return slow.ask(other, z, t, torch.cat([cat[:, :4], ours[None], cat[:, 8:]], dim=1))

    adam = torch.optim.Adam([ours], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        adam.zero_grad()
        slow.mean_square([asked(z, t) for z, t, *_ in latents], [ec for *_, ec, _ in latents]).backward(inputs=[ours])
        adam.step()
    expected = 0
    for z, t, e0, ec, mask in latents:
        expected += ((asked(z, t) - (e0 - 0.8 * (ec - e0))) ** 2).mean() / 2
        for wall in walls:
            side = round(wall.said.shape[1] ** 0.5)
            out = 1 - mask.repeat_interleave(side // 4 or 1, 0).repeat_interleave(side // 4 or 1, 1)[:side, :side]
            if side < 4:
                out = 1 - mask[:: 4 // side, :: 4 // side]
            squares = wall.said[0].square().mean(1) * out.flatten()
            expected += 2.0 * squares.sum() / out.sum() / len(walls) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)
    for a, b in zip(found, torch.autograd.grad(expected, leaves, retain_graph=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)
    adam.zero_grad()
    slow.mean_square([asked(z, t) for z, t, *_ in latents], [ec for *_, ec, _ in latents]).backward(inputs=[ours])
    adam.step()  # the attack's last step is taken beside the erasers'
    _step(adversary, now.used, now.last)
    torch.testing.assert_close(rows["cat"].detach(), ours.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_killed_and_resumed_ends_in_the_same_bits(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fine_tuning, "SAVE_SHARE", float("inf"))
    before, loss, asked = diffusion.fingerprint(tiny_pipe), Receler.loss, []
    method = Receler(**QUICK, phrases="all")
    whole, other = (Receler(**QUICK | {"seed": s}, phrases="all").erase(tiny_pipe, CAT) for s in (4, 5))

    def killed(*args):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(Receler, "loss", killed)
    with pytest.raises(KeyboardInterrupt), workspace.use(tmp_path / "work"):
        method.erase(tiny_pipe, CAT)
    with workspace.use(tmp_path / "work"):
        resumed = method.erase(tiny_pipe, CAT)
    assert len(asked) == 3 + 1
    assert diffusion.fingerprint(resumed) == diffusion.fingerprint(whole) != diffusion.fingerprint(other)
    assert not diffusion.changed_tensors(resumed, tiny_pipe) and diffusion.fingerprint(tiny_pipe) == before
    (one,) = attached(resumed)
    assert {name.rsplit(".", 2)[0].rsplit(".", 1)[1] for name in one.tensors} == {"attn2"}
    assert all(t.abs().max() > 0 for t in one.tensors.values())


@pytest.mark.slow
def test_a_run_stores_the_erasers_draws_with_them_again_and_does_not_export_them(tmp_path):
    few = ["method=receler", "attack=none", "method.iterations=1", "method.lr=0.1", "method.attack_steps=1"]
    first = several.run(several.composed(tmp_path, *few))
    assert first.record["steps"]["erase"]["adapters"] == 1
    assert "changes_nothing" not in {flag["flag"] for flag in first.record["flags"]}
    before = first.scores[first.scores.side == "erased"].value.to_numpy()
    for folder in ("runs", "cache/images", "cache/score"):
        shutil.rmtree(tmp_path / folder)
    again = several.run(several.composed(tmp_path, *few))  # from the stored erasure
    assert again.record["steps"]["erase"]["cached"]
    assert (again.scores[again.scores.side == "erased"].value.to_numpy() == before).all()
    with pytest.raises(ValueError, match="erases by adapters beside them; their tensors are in"):
        export.export(next(tmp_path.glob("runs/**/run.json")).parent, "diffusers", tmp_path / "out")


def test_bad_settings_and_words_too_long_are_refused(tiny_pipe):
    for bad in ({"rank": 0}, {"attack_steps": -1}, {"prompt_tokens": 0}, {"localisation": -1}, {"attack_lr": 0},
                {"mask_threshold": 2}, {"layers": "xattn"}):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            Receler(**bad)
    with pytest.raises(ValueError, match="must have at most 60 tokens; got 70"):
        Receler(**QUICK).erase(tiny_pipe, Concept(name="x", phrases=("x" * 70,)))
