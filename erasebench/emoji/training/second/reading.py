"""Stage ``contrastive``: the text encoder that has read some English, and the picture encoder beside it.

Four losses share the text encoder. *Contrastive* (CLIP's, with soft targets, on the end-of-text row) ties texts to
pictures. *Language* predicts the next token, on captions and on WordNet's definitions. *Identity* asks every token row
for its own token, and *bag* asks the end-of-text row and a padding row for all tokens of the text: so rows keep which
word was said, and paddings keep the sentence, as CLIP's do. With ``sharp`` these two look at cosines, so a row has to
point at its word instead of merely allowing it to be told. *Steady* makes the paddings of one text alike: tiny
differences between 70 nearly equal rows are what blows the literal closed-form edits up. ``VARIANTS`` are what decision
0005 compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, scaled_dot_product_attention
from transformers import CLIPTokenizer

from erasebench.emoji import networks
from erasebench.emoji.training.second import texts
from erasebench.emoji.training.second.loop import Trainer, half
from erasebench.emoji.training.second.stock import Batch, Stock

PAIRS, READ, ROWS = 384, 192, 12  # captions with pictures, definitions, and rows a text that losses look at, a step


@dataclass(frozen=True)
class Variant:
    """Shape of the text encoder and weights of the losses beside the contrastive one."""

    width: int = 320
    layers: int = 3
    heads: int = 5
    mlp: int = 960
    language: float = 0.0
    identity: float = 0.0
    bag: float = 0.0
    sharp: float = 0.0  # scale of the cosines of identity and bag; 0: a linear head
    steady: float = 0.0


VARIANTS: Mapping[str, Variant] = {
    "contrastive": Variant(),
    "language": Variant(language=0.5),
    "identity": Variant(identity=0.5, bag=0.5),
    "all": Variant(language=0.5, identity=0.5, bag=0.5),
    "deep": Variant(layers=4, language=0.5, identity=0.5, bag=0.5),
    "steady": Variant(language=0.5, identity=0.5, bag=0.5, steady=30.0),
    "sharp": Variant(language=0.5, identity=0.5, bag=0.5, sharp=12.0, steady=30.0),
    "wide": Variant(width=384, heads=6, mlp=768, language=0.5, identity=0.5, bag=0.5),
}


def build(tok: CLIPTokenizer, v: Variant) -> networks.Contrastive:
    text = networks.text_encoder(tok, width=v.width, layers=v.layers, heads=v.heads, mlp=v.mlp)
    return networks.Contrastive(text, networks.vision_encoder())


def _block(layer: Any, x: Tensor, causal: bool) -> Tensor:
    a, n = layer.self_attn, layer.layer_norm1(x)
    split = lambda y: y.unflatten(-1, (a.num_heads, -1)).transpose(1, 2)  # noqa: E731
    y = scaled_dot_product_attention(split(a.q_proj(n)), split(a.k_proj(n)), split(a.v_proj(n)), is_causal=causal)
    x = x + a.out_proj(y.transpose(1, 2).flatten(2))
    return x + layer.mlp(layer.layer_norm2(x))


def rows(text: nn.Module, ids: Tensor) -> Tensor:
    """``last_hidden_state`` [n, tokens, width] of a CLIPTextModel, without the masks that cannot be recorded."""
    m = getattr(text, "text_model", text)
    x = m.embeddings(ids)
    for layer in m.encoder.layers:
        x = _block(layer, x, causal=True)
    out: Tensor = m.final_layer_norm(x)
    return out


def seen(model: networks.Contrastive, pictures: Tensor) -> Tensor:
    """``Contrastive.image`` in the same way."""
    small = nn.functional.interpolate(pictures, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
    m = getattr(model.vision, "vision_model", model.vision)
    x = m.pre_layrnorm(m.embeddings(small))
    for layer in m.encoder.layers:
        x = _block(layer, x, causal=False)
    return normalize(model.visual_projection(m.post_layernorm(x[:, 0])).float(), dim=-1)


class Learner(nn.Module):
    """The contrastive model with heads that only training needs."""

    def __init__(self, model: networks.Contrastive, variant: Variant, tokens: int) -> None:
        super().__init__()
        self.model, self.variant = model, variant
        wanted = {k: getattr(variant, k) for k in ("language", "identity", "bag")}
        self.heads = nn.ModuleDict({k: nn.Linear(variant.width, tokens) for k, weight in wanted.items() if weight})

    def _guess(self, kind: str, states: Tensor) -> Tensor:
        """Logits over tokens [..., tokens]."""
        head = self.heads[kind]
        if not self.variant.sharp or kind == "language":
            return head(states).float()
        cosines = normalize(states.float(), dim=-1).to(states.dtype) @ normalize(head.weight, dim=-1).T
        return self.variant.sharp * cosines.float()

    def _reading(self, states: Tensor, ids: Tensor, last: Tensor, g: torch.Generator) -> Tensor:
        """Language and identity loss at ``ROWS`` random rows of each text, from its start to before its end."""
        at = (torch.rand(len(ids), ROWS, generator=g, device=ids.device) * last[:, None]).long()
        picked = states.gather(1, at[..., None].expand(-1, -1, states.shape[-1]))
        total = torch.zeros((), device=ids.device)
        for kind, step in (("language", 1), ("identity", 0)):
            if kind in self.heads:
                guess = self._guess(kind, picked).flatten(0, 1)
                total = total + getattr(self.variant, kind) * cross_entropy(guess, ids.gather(1, at + step).flatten())
        return total

    def _bag(self, states: Tensor, ids: Tensor, last: Tensor, end: int, g: torch.Generator) -> Tensor:
        """All tokens of a text, from its end row and from one padding row after it, which the next is like."""
        n, length = ids.shape
        pad = last + (torch.rand(n, generator=g, device=ids.device) * (length - last)).long()
        both = torch.stack([states[torch.arange(n, device=ids.device), r] for r in (last, pad)])
        guess = self._guess("bag", both).log_softmax(-1)
        inside = torch.arange(1, length, device=ids.device)[None] < last[:, None]
        weight = inside / last.sub(1).clamp(min=1)[:, None]
        total = -(guess.gather(2, ids[None, :, 1:].expand(2, -1, -1)) * weight).sum(2).mean() * self.variant.bag
        if self.variant.steady:
            paddings = torch.arange(length, device=ids.device)[None] > last[:, None]
            mean = (states.float() * paddings[..., None]).sum(1) / paddings.sum(1).clamp(min=1)[:, None]
            spread = (states.float() - mean[:, None]).square().mean(2)
            total = total + self.variant.steady * (spread * paddings).sum() / paddings.sum()
        return total

    def forward(self, stock: Stock, g: torch.Generator) -> Tensor:
        device, b = stock.device, stock.sample(g, PAIRS)
        pictures = stock.pictures(b, g)
        pictures = pictures + 0.05 * torch.randn(pictures.shape, generator=g, device=device)
        ids = stock.widen(stock.captions[b.caption])
        frame = torch.randint(len(stock.names), (1,), generator=g, device=device)
        label = torch.randint(len(stock.labels), (1,), generator=g, device=device)
        known = torch.cat([stock.names[frame][0], stock.labels[label][0]])
        with half(device):
            x = seen(self.model, pictures)
            states = rows(self.model.text, ids)
            others = rows(self.model.text, stock.widen(known, texts.SHORT))
            last, last_known = _last(ids, stock.end), _last(known, stock.end)
            ends = torch.cat([_at(states, last), _at(others, last_known)])
            y = normalize(self.model.text_projection(ends).float(), dim=-1)
            total = _contrast(self.model, stock, b, x, y)
            if self.heads:
                total = total + self._reading(states, ids, last, g)
            if "bag" in self.heads:
                total = total + self._bag(states, ids, last, stock.end, g)
            if "language" in self.heads:
                pick = torch.randint(len(stock.glosses), (READ,), generator=g, device=device)
                read = stock.widen(stock.glosses[pick], texts.SHORT)
                total = total + self._reading(rows(self.model.text, read), read, _last(read, stock.end), g)
        return total


def _last(ids: Tensor, end: int) -> Tensor:
    return (ids == end).int().argmax(1)


def _at(states: Tensor, row: Tensor) -> Tensor:
    return states.gather(1, row[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]


def _contrast(model: networks.Contrastive, stock: Stock, b: Batch, x: Tensor, y: Tensor) -> Tensor:
    """Pictures against captions, and against the names of all concepts and of all styles."""
    things, styles, m = len(texts.THINGS), len(texts.STYLES), stock.matches(b)
    scale = model.logit_scale.exp().clamp(max=100)
    logits = scale * x @ y[: len(x)].T
    total = -(m / m.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    total = total - (m / m.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    zero = scale * x @ y[len(x) :].T
    inside = torch.where(b.picture < things, b.picture, -100)
    total = total + cross_entropy(zero[:, :things], inside)
    return total + 0.5 * cross_entropy(zero[:, things : things + styles], b.style)


def trainer(out: Path, stock: Stock, name: str, steps: int, stage: str = "contrastive") -> Trainer:
    """Training of one variant, in ``out/<stage>``."""
    tok, v = texts.tokenizer(out), VARIANTS[name]
    torch.manual_seed(0)
    learner = Learner(build(tok, v), v, len(tok)).to(stock.device)
    return Trainer(
        stage, learner, lambda g: learner(stock, g), out, steps=steps, lr=1e-3, flat=0.3, ema=0.995, weight_decay=0.05,
        betas=(0.9, 0.98), warmup=200,
    )  # fmt: skip


def load(path: Path, tok: CLIPTokenizer, name: str) -> networks.Contrastive:
    """The contrastive model of a ``final.safetensors``, without the heads."""
    model = build(tok, VARIANTS[name])
    held = {k.removeprefix("model."): v.float() for k, v in load_file(path).items() if k.startswith("model.")}
    if set(held) != set(model.state_dict()):  # transformers has renamed the prefix before
        held = {k.replace(".text_model.", ".").replace(".vision_model.", "."): v for k, v in held.items()}
    model.load_state_dict(held)
    return model.eval().requires_grad_(False)
