"""Weights kept as a small difference to other weights: a few bits a number.

A difference is stored per tensor: matrices and kernels as whole numbers of 3 bits, packed without gaps, times one
float16 scale per group of 64 neighbours; vectors as float16. The numbers are rounded, so what is
restored is not bit for bit what was stored: off by a fifth of the difference at 3 bits, a tenth at 4, if its numbers
are normal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

GROUP, BITS = 64, 3


def pack(new: Mapping[str, Tensor], base: Mapping[str, Tensor], bits: int = BITS) -> dict[str, Tensor]:
    """The difference ``new - base`` of tensors of equal names and shapes, as it is stored; equal tensors are left out.

    Args:
        bits: of a whole number, 2 to 8; it runs from ``-(2^(bits-1) - 1)`` to the same above zero.

    >>> base = {"a.weight": torch.zeros(8, 16), "a.bias": torch.zeros(8)}
    >>> stored = pack({"a.weight": torch.ones(8, 16), "a.bias": torch.ones(8)}, base)
    >>> {k: (v.dtype, tuple(v.shape)) for k, v in sorted(stored.items())}
    {'a.bias': (torch.float16, (8,)), 'a.weight.codes': (torch.uint8, (48,)), 'a.weight.scale': (torch.float16, (2,))}
    >>> {k: float(v.mean()) for k, v in unpack(stored, base).items()}
    {'a.weight': 1.0, 'a.bias': 1.0}
    """
    out, levels = {}, 2 ** (bits - 1) - 1
    for name, tensor in new.items():
        gap = tensor.float() - base[name].float()
        if not gap.any():
            continue
        if gap.ndim < 2 or gap.numel() % GROUP:
            out[name] = gap.half()
            continue
        groups = gap.view(-1, GROUP)
        scale = _best(groups, levels).half()
        codes = (groups / scale.float()[:, None].clamp(min=1e-7)).round().clamp(-levels, levels) + levels
        places = codes.to(torch.uint8).flatten()[:, None] >> torch.arange(bits, dtype=torch.uint8)
        out[f"{name}.codes"] = torch.from_numpy(np.packbits((places & 1).numpy().ravel(), bitorder="little"))
        out[f"{name}.scale"] = scale
    return out


def _best(groups: Tensor, levels: int) -> Tensor:
    """Scale [n] of each group with the least squared error, out of a few shares of the largest number."""
    top = groups.abs().amax(1) / levels
    shares = torch.linspace(0.5, 1.0, 11)
    errors = []
    for share in shares:
        s = (top * share).clamp(min=1e-12)[:, None]
        errors.append(((groups / s).round().clamp(-levels, levels) * s - groups).square().sum(1))
    return top * shares[torch.stack(errors).argmin(0)]


def sizes(stored: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """How many numbers each tensor of a stored difference has, from the shapes in its file's header.

    >>> sizes({"a.bias": (8,), "a.weight.codes": (48,), "a.weight.scale": (2,)})
    {'a.bias': 8, 'a.weight': 128}
    """
    found = {}
    for key, shape in stored.items():
        name, _, kind = key.rpartition(".")
        packed = f"{name}.codes" in stored and f"{name}.scale" in stored
        if not (packed and kind == "codes"):
            found[name if packed else key] = math.prod(shape) * (GROUP if packed else 1)
    return found


def unpack(stored: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, in the base's dtype, of those that a stored difference changes.

    Raises:
        ValueError: a tensor that ``base`` lacks, or of another size.
    """
    out = {}
    for key, held in stored.items():
        name, _, kind = key.rpartition(".")
        if kind == "scale" and f"{name}.codes" in stored:
            continue
        if kind == "codes":
            scale = stored[f"{name}.scale"].float()[:, None]
            bits = held.numel() * 8 // (len(scale) * GROUP)
            places = np.unpackbits(held.numpy(), bitorder="little").reshape(-1, bits)
            codes = torch.from_numpy(places @ (1 << np.arange(bits))).float()
            gap = (codes - (2 ** (bits - 1) - 1)).view(-1, GROUP) * scale
        else:
            name, gap = key, held.float()
        if name not in base or base[name].numel() != gap.numel():
            raise ValueError(
                f"tensor {name} of a difference must fit the weights it is to; got {gap.numel()} numbers; other base?"
            )
        whole = base[name]
        gap = gap.to(whole.device)
        out[name] = (whole.float() + gap.view_as(whole)).to(whole.dtype)
    return out
