"""Samplers by name: papers' settings, the model's own schedule, diffusers' own images; NaN is an error."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LMSDiscreteScheduler, PNDMScheduler

from erasebench import diffusion, steps, store
from erasebench.cell import drawing
from erasebench.diffusion import sampling
from erasebench.diffusion.encoding import Texts
from erasebench.diffusion.schedulers import SCHEDULERS, scheduler_of
from erasebench.store.claims import Watch
from erasebench.types import SAMPLERS, Prompt

PROMPT = Prompt(id="0", text="a cat", seed=3)
SD14 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def with_sampler(pipe, name):
    new = diffusion.fork(pipe)
    new.scheduler = scheduler_of(pipe, name)
    return new


def test_every_name_a_setting_takes_has_a_sampler():
    assert tuple(SCHEDULERS) == SAMPLERS


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_named_sampler_draws_as_diffusers_pipeline_does(tiny_pipe, name):
    pipe = with_sampler(tiny_pipe, name)
    ours = sampling._sample(pipe, [PROMPT], Texts(pipe), (4, 8, 8), 5, 7.5)
    start = diffusion.noise(PROMPT, (1, 4, 8, 8)[1:])[None]
    theirs = pipe("a cat", num_inference_steps=5, guidance_scale=7.5, latents=start, output_type="latent").images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    own = sampling._sample(tiny_pipe, [PROMPT], Texts(tiny_pipe), (4, 8, 8), 5, 7.5)
    assert not torch.allclose(ours, own, atol=1e-4)  # its own is DDIM that ends at alpha_bar 1


def test_samplers_are_set_up_as_the_papers_programs_have_them(tiny_pipe):
    """RECE's and UnlearnDiffAtk's LMS, ESD's and MACE's DDIM: from a PNDM pipeline as Stable Diffusion 1.4 has it."""
    pipe = diffusion.fork(tiny_pipe)
    pipe.scheduler = PNDMScheduler(**SD14, skip_prk_steps=True, steps_offset=1)
    lms, theirs = scheduler_of(pipe, "lms"), LMSDiscreteScheduler(**SD14)
    lms.set_timesteps(50), theirs.set_timesteps(50)
    assert torch.equal(torch.as_tensor(lms.timesteps), torch.as_tensor(theirs.timesteps))
    assert torch.equal(lms.sigmas, theirs.sigmas)
    ddim = scheduler_of(pipe, "ddim")
    ddim.set_timesteps(50)
    assert ddim.timesteps.tolist() == [20 * k + 1 for k in range(49, -1, -1)]
    own = DDIMScheduler(**SD14, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    assert {k: v for k, v in ddim.config.items() if not k.startswith("_")} == {
        k: v for k, v in own.config.items() if not k.startswith("_")
    }
    for name in SAMPLERS:
        assert torch.allclose(scheduler_of(pipe, name).alphas_cumprod, pipe.scheduler.alphas_cumprod)


def test_velocity_stays_velocity_and_flow_matching_is_refused(tiny_pipe):
    pipe = diffusion.fork(tiny_pipe)
    pipe.scheduler = DDIMScheduler(**SD14, prediction_type="v_prediction")
    assert {scheduler_of(pipe, name).config.prediction_type for name in SAMPLERS} == {"v_prediction"}
    pipe.scheduler = DDIMScheduler(**SD14, rescale_betas_zero_snr=True)
    assert scheduler_of(pipe, "ddim").config.rescale_betas_zero_snr
    with pytest.raises(ValueError, match=r"must keep the model's rescale_betas_zero_snr; lms cannot"):
        scheduler_of(pipe, "lms")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match=r"model.scheduler must be null for this model; got 'ddim'; FlowMatch"):
        scheduler_of(pipe, "ddim")


def test_loading_takes_the_name_and_refuses_another_before_reading(tiny_pipe, tmp_path):
    tiny_pipe.save_pretrained(tmp_path / "pipe")
    assert type(diffusion.load(tmp_path / "pipe", scheduler="lms").scheduler) is LMSDiscreteScheduler
    assert type(diffusion.load(tmp_path / "pipe").scheduler) is DDIMScheduler
    with pytest.raises(ValueError, match=r"model.scheduler must be one of .*; got 'klms'"):
        diffusion.load(tmp_path / "nowhere", scheduler="klms")


def test_a_sampler_is_part_of_what_images_are_called_by():
    own = {"steps": 5, "guidance_scale": 3.0, "height": None, "width": None, "dtype": "float32"}
    assert drawing(own) == drawing({**own, "scheduler": None, "device": "cpu"}) == own
    assert drawing({**own, "scheduler": "lms"}) == {**own, "scheduler": "lms"}


def test_an_image_of_nan_is_an_error_row_and_the_line_says_what_to_do(tiny_pipe, tmp_path):
    broken = diffusion.fork(tiny_pipe)
    weight = broken.vae.decoder.conv_in.weight
    broken.vae.decoder.conv_in.weight = torch.nn.Parameter(torch.full_like(weight, torch.nan), requires_grad=False)
    prompts = {p.digest(): p for p in (PROMPT, PROMPT.with_(id="1", seed=4))}
    model = {"batch_size": 2, "steps": 1, "guidance_scale": 1.0, "height": None, "width": None}
    counts, bar = Counter(), type("Bar", (), {"update": lambda self: None})()
    steps._draw_some(broken, tmp_path, list(prompts), prompts, model, Watch(), bar, counts)
    assert counts == {"nan": 2}
    images = store.ImageSet(key="k", folder=tmp_path, prompts=tuple(prompts.values()))
    assert [(image, status) for batch in images.batches(2) for _, image, status in batch] == [(None, "nan")] * 2
    assert "model.dtype=bfloat16" in steps._broken(counts, "float16")
    assert "wrecked" in steps._broken(counts, "float32")
