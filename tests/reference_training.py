"""Parts of fine-tuning erasures the slow way: one latent, one text, one call of the UNet at a time.

Steps are those of diffusers' own scheduler. ``methods/esd.py``, ``sdd.py`` and ``eap.py`` are compared with these; they
share no code.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler


def ddim(pipe, steps):
    """diffusers' DDIM on 1, 1 + T / steps, ... with its alphas in float64, ending at the level of timestep 0."""
    scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config,
        prediction_type=pipe.scheduler.config.prediction_type,  # from_config takes what was once a default for one
        set_alpha_to_one=False,
        timestep_spacing="leading",
        steps_offset=1,
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    return scheduler


def states(pipe, text):
    ids = pipe.tokenizer(
        [text], padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids)[0]


def ask(unet, z, t, text_states):
    return unet(z, torch.tensor([int(t)]), encoder_hidden_states=text_states).sample


@torch.no_grad()
def drawn(pipe, unet, z, text_states, timesteps, steps, scale):
    """z after one guided DDIM step at each of some timesteps."""
    scheduler, empty = ddim(pipe, steps), states(pipe, "")
    for t in timesteps:
        without, given = ask(unet, z, t, empty), ask(unet, z, t, text_states)
        z = scheduler.step(without + scale * (given - without), t, z).prev_sample
    return z


def esd_timesteps(pipe, steps, stage):
    """All but the noisiest, down to index stage - 1 counted from the cleanest (index 0 for stage 0)."""
    descending = ddim(pipe, steps).timesteps.tolist()[1:]
    return descending[: len(descending) - max(stage - 1, 0)]


def noise_of(draw, pipe):
    size = pipe.unet.config.sample_size
    shape = (1, pipe.unet.config.in_channels, size, size)
    return torch.randn(shape[1:], generator=draw.generator, dtype=torch.float32).view(shape).to(pipe.unet.dtype)


def copied(pipe, changed=0.0):
    """A deep copy; with noise on its UNet's weights if asked for, so that it is not the original."""
    new = SimpleNamespace(unet=copy.deepcopy(pipe.unet))
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in new.unet.parameters():
            parameter += changed * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
    return new.unet


def mean_square(a, b):
    return sum(((x - y) ** 2).mean() for x, y in zip(a, b, strict=True)) / len(a)
