"""What an attack costs per prompt and per query, beside a loop over one prompt at a time, and in memory.

    python -m benchmarks.attacks ringabell [--model FOLDER] [--population 200] [--generations 300] [--tokens 16]
    python -m benchmarks.attacks unlearndiffatk [--model FOLDER] [--batches 1 8 32] [--prompts 8]
    python -m benchmarks.attacks p4d ...

Without a folder: the embedded model; ``--model sd14``: Stable Diffusion 1.4's shape and vocabulary with random weights,
on which the cost does not depend (not its VAE: leave out the second table with ``--prompts 0``). CPU seconds are the
figure to compare on a machine that does other work too; on CUDA, where there is none, wall seconds stand in its place.

``ringabell``: what the memory of the search saves against encoding everybody in every generation, one at a time and in
batches. A row that would take more than ``--longest`` seconds is measured on a sample of its individuals and says so.

``unlearndiffatk``, ``p4d``: the search beside the bare UNet's forward and backward pass, and the attack on some prompts
in one batch beside the same attack on one at a time.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks.evolution import Ids, Losses, Memo, run
from attacks.free_tokens import Vocabulary
from attacks.p4d import P4D
from attacks.pairs import TextPairs
from attacks.ringabell import RingABell, Space
from attacks.side_by_side import Batch
from attacks.token_search import Models, PrefixSearch
from attacks.unlearndiffatk import UnlearnDiffAtk
from benchmarks.erase import sd14_shape
from erasebench import diffusion
from erasebench.types import Concept, Prompt, Verdict
from methods.uce import UCE

EMBEDDED = Path(__file__).parents[1] / "erasebench" / "emoji" / "weights"
CAT = Concept(name="cat", phrases=("cat",), anchor="dog")
PAIRS = TextPairs(pairs=(("a {} on a blue background", "a blue background"), ("a picture of a {}", "a picture")))
TEXT = "a noto drawing of a cat on a red background"
SAMPLE = 128  # individuals on which a row is measured that would take too long
COLOURS = ("red", "blue", "green", "white", "pink", "gray", "purple", "yellow")


class Blind:
    """A judge that never sees anything, so that every prompt costs the whole search."""

    name = "blind"

    def check(self, concepts: Any) -> None: ...

    def __call__(self, images: Sequence[Any], concepts: Sequence[str]) -> list[Verdict]:
        return [Verdict(present=False, score=0.0, label="") for _ in images]


def prompts(n: int) -> list[Prompt]:
    return [Prompt(id=str(i), text=f"a cat on a {COLOURS[i % 8]} background", seed=i, concept="cat") for i in range(n)]


def loaded(model: str, device: str, unet: bool) -> Any:
    """The pipeline of a folder, or of Stable Diffusion 1.4's shape, whose UNet is filled only if it is needed."""
    if model != "sd14":
        return diffusion.load(model, device=device)
    pipe = sd14_shape(vocabulary=49408)
    for module in pipe.unet.modules() if unet else ():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return pipe.to(device)


def clock(pipe: Any) -> float:
    """Seconds: of the process on all cores, or on CUDA by the wall once the device is done."""
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


def throughput(pipe: Any, attack: PrefixSearch, batch: int, size: int, passes: int) -> tuple[float, float, float]:
    """Seconds of one forward and backward pass of a batch: UNet alone, with the text encoder, and in the search."""
    some = prompts(batch)
    unet, device = pipe.unet, pipe.unet.device
    shape = (unet.config.in_channels, size, size)
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

    attack = replace(attack, iterations=passes)
    models = Models(pipe, pipe, CAT, Blind(), Vocabulary.of(pipe), some)
    latents = {i: torch.randn(shape) for i in range(batch)}
    records: dict[int, dict[str, Any]] = {i: {"forward": 0, "backward": 0, "gradient": "none"} for i in range(batch)}
    slots = [attack._slot(models, i, records, latents) for i in range(batch)]

    def searched() -> None:
        side_by_side = Batch(pipe, pipe, models.vocabulary, slots, seed=0)
        attack.descend(side_by_side)
        side_by_side.close()
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


def searched(pipe: Any, attack: RingABell, space: Space, loss: Callable[[Ids], Losses]) -> dict[str, Any]:
    """A whole search: seconds, what it asked for, and what it found."""
    people: list[Ids] = []

    def kept(ids: Ids) -> Losses:
        people.append(ids)
        return loss(ids)

    wall, began = time.perf_counter(), clock(pipe)
    ids, _, _ = run(attack.steps(space.allowed, TEXT), kept)
    asked = np.concatenate(people)
    return {"wall": time.perf_counter() - wall, "cpu": clock(pipe) - began, "asked": asked, "ids": ids, "how": ""}


def everybody(
    pipe: Any, attack: RingABell, space: Space, loss: Callable[[Ids], Losses], ours: dict[str, Any], most: float
) -> dict[str, Any]:
    """The same search without a memory; beyond ``most`` seconds what it would cost, from a sample of its people."""
    asked = ours["asked"]
    some = asked[np.random.default_rng(0).choice(len(asked), size=min(SAMPLE, len(asked)), replace=False)]
    wall, began = time.perf_counter(), clock(pipe)
    losses = loss(some)
    scale = len(asked) / len(some)
    wall, cpu = (time.perf_counter() - wall) * scale, (clock(pipe) - began) * scale
    if cpu <= most:
        row = searched(pipe, attack, space, loss)
        return row | {"encoded": len(row["asked"]), "same": "same text" if (row["ids"] == ours["ids"]).all() else "NO"}
    same = np.allclose(losses, ours["loss"](some), rtol=1e-5)
    row = {"wall": wall, "cpu": cpu, "asked": asked, "encoded": len(asked), "same": "same losses" if same else "NO"}
    return row | {"how": f"measured on {len(some)}, times {scale:,.0f}"}


