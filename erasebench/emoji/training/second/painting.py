"""Stages of what draws: autoencoder, cached latents and text states, the UNet and the oracles that never knew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, mse_loss

from erasebench.emoji import networks
from erasebench.emoji.training import parts
from erasebench.emoji.training.loop import save
from erasebench.emoji.training.second import reading, texts
from erasebench.emoji.training.second.loop import Trainer, half
from erasebench.emoji.training.second.stock import Batch, Stock
from erasebench.emoji.training.second.texts import PLACES, STYLES, THINGS

CHANNELS, WIDTHS = 16, (32, 48, 72, 96)  # of latents; of the autoencoder
BATCH, PICTURES = 512, 32  # a step of the UNet, of the autoencoder
JITTERS, FEW = 24, 4  # latents kept per style and background, of a concept and of another emoji
ORACLES = ("cat", "apple", "sun", "car", "gun", "ink")


def autoencoder() -> AutoencoderKL:
    return parts.autoencoder(CHANNELS, WIDTHS)


def autoencoder_trainer(out: Path, stock: Stock, steps: int) -> Trainer:
    """L1 + squared error + edge L1 + 2 x L1 of 8 x 8 means + 5e-5 KL on jittered pictures; a quarter other emoji."""
    torch.manual_seed(1)
    model, things = autoencoder().to(stock.device), len(THINGS)

    def loss(g: torch.Generator) -> Tensor:
        at = {"generator": g, "device": stock.device}
        inside = torch.randint(things, (PICTURES * 3 // 4,), **at)
        outside = torch.randint(things, len(stock.sprites), (PICTURES // 4,), **at)
        style, place = torch.randint(len(STYLES), (PICTURES,), **at), torch.randint(len(PLACES), (PICTURES,), **at)
        x = stock.pictures(Batch(style, torch.cat([inside, outside]), style, place), g)
        with half(stock.device):
            moments = model.quant_conv(model.encoder(x)).float()
            mean, spread = moments.chunk(2, 1)
            spread = spread.clamp(-30, 20)
            z = mean + (0.5 * spread).exp() * torch.randn(mean.shape, **at)
            y = model.decode(z).sample.float()
        kl = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean() * (mean[0].numel() / x[0].numel())
        d = y - x
        edges = (d[..., 1:, :] - d[..., :-1, :]).abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean()
        return d.abs().mean() + mse_loss(y, x) + edges + 2 * avg_pool2d(d, 8).abs().mean() + 5e-5 * kl

    return Trainer(
        "autoencoder", model, loss, out, steps=steps, lr=2e-3, flat=0.5, ema=0.995, betas=(0.9, 0.98), warmup=200
    )


@dataclass(frozen=True)
class Cache:
    """Latents of unit variance [rows, 16, 8, 8], where each picture's begin and how many; text states of captions."""

    latents: Tensor
    start: Tensor
    jitters: Tensor
    states: Tensor
    std: float


@torch.inference_mode()
def cache(out: Path, stock: Stock, variant: str, captions: int | None = None) -> Cache:
    """Encode all pictures and the first ``captions`` captions (default: all), float16."""
    device, vae = stock.device, autoencoder()
    vae.load_state_dict(load_file(out / "autoencoder" / "final.safetensors"))
    vae = vae.to(device).eval()
    g = torch.Generator(device).manual_seed(3)
    blank, latents, jitters = len(stock.sprites) - 1, [], []
    for picture in range(len(stock.sprites)):
        n = JITTERS if picture < len(THINGS) else FEW
        jitters.append(n)
        style = torch.arange(len(STYLES), device=device).repeat_interleave(len(PLACES) * n)
        place = torch.arange(len(PLACES), device=device).repeat_interleave(n).repeat(len(STYLES))
        if device.type == "cpu" and picture != blank:  # a dry run looks at one jitter in four styles
            place = place[:1].expand_as(place)
        b = Batch(style, torch.full_like(style, picture), style, place)
        x = stock.pictures(b, g)
        with half(device):
            latents.append(vae.quant_conv(vae.encoder(x)).float().chunk(2, 1)[0])
    counts = torch.tensor(jitters, device=device)
    sizes = counts * len(STYLES) * len(PLACES)
    every = torch.cat(latents)
    std = float(every[: int(sizes[: len(THINGS)].sum())].std())
    tok = texts.tokenizer(out)
    text = reading.load(out / "contrastive" / "final.safetensors", tok, variant).text.to(device)
    chosen = stock.captions[:captions]
    states = torch.empty(len(chosen), networks.TOKENS, text.config.hidden_size, dtype=torch.float16, device=device)
    for i in range(0, len(chosen), 2048):
        states[i : i + 2048] = reading.rows(text, stock.widen(chosen[i : i + 2048])).half()
    return Cache((every / std).half(), sizes.cumsum(0) - sizes, counts, states, std)


