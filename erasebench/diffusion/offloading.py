"""Parts of a pipeline that wait on the CPU until they are asked, by the hooks of diffusers and accelerate.

A hook holds the module that it was put on, so a copy of a hooked pipeline would ask the original's layers. A pipeline
is therefore marked (``pipe.offload``) and hooked only while it draws, in a fork of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from erasebench.diffusion.weights import fork
from erasebench.types import Pipeline

OFFLOADS = {"model": "enable_model_cpu_offload", "sequential": "enable_sequential_cpu_offload"}


def offloaded(pipe: Pipeline) -> Pipeline:
    """A pipeline to draw with: ``pipe`` itself, or where it is marked a fork of it with hooks, for one drawing.

    In float16 a VAE that overflows there (SDXL's) is float32 in that fork.
    """
    if not (mark := getattr(pipe, "offload", None)):
        return pipe
    kind, device = mark
    own = fork(pipe)
    if own.vae.dtype == torch.float16 and own.vae.config.force_upcast:
        own.vae.float()
    getattr(own, OFFLOADS[kind])(device=device)
    return own


def device_of(pipe: Pipeline, part: Any) -> torch.device:
    """Where inputs of a part of the pipeline belong: its device, or that on which its hooks let it compute."""
    found: torch.device = pipe._execution_device if getattr(pipe, "offload", None) else part.device
    return found
