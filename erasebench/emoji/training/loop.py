"""The training loop that every stage shares: seeded, checkpointed, on one or several processes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from erasebench.types import seed_of

log = logging.getLogger("erasebench.emoji.training.train")


@dataclass(frozen=True)
class Context:
    """Where a worker is and what it may use."""

    out: Path
    data: Path
    rank: int
    workers: int
    scale: float  # factor on every stage's number of steps

    @property
    def main(self) -> bool:
        return self.rank == 0

    def generator(self, stage: str, step: int) -> torch.Generator:
        """Randomness of one step: depends on stage, step and worker only, so a resumed run repeats it."""
        return torch.Generator().manual_seed(seed_of(f"{stage} {step} {self.rank}") >> 8)


def average_gradients(parameters: list[nn.Parameter], workers: int) -> None:
    """Replace gradients by their mean over the workers."""
    if workers == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= workers
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def rate(step: int, steps: int, warmup: int, flat: float) -> float:
    """Share of the learning rate at a step: a warm-up, a plateau for the share ``flat`` of the steps, a cosine to zero.

    >>> [round(rate(step, 100, 10, 0.5), 2) for step in (0, 9, 50, 75, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    decay = max(0.0, step - flat * steps) / (steps * (1 - flat))
    return min(1, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(decay * math.pi))


def update(loss: Tensor, opt: torch.optim.Optimizer, parameters: list[nn.Parameter], workers: int) -> None:
    """One step along the gradient, averaged over the workers and clipped to norm 1."""
    loss.backward()
    average_gradients(parameters, workers)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    opt.step()
    opt.zero_grad(set_to_none=False)


def follow(shadow: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move the averaged weights a little towards the model's; counters are copied."""
    for k, v in model.state_dict().items():
        shadow[k].lerp_(v, 1 - decay) if v.is_floating_point() else shadow[k].copy_(v)


def stop_as_orphan() -> None:
    """Leave a worker whose command was killed."""
    parent = mp.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit(1)


def optimise(
    ctx: Context, stage: str, model: nn.Module, loss: Callable[[int, torch.Generator], Tensor], *,
    steps: int, lr: float, betas: tuple[float, float] = (0.9, 0.98), weight_decay: float = 0.01, warmup: int = 100,
    flat: float = 0.0, ema: float = 0.0, every: int = 250,
) -> None:  # fmt: skip
    """Train in place, AdamW at :func:`rate`; checkpoint every ``every`` steps; end with the EMA weights if ``ema``."""
    final = ctx.out / stage / "final.safetensors"
    if final.exists():
        model.load_state_dict(load_file(final))
        return
    steps = max(1, int(steps * ctx.scale))
    parameters = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    shadow = {k: v.clone() for k, v in model.state_dict().items()} if ema else {}
    start = restore(ctx, stage, model, opt, shadow)
    model.train()
    shown: dict[str, Any] = {"desc": stage, "disable": not ctx.main, "mininterval": 10, "leave": False}
    bar, history = tqdm(range(start, steps), initial=start, total=steps, **shown), list[float]()
    for step in bar:
        stop_as_orphan()
        opt.param_groups[0]["lr"] = lr * rate(step, steps, warmup, flat)
        value = loss(step, ctx.generator(stage, step))
        if not torch.isfinite(value):
            raise FloatingPointError(f"{stage}: loss is {value.item()} at step {step}; the last checkpoint is kept")
        update(value, opt, parameters, ctx.workers)
        if ema:
            follow(shadow, model, min(ema, (1 + step) / (10 + step)))
        history.append(value.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{sum(history[-50:]) / len(history[-50:]):.4f}")
        if (step + 1) % every == 0 and ctx.main:
            checkpoint(ctx, stage, step + 1, model, opt, shadow)
    if ema:
        model.load_state_dict(shadow)
    if ctx.main:
        save(final, model.state_dict())
        log.info("%s: %d steps, loss %.4f", stage, steps, sum(history[-50:]) / max(1, len(history[-50:])))
    barrier(ctx)


def barrier(ctx: Context) -> None:
    if ctx.workers > 1:
        dist.barrier()


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write safetensors beside the place and rename into it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, part)
    os.replace(part, path)


def checkpoint(
    ctx: Context, stage: str, step: int, model: nn.Module, opt: torch.optim.Optimizer, shadow: dict[str, Tensor]
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"ema.{k}": v for k, v in shadow.items()}
    for i, state in opt.state_dict()["state"].items():
        tensors |= {f"opt.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    save(ctx.out / stage / "last.safetensors", tensors | {"step": torch.tensor(step)})


def restore(ctx: Context, stage: str, model: nn.Module, opt: torch.optim.Optimizer, shadow: dict[str, Tensor]) -> int:
    """Load the last checkpoint if there is one; returns the step to go on from."""
    path = ctx.out / stage / "last.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    pick = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
    model.load_state_dict(pick("model."))
    for k, v in pick("ema.").items():
        shadow[k].copy_(v)
    state: dict[int, dict[str, Tensor]] = {}
    for name, v in pick("opt.").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = v
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    log.info("%s: resumed at step %d", stage, int(tensors["step"]))
    return int(tensors["step"])
