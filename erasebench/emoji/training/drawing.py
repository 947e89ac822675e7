"""Training stages of what draws: autoencoder, cached latents and text states, UNet; see ``train``."""

from __future__ import annotations

import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, mse_loss

from erasebench.emoji import networks
from erasebench.emoji.training import artwork, captions, parts, world
from erasebench.emoji.training.loop import Context, optimise, save
from erasebench.emoji.training.recognition import PLACES, STYLES, THINGS, fast, load_contrastive, step_rng, tokenizer

JITTERS = 8  # latents kept per concept, style and background


# ---------------------------------------------------------------------------------------------- autoencoder
def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def autoencoder(ctx: Context) -> None:
    """64 px pictures to 8 x 8 latents of 8 channels, and back."""
    _train_autoencoder(ctx, "autoencoder", parts.autoencoder(), steps=3600, lr=2e-3, flat=0.4, coarse=0)


def refine(ctx: Context) -> None:
    """Train the autoencoder further, on all workers."""
    model = parts.autoencoder()
    model.load_state_dict(load_file(ctx.out / "autoencoder" / "final.safetensors"))
    _train_autoencoder(ctx, "refine", model, steps=1600, lr=1.5e-3, flat=0.3, coarse=2)


def decoder(ctx: Context) -> None:
    """Train the decoder further while the encoder rests, so that latents (and the UNet) stay what they are."""
    model = parts.autoencoder()
    model.load_state_dict(load_file(ctx.out / "refine" / "final.safetensors"))
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    _train_autoencoder(ctx, "decoder", model, steps=900, lr=1.2e-3, flat=0.2, coarse=2)


def _train_autoencoder(
    ctx: Context, stage: str, model: AutoencoderKL, *, steps: int, lr: float, flat: float, coarse: float
) -> None:
    """L1 + squared error + edge L1 + coarse L1 + 3e-4 KL on jittered pictures of the world and of other emoji."""
    art, colours = artwork.load(ctx.data), artwork.colours()
    inside = art.world[:, : len(STYLES)].flatten(0, 1)
    outside = art.other.flatten(0, 1)

    def loss(step: int, g: torch.Generator) -> Tensor:
        i, j = torch.randint(len(inside), (13,), generator=g), torch.randint(len(outside), (3,), generator=g)
        places = colours[torch.randint(len(PLACES), (16,), generator=g)]
        x = artwork.compose(torch.cat([inside[i], outside[j]]), places, g)
        with fast():
            posterior = model.encode(x).latent_dist
            z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
            y = model.decode(z).sample
        y, kl = y.float(), posterior.kl().float().mean() / x[0].numel()
        edges = sum((a - b).abs().mean() for a, b in zip(_gradients(y), _gradients(x), strict=True))
        tint = avg_pool2d(y - x, 8).abs().mean()  # colours of whole parts, which the finer terms learn last
        return (y - x).abs().mean() + mse_loss(y, x) + edges + coarse * tint + 3e-4 * kl

    optimise(ctx, stage, model, loss, steps=steps, lr=lr, warmup=100, flat=flat, ema=0.99)


# ---------------------------------------------------------------------------------------------- cached states
def _caption_pool() -> list[captions.Caption]:
    """The fixed captions the UNet is trained on; the "drawn" concept of group words is chosen while training."""
    rng, pool = random.Random(7), []
    for name in THINGS:
        for _ in range(260):
            pool.append(captions.caption(rng, name, rng.choice(STYLES), rng.choice(PLACES)))
    for _ in range(900):
        pool.append(captions.group_caption(rng, rng.choice(STYLES), rng.choice(PLACES))[0])
        pool.append(captions.generic_caption(rng, rng.choice(STYLES), rng.choice(PLACES)))
    for _ in range(400):
        pool.append(captions.nothing_caption(rng, rng.choice(PLACES)))
        pool.append(captions.style_caption(rng, rng.choice(STYLES)))
    unique = {c.text: c for c in pool}
    return list(unique.values())


def states(ctx: Context) -> None:
    """Cache latents of every concept x style x background x jitter, and text states of a pool of captions."""
    done = ctx.out / "states" / "latents.safetensors"
    if not ctx.main or done.exists():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads * ctx.workers)  # the other workers wait
    world, other, blank = _latents(ctx)
    _text_states(ctx)
    torch.set_num_threads(threads)
    save(done, {"world": world, "other": other, "blank": blank, "std": world.std()})


