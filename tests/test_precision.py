"""Training in bfloat16: what autocast computes with weights cast once, on any processor (slowly where it emulates)."""

from __future__ import annotations

import copy
import gc
import runpy
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from erasebench.diffusion import changed_tensors
from erasebench.store import workspace
from erasebench.types import Concept
from methods import fine_tuning, on_policy, precision
from methods.eap import EAP
from methods.esd import ESD
from methods.fine_tuning import FineTuning, layer_names, student
from methods.on_policy import Denoiser
from methods.precision import halved
from methods.sdd import SDD

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_training.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
QUICK = {"iterations": 2, "steps": 3, "batch_size": 1, "lr": 1e-3, "seed": 4}
V2 = {"push_from": "concept", "sampler": "pipeline", "drawn_by": "original", "eta": 2.0}
WORDS = ("dog", "sun", "moon", "car")


@pytest.fixture(autouse=True)
def any_processor(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)


def methods(**fields):
    settings = QUICK | {"autocast": "cpu"} | fields
    return [ESD(**settings), ESD(layers="noxattn", **settings, **V2), EAP(pool=WORDS, **settings), SDD(**settings)]


def asked(unet, z, text):
    """The noise and what reaches the latents and texts backwards, inside autocast."""
    z, text = z.clone().requires_grad_(), text.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = unet(z, torch.tensor([301, 7]), encoder_hidden_states=text, return_dict=False)[0]
    return out, *torch.autograd.grad(out.float().square().sum(), [z, text])


def test_halved_is_autocast_to_the_last_bit(make_pipe):
    """Of a UNet whose convolutions have their channels last; in another order sums are rounded otherwise."""
    pipe = make_pipe()
    draw = torch.Generator().manual_seed(0)
    z, text = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 77, 32, generator=draw)
    half = halved(pipe).unet
    dtypes = {name: p.dtype for name, p in half.named_parameters()}
    matrices = {n for n, m in half.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert all((dtype == torch.bfloat16) == (n.rpartition(".")[0] in matrices) for n, dtype in dtypes.items())
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}
    last = copy.deepcopy(pipe.unet).to(memory_format=torch.channels_last)
    for one, other in zip(asked(half, z, text), asked(last, z, text), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("layers", ["xattn", "full"])
def test_a_student_shares_what_it_does_not_train_with_the_half(tiny_pipe, layers):
    half = halved(tiny_pipe)
    unet, trained = student(tiny_pipe, layers, half)
    assert set(trained) == set(layer_names(tiny_pipe.unet, layers))
    shared, original = dict(half.unet.named_parameters()), dict(tiny_pipe.unet.named_parameters())
    for name, p in unet.named_parameters():
        if name in trained:
            assert p is trained[name] and p.dtype == torch.float32 and torch.equal(p, original[name])
            assert p.requires_grad and p.data_ptr() != original[name].data_ptr()
        else:
            assert p.data_ptr() == shared[name].data_ptr() and not p.requires_grad


def test_weights_in_half_precision_are_trained_from_themselves(make_pipe):
    pipe = make_pipe(dtype=torch.float16)
    unet, trained = student(pipe, "xattn", halved(pipe))
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in unet.parameters()} == {torch.float32, torch.bfloat16}
    original = dict(pipe.unet.named_parameters())
    assert all(torch.equal(p, original[name].float()) for name, p in trained.items())
    erased = ESD(**QUICK, autocast="cpu").erase(pipe, CAT)
    assert {p.dtype for p in erased.unet.parameters()} == {torch.float16} and changed_tensors(erased, pipe)


def plain_loss(pipe, unet, method, draws, autocast):
    """ESD's loss with one call for each text and latent; every call casts what it needs."""

    def ask(unet, z, t, text):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return slow.ask(unet, z, t, text).float()

    found, wanted = [], []
    for draw in draws:
        z, text, empty = slow.noise_of(draw, pipe), slow.states(pipe, draw.word), slow.states(pipe, "")
        scheduler = slow.ddim(pipe, method.steps)
        with torch.no_grad():
            for t in slow.esd_timesteps(pipe, method.steps, draw.stage):
                e, given = ask(unet, z, t, empty), ask(unet, z, t, text)
                z = scheduler.step(e + method.guidance_scale * (given - e), t, z).prev_sample.float()
            e, given = ask(pipe.unet, z, draw.timestep, empty), ask(pipe.unet, z, draw.timestep, text)
        found.append(ask(unet, z, draw.timestep, text))
        wanted.append(e - method.eta * (given - e))
    return slow.mean_square(found, wanted)


def distances(pipe, layers, closeness, seed):
    """How far our gradient and that of plain autocast lie from float32's, relative to its length."""
    method = ESD(steps=5, batch_size=4, layers=layers, autocast="cpu", seed=seed)
    model, draw = method.denoiser(pipe), torch.Generator().manual_seed(seed)
    unets = [student(pipe, layers, half) for half in (model.half, None)]
    with torch.no_grad():
        for one, other in zip(*(trained.values() for _, trained in unets), strict=True):
            one += 0.1 * torch.randn(one.shape, generator=draw) * one.shape[-1] ** -0.5
            other.copy_(one)
    draws = [method.draws(model, CAT, 3) for _ in range(3)]
    (half, weights), (whole, same) = unets
    losses = [method.loss(model, half, draws[0])]
    losses += [plain_loss(pipe, whole, method, d, cast) for d, cast in zip(draws[1:], (True, False), strict=True)]
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))])
        for loss, leaves in zip(losses, (weights, same, same), strict=True)
    ]
    assert {g.dtype for g in gradients} == {loss.dtype for loss in losses} == {torch.float32}
    torch.testing.assert_close(losses[0], losses[2], rtol=closeness, atol=0)
    return [float((g - gradients[2]).norm() / gradients[2].norm()) for g in gradients[:2]]


