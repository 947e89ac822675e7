"""SAeUron against itself written out: one vector, one feature and one moment at a time."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from erasebench import diffusion
from erasebench.diffusion import erasures
from erasebench.diffusion.adapters import attach, attached
from erasebench.store import workspace
from erasebench.types import Concept, joint
from methods import fine_tuning, saeuron
from methods.activations import moments, watched
from methods.fine_tuning import generator
from methods.saeuron import SAeUron, Steering
from methods.sparse_autoencoder import Steered, across, geometric_median, loss, strongest

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_training.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog", neighbours={"visual": ("lion",)})
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
BLOCK = "up_blocks.1.attentions.1"  # 16 wide in the tiny pipeline, 8 x 8 pixels
QUICK = {"images": 2, "scored": 2, "steps": 3, "epochs": 2, "rows": 128, "k": 4, "expansion": 2, "guidance_scale": 3.0,
         "percentile": 90.0, "multiplier": -5.0, "templates": ("a {}", "the {}"), "seed": 4, "lr": 1e-3}  # fmt: skip


def random_module(width=6, features=10, k=2, moments=2, dtype=torch.float64):
    draw, module = torch.Generator().manual_seed(3), Steered(width, features, k, moments).to(dtype)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=dtype))
        module.decoder /= module.decoder.norm(dim=1, keepdim=True)
        module.floor.abs_().mul_(0.3)
        module.times.copy_(torch.tensor([900.0, 100.0][:moments]))
    return module


def fired(module, x):
    """Every feature of a vector, by hand, before the strongest are chosen."""
    w, b = module.encoder.weight.detach().numpy(), module.encoder.bias.detach().numpy()
    c = module.centre.detach().numpy()
    return np.array([max(0.0, sum(w[i, j] * (x[j] - c[j]) for j in range(len(x))) + b[i]) for i in range(len(w))])


def kept(values, k):
    out = np.zeros_like(values)
    for i in sorted(range(len(values)), key=lambda i: -values[i])[:k]:
        out[i] = values[i]
    return out


@torch.no_grad()
def test_codes_and_steering_are_the_formula_pixel_by_pixel():
    module, x = random_module(), torch.randn(2, 6, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    module.at(torch.tensor([200.0, 800.0]))  # the nearest moments: the second, the first
    found, d = module(None, (), (x, "rest")), module.decoder.numpy()
    assert found[1] == "rest"
    changed = 0
    for row, moment in ((0, 1), (1, 0)):
        for h in range(2):
            for w in range(2):
                vector = x[row, :, h, w].numpy()
                f = kept(fired(module, vector), 2)
                np.testing.assert_allclose(module.code(x[row, :, h, w]).numpy(), f, rtol=1e-12, atol=1e-12)
                steered = f.copy()
                for i in range(10):
                    if f[i] > float(module.floor[moment, i]):
                        steered[i] = f[i] * float(module.factor[moment, i])
                changed += (steered != f).sum()
                c = module.centre.numpy()
                missed = vector - (f @ d + c)
                np.testing.assert_allclose(found[0][row, :, h, w].numpy(), steered @ d + c + missed, rtol=1e-9)
    assert changed > 4
    module.factor.fill_(1.0)
    assert torch.equal(module(None, (), x), x)  # nothing is steered, nothing changes


@pytest.mark.parametrize("dead", [[], [1, 4, 7], [0, 1, 2, 3, 4, 5, 6, 8]])
def test_the_loss_and_its_gradient_are_the_literal_ones(dead):
    module = random_module()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(2)).double()
    mask = torch.zeros(10, dtype=torch.bool)
    mask[dead] = True
    value, live = loss(module, x, mask, 0.5)
    names = ("encoder.weight", "encoder.bias", "decoder", "centre")
    found = torch.autograd.grad(value, [module.get_parameter(name) for name in names])

    def literal(weight, bias, decoder, centre):
        pre = [[torch.relu(weight[i] @ (v - centre) + bias[i]) for i in range(10)] for v in x]
        flat = sorted(((float(pre[r][i].detach()), r, i) for r in range(5) for i in range(10)), reverse=True)[: 2 * 5]
        best = {(r, i) for _, r, i in flat}
        hidden = sorted(((float(pre[r][i].detach()), r, i) for r in range(5) for i in dead), reverse=True)
        hidden = {(r, i) for _, r, i in hidden[: min(3, len(dead)) * 5]}
        mean, top, total, aux = x.sum(0) / 5, 0.0, 0.0, 0.0
        for r, v in enumerate(x):
            out = centre + sum((pre[r][i] * decoder[i] for i in range(10) if (r, i) in best), torch.zeros(6).double())
            guess = sum((pre[r][i] * decoder[i] for i in dead if (r, i) in hidden), torch.zeros(6).double())
            top, total = top + ((v - out) ** 2).sum(), total + ((v - mean) ** 2).sum()
            aux = aux + (((v - out).detach() - guess) ** 2).sum()
        scale = 0.5 * min(len(dead) / 3, 1.0) if dead else 0.0
        return (top + scale * aux) / total, {i for r, i in best if pre[r][i] > 0}

    leaves = [module.get_parameter(name).detach().clone().requires_grad_() for name in names]
    expected, alive = literal(*leaves)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    assert alive == set(live.nonzero().flatten().tolist())
    for a, b in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_scores_are_differences_of_shares_and_only_the_highest_are_steered():
    means = torch.rand(3, 2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = SAeUron(percentile=92.0, multiplier=-2.0)
    chosen, factor = method.steered(means, 1)
    m = means.numpy()
    for t in range(2):
        own, others = m[1, t], (m[0, t] + m[2, t]) / 2
        scores = [own[i] / own.sum() - others[i] / others.sum() for i in range(40)]
        above = {i for i in range(40) if scores[i] > np.percentile(scores, 92.0)}
        assert {*chosen[t].nonzero().flatten().tolist()} == above and len(above) == 4
        np.testing.assert_allclose(factor[t].numpy(), -2.0 * own)


def test_directions_starts_and_the_sharing_of_k():
    rows = torch.tensor([[3.0, 1.0, 0.5], [0.1, 0.2, 0.3]])
    assert (strongest(rows, 1) > 0).sum(1).tolist() == [2, 0]  # k is the batch's, not the vector's
    decoder = torch.nn.Parameter(torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    decoder.grad = torch.tensor([[1.0, 2.0], [5.0, 7.0]])
    across(decoder)
    torch.testing.assert_close((decoder.grad * decoder.detach()).sum(1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(decoder.grad[1], torch.tensor([5.0, 0.0]))
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)).double()
    point = geometric_median(x)
    total = (x - point).norm(dim=1).sum()
    assert all((x - point - 1e-3 * torch.eye(3)[i] * s).norm(dim=1).sum() > total for i in range(3) for s in (1, -1))


@torch.no_grad()
def test_what_the_block_says_is_what_it_says_of_the_text_at_every_step(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    model = SAeUron(**QUICK)
    denoiser = fine_tuning.Denoiser(pipe, steps=3, guidance_scale=3.0)
    said, times = watched(denoiser, BLOCK, [generator(4, i) for i in range(2)], ["a cat", "the cat"])
    assert said.shape == (2, 3, 64, 16) and moments(denoiser) == 3 == model.steps
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(3)
    assert times.tolist() == scheduler.timesteps.tolist()
    for i, text in enumerate(("a cat", "the cat")):
        z, heard = torch.randn((4, 8, 8), generator=generator(4, i))[None].double(), []
        handle = pipe.unet.get_submodule(BLOCK).register_forward_hook(lambda m, a, o, h=heard: h.append(o[0][0]))
        for t in scheduler.timesteps:
            e = [slow.ask(pipe.unet, z, t, slow.states(pipe, s)) for s in ("", text)]
            z = scheduler.step(e[0] + 3.0 * (e[1] - e[0]), t, z).prev_sample
        handle.remove()
        torch.testing.assert_close(said[i], torch.stack([x.flatten(1).T for x in heard[1::2]]), rtol=1e-8, atol=1e-9)


@pytest.fixture(scope="module")
def erased(tiny_pipe):
    return SAeUron(**QUICK).erase(tiny_pipe, CAT)


def test_killed_and_resumed_ends_in_the_same_bits(tiny_pipe, erased, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fine_tuning, "SAVE_SHARE", float("inf"))
    before, asked = diffusion.fingerprint(tiny_pipe), []

    def killed(*args):
        asked.append(1)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(saeuron, "loss_of", killed)
    with pytest.raises(KeyboardInterrupt), workspace.use(tmp_path / "work"):
        SAeUron(**QUICK).erase(tiny_pipe, CAT)
    drawn = SAeUron.drawn
    monkeypatch.setattr(SAeUron, "drawn", lambda *args: drawn(*args) if args[-1] == "score" else pytest.fail("again"))
    with workspace.use(tmp_path / "work"):
        resumed = SAeUron(**QUICK).erase(tiny_pipe, CAT)
    assert diffusion.fingerprint(resumed) == diffusion.fingerprint(erased)
    assert len(asked) == 8 + (2 * 3 * 3 * 2 // 2 - 7)  # two passes over 18 maps by two, seven of them taken before
    assert not diffusion.changed_tensors(resumed, tiny_pipe) and diffusion.fingerprint(tiny_pipe) == before
    assert not tiny_pipe.unet._forward_pre_hooks and not hasattr(resumed, "guide")


@pytest.mark.slow
def test_it_learns_and_another_seed_is_another_autoencoder(tiny_pipe, erased):
    method = SAeUron(**QUICK)
    model = fine_tuning.Denoiser(tiny_pipe, steps=3, guidance_scale=3.0)
    maps = method.maps(model, method.subjects(CAT), "")

    def left(epochs):
        torch.manual_seed(0)
        module = Steering(expansion=2, k=4, moments=3).beside(tiny_pipe.unet.get_submodule(BLOCK))
        replace(method, epochs=epochs).train(module, maps, "")
        return float(loss(module, maps.flatten(0, 1), torch.zeros(32, dtype=torch.bool), 0.0)[0])

    assert left(30) < 0.7 * left(1)
    assert len(replace(method, held=6).maps(model, method.subjects(CAT), "")) == 6  # one moment of each picture
    assert diffusion.fingerprint(SAeUron(**QUICK | {"seed": 5}).erase(tiny_pipe, CAT)) != diffusion.fingerprint(erased)


@torch.no_grad()
def test_it_is_stored_goes_by_the_timestep_and_steers_forks_alike(tiny_pipe, erased, tmp_path):
    erasures.save(tmp_path, erased, tiny_pipe, method={})
    again = diffusion.fork(erasures.load(tmp_path, tiny_pipe))
    z, states = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        diffusion.encode(tiny_pipe, ["a cat"]),
    )
    states = states.repeat(2, 1, 1)
    times = attached(erased)[0].tensors[f"{BLOCK}.times"]
    for t in (torch.tensor([int(times[0]), int(times[2])]), int(times[1])):
        answers = [p.unet(z, t, encoder_hidden_states=states).sample for p in (tiny_pipe, erased, again)]
        assert torch.equal(answers[1], answers[2]) and not torch.equal(answers[0], answers[1])
    both = [
        p.unet(z, torch.tensor([int(times[0]), int(times[2])]), encoder_hidden_states=states).sample for p in (erased,)
    ]
    for row, t in enumerate((int(times[0]), int(times[2]))):
        alone = erased.unet(z[row : row + 1], timestep=t, encoder_hidden_states=states[:1]).sample
        torch.testing.assert_close(both[0][row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_gradients_meet_it(tiny_pipe, erased):
    states = diffusion.encode(tiny_pipe, ["a cat"]).requires_grad_()
    z, found = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), []
    for pipe in (tiny_pipe, erased):
        out = pipe.unet(z, torch.tensor([500]), encoder_hidden_states=states).sample
        found.append(torch.autograd.grad(out.square().sum(), states)[0])
    assert not torch.allclose(*found)


@pytest.mark.slow
def test_several_concepts_share_an_autoencoder_and_each_is_steered(tiny_pipe):
    method = SAeUron(**QUICK | {"percentile": 95.0})
    assert method.subjects(joint([CAT, SUN])) == [("cat",), ("sun",), ("dog",), ("lion",), ("moon",)]
    assert replace(method, phrases="all", others=("kitty", "bus")).subjects(CAT) == [("cat", "kitty"), ("bus",)]
    tensors = attached(method.erase(tiny_pipe, joint([CAT, SUN])))[0].tensors
    one = attached(replace(method, others=("sun", "dog", "lion", "moon")).erase(tiny_pipe, CAT))[0].tensors
    assert torch.equal(tensors[f"{BLOCK}.encoder.weight"], one[f"{BLOCK}.encoder.weight"])  # the same subjects in order
    steered = [(t[f"{BLOCK}.factor"] != 1) for t in (tensors, one)]
    assert (steered[0] | ~steered[1]).all() and steered[0].sum() > steered[1].sum() > 0


def test_bad_settings_concepts_and_models_are_refused(tiny_pipe):
    for bad in ({"k": 0}, {"expansion": 0}, {"epochs": 0}, {"rows": 0}, {"percentile": 0}, {"lr": 0}, {"aux_scale": -1},
                {"images": 0}, {"scored": 0}, {"held": 0}, {"templates": ["a cat"]}, {"others": []}, {"steps": 1},
                {"phrases": "some"}, {"block": ""}, {"multiplier": float("nan")}):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must"):
            SAeUron(**bad)
    with pytest.raises(ValueError, match="others must name a subject that is not 'cat'"):
        SAeUron(others=["kitty"]).check(CAT, {})
    with pytest.raises(ValueError, match=r"must have the block up_blocks\.9"):
        SAeUron(block="up_blocks.9").check(CAT, {"unet.up_blocks.1.attentions.1.norm.weight": (1,)})
    for block in ("up_blocks.9", "conv_in"):
        with pytest.raises(ValueError, match=f"must have a transformer {block}"):
            SAeUron(**QUICK | {"block": block}).erase(tiny_pipe, CAT)
    with pytest.raises(ValueError, match="k must be <= 32 features"):
        SAeUron(**QUICK | {"k": 33}).erase(tiny_pipe, CAT)


def test_an_adapter_of_another_size_is_refused(tiny_pipe, erased):
    with pytest.raises(ValueError, match="must have tensors"):
        attach(tiny_pipe, Steering(expansion=3, k=4, moments=3), attached(erased)[0].tensors)
