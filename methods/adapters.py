"""What erasures by adapters share: a UNet of the original's weights with new modules beside some layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from erasebench.diffusion import fork
from erasebench.diffusion.adapters import hang
from erasebench.protocols import Adapter
from erasebench.types import Pipeline, seed_of


def bare(pipe: Pipeline, half: Pipeline | None = None) -> Any:
    """A UNet to hang modules on: the weights of ``pipe`` (or of ``Denoiser.half``), frozen, never in half precision
    outside an autocast.
    """
    unet = fork(half or pipe).unet.requires_grad_(False)
    if half is None and unet.dtype in (torch.float16, torch.bfloat16):
        unet.float()
    return unet


def planted(
    unet: nn.Module, adapter: Adapter, paths: Sequence[str], seed: int
) -> tuple[dict[str, Any], dict[str, nn.Parameter]]:
    """New modules of a seed beside some layers of ``unet``, and their parameters by the names they are stored under."""
    modules: dict[str, Any] = {}
    first = next(unet.parameters())
    dtype = torch.promote_types(first.dtype, torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("adapter", seed) >> 8)
        for path in paths:
            modules[path] = adapter.beside(unet.get_submodule(path)).to(first.device, dtype)
    hang(unet, modules)
    return modules, {f"{path}.{leaf}": p for path, module in modules.items() for leaf, p in module.named_parameters()}