@pytest.mark.parametrize(("layers", "closeness"), [("xattn", 0.2), ("full", 0.02)])  # of losses of 5e-4 and 0.3
@pytest.mark.slow
def test_losses_and_gradients_are_no_farther_from_float32_than_plain_autocast(tiny_pipe, layers, closeness):
    """Over several draws: of one alone the ratio is anything from 0.7 to 1.7, as processors round differently."""
    found = torch.tensor([distances(tiny_pipe, layers, closeness, seed) for seed in range(1, 7)])
    ours, plain = found.square().mean(0).sqrt().tolist()
    assert 0 < ours < 1.3 * plain < 0.2


def test_no_cast_of_a_trained_weight_outlives_its_drawing(tiny_pipe):
    """Drawn with other weights, a latent is another one, and the one a new model with these weights draws."""
    model = Denoiser(tiny_pipe, steps=5, guidance_scale=3.0, autocast="cpu")
    unet, trained = student(tiny_pipe, "full", model.half)
    noise, text = model.noise([torch.Generator().manual_seed(0)]), model.encode(["cat"])
    first = model.descend(unet, noise, text, 3, [0])
    with torch.no_grad():
        for weight in trained.values():
            weight.mul_(1.1)
    again = model.descend(unet, noise, text, 3, [0])
    fresh, same = student(tiny_pipe, "full", model.half)
    with torch.no_grad():
        for name, weight in same.items():
            weight.copy_(trained[name])
    assert not torch.equal(first, again) and torch.equal(again, model.descend(fresh, noise, text, 3, [0]))


def test_a_scheduler_that_multiplies_matrices_keeps_its_own_precision(make_pipe, monkeypatch):
    pipe = make_pipe()
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    model, enabled = Denoiser(pipe, steps=5, guidance_scale=3.0, autocast="cpu"), []
    step = UniPCMultistepScheduler.step
    monkeypatch.setattr(
        UniPCMultistepScheduler, "step",
        lambda *args, **fields: enabled.append(torch.is_autocast_enabled("cpu")) or step(*args, **fields),
    )  # fmt: skip
    model.pipeline_latents(model.pipe.unet, [torch.Generator()], model.encode(["cat"]), [3])
    assert enabled == [False] * 3


@pytest.mark.parametrize("index", range(4))
@pytest.mark.slow
def test_killed_and_resumed_ends_in_the_same_bits(tiny_pipe, tmp_path, monkeypatch, index):
    monkeypatch.setattr(fine_tuning, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fine_tuning, "SAVE_SHARE", float("inf"))
    method, before = methods(iterations=3)[index], copy.deepcopy(tiny_pipe.unet.state_dict())
    whole, update, taken = method.erase(tiny_pipe, CAT), fine_tuning.Training._update, []

    def killed(*args):
        taken.append(args[1])
        if len(taken) == 3:
            raise KeyboardInterrupt
        return update(*args)

    monkeypatch.setattr(fine_tuning.Training, "_update", killed)
    with pytest.raises(KeyboardInterrupt), workspace.use(tmp_path / "work"):
        method.erase(tiny_pipe, CAT)
    with workspace.use(tmp_path / "work"):
        resumed = method.erase(tiny_pipe, CAT)
    assert taken[:4] == [0, 1, 2, 2] and not changed_tensors(whole, resumed)
    changed = {name.removeprefix("unet.") for name in changed_tensors(whole, tiny_pipe)}
    assert changed == set(layer_names(tiny_pipe.unet, method.layers))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_pipe.unet.state_dict().items())


def test_the_half_is_freed_with_the_training(tiny_pipe, monkeypatch):
    made = []

    def watched(pipe, autocast):
        half = precision.half_of(pipe, autocast)
        made.append(weakref.ref(half.unet))
        return half

    monkeypatch.setattr(on_policy, "half_of", watched)
    erased = ESD(**QUICK, autocast="cpu").erase(tiny_pipe, CAT)
    gc.collect()
    assert len(made) == 1 and made[0]() is None
    assert {p.dtype for p in erased.unet.parameters()} == {torch.float32}


def test_sdxl_is_asked_with_whole_numbers_of_its_size(make_xl_pipe):
    erased = ESD(**QUICK, autocast="cpu").erase(make_xl_pipe(), CAT)
    assert all(torch.isfinite(p).all() for p in erased.unet.parameters())


def test_without_being_asked_a_cpu_computes_in_float32(tiny_pipe, make_pipe):
    assert Denoiser(tiny_pipe, steps=5, guidance_scale=3.0, autocast=True).half is None
    assert FineTuning().denoiser(tiny_pipe).pipe is tiny_pipe
    double = make_pipe(dtype=torch.float64)
    assert Denoiser(double, steps=5, guidance_scale=3.0, autocast="cpu").half is None
    default, never = (ESD(**QUICK, autocast=choice).erase(tiny_pipe, CAT) for choice in (True, False))
    assert not changed_tensors(default, never)


def test_bad_choices_are_refused_before_a_model_is_there(monkeypatch):
    with pytest.raises(ValueError, match=r"autocast must be false, true .* or cpu .*; got 'cuda'"):
        FineTuning(autocast="cuda")
    with pytest.raises(ValueError, match="got 1"):
        FineTuning(autocast=1)
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match=r"autocast cpu needs a processor with AVX512-BF16 or AMX; .*; use true"):
        FineTuning(autocast="cpu")
