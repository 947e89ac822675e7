"""UCE and RECE written out one layer, one text and one row at a time, for the parity tests.

Nothing here is shared with ``methods``: texts are encoded through the pipeline's own tokenizer and encoder, sums are
loops over rows, systems are solved with ``torch.inverse``, and RECE edits every layer in every epoch. Slow on purpose.
Everything is computed in the dtype of the weights; the tests use float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Rows = list[tuple[list[Tensor], list[Tensor]]]


def read_weights(pipe) -> Weights:
    """Values, then keys, of every cross-attention, found block by block as the UCE program walks the UNet."""
    found = []
    for name, child in pipe.unet.named_children():
        if "down" in name or "up" in name:
            blocks = [(f"{name}.{i}", block) for i, block in enumerate(child)]
            found += [(path, block) for path, block in blocks if "Cross" in type(block).__name__]
        elif "mid" in name:
            found.append((name, child))
    attentions = [
        (f"{path}.attentions.{i}.transformer_blocks.{j}.attn2", transformer.attn2)
        for path, block in found
        for i, attention in enumerate(block.attentions)
        for j, transformer in enumerate(attention.transformer_blocks)
    ]
    weights = {f"{path}.to_v": attention.to_v.weight.detach().clone() for path, attention in attentions}
    weights |= {f"{path}.to_k": attention.to_k.weight.detach().clone() for path, attention in attentions}
    return weights


@torch.no_grad()
def embed(pipe, text: str) -> tuple[Tensor, int]:
    """E(text) [77, d] and the index of its last token before the end of text."""
    inputs = pipe.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return pipe.text_encoder(inputs.input_ids)[0][0], int(inputs.attention_mask.sum()) - 2


def rows_legacy(pipe, pairs: list[tuple[str, str]]) -> Rows:
    """From the last subject token to the last padding, cut to the same length for concept and anchor."""
    rows = []
    for old, new in pairs:
        old_emb, old_index = embed(pipe, old)
        new_emb, new_index = embed(pipe, " " if new == "" else new)
        furthest = max(old_index, new_index)
        old_rows = [old_emb[i] for i in range(old_index, 77 - (furthest - old_index))]
        new_rows = [new_emb[i] for i in range(new_index, 77 - (furthest - new_index))]
        rows.append((old_rows, new_rows))
    return rows


def rows_v2(pipe, pairs: list[tuple[str, str]]) -> Rows:
    """One vector per text: that of its last token."""
    rows = []
    for old, new in pairs:
        old_emb, old_index = embed(pipe, old)
        new_emb, new_index = embed(pipe, new)
        rows.append(([old_emb[old_index]], [new_emb[new_index]]))
    return rows


def all_rows(pipe, texts: list[str]) -> list[Tensor]:
    return [row for text in texts for row in embed(pipe, text)[0]]


def last_rows(pipe, texts: list[str]) -> list[Tensor]:
    return [emb[index] for emb, index in (embed(pipe, text) for text in texts)]


def edit(
    weights: Weights, rows: Rows, kept: list[Tensor], lamb: float, erase: float, preserve: float, technique="replace"
) -> Weights:
    """The closed form, layer by layer: values for every row, two sums of outer products, one inverse."""
    edited = {}
    for name, weight in weights.items():
        left = lamb * weight
        right = lamb * torch.eye(weight.shape[1], dtype=weight.dtype)
        for concept_rows, anchor_rows in rows:
            for row, value in zip(concept_rows, targets(weight, concept_rows, anchor_rows, technique), strict=True):
                left = left + erase * torch.outer(value, row)
                right = right + erase * torch.outer(row, row)
        for row in kept:
            left = left + preserve * torch.outer(weight @ row, row)
            right = right + preserve * torch.outer(row, row)
        edited[name] = left @ torch.inverse(right)
    return edited


def targets(weight: Tensor, concept_rows: list[Tensor], anchor_rows: list[Tensor], technique: str) -> list[Tensor]:
    anchor_values = [weight @ row for row in anchor_rows]
    if technique == "replace":
        return anchor_values
    concept_values = [weight @ row for row in concept_rows]
    norm = sum(float(value @ value) for value in concept_values) ** 0.5
    unit = [value / norm for value in concept_values]
    component = sum(float(u @ v) for u, v in zip(unit, anchor_values, strict=True))
    return [v - component * u for u, v in zip(unit, anchor_values, strict=True)]


def derive_rows(
    weights: Weights, original: Weights, rows: list[Tensor], r: float, towards_itself=False
) -> list[Tensor]:
    """RECE's embedding that makes the edited layers answer as the original ones do to ``rows``."""
    width = rows[0].shape[0]
    system = r * torch.eye(width, dtype=rows[0].dtype)
    mixed = torch.zeros_like(system)
    for name, weight in weights.items():
        system = system + weight.T @ weight
        mixed = mixed + weight.T @ original[name]
    inverse = torch.inverse(system)
    return [inverse @ (mixed @ row + (r * row if towards_itself else 0)) for row in rows]


def rece(
    original: Weights,
    start: Weights,
    concepts: list[tuple[list[Tensor], list[Tensor]]],
    kept: list[Tensor],
    *,
    r: float,
    epochs: int,
    lamb: float = 0.1,
    erase: float = 1.0,
    preserve: float = 0.1,
    towards_itself: bool = False,
) -> Weights:
    """Derive and re-edit; ``concepts`` are pairs of all rows of a concept and all rows of its anchor."""
    weights = start
    for _ in range(epochs):
        adversarial = [
            (derive_rows(weights, original, rows, r, towards_itself), anchor_rows) for rows, anchor_rows in concepts
        ]
        weights = edit(weights, adversarial, kept, lamb, erase, preserve)
    return weights
