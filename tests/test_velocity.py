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
from methods.advanchor import AdvAnchor
from methods.advunlearn import AdvUnlearn, pupil
from methods.age import AGE
from methods.all_but_one import AllButOne
from methods.ca import CA
from methods.crce import CRCE
from methods.degeneration_tuning import DegenerationTuning
from methods.doco import DoCo, discriminator
from methods.duge import DUGE
from methods.eap import EAP
from methods.esd import ESD
from methods.fine_tuning import student
from methods.fmn import FMN
from methods.kpop import KPOP
from methods.modular_lora import ModularLora
from methods.negative_prompt import NegativePrompt
from methods.salun import SalUn
from methods.sdd import SDD
from methods.sld import SLD
from methods.training_images import Picture, token_columns

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
     EAP(**SHORT, pool=("dog", "sun")), EAP(**SHORT, pool=("dog", "sun"), loss_space="epsilon"),
     AGE(**SHORT, pool=("dog", "sun"))],
    ids=["esd", "esd_rewritten_target", "sdd", "eap_x0", "eap_epsilon", "age"],
)  # fmt: skip
def test_the_loss_of_a_training(both, method):
    losses = [loss(method, pipe) for pipe in both]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-9)
    assert losses[0].abs() > 1e-6 or isinstance(method, SDD)


NAMED = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog", neighbours={"visual": ("lion",)})
PICTURES = {**SHORT, "images": 2, "templates": ("a {}",)}


def learnt(method, pipe):
    """The loss of a training method, on pictures that are noise, so that both models learn from the same."""
    model, (unet, _), draw = method.denoiser(pipe), student(pipe, "xattn"), torch.Generator().manual_seed(3)
    cats, dogs = ([Picture(f"a {word}", "a dog", torch.randn(4, 8, 8, generator=draw))] for word in ("cat", "dog"))
    match method:
        case AdvUnlearn():
            return method.loss(model, pupil(pipe)[0], NAMED, method.kept(NAMED), 2)
        case CRCE():
            return method.loss(model, unet, method.draws(model, NAMED, 0))
        case CA():
            return method.loss(model, unet, cats, 0)
        case AdvAnchor():
            return method.loss(model, unet, cats, {"a cat": token_columns(pipe, "a cat", "cat")}, 0)
        case FMN():
            return method.squares(model, unet, cats, method.columns(pipe, NAMED), 0)
        case DoCo():
            judge, few = discriminator(4, 0).double(), method.noised(model, cats, 0)
            return method.judging(model, unet, judge, few) + sum(method.erasing(model, unet, judge, few))
        case AllButOne():
            return method.loss(model, unet, {"cat": "dog"}, method.stages(model, ["cat"], 0))
        case KPOP():
            return method.hidden(model, unet, method.keys(model, ["cat"]), method.stages(model, ["cat"], 0))
        case ModularLora():
            safety = method.safety(model, unet, method.stages(model, ["cat"], 0))
            return safety + method.tuning(model, unet, dogs, 0)
    return method.loss(model, unet, cats, dogs, 0)


@pytest.mark.parametrize(
    "method",
    [CA(**PICTURES, prior_weight=0.5), CA(**PICTURES, target="noise"), SalUn(**PICTURES), FMN(**PICTURES),
     AdvAnchor(**PICTURES, inner_steps=2, inner_lr=0.1), DoCo(**(PICTURES | {"iterations": 2}), warm_up=1),
     CRCE(**SHORT, sampler="ddim"), AdvUnlearn(**SHORT, attack_steps=1, warm_up=0, retain_batch=1),
     AllButOne(**SHORT), KPOP(**SHORT), DegenerationTuning(**PICTURES), ModularLora(**PICTURES), DUGE(**PICTURES)],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_the_loss_of_further_trainings(both, method):
    losses = [learnt(method, pipe) for pipe in both]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-9)
    assert losses[0].abs() > 1e-6


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
