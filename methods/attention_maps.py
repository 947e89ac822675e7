"""What every cross-attention of a UNet looks at, with gradients, for erasures that are defined on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


class _Watched:
    """diffusers' plain cross-attention, which writes down its probabilities [b, heads, pixels, tokens]."""

    def __init__(self, found: list[Tensor]) -> None:
        self.found = found

    def __call__(self, attn: Any, x: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(len(y), y.shape[1], attn.heads, -1).transpose(1, 2)  # [b, heads, n, d]

        q, k, v = split(attn.to_q(x)), split(attn.to_k(encoder_hidden_states)), split(attn.to_v(encoder_hidden_states))
        probabilities = (q @ k.transpose(-1, -2) * attn.scale).softmax(dim=-1)
        self.found.append(probabilities)
        return attn.to_out[0]((probabilities @ v).transpose(1, 2).reshape(len(x), x.shape[1], -1))


@contextmanager
def attention(unet: Any) -> Iterator[list[Tensor]]:
    """The probabilities of every cross-attention that is asked within the block, with gradients, in forward order."""
    cross = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    before, found = [module.processor for module in cross], list[Tensor]()
    try:
        for module in cross:
            module.processor = _Watched(found)
        yield found
    finally:
        for module, processor in zip(cross, before, strict=True):
            module.processor = processor
