"""Train the embedded model: ``python -m erasebench.emoji.training.train --out FOLDER``; its cost is in the model card.

Stages, each seeded, checkpointed and skipped when finished: ``contrastive`` (tokenizer, text and vision encoders),
``classifier`` (independent of all others), ``autoencoder`` and ``refine``, ``states`` (latents and text states,
cached), ``unet``, ``decoder``, ``export`` (fp16 safetensors in the Hugging Face layout). With ``--workers 2`` the first
three are shared out between two processes, and ``refine``, ``unet`` and ``decoder`` average gradients over both.

``--edition 2`` trains the second edition instead, on ``--device cpu`` or ``cuda`` with the same stages and seeds:
``texts`` (captions, WordNet's definitions, tokenizer), ``encoders``, ``painting`` (UNet and oracles), ``export``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from erasebench.emoji.training import drawing, recognition
from erasebench.emoji.training.loop import Context, barrier

log = logging.getLogger("erasebench.emoji.training.train")
ALONE = {"contrastive": 0, "classifier": 1, "autoencoder": 1}  # stages of one process -> the worker that runs them


def stages() -> Iterator[tuple[str, Callable[[Context], None]]]:
    yield from [
        ("contrastive", recognition.contrastive), ("classifier", recognition.classifier),
        ("autoencoder", drawing.autoencoder), ("refine", drawing.refine), ("states", drawing.states),
        ("unet", drawing.unet), ("decoder", drawing.decoder), ("export", export),
    ]  # fmt: skip


def export(ctx: Context) -> None:
    """Write the Stable Diffusion folder and the judges' weights as fp16 safetensors to ``OUT/weights``."""
    from erasebench.emoji.training.export import export as write

    if ctx.main:
        write(ctx.out, ctx.data, {p.stem: json.loads(p.read_text()) for p in sorted((ctx.out / "seconds").glob("*"))})


def work(rank: int, args: argparse.Namespace) -> None:
    """One worker: run the chosen stages in order."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(max(1, args.threads // args.workers))
    torch.manual_seed(0)
    if args.workers > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port))
        dist.init_process_group("gloo", rank=rank, world_size=args.workers, timeout=timedelta(days=1))
    ctx = Context(args.out, args.data, rank, args.workers, args.scale)
    waiting = args.workers > 1
    for name, run in stages():
        if name not in args.stage:
            continue
        if name in ALONE:
            if ALONE[name] % args.workers == rank:
                timed(ctx, name, run, replace(ctx, rank=0, workers=1))
            continue
        if waiting:  # what follows needs the stages that the other workers run alone
            barrier(ctx)
            waiting = False
        timed(ctx, name, run, ctx)
        barrier(ctx)


def timed(ctx: Context, name: str, run: Callable[[Context], None], inner: Context) -> None:
    """Run a stage and add its wall seconds to ``OUT/seconds/<stage>.json``, which the export reads."""
    started = time.time()
    run(inner)
    if inner.main:
        record = ctx.out / "seconds" / f"{name}.json"
        record.parent.mkdir(exist_ok=True)
        before = json.loads(record.read_text()) if record.exists() else 0
        record.write_text(json.dumps(before + round(time.time() - started)))


def second(args: argparse.Namespace) -> None:
    """Train the second edition in this process."""
    from erasebench.emoji.training.second import stages as edition

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    plan = edition.Plan(args.out, args.data, torch.device(args.device), args.scale, args.limit)
    edition.run(plan, args.stage)


def main() -> None:
    from erasebench.emoji.training import artwork
    from erasebench.emoji.training.second.stages import STAGES

    names = {1: [name for name, _ in stages()], 2: list(STAGES)}
    parser = argparse.ArgumentParser(
        prog="python -m erasebench.emoji.training.train", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the exported model")
    parser.add_argument("--data", type=Path, help="folder for the artwork (default: OUT/data); fetched with npm once")
    parser.add_argument("--edition", type=int, choices=(1, 2), default=1)
    parser.add_argument("--device", default="cpu", help="edition 2 only: cpu or cuda")
    parser.add_argument("--stage", nargs="+", help=f"default: all; edition 1: {names[1]}, edition 2: {names[2]}")
    parser.add_argument("--workers", type=int, default=1, help="edition 1 only: processes that average gradients")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on the steps of every stage, for a quick trial"
    )
    parser.add_argument("--limit", type=float, default=1e9, help="edition 2: seconds of training; shortens the steps")
    parser.add_argument("--port", type=int, default=29571)
    args = parser.parse_args()
    if unknown := set(args.stage or ()) - set(names[args.edition]):
        parser.error(f"--stage of edition {args.edition} must be one of {names[args.edition]}; got {min(unknown)}")
    if args.edition == 1 and args.device != "cpu":
        parser.error(f"--device of edition 1 must be cpu; got {args.device}; edition 2 trains on cuda too")
    args.data = args.data or args.out / "data"
    args.out.mkdir(parents=True, exist_ok=True)
    artwork.load(args.data)  # once, before the workers ask for it
    args.stage = args.stage or names[args.edition]
    if args.edition == 2:
        second(args)
    elif args.workers == 1:
        work(0, args)
    else:
        mp.spawn(work, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
