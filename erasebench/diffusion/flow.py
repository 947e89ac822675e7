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

from erasebench.diffusion.offloading import device_of
from erasebench.types import Pipeline, Prompt

NEEDED = ("states", "pooled")  # of an encoding
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
    device = device_of(pipe, pipe.transformer)
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
    out = torch.empty_like(start, device=device_of(pipe, pipe.transformer), dtype=pipe.transformer.dtype)
    for scale in dict.fromkeys(scales):
        rows = [i for i, one in enumerate(scales) if one == scale]
        out[rows] = _sample(pipe, [prompts[i] for i in rows], texts, start[rows], steps, scale)
    return out


def partway(
    pipe: Pipeline, texts: Mapping[str, Any], text: str, start: torch.Tensor, steps: int, scale: float, taken: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [b, channels, h, w] after the first ``taken`` of ``steps`` steps with a text, and their timestep.

    Arguments are those of :func:`sample_flow`. None taken costs an evaluation, too: the pipeline makes its timesteps in
    its own call.
    """

    def stop(own: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        own._interrupt = step + 1 >= taken  # which skips all further steps
        return values

    own = copy.copy(pipe)
    prompts = [Prompt(id=str(i), text=text) for i in range(len(start))]
    x = _sample(own, prompts, texts, start, steps, scale, callback_on_step_end=stop)
    x = x if taken else start.to(x)
    return x, own.scheduler.timesteps[taken]


def velocity(
    pipe: Pipeline, texts: Mapping[str, Any], x: torch.Tensor, timesteps: torch.Tensor, words: Sequence[str],
    guidance: float,
) -> torch.Tensor:  # fmt: skip
    """What the transformer says of latents [b, channels, h, w] at timesteps [b] with texts, in its own dtype.

    ``guidance`` is a condition of FLUX.1-dev; other transformers have none, and nothing is guided here.
    """
    net, device, dtype = pipe.transformer, pipe.transformer.device, pipe.vae.dtype
    states, pooled = (torch.cat([getattr(texts[w], name) for w in words]).to(device, dtype) for name in NEEDED)
    x, timesteps = x.to(device, dtype), timesteps.to(device, torch.float32)
    if not packed(pipe):
        said: torch.Tensor = net(x, states, pooled, timesteps, return_dict=False)[0]
        return said
    n, channels, height, width = x.shape
    told = torch.full((n,), guidance, device=device, dtype=torch.float32) if net.config.guidance_embeds else None
    out = net(
        hidden_states=pipe._pack_latents(x, n, channels, height, width), timestep=timesteps / 1000, guidance=told,
        pooled_projections=pooled, encoder_hidden_states=states, txt_ids=states.new_zeros(states.shape[1], 3),
        img_ids=pipe._prepare_latent_image_ids(n, height // PACK, width // PACK, device, dtype), return_dict=False,
    )[0]  # fmt: skip
    pixels = (height * pipe.vae_scale_factor, width * pipe.vae_scale_factor)
    return pipe._unpack_latents(out, *pixels, pipe.vae_scale_factor)


@torch.no_grad()
def text_rows(pipe: Pipeline, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of FLUX' encodings of texts the rows of T5's last token [n, 4096] and CLIP's pooled ones [n, 768]: float64, CPU.

    The last token is that before the end of the text; ``""`` has none, and the last padding stands for it, as in UCE's
    program.
    """
    if not texts:
        return torch.zeros(0, 4096, dtype=torch.float64), torch.zeros(0, 768, dtype=torch.float64)
    tokenizer, length = longest_tokenizer(pipe)
    ids = tokenizer(list(texts), truncation=True, max_length=length, verbose=False).input_ids
    found = [encode_flow(pipe, [text]) for text in texts]
    rows = [states[0, len(one) - 2] for one, (states, _) in zip(ids, found, strict=True)]
    pooled = [one[0] for _, one in found]
    return torch.stack(rows).to("cpu", torch.float64), torch.stack(pooled).to("cpu", torch.float64)


def _sample(
    pipe: Pipeline, prompts: Sequence[Prompt], texts: Mapping[str, Any], start: torch.Tensor, steps: int, scale: float,
    **options: Any,
) -> torch.Tensor:  # fmt: skip
    own = pipe if options else copy.copy(pipe)  # calls leave their state on the pipeline and its scheduler
    own.scheduler = copy.deepcopy(pipe.scheduler)
    device, dtype = device_of(pipe, pipe.transformer), pipe.transformer.dtype
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
        **given,
        **pixels,
        latents=x,
        num_inference_steps=steps,
        guidance_scale=scale,
        output_type="latent",
        **options,
    ).images
    return pipe._unpack_latents(drawn, *pixels.values(), pipe.vae_scale_factor) if packed(pipe) else drawn
