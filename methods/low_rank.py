"""Weights plus a product of two matrices: adapters while they are trained, without peft, and what they leave behind.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685. :func:`adapter` is W + B A
beside the output of any linear layers, with a switch, and starts as in diffusers' training scripts: A normal with
standard deviation 1 / rank, B zero, alpha equal to the rank. :func:`shifted` is W + U D in the weight itself: what MACE
trains, and SepME with D fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from erasebench.diffusion import cross_attention_projections, fork, weight64
from erasebench.types import Pipeline
from methods.fine_tuning import Layers, generator, layer_names

Adapter = dict[str, tuple[nn.Parameter, nn.Parameter]]  # name of a weight [o, d] -> A [rank, d], B [o, rank]


def adapter(pipe: Pipeline, layers: Layers, rank: int, *key: object) -> Adapter:
    """An adapter, still without effect, of every linear layer of a set; random by ``key`` and the layer's name.

    Raises:
        ValueError: the set has no linear layer.
    """
    found = {}
    for name in layer_names(pipe.unet, layers):
        layer = pipe.unet.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, nn.Linear) and name.endswith(".weight"):
            wide = torch.promote_types(layer.weight.dtype, torch.float32)
            down = torch.randn(rank, layer.in_features, generator=generator(*key, name)) / rank
            up = torch.zeros(layer.out_features, rank)
            found[name] = (
                nn.Parameter(down.to(layer.weight.device, wide)), nn.Parameter(up.to(layer.weight.device, wide))
            )  # fmt: skip
    if not found:
        raise ValueError(f"layers {layers} must have linear layers in this UNet; found none; choose another set")
    return found


def attach(unet: Any, found: Adapter, on: Callable[[], bool] = lambda: True) -> None:
    """Let a UNet of one's own answer as W + B A wherever ``on`` says so at the time of the call."""

    def hook(down: Tensor, up: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not on():
                return None
            return output + F.linear(F.linear(inputs[0].to(down.dtype), down), up).to(output.dtype)

        return add

    for name, (down, up) in found.items():
        unet.get_submodule(name.removesuffix(".weight")).register_forward_hook(hook(down, up))


def parameters(found: Adapter, name: str) -> dict[str, nn.Parameter]:
    """What training an adapter changes, by names that begin with one's own."""
    return {f"{name}.{weight}.{half}": p for weight, pair in found.items() for half, p in zip("AB", pair, strict=True)}


def changes(*several: Adapter) -> dict[str, Tensor]:
    """The sum of all adapters' B A by the layer's name, float64 on the CPU."""
    found: dict[str, Tensor] = {}
    for name, (down, up) in (item for one in several for item in one.items()):
        layer = name.removesuffix(".weight")
        product = up.detach().to("cpu", torch.float64) @ down.detach().to("cpu", torch.float64)
        found[layer] = found[layer] + product if layer in found else product
    return found


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
