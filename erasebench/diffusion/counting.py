"""Count what a step costs in model evaluations, whoever calls the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

NAMES = {"UNet2DConditionModel": "unet", "CLIPTextModel": "text", "CLIPTextModelWithProjection": "text"}


@dataclass
class Evaluations:
    """Samples that went through the denoiser and the text encoders, and those of the denoiser that kept a graph."""

    unet: int = 0
    unet_with_gradient: int = 0
    text: int = 0


@contextmanager
def counting() -> Iterator[Evaluations]:
    """Counts evaluations while the block runs: a batch of 8 counts 8, guidance's two halves count twice.

    >>> with counting() as spent:
    ...     _ = torch.nn.Linear(2, 2)(torch.ones(1, 2))
    >>> spent
    Evaluations(unet=0, unet_with_gradient=0, text=0)
    """
    spent = Evaluations()

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        kind = NAMES.get(type(module).__name__)
        if kind is None:
            return
        first = next((a for a in args if isinstance(a, torch.Tensor)), None)
        samples = 1 if first is None else len(first)
        setattr(spent, kind, getattr(spent, kind) + samples)
        if kind == "unet" and torch.is_grad_enabled():
            spent.unet_with_gradient += samples

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield spent
    finally:
        handle.remove()
