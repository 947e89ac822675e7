"""Which rows of which texts a closed-form edit moves and which it keeps.

A text becomes E(text) [tokens, d]; its row k is that of the last token of its last word ("last subject token"), row
k + 1 that of the end-of-text token, and the rest is padding. The literature pools these rows in different ways, and
the same name (UCE) stands for two of them:

======== ====================================================== ===================================================
pooling  rows of concept and anchor                             rows of a preserved text
======== ====================================================== ===================================================
last+pad from k on: last subject token, end, padding            all, start token included
last     k alone                                                k alone (the start token for ``""``)
all      all, aligned one to one                                all
======== ====================================================== ===================================================

``last+pad`` is the code of the UCE paper (also RECE's baseline), ``last`` its rewrite of April 2025, ``all`` RECE's own
re-edit. Other rows are a class of their own, see :class:`Rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from erasebench.diffusion import cross_attention_projections, encode, last_token, tokenise
from erasebench.fields import choice, flag
from erasebench.fields import texts as checked
from erasebench.types import Concept, Pipeline
from methods.closed_form import Pair

Pooling = Literal["last+pad", "last", "all"]
BATCH = 64  # texts encoded at once: 1,734 preserved artists fit in memory
OBJECT_PROMPTS = ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}")
STYLE_PROMPTS = ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}")


class Rows(Protocol):
    """A pooling of one's own: give an object with these two in place of the name of a published one."""

    def pairs(self, pipe: Pipeline, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """Rows of each (concept, anchor), [n, d] float64 each, aligned."""
        ...

    def gram(self, pipe: Pipeline, texts: Sequence[str]) -> Tensor:
        """Gram matrix P^T P [d, d] float64 of the rows of preserved texts."""
        ...


@dataclass(frozen=True, kw_only=True)
class EditTexts:
    """The texts of a closed-form edit and how their rows are pooled; a part of every closed-form method.

    Args:
        pooling: ``last+pad``, ``last``, ``all``, see the table above; or an object with the methods of :class:`Rows`.
        anchor: text the concept is mapped to; ``""`` and ``" "`` are the unconditional text; None is the concept's own.
        preserve: texts to keep. Those that name the erased concept are left out, whatever their case.
        concept_preserve: keep the texts of ``concept.preserve`` too.
        phrases: erase the ``name`` (the concept's first phrase, as the papers do) or ``all`` its phrases.

    Raises:
        ValueError: an unknown pooling or choice of phrases, a string where a list is wanted.
    """

    pooling: Pooling | Rows = "last+pad"
    anchor: str | None = ""
    preserve: tuple[str, ...] = ("",)
    concept_preserve: bool = True
    phrases: Literal["name", "all"] = "name"

    together: ClassVar[tuple[str, ...]] = ("joint", "sequence")

    def __post_init__(self) -> None:
        object.__setattr__(self, "preserve", checked("preserve", self.preserve, empty=True))
        if not all(callable(getattr(self.pooling, name, None)) for name in ("pairs", "gram")):
            choice("pooling", self.pooling, get_args(Pooling))
        flag("concept_preserve", self.concept_preserve)
        choice("phrases", self.phrases, ("name", "all"))

    def pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """(text to erase, its anchor) for each phrase to erase, of a joint concept each part's with its own anchor.

        Raises a ValueError if an anchor is the concept itself, or another one that is erased too.
        """
        pairs = []
        for part in concept.singles:
            phrases = part.phrases if self.phrases == "all" else part.phrases[:1]
            pairs += [(phrase, part.anchor if self.anchor is None else self.anchor) for phrase in phrases]
        erased = {_plain(phrase) for phrase, _ in pairs}
        for _, anchor in pairs:
            if _plain(anchor) in erased:
                raise ValueError(
                    f"anchor must differ from the concept {concept.name!r}; got {anchor!r}; choose another text"
                )
        return pairs

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """A ValueError, before any weight is loaded, if an anchor is the concept itself."""
        self.pairs(concept)

    def kept(self, concept: Concept) -> list[str]:
        """Preserved texts, without any that names the concept."""
        kept = (*self.preserve, *concept.preserve) if self.concept_preserve else self.preserve
        erased = {_plain(phrase) for part in concept.singles for phrase in part.phrases}
        return [text for text in kept if _plain(text) not in erased]

    def rows(self, pipe: Pipeline, pairs: Sequence[tuple[str, str]], kept: Sequence[str]) -> tuple[list[Pair], Tensor]:
        """Pooled rows of the pairs, [n, d] float64 each, and the Gram matrix of the preserved rows, [d, d] float64."""
        rows = BareTexts(self.pooling) if isinstance(self.pooling, str) else self.pooling
        return rows.pairs(pipe, pairs), rows.gram(pipe, kept)


def expanded(kind: str, pairs: Iterable[tuple[str, str]], fill: bool) -> list[tuple[str, str]]:
    """Five phrases around each (text, anchor) of a concept of some kind; ``fill``: around the anchor, too."""
    prompts = STYLE_PROMPTS if kind == "style" else OBJECT_PROMPTS
    return [(p.format(text), p.format(to) if fill else to) for text, to in pairs for p in prompts]


@dataclass(frozen=True)
class BareTexts:
    """The published poolings: rows of the texts themselves, see the table above."""

    pooling: Pooling

    def pairs(self, pipe: Pipeline, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        both = [concept for concept, _ in pairs] + [anchor for _, anchor in pairs]
        states, last = encoded(pipe, both), last_token(pipe, both).tolist()
        tokens, half = states.shape[1], len(pairs)
        pooled = []
        for i in range(half):
            left, right = (0, 0) if self.pooling == "all" else (last[i], last[half + i])
            length = 1 if self.pooling == "last" else tokens - max(left, right)
            pooled.append((states[i, left : left + length], states[half + i, right : right + length]))
        return pooled

    def gram(self, pipe: Pipeline, texts: Sequence[str]) -> Tensor:
        def rows() -> Iterable[Tensor]:
            for start in range(0, len(texts), BATCH):
                part = texts[start : start + BATCH]
                for text, last in zip(encoded(pipe, part), last_token(pipe, part).tolist(), strict=True):
                    yield text[last : last + 1] if self.pooling == "last" else text

        return gram_of(pipe, rows())[0]


def gram_of(pipe: Pipeline, rows: Iterable[Tensor]) -> tuple[Tensor, int]:
    """The Gram matrix [d, d] float64 of some rows [n, d] at a time, and how many rows there were."""
    width = next(iter(cross_attention_projections(pipe).values())).in_features
    gram, count = torch.zeros(width, width, dtype=torch.float64), 0
    for some in rows:
        gram += some.T @ some
        count += len(some)
    return gram, count


def encoded(pipe: Pipeline, texts: Sequence[str], rows: int | None = None) -> Tensor:
    """E(text) [n, rows, d] float64 on the CPU (None: all); equal tokens (``""`` and ``" "``) are encoded once."""
    keys = [tuple(ids) for ids in tokenise(pipe, texts).tolist()]
    distinct = dict(zip(keys, texts, strict=True))
    place = {key: i for i, key in enumerate(distinct)}
    states = encode(pipe, list(distinct.values()), rows=rows).detach().to("cpu", torch.float64)
    return states[[place[key] for key in keys]]


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()