def _latents(ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of the world [concept, style, background, jitter, 8, 8, 8], of other drawings, of blank backgrounds."""
    art, colours = artwork.load(ctx.data), artwork.colours()
    vae = parts.autoencoder()
    vae.load_state_dict(load_file(ctx.out / "refine" / "final.safetensors"))
    vae.eval().requires_grad_(False)
    g = torch.Generator().manual_seed(3)

    def latents(sprites: Tensor, places: Tensor) -> Tensor:
        with torch.inference_mode(), fast():
            batches = zip(sprites.split(128), places.split(128), strict=True)
            return torch.cat([vae.encode(artwork.compose(s, p, g)).latent_dist.mean.float() for s, p in batches])

    inside = []
    for c in range(len(THINGS)):
        sprites = art.world[c, : len(STYLES)].repeat_interleave(len(PLACES) * JITTERS, 0)
        places = colours.repeat_interleave(JITTERS, 0).repeat(len(STYLES), 1)
        inside.append(latents(sprites, places).view(len(STYLES), len(PLACES), JITTERS, parts.CHANNELS, 8, 8))
    outside = latents(
        art.other.flatten(0, 1), colours[torch.randint(len(PLACES), (art.other.shape[0] * 4,), generator=g)]
    )
    blank = latents(torch.zeros(len(PLACES), 4, 72, 72, dtype=torch.uint8), colours)
    return torch.stack(inside), outside, blank


def _text_states(ctx: Context) -> None:
    """Write the text states of the empty text and of a pool of captions, float16, in one move."""
    tok, text = tokenizer(ctx), load_contrastive(ctx).text
    everything = ["", *(c.text for c in _caption_pool())]
    part = ctx.out / "states" / "text.npy.part"
    shape = (len(everything), networks.TOKENS, networks.WIDTH)
    rows = np.lib.format.open_memmap(part, "w+", np.float16, shape)
    for i in range(0, len(everything), 128):
        ids = tok(
            everything[i : i + 128], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        with torch.inference_mode(), fast():
            rows[i : i + 128] = text(ids).last_hidden_state.half().numpy()
    rows.flush()
    part.rename(part.with_suffix(""))


# ---------------------------------------------------------------------------------------------- UNet
def unet(ctx: Context) -> None:
    """Predict the noise of cached latents from cached text states; a tenth of the captions is dropped."""
    cached = load_file(ctx.out / "states" / "latents.safetensors")
    std = cached["std"]
    latents = {k: cached[k] / std for k in ("world", "other", "blank")}
    text = np.load(ctx.out / "states" / "text.npy", mmap_mode="r")
    pool, groups = _caption_pool(), {**world.categories(), **world.SUPERSETS}
    noise, model = parts.scheduler(), parts.unet()
    # What is drawn, and on which background, is decided at high noise, which the plain error hardly counts.
    weight = (1 / noise.alphas_cumprod).clamp(max=20)  # as predicting velocity would weigh
    weight /= weight.mean()
    index = {name: i for i, name in enumerate(THINGS)}

    def example(rng: random.Random) -> tuple[int, Tensor]:
        k = rng.randrange(len(pool))
        c = pool[k]
        s = STYLES.index(c.style) if c.style else rng.randrange(len(STYLES))
        b = PLACES.index(c.background) if c.background else rng.randrange(len(PLACES))
        row = 0 if rng.random() < 0.1 else k + 1
        if c.concept == "*":
            return row, latents["other"][rng.randrange(len(latents["other"]) // 4) * 4 + s]
        if c.concept == "nothing":
            return k + 1, latents["blank"][b]
        name = rng.choice(groups[c.concept]) if c.concept in groups else c.concept or rng.choice(THINGS)
        return row, latents["world"][index[name], s, b, rng.randrange(JITTERS)]

    def loss(step: int, g: torch.Generator) -> Tensor:
        rng = step_rng(ctx, "unet", step)
        rows, clean = zip(*(example(rng) for _ in range(48)), strict=True)
        x0 = torch.stack(clean)
        states = torch.from_numpy(np.stack([text[r] for r in rows])).float()
        eps = torch.randn(x0.shape, generator=g)
        t = torch.randint(1000, (len(x0),), generator=g)
        with fast():
            out = model(noise.add_noise(x0, eps, t), t, states).sample
        return (weight[t] * (out.float() - eps).square().mean((1, 2, 3))).mean()

    optimise(ctx, "unet", model, loss, steps=6000, lr=1.5e-3, warmup=200, flat=0.55, ema=0.998, every=200)
