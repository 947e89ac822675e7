"""What a block of a UNet says at every step of a drawing, for erasures that learn from it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.on_policy import Denoiser


def moments(model: Denoiser) -> int:
    """How often the pipeline's scheduler asks the UNet in a whole drawing."""
    scheduler = copy.deepcopy(model.pipe.scheduler)
    scheduler.set_timesteps(model.steps)
    return len(scheduler.timesteps)


@torch.no_grad()
def watched(
    model: Denoiser, block: str, draws: Sequence[torch.Generator], texts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """What a block says while pictures are drawn [pictures, moments, pixels, width], and the timesteps [moments]."""
    unet, said, times = model.pipe.unet, list[Tensor](), list[float]()

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        said.append(x[-len(texts) :].flatten(2).transpose(1, 2).cpu())  # the half with the text

    def clock(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        times.append(float(torch.as_tensor(args[1]).flatten()[0]))

    handles = [unet.get_submodule(block).register_forward_hook(keep),
               unet.register_forward_pre_hook(clock, with_kwargs=True)]  # fmt: skip
    try:
        text = model.encode(texts)
        z, last = model.pipeline_latents(unet, draws, text, [moments(model) - 1] * len(texts))
        model.output(unet, z, last, text)  # the last step, after which nothing is drawn
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(said, dim=1), torch.tensor(times)
