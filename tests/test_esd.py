"""ESD against itself written out one latent and one call of the UNet at a time."""

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
from methods.esd import ESD, round_to_bfloat16
from methods.fine_tuning import layer_names, student

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_training.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
QUICK = {"iterations": 2, "steps": 5, "batch_size": 2, "lr": 1e-3, "seed": 4}
V2 = {"push_from": "concept", "sampler": "pipeline", "drawn_by": "original", "eta": 2.0}


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


def by_hand(pipe, unet, method, draws, eta):
    """The paper's loss, eta as in e_empty - eta (e_concept - e_empty), for either sampler."""
    found, wanted = [], []
    for draw in draws:
        z, text, empty = slow.noise_of(draw, pipe), slow.states(pipe, draw.word), slow.states(pipe, "")
        if method.sampler == "ddim":
            timesteps, t = slow.esd_timesteps(pipe, method.steps, draw.stage), draw.timestep
        else:
            descending = slow.ddim(pipe, method.steps).timesteps.tolist()
            timesteps, t = descending[: draw.stage], descending[draw.stage]
        drawing = unet if method.drawn_by == "trained" else pipe.unet
        z = slow.drawn(pipe, drawing, z, text, timesteps, method.steps, method.guidance_scale)
        with torch.no_grad():
            e_empty, e_concept = slow.ask(pipe.unet, z, t, empty), slow.ask(pipe.unet, z, t, text)
        found.append(slow.ask(unet, z, t, text))
        wanted.append(e_empty - eta * (e_concept - e_empty))
    return slow.mean_square(found, wanted)


@pytest.mark.parametrize(("fields", "eta"), [({}, 1.0), ({"eta": 1.5, "phrases": "all"}, 1.5), (V2, 1.0)])
def test_the_loss_is_the_literal_one(double_pipe, fields, eta):
    method = ESD(steps=10, batch_size=5, guidance_scale=2.5, **fields)
    model, unet = method.denoiser(double_pipe), slow.copied(double_pipe, 0.02)
    found = method.loss(model, unet, method.draws(model, CAT, 3))
    draws = method.draws(model, CAT, 3)
    assert len({draw.stage for draw in draws}) > 2
    expected = by_hand(double_pipe, unet, method, draws, eta)
    torch.testing.assert_close(found, expected, rtol=1e-6 if fields is V2 else 1e-9, atol=0)


@pytest.mark.parametrize("fields", [{}, V2])
def test_erasing_is_adam_on_that_loss(double_pipe, fields):
    method = ESD(**(QUICK | fields))
    unet = copy.deepcopy(double_pipe.unet)
    trained = [p for name, p in unet.named_parameters() if "attn2" in name]
    for p in trained:
        p.requires_grad_(True)
    optimiser, model = torch.optim.Adam(trained, lr=1e-3), method.denoiser(double_pipe)
    for step in range(2):
        optimiser.zero_grad()
        by_hand(double_pipe, unet, method, method.draws(model, CAT, step), 1.0).backward()
        optimiser.step()
    erased = method.erase(double_pipe, CAT)
    for (name, one), other in zip(erased.unet.named_parameters(), unet.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("steps", [50, 20])
def test_stages_and_timesteps_are_the_papers(double_pipe, steps):
    method = ESD(steps=steps, batch_size=400, phrases="all")
    draws = method.draws(method.denoiser(double_pipe), CAT, 0)
    width = 1000 // steps
    assert {draw.stage for draw in draws} == set(range(steps))
    assert all(width * draw.stage <= draw.timestep < width * (draw.stage + 1) for draw in draws)
    assert {draw.word for draw in draws} == {"cat", "kitty"}
    assert {draw.word for draw in ESD(batch_size=9).draws(method.denoiser(double_pipe), CAT, 0)} == {"cat"}


def test_a_latent_does_not_depend_on_the_batch_it_is_in(double_pipe):
    few, many = (ESD(batch_size=n) for n in (2, 5))
    model = few.denoiser(double_pipe)
    one, other = few.draws(model, CAT, 7), many.draws(model, CAT, 7)
    assert [d[:3] for d in one] == [d[:3] for d in other[:2]]
    assert torch.equal(model.noise([d.generator for d in one]), model.noise([d.generator for d in other[:2]]))


@pytest.mark.parametrize("layers", ["xattn", "xattn_strict", "noxattn", "selfattn"])
def test_the_chosen_layers_change_and_nothing_else_does(tiny_pipe, layers):
    before = copy.deepcopy(tiny_pipe.unet.state_dict())
    erased = ESD(layers=layers, **QUICK).erase(tiny_pipe, CAT)
    changed = {name.removeprefix("unet.") for name in changed_tensors(erased, tiny_pipe)}
    assert changed == set(layer_names(tiny_pipe.unet, layers))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_pipe.unet.state_dict().items())
    assert not any(p.requires_grad for p in tiny_pipe.unet.parameters())


def test_the_seed_decides_every_bit(tiny_pipe):
    one, again, other = (ESD(**(QUICK | {"seed": seed})).erase(tiny_pipe, CAT) for seed in (4, 4, 5))
    assert not changed_tensors(one, again) and changed_tensors(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, V2])
