"""TRCE, first stage: a closed form that moves the end-of-text rows of a concept's sentences to its anchor's.

"TRCE: Towards Reliable Malicious Concept Erasure in Text-to-Image Diffusion Models", 2025, arXiv:2503.07389.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from erasebench import fields
from erasebench.types import Pipeline
from methods.closed_form import Pair
from methods.template_rows import filled
from methods.text_rows import BareTexts, encoded


@dataclass(frozen=True, kw_only=True)
class FirstEnd:
    r"""A pooling (:class:`methods.text_rows.Rows`) of the first end-of-text row alone; ``trce_stage1`` is UCE with it:

    .. math:: \min_{W'} \sum_i \|W' c_i - W a_i\|^2 + q \sum_j \|W' p_j - W p_j\|^2 + \lambda \|W' - W\|_F^2

    for the end row c of the concept in each template and a of the anchor in the same; p are all rows of the preserved
    texts. In a causal text encoder that row has read the whole sentence, and every row of padding repeats much of it.

    The program weights start token, first end, last end and the concept's own token by 0, 1, 0 and 0, uses 20 pairs of
    texts in 15 sentences each, and a cache of COCO's rows times 0.01 with no ridge.

    Deviations: the first stage only (the second trains self-attention and queries on early steps by a contrastive loss
    whose margin and targets were not seen); pairs are the concept's phrases and its anchor, sentences ``templates``;
    preserved texts in place of the cache, and so a ridge; float64.

    Args:
        templates: sentences with one ``{}``.

    >>> FirstEnd(templates=["a {}s"]).templates
    ('a {}s',)
    >>> FirstEnd(templates=["a cat"])
    Traceback (most recent call last):
    ValueError: templates must hold one '{}' each for the concept; got 'a cat'; add or remove one
    """

    templates: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", fields.texts("templates", self.templates, least=1))
        if wrong := next((t for t in self.templates if t.count("{}") != 1), None):
            raise ValueError(f"templates must hold one '{{}}' each for the concept; got {wrong!r}; add or remove one")

    def pairs(self, pipe: Pipeline, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """For each pair the end rows [templates, d] of the concept and of the anchor."""
        concepts, anchors = (self._ends(pipe, [pair[side] for pair in pairs]) for side in (0, 1))
        return list(zip(concepts.split(len(self.templates)), anchors.split(len(self.templates)), strict=True))

    def gram(self, pipe: Pipeline, texts: Sequence[str]) -> Tensor:
        """Gram matrix [d, d] of all rows of the bare texts."""
        return BareTexts("all").gram(pipe, texts)

    def _ends(self, pipe: Pipeline, texts: Sequence[str]) -> Tensor:
        found = filled(pipe, texts, self.templates)
        return encoded(pipe, found.texts)[range(len(found.texts)), found.end]
