"""Images per second: ours, the bare UNet + VAE loop, one prompt at a time, and diffusers' own call.

    python -m benchmarks.generate                      # the embedded model
    python -m benchmarks.generate --compile            # and with its UNet compiled; needs a C++ compiler
    python -m benchmarks.generate --model FOLDER --prompts 4 --steps 5

The sampler with fewer steps is the one that the embedded model is drawn with (``benchmarks.samplers`` shows that the
judge sees no difference). What compiling costs once is printed beside from how many images on it pays. For the embedded
model, a second table says what a verdict and a text of an attack cost alone and in batches.

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

import numpy as np
import torch

from attacks.ringabell import Space
from erasebench import diffusion
from erasebench.diffusion.schedulers import scheduler_of
from erasebench.emoji.classifier import EmojiJudge
from erasebench.types import Pipeline, Prompt

EMBEDDED = Path(__file__).parents[1] / "erasebench" / "emoji" / "weights2"
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


def with_sampler(pipe: Pipeline, prompts: list[Prompt], name: str, steps: int, scale: float, batch: int) -> None:
    """Draws with another sampler than the pipeline's own."""
    other = diffusion.fork(pipe)
    other.scheduler = scheduler_of(pipe, name)
    for _ in diffusion.generate(other, prompts, steps=steps, guidance_scale=scale, batch_size=batch):
        pass


def compiled(pipe: Pipeline, draw: Callable[[Pipeline], None]) -> tuple[Callable[[], None], float]:
    """What draws with a compiled UNet, and the seconds of its first call, which compiles."""
    other = diffusion.fork(pipe)
    other.unet.compile()
    start = time.perf_counter()
    draw(other)
    return lambda: draw(other), time.perf_counter() - start


def in_batches(pipe: Pipeline, n: int, repeats: int) -> dict[str, tuple[float, float]]:
    """CPU milliseconds one at a time and in batches: a verdict of the judge, a text of Ring-A-Bell's search."""
    prompts = [Prompt(id=str(i), text=f"a {WORDS[i % len(WORDS)]}", seed=i) for i in range(n)]
    images = [image for _, image, _ in diffusion.generate(pipe, prompts, steps=2, batch_size=n)]
    judge, names = EmojiJudge(), [WORDS[i % len(WORDS)] for i in range(n)]
    space = Space.of(pipe, 8, 10)
    people = np.random.default_rng(0).choice(space.allowed, size=(n, 8))
    goal = torch.zeros(10, pipe.text_encoder.config.hidden_size, dtype=torch.float64)

    def least(call: Callable[[], object]) -> float:
        taken = []
        for _ in range(repeats):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
        return 1000 * min(taken) / n

    return {
        "judge": (
            least(lambda: [judge([image], [name]) for image, name in zip(images, names, strict=True)]),
            least(lambda: judge(images, names)),
        ),
        "Ring-A-Bell": (least(lambda: space.losses(people, goal, 1)), least(lambda: space.losses(people, goal, 64))),
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
    parser.add_argument(
        "--sampler", nargs=2, default=("dpm++", "8"), metavar=("NAME", "STEPS"), help="with fewer steps"
    )
    parser.add_argument("--compile", action="store_true", help="also with the UNet compiled")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe = diffusion.load(options.model)
    loaded = memory()
    prompts = [Prompt(id=str(i), text=f"a {WORDS[i % len(WORDS)]} {i}", seed=i) for i in range(options.prompts)]

    calls = rows(pipe, prompts, options.steps, options.guidance, options.batch)
    sampler, few = options.sampler[0], int(options.sampler[1])
    calls[f"erasebench, {sampler} in {few} steps"] = lambda: with_sampler(
        pipe, prompts, sampler, few, options.guidance, options.batch
    )
    if options.compile:
        calls["the same, UNet compiled"], first = compiled(
            pipe, lambda other: with_sampler(other, prompts, sampler, few, options.guidance, options.batch)
        )
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
    if options.compile:
        plain, quick = seconds[f"erasebench, {sampler} in {few} steps"], seconds["the same, UNet compiled"]
        pays = f"from {first / (plain - quick) * len(prompts):.0f} images on" if plain > quick else "never here"
        print(f"compiling: {first - quick:.0f} s; it pays {pays}")
    if options.model == EMBEDDED:
        print(f"{'CPU ms each':36}{'alone':>10}{'in 64s':>10}")
        for what, (alone, together) in in_batches(pipe, 64, options.repeats).items():
            print(f"{what:36}{alone:>10.2f}{together:>10.2f}")
    print(f"peak resident memory: {loaded:.0f} MB once loaded, {memory():.0f} MB in all")


if __name__ == "__main__":
    main()