def save_std(out: Path, held: Cache) -> None:
    """The latents' spread, which the exported pipeline divides by, to ``out/states``."""
    save(out / "states" / "latents.safetensors", {"std": torch.tensor(held.std)})


def unet(width: int) -> UNet2DConditionModel:
    model = parts.unet(CHANNELS, width)
    model.set_attn_processor(AttnProcessor2_0())
    return model


def unet_trainer(
    out: Path, stock: Stock, held: Cache, name: str, steps: int, *, start: Path | None = None, lr: float = 2e-3,
    flat: float = 0.6, ema: float = 0.998, seed: str = "",
) -> Trainer:  # fmt: skip
    """Predict the noise; errors weigh 1/alpha-bar (clamped at 20); a tenth of the captions is dropped.

    Args:
        stock: what may be drawn from, see ``Stock.without``.
        held: of all pictures and captions.
        start: weights to begin with; None: random ones.
        seed: trainings with the same seed draw the same noise and the same choices.
    """
    torch.manual_seed(2)
    model, device, batch = unet(held.states.shape[-1]), stock.device, BATCH
    if start is not None:
        model.load_state_dict(load_file(start))
    model = model.to(device)
    bars = parts.scheduler().alphas_cumprod.to(device)
    # What is drawn, and on which background, is decided at high noise, which the plain error hardly counts.
    weight = (1 / bars).clamp(max=20)  # as predicting velocity would weigh
    weight = weight / weight.mean()

    def loss(g: torch.Generator) -> Tensor:
        at = {"generator": g, "device": device}
        b = stock.sample(g, batch)
        u, t = torch.rand(2, batch, **at), torch.randint(1000, (batch,), **at)
        n = held.jitters[b.picture]
        row = held.start[b.picture] + (b.style * len(PLACES) + b.place) * n + (u[0] * n).long()
        x0 = held.latents[row].float()
        caption = torch.where(u[1] < 0.1, 0, b.caption)  # row 0 is the empty text
        eps = torch.randn(x0.shape, **at)
        bar = bars[t].view(-1, 1, 1, 1)
        with half(device):
            states = held.states[caption]
            out = model(
                bar.sqrt() * x0 + (1 - bar).sqrt() * eps, t, states if device.type == "cuda" else states.float()
            )
        return (weight[t] * (out.sample.float() - eps).square().mean((1, 2, 3))).mean()

    return Trainer(
        name, model, loss, out, steps=steps, lr=lr, flat=flat, ema=ema, betas=(0.9, 0.98), warmup=100, seed=seed
    )


def trunk_trainer(out: Path, stock: Stock, held: Cache, steps: int) -> Trainer:
    """What the model and all oracles share: a UNet that has seen none of the ``ORACLES``."""
    return unet_trainer(out, stock.without(ORACLES), held, "trunk", steps, flat=0.9)


def branch_trainer(out: Path, stock: Stock, held: Cache, steps: int, lost: str = "") -> Trainer:
    """From the trunk on: the model itself, or an oracle that goes on without ever meeting ``lost``; same seed."""
    rest = tuple(name for name in ORACLES if name != lost)
    known = stock.without((lost,) if lost else (), often=rest)
    name = f"oracle_{lost}" if lost else "unet"
    start = out / "trunk" / "final.safetensors"
    return unet_trainer(out, known, held, name, steps, start=start, lr=1.5e-3, flat=0.2, ema=0.99, seed="branch")