def test_killed_and_resumed_ends_in_the_same_bits(tiny_pipe, tmp_path, monkeypatch, fields):
    monkeypatch.setattr(fine_tuning, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fine_tuning, "SAVE_SHARE", float("inf"))
    method, loss, asked = ESD(**(QUICK | fields | {"iterations": 4})), ESD.loss, []
    whole = method.erase(tiny_pipe, CAT)

    def killed(*args):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(ESD, "loss", killed)
    with pytest.raises(KeyboardInterrupt), workspace.use(tmp_path / "work"):
        method.erase(tiny_pipe, CAT)
    with workspace.use(tmp_path / "work"):
        resumed = method.erase(tiny_pipe, CAT)
    assert len(asked) == 3 + 2
    assert not changed_tensors(whole, resumed)


@pytest.mark.slow
def test_training_follows_the_target(tiny_pipe):
    """What the erased model says of the concept comes nearer to what the paper wants it to say."""
    method = ESD(iterations=20, lr=3e-3, steps=5, batch_size=4)
    model = method.denoiser(tiny_pipe)
    erased = method.erase(tiny_pipe, CAT)
    with torch.no_grad():
        before, after = (
            sum(float(method.loss(model, unet, method.draws(model, CAT, step))) for step in range(1000, 1004))
            for unet in (tiny_pipe.unet, erased.unet)
        )
    assert after < 0.7 * before


def test_a_broken_model_stops_at_its_step(make_pipe):
    pipe = make_pipe()
    pipe.unet.conv_in.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="esd: loss must be finite; got nan at step 0 of 2"):
        ESD(**QUICK).erase(pipe, CAT)


@pytest.mark.parametrize("layers", ["xattn", "noxattn"])
def test_sdxls_loss_is_the_literal_one_with_its_pooled_texts_and_sizes(make_xl_pipe, layers):
    pipe = make_xl_pipe(dtype=torch.float64)
    method = ESD(iterations=1, steps=5, batch_size=1, layers=layers)
    model, (unet, weights) = method.denoiser(pipe), student(pipe, layers)
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    given, empty, pooled, none = pipe.encode_prompt("cat", do_classifier_free_guidance=True, device="cpu")
    sizes = pipe._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float64, pipe.text_encoder_2.config.projection_dim)

    def ask(net, z, t, states, pool):
        added = {"text_embeds": pool, "time_ids": sizes}
        return net(z, torch.tensor([int(t)]), encoder_hidden_states=states, added_cond_kwargs=added).sample

    draw, again = (method.draws(model, CAT, 3)[0] for _ in range(2))
    z, scheduler = slow.noise_of(draw, pipe), slow.ddim(pipe, 5)
    with torch.no_grad():
        for t in slow.esd_timesteps(pipe, 5, draw.stage):
            e, e_cat = ask(unet, z, t, empty, none), ask(unet, z, t, given, pooled)
            z = scheduler.step(e + 3.0 * (e_cat - e), t, z).prev_sample
        e, e_cat = (ask(pipe.unet, z, draw.timestep, *text) for text in ((empty, none), (given, pooled)))
    literal = ((ask(unet, z, draw.timestep, given, pooled) - (2 * e - e_cat)) ** 2).mean()
    found = method.loss(model, unet, [again])
    torch.testing.assert_close(found, literal, rtol=1e-8, atol=0)
    both = [torch.autograd.grad(x, list(weights.values()), allow_unused=True) for x in (found, literal)]
    for one, other in zip(*both, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("fields", [{}, V2])
def test_sdxl_is_erased_through_its_unet(tiny_xl_pipe, fields):
    erased = ESD(**(QUICK | fields)).erase(tiny_xl_pipe, CAT)
    changed = changed_tensors(erased, tiny_xl_pipe)
    assert {name.removeprefix("unet.") for name in changed} == set(layer_names(tiny_xl_pipe.unet, "xattn"))
    assert all(torch.isfinite(tensor).all() for tensor in changed.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": float("inf")}, "eta must be a finite number; got inf"),
        ({"push_from": "anchor"}, "push_from must be one of empty, concept"),
        ({"sampler": "plms"}, "sampler must be one of ddim, pipeline"),
        ({"drawn_by": "teacher"}, "drawn_by must be one of trained, original"),
        ({"layers": "everything"}, "layers must be one of"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        ESD(**changes)


def test_in_bfloat16_most_small_updates_are_lost():
    """Rounded after every update: what torch's Adam does to bfloat16 weights, and half of them never move."""
    torch.manual_seed(0)
    start = torch.randn(4000).mul(0.05).bfloat16()
    ours, theirs = torch.nn.Parameter(start.float()), torch.nn.Parameter(start.clone())
    optimisers = [torch.optim.Adam([p], lr=5e-5) for p in (ours, theirs)]
    for step in range(20):
        gradient = torch.randn(4000, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient.bfloat16().float(), gradient.bfloat16()
        for optimiser in optimisers:
            optimiser.step()
        round_to_bfloat16(optimisers[0])
    assert torch.equal(ours, ours.bfloat16().float())
    assert (ours != start.float()).float().mean() < 0.6
    assert (ours == theirs.float()).float().mean() > 0.9


def test_the_precision_of_the_recipe_reaches_the_weights(make_pipe):
    pipe = make_pipe()
    short = {"iterations": 2, "steps": 3, "lr": 1e-3, "sampler": "pipeline", "drawn_by": "original"}
    for precision, rounded in (("bfloat16", True), ("float32", False)):
        erased = ESD(**short, precision=precision).erase(pipe, CAT)
        weight = erased.unet.get_parameter(layer_names(erased.unet, "xattn")[0])
        assert torch.equal(weight, weight.bfloat16().float()) == rounded
    with pytest.raises(ValueError, match="precision must be one of"):
        ESD(precision="half")
