"""Low-rank adapters while they are trained: W + B A in the layers of a UNet, without peft; and what they leave behind.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685. The start is that of
diffusers' training scripts: A normal with standard deviation 1 / rank, B zero, alpha equal to the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


@torch.no_grad()
def merged(pipe: Pipeline, *several: Adapter) -> Mapping[str, Tensor]:
    """W plus all adapters' B A, in float64 on the CPU."""
    weights: dict[str, Tensor] = {}
    for found in several:
        for name, (down, up) in found.items():
            start = weights[name] if name in weights else pipe.unet.get_parameter(name).to("cpu", torch.float64)
            weights[name] = start + up.to("cpu", torch.float64) @ down.to("cpu", torch.float64)
    return weights
