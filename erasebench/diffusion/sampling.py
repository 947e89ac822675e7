"""Draw images whose noise depends on the prompt alone, with the pipeline's own scheduler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from erasebench.devices import halving
from erasebench.diffusion.encoding import Encoding, Texts
from erasebench.diffusion.flow import check_flow, denoiser, is_flow, latent_channels, multiple, sample_flow
from erasebench.diffusion.offloading import device_of, offloaded
from erasebench.diffusion.schedulers import level, noise_from, predicts_velocity, velocity_from
from erasebench.protocols import Guide
from erasebench.types import Pipeline, Prompt, Status

Drawn = tuple[Prompt, Image.Image | None, Status]
DECODED_PIXELS = 2**20  # pixels decoded at once: four images of 512x512


def noise(prompt: Prompt, shape: tuple[int, ...]) -> torch.Tensor:
    """Initial noise of a prompt: N(0, 1) from a CPU generator seeded with ``prompt.seed`` and nothing else.

    So the seeds of published prompt sets mean what they meant to their authors, the original and the erased model
    start from the same noise, and neither batch nor order matters.

    Args:
        prompt: its ``seed`` is used.
        shape: of one image's latents, [channels, height / 8, width / 8] for Stable Diffusion.

    Returns:
        float32 of that shape, on the CPU.

    >>> a, b = Prompt(id="a", text="a cat", seed=7), Prompt(id="b", text="a dog", seed=7)
    >>> torch.equal(noise(a, (4, 8, 8)), noise(b, (4, 8, 8)))
    True
    """
    return torch.randn(shape, generator=_generator(prompt), dtype=torch.float32)


def generate(
    pipe: Pipeline,
    prompts: Sequence[Prompt],
    *,
    steps: int = 20,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 16,
) -> Iterator[Drawn]:
    """Draws each prompt with the pipeline's own scheduler, and yields it as soon as its batch is done.

    Classifier-free guidance (Ho and Salimans, arXiv:2207.12598), ``e = e_empty + g (e_text - e_empty)``, with g of each
    prompt or else ``guidance_scale``; where g is 1 for a whole batch the unconditional half is not computed. (diffusers
    drops it for every g <= 1; here g < 1 means what the formula says.) Schedulers that add noise at every step draw it
    from the prompt's own generator. A prompt's ``embeds`` stand in for its text's encoding.

    A pipeline with a ``guide`` (:class:`erasebench.types.Guide`) has further texts predicted in the same UNet batch, at
    the steps the guide needs them, and combined as the guide says.

    Args:
        pipe: left as it was; may be used by others between two images.
        prompts: drawn in this order.
        steps: denoising steps.
        guidance_scale: for prompts that bring none.
        height, width: of the images in pixels, multiples of the VAE's factor (8); default: the UNet's own size.
        batch_size: images per pass; changes speed and memory, not the noise of any image. Without memory for them it
            is halved, which is said, and stays so for this process.

    Returns:
        iterator of (prompt, RGB image, "ok"). An image with NaN or infinity is (prompt, None, "nan"), one whose
        channels are each a single value is (prompt, None, "constant").

    Raises:
        ValueError: sizes, steps or embeddings that do not fit the model, before anything is drawn.
    """
    pipe = offloaded(pipe)
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1; got {steps} and {batch_size}")
    _check_model(pipe)
    shape = latent_shape(pipe, height, width)
    texts = Texts(pipe)
    expected = tuple(texts[""].states.shape[1:])
    for prompt in prompts:
        if prompt.embeds is not None and prompt.embeds.shape != expected:
            raise ValueError(f"prompt {prompt.id}: embeds must have shape {expected}; got {prompt.embeds.shape}")
    vae = _decoder(pipe)

    def draw(batch: Sequence[Prompt]) -> list[Drawn]:
        if is_flow(pipe):
            start = torch.stack([noise(prompt, shape) for prompt in batch])
            latents = sample_flow(pipe, batch, texts, start, steps, guidance_scale)
        else:
            latents = _sample(pipe, batch, texts, shape, steps, guidance_scale)
        return list(_finish(batch, _decode(vae, latents)))

    return chain.from_iterable(halving(draw, prompts, batch_size, "images", device_of(pipe, denoiser(pipe))))


@torch.inference_mode()
def _sample(
    pipe: Pipeline, prompts: Sequence[Prompt], texts: Texts, shape: tuple[int, int, int], steps: int, default: float
) -> torch.Tensor:
    """Latents [batch, channels, h, w] of some prompts after all denoising steps."""
    device, dtype = device_of(pipe, pipe.unet), pipe.unet.dtype
    generators = [_generator(p) for p in prompts]
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps, device=device)
    step_options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}

    scales = [default if p.guidance_scale is None else p.guidance_scale for p in prompts]
    scale = torch.tensor(scales, device=device, dtype=dtype).view(-1, 1, 1, 1)
    guide: Guide | None = getattr(pipe, "guide", None)
    asks = [guide is not None and guide.needed(scales, i) for i in range(len(scheduler.timesteps))]
    guided = any(g != 1 for g in scales) or any(asks)
    empty = [guide.empty if guide else ""] * guided
    extra = list(guide.extra) if guide and any(asks) else []
    states, conditions = _conditions(pipe, prompts, texts, empty, extra, shape)
    velocity = predicts_velocity(scheduler)
    kept: dict[str, torch.Tensor] = {}  # the guide's memory of this batch

    start = [torch.randn(shape, generator=g, dtype=torch.float32) for g in generators]
    x = torch.stack(start).to(device, dtype) * scheduler.init_noise_sigma  # [b, c, h, w]
    drawing = guide.drawing(pipe, prompts, states) if guide else nullcontext(lambda step: states)
    with drawing as states_at, projected_once(pipe.unet):
        for i, t in enumerate(scheduler.timesteps):
            branches = 1 + guided + len(extra) * asks[i]
            rows = branches * len(prompts)
            several = scheduler.scale_model_input(torch.cat([x] * branches) if guided else x, t)
            added = {k: v[:rows] for k, v in conditions.items()} if conditions else None
            asked = states_at(i)[:rows]
            e = pipe.unet(several, t, encoder_hidden_states=asked, added_cond_kwargs=added, return_dict=False)[0]
            if guide is not None and asks[i]:
                a = level(scheduler, i) if velocity else None
                e = e if a is None else noise_from(e, several, a)  # guides are defined for the noise
                e_empty, e_text, *e_extra = e.chunk(branches)
                e = guide.combine(e_empty, e_text, e_extra, scale, i, kept)
                e = e if a is None else velocity_from(e, several[: len(prompts)], a)
            elif guided:
                e_empty, e_text = e.chunk(2)
                e = e_empty + scale * (e_text - e_empty)
            x = scheduler.step(e, t, x, **step_options, return_dict=False)[0].to(dtype)
    return x


def _conditions(
    pipe: Pipeline, prompts: Sequence[Prompt], texts: Texts, before: Sequence[str], after: Sequence[str],
    shape: tuple[int, int, int],
) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:  # fmt: skip
    """Text states [branches * b, tokens, width] and SDXL's pooled states and size conditions.

    First a branch of b equal rows per text of ``before``, then the prompts, then a branch per text of ``after``.
    """
    device, dtype = device_of(pipe, pipe.unet), pipe.unet.dtype
    xl = getattr(pipe, "text_encoder_2", None) is not None
    rows = [texts[p.text].states if p.embeds is None else torch.from_numpy(p.embeds)[None] for p in prompts]
    zeros = xl and pipe.config.force_zeros_for_empty_prompt

    def branch(text: str) -> list[Encoding]:
        one = texts[text]
        if zeros and not text:
            one = Encoding(torch.zeros_like(one.states), torch.zeros_like(one.pooled))
        return [one] * len(prompts)

    first, last = ([one for text in side for one in branch(text)] for side in (before, after))
    states = [*(one.states for one in first), *rows, *(one.states for one in last)]
    states = torch.cat([row.to(device, dtype) for row in states])
    if not xl:
        return states, None
    pooled = torch.cat([one.pooled for one in [*first, *(texts[p.text] for p in prompts), *last]]).to(device, dtype)
    pixels = [float(n * pipe.vae_scale_factor) for n in shape[1:]]
    sizes = torch.tensor([[*pixels, 0.0, 0.0, *pixels]], device=device, dtype=dtype)  # original, crop corner, target
    return states, {"text_embeds": pooled, "time_ids": sizes.expand(len(states), -1)}


class _ProjectedOnce:
    """diffusers' default cross-attention, with keys and values computed at the first step and kept.

    They depend on the prompt alone, so the result is the same to the last bit.
    """

    def __init__(self) -> None:
        self.kv: tuple[torch.Tensor, torch.Tensor] | None = None
        self.of: torch.Tensor | None = None  # the texts they are of; a guide may change them from step to step

    def __call__(self, attn: Any, x: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        def split(y: torch.Tensor) -> torch.Tensor:
            return y.view(len(y), y.shape[1], attn.heads, -1).transpose(1, 2)  # [b, heads, n, d]

        c = encoder_hidden_states
        same = self.of is not None and self.of.data_ptr() == c.data_ptr()
        if self.kv is None or not same or len(self.kv[0]) < len(x):  # a guide may ask for its branches later only
            self.of = c  # kept, so that no other texts get its place in memory
            self.kv = split(attn.to_k(c)).contiguous(), split(attn.to_v(c)).contiguous()
        y = F.scaled_dot_product_attention(split(attn.to_q(x)), *(y[: len(x)] for y in self.kv))
        return attn.to_out[0](y.transpose(1, 2).reshape(len(x), x.shape[1], -1))


@contextmanager
def projected_once(unet: Any) -> Iterator[None]:
    """Within the block, keep the cross-attention's keys and values of the last texts; leave anything unusual alone.

    For one batch of texts, and weights that do not change, over many steps.
    """
    from diffusers.models.attention_processor import AttnProcessor2_0

    cross = [m for n, m in unet.named_modules() if n.endswith("attn2")]
    plain = all(type(m.processor) is AttnProcessor2_0 and _is_plain(m) for m in cross)
    before = [m.processor for m in cross] if plain else []
    try:
        for m, _ in zip(cross, before, strict=False):
            m.processor = _ProjectedOnce()
        yield
    finally:
        for m, processor in zip(cross, before, strict=False):
            m.processor = processor


def _is_plain(attn: Any) -> bool:
    """Query, key, value, output and nothing else, as in every Stable Diffusion UNet; no hook may want every step."""
    projections = (attn.to_k, attn.to_v)
    if any(type(m) is not torch.nn.Linear or m._forward_hooks or m._forward_pre_hooks for m in projections):
        return False
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k)
    return not any(extras) and not attn.norm_cross and not attn.residual_connection and attn.rescale_output_factor == 1


def _check_model(pipe: Pipeline) -> None:
    if is_flow(pipe):
        return check_flow(pipe)
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        channels = (pipe.unet.config.in_channels, pipe.vae.config.latent_channels)
        raise ValueError(f"model must draw from text alone: unet and vae channels must be equal; got {channels}")
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise ValueError("model must not be guidance-distilled (time_cond_proj_dim); use the model it was made from")
    if type(pipe.scheduler).__name__ == "DPMSolverSDEScheduler":
        raise ValueError("scheduler must take its noise from generators; got DPMSolverSDEScheduler; choose another")


def latent_shape(pipe: Pipeline, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
    """Shape [channels, height / factor, width / factor] of one image's latents; None: the UNet's own size in pixels."""
    factor, flow = pipe.vae_scale_factor, is_flow(pipe)
    size = pipe.default_sample_size if flow else pipe.unet.config.sample_size
    default = (size, size) if isinstance(size, int) else tuple(size)
    pixels = (height or default[0] * factor, width or default[1] * factor)
    step = multiple(pipe) if flow else factor
    if any(n < step or n % step for n in pixels):
        raise ValueError(f"height and width must be positive multiples of {step} pixels; got {pixels[0]}x{pixels[1]}")
    channels = latent_channels(pipe) if flow else pipe.unet.config.in_channels
    return channels, pixels[0] // factor, pixels[1] // factor


def _generator(prompt: Prompt) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(prompt.seed)


def _decoder(pipe: Pipeline) -> Any:
    """The VAE; in float16 a float32 copy of it where its config says that float16 overflows (SDXL)."""
    if pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast:
        return copy.deepcopy(pipe.vae).float()
    return pipe.vae


@torch.inference_mode()
def _decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images [b, 3, height, width], nominally in [-1, 1], float32 on the CPU, a few at a time to bound memory."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    at_once = max(1, DECODED_PIXELS // (latents[0, 0].numel() * factor**2))
    z = latents.to(vae.dtype) / vae.config.scaling_factor
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is not None and std is not None:
        z = z * z.new_tensor(std).view(1, -1, 1, 1) + z.new_tensor(mean).view(1, -1, 1, 1)
    z = z + (vae.config.get("shift_factor") or 0.0)  # of Stable Diffusion 3 and FLUX
    return torch.cat([vae.decode(part, return_dict=False)[0].float().cpu() for part in z.split(at_once)])


def _finish(prompts: Sequence[Prompt], images: torch.Tensor) -> Iterator[Drawn]:
    """Decoded images [b, 3, height, width] as (prompt, uint8 RGB image or None, status)."""
    for prompt, image in zip(prompts, images, strict=True):
        if not torch.isfinite(image).all():
            yield prompt, None, "nan"
            continue
        levels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        if (levels == levels[0, 0]).all():
            yield prompt, None, "constant"
        else:
            yield prompt, Image.fromarray(levels), "ok"
