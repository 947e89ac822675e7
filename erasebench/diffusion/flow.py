"""Transformers with joint attention, trained by flow matching: Stable Diffusion 3 and FLUX.

Their own pipelines in diffusers denoise; the noise, the encodings and the decoding are this benchmark's, as for UNets:
noise depends on the prompt's seed alone, every text is encoded once. Import from ``erasebench.diffusion``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from erasebench.types import Pipeline, Prompt

PACK = 2  # FLUX' transformer reads 2 x 2 latents as one


def is_flow(pipe: Pipeline) -> bool:
    """Whether a pipeline denoises with a transformer instead of a UNet."""
    return getattr(pipe, "transformer", None) is not None


def denoiser(pipe: Pipeline) -> nn.Module:
    """The UNet or the transformer."""
    found: nn.Module = pipe.transformer if is_flow(pipe) else pipe.unet
    return found


def packed(pipe: Pipeline) -> bool:
    """Whether the transformer reads packed latents and takes guidance as a condition, as FLUX does."""
    return hasattr(pipe, "_pack_latents")


def check_flow(pipe: Pipeline) -> None:
    """Refuse what cannot be drawn so.

    Raises:
        ValueError: other channels than the VAE's, or an erasure that lives in a UNet's sampler.
    """
    channels = latent_channels(pipe), pipe.vae.config.latent_channels
    if channels[0] != channels[1]:
        raise ValueError(f"model must draw from text alone: transformer and vae channels must be equal; got {channels}")
    if getattr(pipe, "guide", None) is not None:
        raise ValueError(f"a guide must steer a UNet; {type(pipe).__name__} has a transformer; choose another method")


def latent_channels(pipe: Pipeline) -> int:
    """Channels of one latent."""
    return int(pipe.transformer.config.in_channels) // (PACK**2 if packed(pipe) else 1)


def multiple(pipe: Pipeline) -> int:
    """What height and width must be multiples of, in pixels: a patch of the transformer."""
    return int(pipe.vae_scale_factor * (PACK if packed(pipe) else pipe.transformer.config.patch_size))


@torch.no_grad()
def encode_flow(pipe: Pipeline, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """States [n, tokens, 4096] and pooled states of some texts, as the pipeline makes them.

    Stable Diffusion 3: both CLIPs' penultimate states side by side, padded to T5's width, then T5's (77 + 256 rows;
    T5's are zeros where it was left out); both CLIPs' pooled states (2048). FLUX: T5's 512 rows; CLIP's pooled (768).
    """
    device = pipe.transformer.device
    if packed(pipe):
        states, pooled, _ = pipe.encode_prompt(list(texts), device=device)
    else:
        states, _, pooled, _ = pipe.encode_prompt(
            list(texts), None, None, device=device, do_classifier_free_guidance=False
        )
    return states, pooled


def longest_tokenizer(pipe: Pipeline) -> tuple[Any, int]:
    """The tokenizer of T5, which reads most of a text, with its tokens at most; CLIP's if there is no T5."""
    if packed(pipe):
        return pipe.tokenizer_2, 512
    return (pipe.tokenizer_3, 256) if pipe.text_encoder_3 is not None else (pipe.tokenizer, 77)


@torch.inference_mode()
def sample_flow(
    pipe: Pipeline, prompts: Sequence[Prompt], texts: Mapping[str, Any], start: torch.Tensor, steps: int, default: float
) -> torch.Tensor:
    """Latents [b, channels, h, w] after all steps; prompts of one guidance are one batch.

    Stable Diffusion 3 is guided away from the empty text, ``e_empty + g (e_text - e_empty)``, with g = 1 not at all.
    FLUX.1-dev is told g as a condition, FLUX.1-schnell not at all.

    Args:
        texts: text -> its ``Encoding``.
        start: noise [b, channels, h, w], float32.

    Raises:
        ValueError: g below 1, which diffusers takes for no guidance.
    """
    scales = [default if p.guidance_scale is None else p.guidance_scale for p in prompts]
    if min(scales) < 1 and not packed(pipe):
        raise ValueError(f"guidance must be at least 1 for {type(pipe).__name__}; got {min(scales)}; write 1 for none")
    out = torch.empty_like(start, device=pipe.transformer.device, dtype=pipe.transformer.dtype)
    for scale in dict.fromkeys(scales):
        rows = [i for i, one in enumerate(scales) if one == scale]
        out[rows] = _sample(pipe, [prompts[i] for i in rows], texts, start[rows], steps, scale)
    return out


def _sample(
    pipe: Pipeline, prompts: Sequence[Prompt], texts: Mapping[str, Any], start: torch.Tensor, steps: int, scale: float
) -> torch.Tensor:
    own = copy.copy(pipe)  # calls leave their state on the pipeline and its scheduler
    own.scheduler = copy.deepcopy(pipe.scheduler)
    device, dtype = pipe.transformer.device, pipe.transformer.dtype
    rows = [texts[p.text].states if p.embeds is None else torch.from_numpy(p.embeds)[None] for p in prompts]
    given = {
        "prompt_embeds": torch.cat([row.to(device, dtype) for row in rows]),
        "pooled_prompt_embeds": torch.cat([texts[p.text].pooled.to(device, dtype) for p in prompts]),
    }
    n, channels, height, width = start.shape
    pixels = {"height": height * pipe.vae_scale_factor, "width": width * pipe.vae_scale_factor}
    x = start.to(device, dtype)
    if packed(pipe):
        x = pipe._pack_latents(x, n, channels, height, width)
    elif scale > 1:
        empty = texts[""]
        given |= {
            "negative_prompt_embeds": empty.states.to(device, dtype).expand(n, -1, -1),
            "negative_pooled_prompt_embeds": empty.pooled.to(device, dtype).expand(n, -1),
        }
    drawn: torch.Tensor = own(
        **given, **pixels, latents=x, num_inference_steps=steps, guidance_scale=scale, output_type="latent"
    ).images
    return pipe._unpack_latents(drawn, *pixels.values(), pipe.vae_scale_factor) if packed(pipe) else drawn
