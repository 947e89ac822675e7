"""bfloat16 inside the networks of a training: what ``torch.autocast`` computes, with the frozen weights cast once.

Autocast casts the weights of a linear or convolution layer anew in every call, unless they are trained (those once, for
as long as its outermost block lasts). A training asks models whose weights hardly ever change some fifty times a step.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from erasebench.diffusion import fork
from erasebench.types import Pipeline

Autocast = bool | Literal["cpu"]


def check_autocast(value: Autocast) -> None:
    """Refuse what is none of False, True and ``cpu``, and ``cpu`` where the processor has no bfloat16.

    >>> check_autocast("gpu")
    Traceback (most recent call last):
    ValueError: autocast must be false, true (on a GPU) or cpu (there too); got 'gpu'
    """
    if not isinstance(value, bool) and value != "cpu":
        raise ValueError(f"autocast must be false, true (on a GPU) or cpu (there too); got {value!r}")
    if value == "cpu" and not has_bfloat16():
        raise ValueError("autocast cpu needs a processor with AVX512-BF16 or AMX; this one has neither; use true")


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; one that must emulate it is slower than in float32."""
    return torch.cpu._is_avx512_bf16_supported()


def half_of(pipe: Pipeline, autocast: Autocast) -> Pipeline | None:
    """What to ask inside ``torch.autocast`` in place of ``pipe``, or None where there is to be none.

    There is to be one on a GPU that has bfloat16, unless ``autocast`` is False, and on a CPU if it is ``cpu``; never
    for float64, which autocast leaves alone.
    """
    device = pipe.unet.device.type
    wanted = (device == "cuda" and bool(autocast) and torch.cuda.is_bf16_supported()) or device == autocast
    return halved(pipe) if wanted and pipe.unet.dtype != torch.float64 else None


def halved(pipe: Pipeline) -> Pipeline:
    """``fork(pipe)`` with the weights of its UNet's linear and convolution layers in bfloat16, all others in float32.

    Inside ``torch.autocast`` it computes what ``pipe`` does: these are the weights that autocast casts, in every call.
    On a CPU convolutions have their channels last, which oneDNN is faster with; sums are then rounded in another order.
    (CUDA's group normalisation undoes that order, so it is left alone there.)

    Costs two bytes for each of these weights: 1.7 GB for Stable Diffusion 1.x and 2.x, 5.1 GB for SDXL.
    """

    def cast(weight: Tensor, matrix: bool) -> Tensor:
        last = matrix and weight.dim() == 4 and weight.device.type == "cpu"
        layout = torch.channels_last if last else torch.preserve_format
        return weight.detach().to(torch.bfloat16 if matrix else torch.float32, memory_format=layout)

    half = fork(pipe)
    for module in half.unet.modules():
        matrix = isinstance(module, nn.Linear | nn.Conv2d)
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(cast(weight, matrix), requires_grad=False))
    return half