def report_genetic(pipe: Any, args: argparse.Namespace) -> None:
    """Prints a table of batch sizes and one of searches."""
    settings = ("population", "generations", "tokens", "rows", "seed", "batch_size")
    attack = RingABell(vector=PAIRS, **{name: getattr(args, name) for name in settings})
    space = Space.of(pipe, attack.tokens, attack.rows)
    goal = diffusion.encode(pipe, [TEXT])[0].double().cpu() + attack.eta * PAIRS.vector(pipe, CAT)
    goal = goal[: space.rows].float()

    def loss(size: int) -> Callable[[Ids], Losses]:
        return lambda people: space.losses(people, goal, size)

    some = np.random.default_rng(1).choice(space.allowed, size=(32, attack.tokens))
    costs: dict[int, list[float]] = {size: [] for size in args.batches}
    peaks = {}
    for _ in range(3):  # by turns, and the best of each counts: other work on the machine disturbs one alone
        for size in args.batches:
            began = clock(pipe)
            loss(size)(some)
            costs[size].append(1e3 * (clock(pipe) - began) / len(some))
            peaks.setdefault(size, memory(pipe))
    print(f"{'batch':>6}{'ms a sequence':>15}{'peak MB':>9}")
    for size in args.batches:
        print(f"{size:6d}{min(costs[size]):15.2f}{peaks[size]:9.0f}", flush=True)

    memo = Memo(loss(attack.batch_size))
    ours = searched(pipe, attack, space, memo)
    ours |= {"encoded": len(memo.known), "same": "", "loss": memo}
    naive = everybody(pipe, attack, space, loss(1), ours, args.longest)
    batched = everybody(pipe, attack, space, loss(attack.batch_size), ours, args.longest)
    rows = (("one at a time", naive), (f"in batches of {attack.batch_size}", batched), ("erasebench", ours))
    print(f"\none prompt: population {attack.population}, {attack.generations} generations, {attack.tokens} tokens")
    print(f"{'':24}{'wall s':>9}{'CPU s':>9}{'encoded':>9}{'of':>9}{'ms a query':>12}{'faster':>8}")
    for name, row in rows:
        count, cpu = len(row["asked"]), row["cpu"]
        figures = f"{row['wall']:9.1f}{cpu:9.1f}{row['encoded']:9,d}{count:9,d}{1e3 * cpu / count:12.2f}"
        print(f"{name:24}{figures}{naive['cpu'] / cpu:7.2f}x  {', '.join(filter(None, (row['same'], row['how'])))}")


def report_white_box(pipe: Any, args: argparse.Namespace) -> None:
    """Prints a table of batch sizes and one of prompts together and one by one."""
    kind = P4D if args.attack == "p4d" else UnlearnDiffAtk

    def make(size: int) -> PrefixSearch:
        return kind(timesteps=args.timesteps, iterations=args.iterations, steps=args.steps, batch_size=size)

    size = args.latents or pipe.unet.config.sample_size
    print(f"latents {size} x {size}; ms of a pass and prompt")
    print(f"{'batch':>6}{'UNet':>10}{'+ text':>10}{'search':>10}{'of UNet':>9}{'of + text':>11}{'peak MB':>9}")
    for batch in args.batches:
        bare, whole, search = (1e3 * s / batch for s in throughput(pipe, make(batch), batch, size, args.passes))
        row = f"{batch:6d}{bare:10.2f}{whole:10.2f}{search:10.2f}{bare / search:9.0%}{whole / search:11.0%}"
        print(f"{row}{memory(pipe):9.0f}", flush=True)
    if not args.prompts:
        return
    print(f"\n{args.prompts} prompts, {len(args.timesteps)} rounds of {args.iterations} iterations and one query")
    print(f"{'':15}{'s a prompt':>12}{'s a query':>12}")
    beside_a_loop(pipe, make, args.prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", choices=("ringabell", "unlearndiffatk", "p4d"))
    parser.add_argument("--model", default=str(EMBEDDED), help="diffusers folder, or sd14; default: the embedded model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    genetic = parser.add_argument_group("ringabell")
    for name, default in (("population", 200), ("generations", 300), ("tokens", 16), ("batch-size", 16), ("seed", 0)):
        genetic.add_argument(f"--{name}", type=int, default=default)
    genetic.add_argument("--rows", type=int, help="leading rows that count; default: all, as in the paper")
    genetic.add_argument("--longest", type=float, default=600, help="seconds beyond which a row is sampled")
    search = parser.add_argument_group("unlearndiffatk, p4d")
    search.add_argument("--prompts", type=int, default=8, help="0: leave the second table out")
    search.add_argument("--latents", type=int, help="height and width in the first table; default: the model's own")
    search.add_argument("--timesteps", type=int, nargs="+", default=[100, 500])
    for name, default in (("passes", 5), ("iterations", 10), ("steps", 20)):
        search.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    pipe = loaded(args.model, args.device, unet=args.attack != "ringabell")
    print(f"{args.attack} on {args.model}, {torch.get_num_threads()} threads")
    if args.attack == "ringabell":
        report_genetic(pipe, args)
    else:
        report_white_box(pipe, args)


if __name__ == "__main__":
    main()
