"""Images per second: ours, the bare UNet + VAE loop, one prompt at a time, and diffusers' own call.

    python -m benchmarks.generate                      # the embedded model
    python -m benchmarks.generate --model FOLDER --prompts 4 --steps 5

The bare loop gets its text encoded beforehand and does nothing but denoise and decode: no noise per prompt, no cache,
no checks, no pictures. Rows take turns and each keeps its fastest turn, so that a busy machine hurts all alike.
"""

from __future__ import annotations

import argparse
import copy
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from erasebench import diffusion
from erasebench.types import Pipeline, Prompt

EMBEDDED = Path(__file__).parents[1] / "erasebench" / "emoji" / "weights"
WORDS = ("cat", "dog", "sun", "moon", "key", "lock", "tiger", "car")


def bare_loop(pipe: Pipeline, texts: list[str], steps: int, scale: float, batch: int) -> Callable[[], None]:
    """The least that must be done for these images, with the same guidance, scheduler and batch."""
    states = diffusion.encode(pipe, texts)
    empty = diffusion.encode(pipe, [""])
    shape = (pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)

    @torch.inference_mode()
    def run() -> None:
        for text in states.split(batch):
            scheduler = copy.deepcopy(pipe.scheduler)
            scheduler.set_timesteps(steps)
            both = torch.cat([empty.expand(len(text), -1, -1), text])
            x = torch.randn(len(text), *shape) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                doubled = scheduler.scale_model_input(torch.cat([x, x]), t)
                e_empty, e_text = pipe.unet(doubled, t, both, return_dict=False)[0].chunk(2)
                x = scheduler.step(e_empty + scale * (e_text - e_empty), t, x, return_dict=False)[0]
            pipe.vae.decode(x / pipe.vae.config.scaling_factor, return_dict=False)

    return run


def rows(pipe: Pipeline, prompts: list[Prompt], steps: int, scale: float, batch: int) -> dict[str, Callable[[], None]]:
    texts = [p.text for p in prompts]

    def ours(size: int) -> None:
        for _ in diffusion.generate(pipe, prompts, steps=steps, guidance_scale=scale, batch_size=size):
            pass

    def theirs() -> None:
        for i in range(0, len(texts), batch):
            generators = [torch.Generator().manual_seed(p.seed) for p in prompts[i : i + batch]]
            pipe(texts[i : i + batch], num_inference_steps=steps, guidance_scale=scale, generator=generators)

    return {
        "bare UNet + VAE loop": bare_loop(pipe, texts, steps, scale, batch),
        "erasebench.diffusion.generate": lambda: ours(batch),
        "the same, one prompt at a time": lambda: ours(1),
        "diffusers' StableDiffusionPipeline": theirs,
    }


def memory() -> float:
    """Peak resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if platform.system() == "Darwin" else peak / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=EMBEDDED, help="Stable Diffusion 1.x or 2.x folder; default: the embedded model"
    )
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe = diffusion.load(options.model)
    loaded = memory()
    prompts = [Prompt(id=str(i), text=f"a {WORDS[i % len(WORDS)]} {i}", seed=i) for i in range(options.prompts)]

    calls = rows(pipe, prompts, options.steps, options.guidance, options.batch)
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(options.repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)

    print(f"{options.model.name}: {len(prompts)} prompts, batch {options.batch}, ", end="")
    print(f"{options.steps} steps, guidance {options.guidance}, {options.threads} threads, best of {options.repeats}")
    bare = seconds["bare UNet + VAE loop"]
    print(f"{'':36}{'images/s':>10}{'of bare':>10}")
    for name, took in seconds.items():
        print(f"{name:36}{len(prompts) / took:>10.2f}{bare / took:>10.2f}")
    print(f"peak resident memory: {loaded:.0f} MB once loaded, {memory():.0f} MB in all")


if __name__ == "__main__":
    main()
