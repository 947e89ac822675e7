"""Several trainings side by side on one device: on CUDA each has its stream and its step recorded as a graph."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from erasebench.emoji.training.loop import rate, save
from erasebench.types import seed_of

log = logging.getLogger("erasebench.emoji.training.train")
WARM = 3  # eager steps before a step is recorded as a CUDA graph; they count as steps
Loss = Callable[[torch.Generator], Tensor]


def half(device: torch.device) -> Any:
    """bfloat16 products where the device has them; plain float32 elsewhere."""
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return nullcontext()


class Trainer:
    """AdamW on one model, at ``erasebench.emoji.training.loop.rate``; the weights' running mean (EMA) is what it saves.

    Args:
        name: of the stage; with ``folder`` the place of ``final.safetensors``, and with ``seed`` the randomness.
        loss: of one step, a scalar; draws everything from the generator it is given, on the model's device.
        steps, lr, warmup, flat: see ``rate``; the rate falls to zero at the end.
        ema: decay of the running mean, which starts as a copy after a twentieth of the steps.
        every: steps between two checkpoints, from which a stopped run goes on.
    """

    def __init__(
        self, name: str, model: nn.Module, loss: Loss, folder: Path, *, steps: int, lr: float, warmup: int = 100,
        flat: float = 0.5, ema: float = 0.998, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.98),
        seed: str = "", every: int = 2000,
    ) -> None:  # fmt: skip
        self.name, self.model, self.loss, self.folder = name, model.train(), loss, folder / name
        self.steps, self.lr, self.warmup, self.flat, self.ema, self.every = steps, lr, warmup, flat, ema, every
        self.device = next(model.parameters()).device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        cuda = self.device.type == "cuda"
        first = torch.tensor(lr, device=self.device) if cuda else lr
        self.opt = torch.optim.AdamW(
            self.parameters, lr=first, betas=betas, weight_decay=weight_decay, capturable=cuda, fused=cuda or None
        )
        self.mean = [p.detach().clone() for p in self.parameters]
        self.generator = torch.Generator(self.device).manual_seed(seed_of(seed or name) >> 8)
        self.stream = torch.cuda.Stream() if cuda else None
        self.graph: Any = None
        self.record = cuda
        self.value = torch.zeros((), device=self.device)
        self.step, self.history, self.seconds = 0, list[float](), 0.0
        self.restore()
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream())

    def _compute(self) -> None:
        value = self.loss(self.generator)
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.opt.step()
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - self.ema)
        self.value.copy_(value.detach())

    def advance(self) -> bool:
        """Queue one step; False once all are done."""
        if self.step >= self.steps:
            return False
        now = self.lr * rate(self.step, self.steps, self.warmup, self.flat)
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            group = self.opt.param_groups[0]
            if self.stream:
                group["lr"].fill_(now)
            else:
                group["lr"] = now
            if self.step == max(WARM, self.steps // 20):
                torch._foreach_copy_(self.mean, [p.detach() for p in self.parameters])
            if self.graph is not None:
                self.graph.replay()
            else:
                self.opt.zero_grad(set_to_none=True)
                self._compute()
        self.step += 1
        if self.record and self.graph is None and self.step >= WARM:
            self._capture()
        if self.step % 50 == 0 or self.step == self.steps:
            self._look()
        if self.step % self.every == 0 and self.step < self.steps:
            self.checkpoint()
        return True

    def _capture(self) -> None:
        torch.cuda.synchronize()
        self.opt.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self._compute()
        except RuntimeError as error:  # an operation that cannot be recorded: slower, and other random numbers
            log.warning("%s: not recorded, every step is launched anew: %s", self.name, str(error).splitlines()[0])
            self.generator = torch.Generator(self.device).manual_seed(seed_of(f"{self.name} {self.step}") >> 8)
            self.record = False
            return
        torch.cuda.synchronize()
        self.graph = graph

    def _look(self) -> None:
        if self.stream:
            self.stream.synchronize()
        value = float(self.value)
        if value != value:
            raise FloatingPointError(f"{self.name}: loss is {value} at step {self.step}; the last checkpoint is kept")
        self.history.append(value)
        if self.step % 500 == 0:
            log.info("%s %d/%d loss %.4f", self.name, self.step, self.steps, sum(self.history[-10:]) / 10)

    def averaged(self) -> dict[str, Tensor]:
        """The model's state with the running means of its trained weights, buffers as they are."""
        state = {k: v.detach() for k, v in self.model.state_dict().items()}
        means = {id(p): m for p, m in zip(self.parameters, self.mean, strict=True)}
        for name, p in self.model.named_parameters():
            if id(p) in means:
                state[name] = means[id(p)]
        return state

    def checkpoint(self) -> None:
        """All that a later call needs to go on: weights, means, optimiser, randomness, step."""
        if self.stream:
            self.stream.synchronize()
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for i, mean in enumerate(self.mean):
            tensors[f"mean.{i}"] = mean
        for i, state in self.opt.state_dict()["state"].items():
            tensors |= {f"opt.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors |= {"step": torch.tensor(self.step), "random": self.generator.get_state()}
        save(self.folder / "last.safetensors", {k: v.cpu() for k, v in tensors.items()})

    def restore(self) -> None:
        path = self.folder / "last.safetensors"
        if not path.exists():
            return
        held = load_file(path)
        self.model.load_state_dict({k[6:]: v for k, v in held.items() if k.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in held.items():
            kind, _, rest = name.partition(".")
            if kind == "mean":
                self.mean[int(rest)].copy_(tensor)
            elif kind == "opt":
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = tensor.to(self.device)
        self.opt.load_state_dict({"state": state, "param_groups": self.opt.state_dict()["param_groups"]})
        self.step = int(held["step"])
        self.generator.set_state(held["random"])

    def finish(self) -> None:
        """Take the running means as weights and write ``final.safetensors`` (float32)."""
        self.model.load_state_dict(self.averaged())
        save(self.folder / "final.safetensors", {k: v.cpu() for k, v in self.model.state_dict().items()})
        loss = sum(self.history[-10:]) / max(1, len(self.history[-10:]))
        record = {"steps": self.steps, "seconds": round(self.seconds, 1), "loss": round(loss, 4)}
        (self.folder / "record.json").write_text(json.dumps(record) + "\n")
        log.info("%s: %s", self.name, record)


def together(trainers: Sequence[Trainer], limit: float = 1e9) -> None:
    """Run trainings side by side; in each round every one makes a step, those with more steps several.

    Args:
        limit: seconds for all of it. When the pace of the first rounds would overrun it, all ``steps`` are shortened
            by one factor (and logged, so that the same can be asked for by number).
    """
    started, turn, before = time.time(), 0, 0.0
    shortest = min(t.steps for t in trainers)
    strides = [max(1, round(t.steps / shortest)) for t in trainers]
    more = True
    while more:
        more = False
        for t, stride in zip(trainers, strides, strict=True):
            for _ in range(stride):
                more = t.advance() or more
        turn += 1
        if turn in (60, 160) and limit < 1e9:
            for t in trainers:
                if t.stream:
                    t.stream.synchronize()
            if turn == 60:
                before = time.time()
                continue
            left = (limit - (time.time() - started)) / ((time.time() - before) / 100)
            rounds = max((t.steps - t.step) / stride for t, stride in zip(trainers, strides, strict=True))
            if left < rounds:
                for t in trainers:
                    t.steps = t.step + max(1, int((t.steps - t.step) * left / rounds))
                log.info("steps shortened: %s", {t.name: t.steps for t in trainers})
    for t in trainers:
        t.seconds = time.time() - started
        t.finish()
