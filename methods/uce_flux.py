"""Unified Concept Editing of FLUX: the two layers through which texts enter the transformer, in closed form.

Gandikota, Orgad, Belinkov, Materzynska and Bau, WACV 2024, arXiv:2308.14761; the paper edits UNets alone. For FLUX the
authors published a program, which they call experimental: github.com/rohitgandikota/unified-concept-editing at 28c81ed,
trainscripts/uce_flux_edit.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from erasebench.diffusion import apply_tensors, packed, text_rows, weight64
from erasebench.fields import choice, flag, number
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.closed_form import WEIGHT
from methods.text_rows import EditTexts, expanded

LAYERS = ("context_embedder", "time_text_embed.text_embedder.linear_1")  # of T5's rows, of CLIP's pooled text


@dataclass(frozen=True, kw_only=True)
class UCEFlux(EditTexts, Method):
    r"""Edits ``context_embedder`` and ``text_embedder.linear_1``, W [o, d] with bias b, to

    .. math:: W^* = (\lambda W + e \sum_i (W n_i + b) c_i^T + q \sum_j (W p_j + b) p_j^T)
                    (\lambda I + e \sum_i c_i c_i^T + q \sum_j p_j p_j^T)^{-1}

    for one row c of the concept, n of the anchor and p of preserved texts. ``context_embedder`` gets T5's row of the
    text's last token (``attention_mask.sum() - 2``; of ``""`` that is row -1, the last padding), the other layer CLIP's
    pooled text. The program takes what the layers say, bias and all, for their targets and leaves the bias where it is,
    so that it is added twice: ``bias: doubled``; ``once`` has W n and W p there instead, which is ours.

    Deviation: solved in float64, through a system as large as there are rows, instead of a float32 inverse.

    Several concepts are erased jointly: the sums run over all of them, each with its own anchor.

    Args:
        pooling: ``last``; there is no other.
        lamb: lambda > 0.
        erase_scale: e >= 0.
        preserve_scale: q >= 0.
        bias: see above.
        expand_prompts: erase five phrases around the concept too (``art by {}`` for styles, ``photo of {}`` otherwise),
            each with the bare anchor.

    The remaining fields are those of :class:`methods.text_rows.EditTexts`.

    Raises:
        ValueError: a value out of its range; an anchor that is the concept; a model that is no FLUX, for no other
            transformer is such an edit published.

    >>> UCEFlux(bias="thrice")
    Traceback (most recent call last):
    ValueError: bias must be one of doubled, once; got 'thrice'; correct its spelling
    """

    pooling: Literal["last"] = "last"
    preserve: tuple[str, ...] = ()
    lamb: float = 0.5
    erase_scale: float = 1.0
    preserve_scale: float = 1.0
    bias: Literal["doubled", "once"] = "doubled"
    expand_prompts: bool = False

    denoisers = ("transformer",)

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("pooling", self.pooling, ("last",))
        number("lamb", self.lamb, above=0, hint=WEIGHT)
        number("erase_scale", self.erase_scale, least=0, hint=WEIGHT)
        number("preserve_scale", self.preserve_scale, least=0, hint=WEIGHT)
        choice("bias", self.bias, ("doubled", "once"))
        flag("expand_prompts", self.expand_prompts)

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().check(concept, shapes)
        if shapes and not any(name.startswith("transformer.single_transformer_blocks.") for name in shapes):
            raise _not_flux("another model")

    def pairs(self, concept: Concept) -> list[tuple[str, str]]:
        pairs = super().pairs(concept)
        if not self.expand_prompts:
            return pairs
        return pairs + [
            pair for part in concept.singles for pair in expanded(part.kind, super(UCEFlux, self).pairs(part), False)
        ]

    @torch.no_grad()
    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept that shares all but two weights with ``pipe``."""
        if not packed(pipe):
            raise _not_flux(type(pipe).__name__)
        pairs, kept = self.pairs(concept), self.kept(concept)
        concepts, anchors, same = (
            text_rows(pipe, texts) for texts in ([c for c, _ in pairs], [a for _, a in pairs], kept)
        )
        tensors = {}
        for i, name in enumerate(LAYERS):
            layer = pipe.transformer.get_submodule(name)
            tensors[f"transformer.{name}.weight"] = self.edited(layer, concepts[i], anchors[i], same[i])
        return apply_tensors(pipe, tensors)

    def edited(self, layer: nn.Linear, concepts: Tensor, anchors: Tensor, kept: Tensor) -> Tensor:
        """W* [o, d] float64 for rows [n, d] of the concepts, [n, d] of their anchors and [m, d] of preserved texts.

        With A the rows of concepts and preserved texts, scaled by the roots of e and q, and Y what each of them should
        say beyond W, W* is ``W + Y^T (lambda I + A A^T)^{-1} A``.

        Raises:
            ArithmeticError: the edited weight is not finite.
        """
        weight, e, q = weight64(layer), self.erase_scale**0.5, self.preserve_scale**0.5
        extra = weight.new_zeros(layer.out_features)
        if self.bias == "doubled" and layer.bias is not None:
            extra = layer.bias.detach().to(weight)
        rows = torch.cat([e * concepts, q * kept])
        beyond = torch.cat([e * ((anchors - concepts) @ weight.T + extra), q * extra.expand(len(kept), -1)])
        system = self.lamb * torch.eye(len(rows), dtype=weight.dtype) + rows @ rows.T
        found = weight + beyond.T @ torch.linalg.solve(system, rows)
        if not torch.isfinite(found).all():
            raise ArithmeticError("edited weight must be finite; got nan or inf; raise lamb or the dtype")
        return found


def _not_flux(what: str) -> ValueError:
    return ValueError(
        f"uce_flux must edit FLUX, for which alone it is published; got {what}; use method=esd_flow or checkpoint"
    )
