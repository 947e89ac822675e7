"""Small networks beside a UNet's layers: an erasure that is neither in the weights nor in the sampler.

An adapter is a dataclass of JSON values that says what stands beside a layer, and tensors named ``<layer>.<leaf>``. It
hangs on the layers of a fork as forward hooks, so that forks, attacks that take gradients and everything else that asks
the UNet has it, and is stored beside the changed tensors (``erasures``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from erasebench.diffusion.weights import fork
from erasebench.protocols import Adapter
from erasebench.types import Pipeline


@dataclass(frozen=True, eq=False)
class Attached:
    """What hangs on a pipeline: ``pipe.adapters`` is a tuple of these, in the order they were attached."""

    adapter: Adapter
    tensors: Mapping[str, torch.Tensor]


def attached(pipe: Pipeline) -> tuple[Attached, ...]:
    """The adapters of a pipeline, none for most."""
    found: tuple[Attached, ...] = getattr(pipe, "adapters", ())
    return found


def hang(unet: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Let modules change the output of the layers that they are named after; ``unet`` is changed, so give a fork's.

    A module with a method ``at`` is told the timesteps before every call of the UNet.
    """
    for path, module in modules.items():
        unet.get_submodule(path).register_forward_hook(module)
        if hasattr(module, "at"):
            unet.register_forward_pre_hook(_Clock(module), with_kwargs=True)


class _Clock:
    """Tells a module which timesteps the UNet that it hangs on is asked for."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timesteps = args[1] if len(args) > 1 else kwargs["timestep"]
        self.module.at(torch.as_tensor(timesteps, device=next(self.module.parameters()).device).flatten())


def attach(pipe: Pipeline, adapter: Adapter, tensors: Mapping[str, torch.Tensor]) -> Pipeline:
    """``fork(pipe)`` with an adapter on the layers that its tensors name, in the UNet's dtype, on its device.

    Raises:
        ValueError: a layer that the UNet lacks, or tensors that do not fit it.
    """
    new, held = fork(pipe), dict[str, dict[str, torch.Tensor]]()
    layers, modules = dict(new.unet.named_modules()), dict[str, nn.Module]()
    for name, tensor in tensors.items():
        path = next((path for path in _parents(name) if path in layers), "")
        if not path:
            raise ValueError(f"adapter {name} must hang on a layer of the UNet; there is none; another model's?")
        held.setdefault(path, {})[name.removeprefix(f"{path}.")] = tensor
    for path, own in held.items():
        module = adapter.beside(layers[path]).to(new.unet.device, new.unet.dtype)
        wanted = {leaf: tuple(t.shape) for leaf, t in module.state_dict().items()}
        given = {leaf: tuple(t.shape) for leaf, t in own.items()}
        if wanted != given:
            raise ValueError(f"adapter of {path} must have tensors {wanted}; got {given}; another model's?")
        module.load_state_dict(own)
        modules[path] = module.eval().requires_grad_(False)
    hang(new.unet, modules)
    new.adapters = (*attached(pipe), Attached(adapter, {k: v.detach().cpu().clone() for k, v in tensors.items()}))
    return new


def _parents(name: str) -> list[str]:
    """Every path that a dotted name begins with, the longest first.

    >>> _parents("a.b.c")
    ['a.b', 'a']
    """
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
