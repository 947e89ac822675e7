"""A velocity model that says the same as a noise model is treated the same wherever noise is predicted."""

from __future__ import annotations

import copy

import pytest
import torch

from attacks import denoising
from erasebench import diffusion
from erasebench.diffusion import sampling
from erasebench.diffusion.encoding import Texts
from erasebench.diffusion.schedulers import SCHEDULERS, scheduler_of
from erasebench.types import SAMPLERS, Concept, Prompt
from methods.eap import EAP
from methods.esd import ESD
from methods.fine_tuning import student
from methods.negative_prompt import NegativePrompt
from methods.sdd import SDD
from methods.sld import SLD

CAT = Concept(name="cat", phrases=("cat",))
PROMPTS = [Prompt(id=str(i), text=text, seed=i) for i, text in enumerate(("a cat", "a dog"))]
STRONG = {"safety_scale": 500.0, "threshold": 0.5, "warmup": 1, "momentum_scale": 0.3}


def velocity(pipe):
    """The same model as one that predicts v = (e - sqrt(1 - a) x_t) / sqrt(a), by a hook that forks keep."""
    new = diffusion.fork(pipe)
    a = pipe.scheduler.alphas_cumprod.double()
    sigmas = ((1 - a) / a).sqrt()

    def hook(module, args, kwargs, output):
        x, t = args[:2]
        t = torch.as_tensor(t).double().reshape(-1)
        low = t.floor().long()
        high = (low + 1).clamp(max=len(a) - 1)
        sigma = torch.lerp(sigmas[low], sigmas[high], t - low)  # as samplers interpolate
        level = (1 / (1 + sigma**2)).view(-1, 1, 1, 1)
        return ((output[0] - (1 - level).sqrt() * x) / level.sqrt(),)

    new.unet.register_forward_hook(hook, with_kwargs=True)
    new.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    return new


@pytest.fixture(scope="module")
def both(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    return pipe, velocity(pipe)


def drawn(pipe, name):
    pipe = copy.copy(pipe)
    pipe.scheduler = scheduler_of(pipe, name)
    return sampling._sample(pipe, PROMPTS, Texts(pipe), (4, 8, 8), 4, 5.0)


@pytest.mark.parametrize("method", [None, SLD(**STRONG), NegativePrompt()], ids=["plain", "sld", "negative_prompt"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "pndm"])
def test_drawing_and_guides(both, name, method):
    """Euler and LMS are asked between timesteps, so that their levels are those of sigmas.

    PNDM is left out: diffusers' averages velocities of several timesteps as if they were one's, and so draws otherwise.
    """
    noise, same = (pipe if method is None else method.erase(pipe, CAT) for pipe in both)
    # float32: what diffusers keeps its schedules in
    torch.testing.assert_close(drawn(same, name), drawn(noise, name), rtol=1e-3, atol=1e-3)
    if isinstance(method, SLD):
        assert not torch.allclose(drawn(noise, name), drawn(both[0], name), atol=1e-2)  # the guide does something


def test_the_loss_of_white_box_attacks_is_that_of_the_noise_over_alpha(both):
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([100, 700])
    states = diffusion.encode(both[0], ["a cat", "a dog"])
    losses = []
    for pipe in both:
        denoising.check_pipeline(pipe, 999)
        x_t, target = denoising.noised(pipe.scheduler, x0, noise, t)
        losses.append((denoising.predict(pipe, x_t, t, states) - target).square().mean(dim=(1, 2, 3)))
    alpha = both[0].scheduler.alphas_cumprod[t].double()
    torch.testing.assert_close(losses[1] * alpha, losses[0], rtol=1e-5, atol=1e-8)


SHORT = {"steps": 4, "iterations": 1, "batch_size": 2, "autocast": False}


def loss(method, pipe):
    model = method.denoiser(pipe)
    if isinstance(method, EAP):
        pools = {"cat": method.candidates(model, "cat", CAT)}
        unet, _ = student(pipe, method.layers)
        draws = method.draws(model, pools, 0)
        return method.weights_loss(model, unet, pools, draws) - method.concept_loss(model, unet, pools, draws)
    unet, _ = student(pipe, method.layers)
    if isinstance(method, SDD):
        other = diffusion.fork(pipe).unet
        return method.loss(model, unet, other, method.draws(model, CAT, 0))
    return method.loss(model, unet, method.draws(model, CAT, 0))


@pytest.mark.parametrize(
    "method",
    [ESD(**SHORT), ESD(**SHORT, drawn_by="original", push_from="concept", eta=2.0), SDD(**SHORT),
     EAP(**SHORT, pool=("dog", "sun")), EAP(**SHORT, pool=("dog", "sun"), loss_space="epsilon")],
    ids=["esd", "esd_rewritten_target", "sdd", "eap_x0", "eap_epsilon"],
)  # fmt: skip
def test_the_loss_of_a_training(both, method):
    losses = [loss(method, pipe) for pipe in both]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-9)
    assert losses[0].abs() > 1e-6 or isinstance(method, SDD)


def test_the_sampler_of_the_pipeline_trains_what_the_model_says_as_its_program_does(both):
    """``sampler: pipeline`` compares the model's own outputs: the noise's square, over alpha at the step's timestep."""
    method = ESD(**SHORT, sampler="pipeline", drawn_by="original", push_from="concept", eta=2.0)
    method = type(method)(**{**vars(method), "batch_size": 1})
    noise, same = (loss(method, pipe) for pipe in both)
    stage = method.draws(method.denoiser(both[0]), CAT, 0)[0].stage
    scheduler = copy.deepcopy(both[0].scheduler)
    scheduler.set_timesteps(method.steps)
    alpha = scheduler.alphas_cumprod[scheduler.timesteps[stage]].double()
    torch.testing.assert_close(same * alpha, noise, rtol=1e-4, atol=1e-9)


def test_every_sampler_was_drawn_with():
    assert set(SAMPLERS) == set(SCHEDULERS)
