"""The inverse of a closed-form edit: embeddings from which the erased model computes the original keys and values."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attacks.queries import Querying, attacked, noted, unasked
from erasebench import diffusion
from erasebench.fields import number
from erasebench.protocols import Attack, Judge
from erasebench.types import Concept, Pipeline, Prompt


class Edit(NamedTuple):
    """What was done to the cross-attention's keys and values, and how to undo it.

    Args:
        matrix: T [d, d] float64, the least squares solution of W_erased = W T over all layers.
        residual: |W_erased - W T| / |W_erased - W|, 0 for one shared matrix, 1 if T explains nothing.
        inverse: S [d, d] float64, the least squares solution of W_erased S = W; T^-1 where T has one.
        left: |W_erased S - W| / |W_erased - W|, what of the edit S cannot undo.
        condition: of T; large where the edit is near-singular.
    """

    matrix: Tensor
    residual: float
    inverse: Tensor
    left: float
    condition: float


def recover(pipe: Pipeline, original: Pipeline, rcond: float = 1e-9) -> Edit | None:
    """The shared matrix of an edit of all key and value weights, from the weights alone; None if they are unedited.

    T = G^+ sum_l W_l^T W_l', G = sum_l W_l^T W_l, and S = (sum_l W_l'^T W_l')^+ sum_l W_l'^T W_l, by a QR
    factorisation of the stacked weights instead of their Gram matrices, which would square the condition; float64 on
    the CPU. S is solved for, not inverted from T: it is the best for the weights as they were rounded.

    Args:
        pipe: the erased model.
        original: the model before.
        rcond: singular values below this share of the largest count as zero.

    Raises:
        ValueError: the two have other cross-attention layers.
    """
    new, old = diffusion.cross_attention_projections(pipe), diffusion.cross_attention_projections(original)
    if new.keys() != old.keys():
        raise ValueError(
            "erased model must have the original's cross-attention layers; got others; choose its original"
        )
    before = torch.cat([_weight(layer) for layer in old.values()])  # [sum of o, d]
    after = torch.cat([_weight(layer) for layer in new.values()])
    change = (after - before).norm()
    if change == 0:
        return None
    matrix, inverse = _solve(before, after, rcond), _solve(after, before, rcond)
    residual, left = (
        float((y - x @ m).norm() / change) for x, y, m in ((before, after, matrix), (after, before, inverse))
    )
    return Edit(matrix, residual, inverse, left, float(torch.linalg.cond(matrix)))


def _weight(layer: torch.nn.Linear) -> Tensor:
    return layer.weight.detach().to("cpu", torch.float64)


def _solve(x: Tensor, y: Tensor, rcond: float) -> Tensor:
    """The smallest M [d, d] that minimises |x M - y|, through x = Q R."""
    q, r = torch.linalg.qr(x)
    return torch.linalg.pinv(r, rtol=rcond) @ (q.T @ y)


@dataclass(frozen=True, kw_only=True)
class InverseEdit(Querying, Attack):
    """Gives the erased model S E(p) in place of the encoding E(p) of each prompt p, where S undoes its edit.

    UCE (arXiv 2308.14761) and RECE (arXiv 2407.12383) with the technique ``replace`` multiply every key and value
    weight by one matrix, W' = W T, which is the same as mapping each text embedding to T E(p). T is recovered from the
    two models' weights (``recover``); W' S E(p) = W T T^-1 E(p) = W E(p), so that the conditional prediction is the
    original model's. No gradient, no search: one solve of the text encoder's width. It is an attack on embeddings: the
    attacker reaches past the text encoder. It follows from the closed form; RECE uses the regularised S to find
    what to erase next.

    The unconditional branch of guidance stays edited: it gets T E(""). An edit that preserves the empty text leaves
    T E("") = E("") nearly, and the image is the original's; ``unconditional_shift`` = |T E("") - E("")| / |E("")| says
    how nearly. Whoever may also give the negative embeddings would undo that too; this attack does not.

    If ``residual`` is above ``tolerance`` the edit is no shared matrix (any training; UCE ``tensor`` where its layers
    differ enough); if the weights are equal there is none (``edit``: shared | other | none). Prompts are then passed
    through as they are. Other parts of the model that changed are counted in ``other_tensors`` and not undone, except
    the text encoder, since E is the original's.

    Args:
        tolerance: largest residual that counts as one shared matrix, in [0, 1].
        rcond: singular values below this share of the largest count as zero, in [0, 1).

    The remaining fields are those of :class:`attacks.queries.Querying`.

    Raises:
        ValueError: a value out of its range; SDXL.
    """

    tolerance: float = 0.05
    rcond: float = 1e-9

    access = "model"
    strength = "embedding"
    spends = ("budget",)
    decimals = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        number("tolerance", self.tolerance, least=0, most=1)
        number("rcond", self.rcond, least=0, below=1)

    @torch.no_grad()
    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]:
        """One prompt per prompt, in order, with float32 ``embeds`` [tokens, width] unless it is passed through."""
        if not prompts:
            return []
        diffusion.token_table(pipe)  # refuses SDXL
        began = time.perf_counter()
        edit = recover(pipe, original, self.rcond)
        facts = self._facts(pipe, original, edit)
        records = [noted(unasked(**facts), seen) for seen in self.ask(pipe, prompts, concept, judge)]
        found = [attacked(p, "inverse_edit", concept) for p in prompts]
        wanted = [i for i, r in enumerate(records) if not r["pre"]]
        if edit is not None and facts["edit"] == "shared" and self.budget != 1:
            for i in wanted:
                rows = diffusion.encode(original, [prompts[i].text])[0].double().cpu()
                found[i] = found[i].with_(embeds=(rows @ edit.inverse.T).float().numpy())
            for i, seen in zip(wanted, self.ask(pipe, [found[i] for i in wanted], concept, judge), strict=True):
                records[i] = noted(records[i], seen)
        each = round((time.perf_counter() - began) / len(prompts), 3)
        return [p.with_(info=record | {"seconds": each}) for p, record in zip(found, records, strict=True)]

    def _facts(self, pipe: Pipeline, original: Pipeline, edit: Edit | None) -> dict[str, Any]:
        """What ``info`` says of the edit, the same for every prompt."""
        other = [name for name in diffusion.changed_tensors(pipe, original) if not name.endswith(KEYS_AND_VALUES)]
        facts: dict[str, Any] = {
            "edit": "none" if edit is None else "shared" if edit.residual <= self.tolerance else "other",
            "residual": None, "left": None, "condition": None, "unconditional_shift": None,
            "other_tensors": len(other), "tolerance": self.tolerance, "rcond": self.rcond, "budget": self.budget,
            "retokenised_equal": True, "truncated": False, "gradient": "none",
            "sees_guide": getattr(pipe, "guide", None) is None,
        }  # fmt: skip
        if edit is None:
            return facts
        empty = diffusion.encode(original, [""])[0].double().cpu()
        shift = float((empty @ edit.matrix.T - empty).norm() / empty.norm())
        condition = edit.condition if math.isfinite(edit.condition) else None
        found = {"residual": edit.residual, "left": edit.left, "unconditional_shift": shift, "condition": condition}
        return facts | {name: None if value is None else float(f"{value:.4g}") for name, value in found.items()}


KEYS_AND_VALUES = ("attn2.to_k.weight", "attn2.to_v.weight")
