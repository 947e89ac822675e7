"""Stable Diffusion 1.4's shape on a device: images/s and memory with each switch, ESD's and UnlearnDiffAtk's steps.

    python -m benchmarks.gpu [--device auto] [--dtypes float16 bfloat16] [--batch 8] [--steps 50] [--out FILE.json]
    python -m benchmarks.gpu --small          # a thin model, two steps: that it runs, on any machine

Random weights, on which time does not depend; every image has 512 x 512 pixels. ``diffusers`` is its own
``StableDiffusionPipeline`` on the same prompts, batch, sampler and guidance. Rows take turns, each keeps its fastest;
memory is the device's peak of what torch allocated in a row (on a CPU the process's peak so far, which only grows).
ESD: seconds of an update of ESD-x, the drawing of its latent included. UnlearnDiffAtk: seconds of an iteration, the
difference of a long and a short search, so that images and encodings drop out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from attacks.unlearndiffatk import UnlearnDiffAtk
from benchmarks.attacks import Blind
from benchmarks.erase import sd14_tokenizer
from benchmarks.generate import memory
from erasebench import devices, diffusion
from erasebench.diffusion.loading import DTYPES, switched
from erasebench.types import Concept, Pipeline, Prompt
from methods.esd import ESD

CHURCH = Concept(name="church", phrases=("church",))
SWITCHES: dict[str, dict[str, bool]] = {
    "erasebench": {}, "erasebench, channels_last": {"channels_last": True},
    "erasebench, vae_tiling": {"vae_tiling": True},
}  # fmt: skip
FULL = {"channels": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "text": 12, "width": 768, "size": 64}
SMALL = {"channels": (32, 32, 64, 64), "vae": (32, 32, 32, 32), "text": 1, "width": 64, "size": 8}


@dataclass(frozen=True)
class Row:
    """One measurement: ``value`` in ``unit``; memory in GB."""

    what: str
    dtype: str
    value: float
    unit: str
    memory: float


def model(shape: dict[str, Any]) -> Pipeline:
    """A pipeline of Stable Diffusion 1.4's shape, or a thin one, with random weights in float32 on the CPU."""
    torch.manual_seed(0)
    tokenizer = sd14_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=shape["width"], intermediate_size=4 * shape["width"],
        num_hidden_layers=shape["text"], num_attention_heads=shape["width"] // 64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=shape["vae"], layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, sample_size=8 * shape["size"], scaling_factor=0.18215,
        ),
        text_encoder=CLIPTextModel(text), tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=shape["size"], block_out_channels=shape["channels"], cross_attention_dim=shape["width"],
            attention_head_dim=8,
        ),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawings(pipe: Pipeline, prompts: Sequence[Prompt], steps: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """What draws all prompts in one batch, by name."""
    how = {"guidance_scale": 7.5}

    def theirs() -> None:
        generators = [torch.Generator().manual_seed(p.seed) for p in prompts]
        pipe([p.text for p in prompts], num_inference_steps=steps, generator=generators, **how)

    def ours(one: Pipeline) -> Callable[[], None]:
        return lambda: (
            [None for _ in diffusion.generate(one, prompts, steps=steps, batch_size=len(prompts), **how)] and None
        )

    yield "diffusers", theirs
    for name, switches in SWITCHES.items():
        yield name, ours(switched(diffusion.fork(pipe), **switches))


def seconds(work: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds of one call and the peak memory in GB."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    took = time.perf_counter() - start
    return took, torch.cuda.max_memory_allocated() / 1e9 if cuda else memory() / 1e3


def measure(options: argparse.Namespace, device: str) -> Iterator[Row]:
    """All rows of all dtypes."""
    shape = SMALL if options.small else FULL
    prompts = [Prompt(id=str(i), text=f"a church {i}", seed=i) for i in range(options.batch)]
    whole = model(shape)
    for dtype in options.dtypes:
        pipe = diffusion.fork(whole).to(device, DTYPES[dtype])
        calls = dict(drawings(pipe, prompts, options.steps))
        best = dict.fromkeys(calls, (float("inf"), 0.0))
        for _ in range(options.repeats):
            for name, call in calls.items():
                best[name] = min(best[name], seconds(call, device))
        for name, (took, peak) in best.items():
            yield Row(f"draw: {name}", dtype, len(prompts) / took, "images/s", peak)
        esd = ESD(layers="xattn", iterations=options.updates, steps=min(50, max(2, options.steps)))
        took, peak = seconds(lambda pipe=pipe, esd=esd: esd.erase(pipe, CHURCH), device)
        yield Row("ESD-x", dtype, took / options.updates, "s/update", peak)
        times = []
        for iterations in (1, 1 + options.updates):
            attack = UnlearnDiffAtk(timesteps=(500,), iterations=iterations, steps=2, batch_size=1)
            work = lambda a=attack, p=pipe: a.attack(p, p, prompts[:1], CHURCH, Blind())  # noqa: E731
            times.append(seconds(work, device))
        yield Row("UnlearnDiffAtk", dtype, (times[1][0] - times[0][0]) / options.updates, "s/iteration", times[1][1])


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=None)
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--updates", type=int, default=20, help="of ESD, and iterations of UnlearnDiffAtk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a thin model, 2 steps, 2 images, 2 updates, float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = devices.check_device("--device", options.device)
    if options.small:
        options.batch, options.steps, options.updates, options.repeats = 2, 2, 2, 1
    options.dtypes = options.dtypes or (["float32"] if device == "cpu" else ["float16", "bfloat16"])
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}; {options.batch} images at once, {options.steps} steps, guidance 7.5")
    print(f"{'':36}{'':>10}{'':>12}{'':>14}{'memory, GB':>12}")
    rows = []
    for row in measure(options, device):
        rows.append(row)
        print(f"{row.what:36}{row.dtype:>10}{row.value:>12.4g} {row.unit:<13}{row.memory:>12.2f}", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"device": name, "rows": [vars(row) for row in rows]}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
