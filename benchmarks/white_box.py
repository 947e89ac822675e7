"""What a white-box attack costs: beside the bare UNet, beside a loop over one prompt at a time, and in memory.

    python benchmarks/white_box.py [--model FOLDER] [--attack p4d] [--batches 1 8 32] [--prompts 8]

Without a folder: the embedded model. CPU seconds are the figure to compare on a machine that does other work too;
on CUDA, where there is no such figure, wall seconds are printed in their place. Ring-A-Bell: ``benchmarks/attack.py``.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/methods.py would shadow the package methods

from attacks import denoising
from attacks.descent import Models, Slot, Steps, descend
from attacks.p4d import P4D
from attacks.token_search import PrefixSearch
from attacks.unlearndiffatk import UnlearnDiffAtk
from erasebench import diffusion
from erasebench.types import Concept, Prompt, Verdict
from methods.uce import UCE

EMBEDDED = Path(__file__).parents[1] / "erasebench" / "emoji" / "weights"
CAT = Concept(name="cat", phrases=("cat",), anchor="dog")
COLOURS = ("red", "blue", "green", "white", "pink", "gray", "purple", "yellow")


class Blind:
    """A judge that never sees anything, so that every prompt costs the whole search."""

    name = "blind"

    def check(self, concepts: Any) -> None: ...

    def __call__(self, images: Sequence[Any], concepts: Sequence[str]) -> list[Verdict]:
        return [Verdict(present=False, score=0.0, label="") for _ in images]


def prompts(n: int) -> list[Prompt]:
    return [Prompt(id=str(i), text=f"a cat on a {COLOURS[i % 8]} background", seed=i, concept="cat") for i in range(n)]


def clock(pipe: Any) -> float:
    if pipe.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(pipe: Any, work: Callable[[], object], passes: int) -> float:
    """Seconds of a pass, after one that allocates."""
    work()
    began = clock(pipe)
    work()
    return (clock(pipe) - began) / passes


def memory(pipe: Any) -> float:
    """Peak so far in MB: of the device, or of the process."""
    if pipe.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def throughput(pipe: Any, attack: PrefixSearch, batch: int, passes: int) -> tuple[float, float, float]:
    """Seconds of one forward and backward pass of a batch: UNet alone, with the text encoder, and in the search."""
    some = prompts(batch)
    unet, device = pipe.unet, pipe.unet.device
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    x = torch.randn(batch, *shape).to(device, unet.dtype)
    t = torch.full((batch,), 500, device=device)
    states = diffusion.encode(pipe, [p.text for p in some])
    tokens = diffusion.token_table(pipe)[diffusion.tokenise(pipe, [p.text for p in some]).to(device)]

    def passed(embeddings: bool) -> None:
        for _ in range(passes):
            leaf = (tokens if embeddings else states).detach().clone().requires_grad_()
            given = diffusion.encode_embeddings(pipe, leaf) if embeddings else leaf
            loss = unet(x, t, encoder_hidden_states=given, return_dict=False)[0].float().square().mean()
            torch.autograd.grad(loss, leaf)

    vocabulary = denoising.Vocabulary.of(pipe)
    models = Models(pipe, pipe, CAT, Blind(), vocabulary, attack.relax(vocabulary), some)
    steps = Steps(
        iterations=passes, timestep=attack.timestep, lr=attack.lr, decay=attack.weight_decay,
        decoupled=attack.decoupled, distils=attack.distils, seed=0,
    )  # fmt: skip
    latents = {i: torch.randn(shape) for i in range(batch)}
    records: dict[int, dict[str, Any]] = {i: {"forward": 0, "backward": 0, "gradient": "none"} for i in range(batch)}
    slots: list[Slot] = [attack._slot(models, i, records, latents) for i in range(batch)]

    def searched() -> None:
        descend(models, slots, steps)
        for slot in slots:
            slot.round = 0

    bare, whole = timed(pipe, lambda: passed(False), passes), timed(pipe, lambda: passed(True), passes)
    return bare, whole, timed(pipe, searched, passes)


def beside_a_loop(pipe: Any, make: Callable[[int], PrefixSearch], n: int) -> None:
    """The attack on n prompts at once and one at a time: cost per prompt and query, and whether the texts agree."""
    erased, found, costs = UCE().erase(pipe, CAT), [], []
    for size in (1, n):
        attack, began = make(size), clock(pipe)
        groups = [[p] for p in prompts(n)] if size == 1 else [prompts(n)]
        out = [p for group in groups for p in attack.attack(erased, pipe, group, CAT, Blind())]
        costs.append(clock(pipe) - began)
        queries = sum(p.info["queries"] for p in out)
        found.append([p.text for p in out])
        print(f"{'one at a time' if size == 1 else 'together':15}{costs[-1] / n:12.2f}{costs[-1] / queries:12.2f}")
    print(f"{costs[0] / costs[1]:.2f}x; same texts: {sum(a == b for a, b in zip(*found, strict=True))} of {n}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="diffusers folder; default: the embedded model")
    parser.add_argument("--attack", choices=("unlearndiffatk", "p4d"), default="unlearndiffatk")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, default=8, help="0: leave the second part out")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    kind = P4D if args.attack == "p4d" else UnlearnDiffAtk
    pipe = diffusion.load(args.model, device=args.device)

    def make(size: int) -> PrefixSearch:
        return kind(timesteps=args.timesteps, iterations=args.iterations, steps=args.steps, batch_size=size)

    print(f"{args.model}, {args.attack}, {torch.get_num_threads()} threads; ms of a pass and prompt")
    print(f"{'batch':>6}{'UNet':>9}{'+ text':>9}{'search':>9}{'of UNet':>9}{'of + text':>11}{'peak MB':>9}")
    for batch in args.batches:
        bare, whole, search = (1e3 * s / batch for s in throughput(pipe, make(batch), batch, args.passes))
        row = f"{batch:6d}{bare:9.2f}{whole:9.2f}{search:9.2f}{bare / search:9.0%}{whole / search:11.0%}"
        print(f"{row}{memory(pipe):9.0f}", flush=True)
    if not args.prompts:
        return
    print(f"\n{args.prompts} prompts, {len(args.timesteps)} rounds of {args.iterations} iterations and one query")
    print(f"{'':15}{'s a prompt':>12}{'s a query':>12}")
    beside_a_loop(pipe, make, args.prompts)


if __name__ == "__main__":
    main()
