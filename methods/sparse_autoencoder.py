"""A sparse autoencoder beside a block of a UNet: its code, its loss, and how what it finds changes what the block says.

Gao et al., "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, with a k that is a batch's (BatchTopK,
arXiv:2412.06410); as SAeUron's program has it (:mod:`methods.saeuron`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRAINED = ("encoder.weight", "encoder.bias", "decoder", "centre")


class Steered(nn.Module):
    """A sparse autoencoder beside a block of attention: x + (f' - f) D, f the features of x, f' what is made of them.

    Stored are the encoder, the decoder D [features, width] and the centre b [width]; and for each of some timesteps the
    factor of every feature (1: it is left alone) and how strongly it must fire.
    """

    def __init__(self, width: int, features: int, k: int, moments: int) -> None:
        super().__init__()
        self.k, self.encoder = k, nn.Linear(width, features)
        nn.init.zeros_(self.encoder.bias)
        self.decoder = nn.Parameter(self.encoder.weight.detach().clone())
        self.centre = nn.Parameter(torch.zeros(width))
        self.times = nn.Parameter(torch.zeros(moments), requires_grad=False)
        self.factor = nn.Parameter(torch.ones(moments, features), requires_grad=False)
        self.floor = nn.Parameter(torch.zeros(moments, features), requires_grad=False)
        self.now = torch.zeros(1)  # the timesteps the UNet is asked for

    def at(self, timesteps: Tensor) -> None:
        """Is told the UNet's timesteps before every call (:func:`erasebench.diffusion.adapters.hang`)."""
        self.now = timesteps

    def fire(self, x: Tensor) -> Tensor:
        """How strongly each feature fires before most are silenced, [..., features] of x [..., width]."""
        return F.relu(self.encoder(x - self.centre))

    def code(self, x: Tensor) -> Tensor:
        """The k strongest features of every x [..., width], zero elsewhere."""
        fired = self.fire(x)
        best = fired.topk(self.k, dim=-1)
        return torch.zeros_like(fired).scatter(-1, best.indices, best.values)

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output  # [b, width, h, w]
        f = self.code(x.flatten(2).transpose(1, 2).to(self.decoder.dtype))  # [b, h w, features]
        nearest = (self.now.to(self.times)[:, None] - self.times).abs().argmin(1)
        factor, floor = (table[nearest][:, None] for table in (self.factor, self.floor))
        more = torch.where(f > floor, (factor - 1) * f, 0) @ self.decoder
        steered = x + more.transpose(1, 2).reshape(x.shape).to(x.dtype)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered


def loss(module: Steered, x: Tensor, dead: Tensor, aux_scale: float) -> tuple[Tensor, Tensor]:
    """The share of the variance of vectors [rows, width] that is left, with ``aux_scale`` times what the features that
    are ``dead`` [features] leave of the error; and which features fired [features].
    """
    pre = module.fire(x)
    f = strongest(pre, module.k)
    error = x - (f @ module.decoder + module.centre)
    total, value = (x - x.mean(0)).square().sum(), error.square().sum()
    if aux_scale and (many := int(dead.sum())):
        wanted = max(1, x.shape[1] // 2)
        hidden = strongest(torch.where(dead, pre, -torch.inf), min(wanted, many))
        missed = (error.detach() - hidden @ module.decoder).square().sum()
        value = value + aux_scale * min(many / wanted, 1.0) * missed
    return value / total, (f > 0).any(0)


def strongest(fired: Tensor, k: int) -> Tensor:
    """The k times rows largest of a whole batch [rows, features], zero elsewhere.

    >>> strongest(torch.tensor([[3.0, 2.0], [1.0, 0.0]]), 1)
    tensor([[3., 2.],
            [0., 0.]])
    """
    best = fired.flatten().topk(k * len(fired), sorted=False)
    return torch.zeros_like(fired).flatten().scatter(0, best.indices, best.values).view_as(fired)


def across(decoder: Tensor) -> None:
    """Take from the gradient of the decoder what goes along its rows, which have length 1."""
    if decoder.grad is not None:
        decoder.grad -= (decoder.grad * decoder.detach()).sum(1, keepdim=True) * decoder.detach()


def geometric_median(x: Tensor, rounds: int = 100) -> Tensor:
    """The point [width] of least total distance to vectors [rows, width], by Weiszfeld's iteration.

    >>> geometric_median(torch.tensor([[0.0], [1.0], [50.0]])).round(decimals=3)
    tensor([1.])
    """
    point = x.mean(0)
    for _ in range(rounds):
        weight = 1 / (x - point).norm(dim=1).clamp_min(1e-6)
        new = (weight[:, None] * x).sum(0) / weight.sum()
        if torch.equal(new, point):
            break
        point = new
    return point
