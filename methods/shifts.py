"""Weights plus a product of two matrices, W + U D: what MACE trains in place of weights, and SepME with D fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from erasebench.diffusion import cross_attention_projections, fork, weight64
from erasebench.types import Pipeline


class Shift(nn.Module):
    """W [o, d] -> W + U D with ``up`` U [o, r] and ``down`` D [r, d]."""

    def __init__(self, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.up, self.down = up, down

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.change

    @property
    def change(self) -> Tensor:
        return self.up @ self.down


def shifted(pipe: Pipeline, half: Pipeline | None, shifts: Mapping[str, tuple[Tensor, Tensor]]) -> Any:
    """A UNet that shares its weights with ``pipe`` (or ``half``, ``Denoiser.half``), some of them plus U D.

    Args:
        shifts: module name -> (U, D); gradients flow to those of them that want one.
    """
    unet = fork(half or pipe).unet.requires_grad_(False)
    if half is None and unet.dtype in (torch.float16, torch.bfloat16):
        unet.float()
    if unet.device.type == "cuda":
        unet.enable_gradient_checkpointing()
    for name, (up, down) in shifts.items():
        parametrize.register_parametrization(unet.get_submodule(name), "weight", Shift(up, down), unsafe=True)
    return unet


def zero_ups(pipe: Pipeline, rank: int) -> dict[str, nn.Parameter]:
    """U = 0 [o, rank] for every cross-attention key and value, float32 or float64, to be trained."""
    return {
        name: nn.Parameter(layer.weight.new_zeros(layer.out_features, rank, dtype=trained_dtype(layer)))
        for name, layer in cross_attention_projections(pipe).items()
    }


def trained_dtype(layer: nn.Linear) -> torch.dtype:
    """Float32, or float64 where the layer is: updates vanish in half precision."""
    return torch.promote_types(layer.weight.dtype, torch.float32)


@torch.no_grad()
def with_changes(pipe: Pipeline, changes: Mapping[str, Tensor]) -> Pipeline:
    """``fork(pipe)`` with W + X in every named layer, summed in float64; X [o, d] float64.

    Raises:
        ArithmeticError: a sum that is not finite in the layer's dtype.
    """
    erased = fork(pipe)
    for name, change in changes.items():
        layer = cast(nn.Linear, erased.unet.get_submodule(name))
        weight = (weight64(layer) + change.detach().to("cpu", torch.float64)).to(layer.weight.dtype)
        if not torch.isfinite(weight).all():
            raise ArithmeticError(
                f"edited weight must be finite in {weight.dtype}; {name} is not; raise lamb or the dtype"
            )
        layer.weight = nn.Parameter(weight.to(layer.weight.device), requires_grad=False)
    return erased
