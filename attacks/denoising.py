"""A denoiser as a white-box attack sees it: which one it can differentiate, noised images, one prediction."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erasebench import diffusion
from erasebench.types import Pipeline, seed_of


def check_pipeline(pipe: Pipeline, latest: int) -> None:
    """Refuse, in one line, a model these attacks cannot differentiate.

    Raises:
        ValueError: SDXL; a scheduler without a training schedule, shorter than ``latest``, or with an unusual target.
    """
    diffusion.token_table(pipe)  # refuses SDXL
    alphas, kind = getattr(pipe.scheduler, "alphas_cumprod", None), pipe.scheduler.config.get("prediction_type")
    if alphas is None or latest >= len(alphas):
        known = "none" if alphas is None else len(alphas)
        raise ValueError(f"timesteps must lie in the scheduler's training schedule; got {latest}, it has {known} steps")
    if kind not in (None, "epsilon", "v_prediction"):
        raise ValueError(f"model must predict epsilon or v_prediction; got {kind!r}")


def without_weight_gradients(pipe: Pipeline) -> Pipeline:
    """The pipeline itself, or a fork of it, in which no weight asks for a gradient."""
    parts = (pipe.unet, pipe.text_encoder)
    if not any(p.requires_grad for part in parts for p in part.parameters()):
        return pipe
    fork = diffusion.fork(pipe)
    fork.unet.requires_grad_(False)
    fork.text_encoder.requires_grad_(False)
    return fork


def precise(pipe: Pipeline) -> torch.dtype:
    """What an attack calculates in: float32, or float64 for a model in float64."""
    return torch.promote_types(pipe.unet.dtype, torch.float32)


@torch.no_grad()
def to_latents(pipe: Pipeline, image: Image.Image) -> Tensor:
    """Latents [channels, h, w] of an image: the mean of the VAE's posterior times its scaling factor, on the CPU."""
    vae = pipe.vae
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        vae = copy.deepcopy(vae).float()
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean[0]
    return (mean * vae.config.scaling_factor).to("cpu", precise(pipe))


def generator(*names: Any) -> torch.Generator:
    """A CPU generator that depends on ``names`` alone: a seed, a prompt's seed, a round, an iteration."""
    return torch.Generator("cpu").manual_seed(seed_of(*names, sep=" ") >> 8)


def noised(scheduler: Any, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, and what the model should predict for it: e, or v = sqrt(a_t) e - sqrt(1 - a_t) x_0.

    Args:
        x0, noise: [n, channels, h, w].
        t: timesteps, int64 [n].
    """  # noqa: E501
    a = scheduler.alphas_cumprod.to(x0.device, torch.float64)[t].to(x0.dtype).view(-1, 1, 1, 1)
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
    if scheduler.config.get("prediction_type") == "v_prediction":
        return x_t, a.sqrt() * noise - (1 - a).sqrt() * x0
    return x_t, noise


def predict(pipe: Pipeline, x_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """The UNet's conditional prediction, without guidance, [n, channels, h, w] float32 (or float64)."""
    dtype = pipe.unet.dtype
    out = pipe.unet(x_t.to(dtype), t, encoder_hidden_states=states.to(dtype), return_dict=False)[0]
    return out.to(precise(pipe))
