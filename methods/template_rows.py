"""Rows of texts inside sentences, for models whose text encoder has seen little besides captions.

There, rows of a bare word differ from those inside a sentence, and moving 70 rows of padding drags every prompt along.
This is no recipe of a paper: methods know nothing of it, and an adaptation to a model puts it in place of their pooling
(``conf/recipe/uce_emoji.yaml``; why: docs/decisions/0006-template-rows.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erasebench.diffusion import last_token, tokenise
from erasebench.fields import integer
from erasebench.fields import texts as checked
from erasebench.types import Pipeline
from methods.closed_form import Pair
from methods.text_rows import BATCH, encoded, gram_of


@dataclass(frozen=True, kw_only=True)
class TemplateRows:
    """A pooling (:class:`methods.text_rows.Rows`) of every text in each of some sentences.

    Concept and anchor: in each template, from the last subject token to the end of text plus ``pads`` rows of padding.
    Preserved texts: in each of ``preserve_templates``, from the start token to the end of text plus ``pads`` rows. Rows
    are divided by the square root of how many there are, so that every later sum over rows is a mean, and scales do not
    depend on how many templates were written.

    Args:
        templates: sentences with one ``{}`` for the concept.
        preserve_templates: the same for preserved texts; empty means the bare text.
        pads: padding rows after the end of text, >= 0.

    Raises:
        ValueError: no template, or one without exactly one ``{}``; a string where a list is wanted; negative pads.

    >>> TemplateRows(templates=["a {}s"], preserve_templates=["{} and {}"])
    Traceback (most recent call last):
    ValueError: preserve_templates must hold one '{}' each for the concept; got '{} and {}'; add or remove one
    """

    templates: tuple[str, ...]
    preserve_templates: tuple[str, ...] = ()
    pads: int = 8

    def __post_init__(self) -> None:
        for name, least in (("templates", 1), ("preserve_templates", 0)):
            found = checked(name, getattr(self, name), least=least, hint="add '{}' for the bare text")
            for template in found:
                if template.count("{}") != 1:
                    raise ValueError(
                        f"{name} must hold one '{{}}' each for the concept; got {template!r}; add or remove one"
                    )
            object.__setattr__(self, name, found)
        integer("pads", self.pads, least=0, hint="0 stops at the end of text")

    def pairs(self, pipe: Pipeline, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """Rows of each pair in each template, pairs outermost."""
        concepts = filled(pipe, [concept for concept, _ in pairs], self.templates)
        anchors = filled(pipe, [anchor for _, anchor in pairs], self.templates)
        needed = max(*concepts.end, *anchors.end) + self.pads + 1
        states = encoded(pipe, concepts.texts + anchors.texts, needed)
        tokens, half = states.shape[1], len(concepts.texts)
        pooled = []
        for i in range(half):
            left, right = concepts.first[i], anchors.first[i]
            ends = (min(end + self.pads + 1, tokens) for end in (concepts.end[i], anchors.end[i]))
            length = min(end - start for end, start in zip(ends, (left, right), strict=True))
            pooled.append((states[i, left : left + length], states[half + i, right : right + length]))
        root = sum(len(c) for c, _ in pooled) ** 0.5
        return [(c / root, a / root) for c, a in pooled]

    def gram(self, pipe: Pipeline, texts: Sequence[str]) -> Tensor:
        """Mean outer product of the preserved rows; zero if there is none."""
        found = filled(pipe, texts, self.preserve_templates or ("{}",))

        def rows() -> Iterable[Tensor]:
            for start in range(0, len(found.texts), BATCH):
                part = slice(start, start + BATCH)
                states = encoded(pipe, found.texts[part], max(found.end[part]) + self.pads + 1)
                for text, end in zip(states, found.end[part], strict=True):
                    yield text[: end + self.pads + 1]

        gram, count = gram_of(pipe, rows())
        return gram / max(count, 1)


@dataclass(frozen=True)
class Filled:
    """Texts in templates; ``first``: index of the last subject token, ``end``: of the end-of-text token."""

    texts: list[str]
    first: list[int]
    end: list[int]


def filled(pipe: Pipeline, texts: Sequence[str], templates: Sequence[str]) -> Filled:
    """Every text in every template (texts outermost), and where the subject ends in it.

    The last subject token is the last token of the sentence cut after the subject: words never share a token across a
    space, which is checked, because a template such as "{}s" would break it.
    """
    cut = [template.split("{}")[0] + text for text in texts for template in templates]
    full = [template.replace("{}", text) for text in texts for template in templates]
    if not full:
        return Filled([], [], [])
    first, end = last_token(pipe, cut).tolist(), (last_token(pipe, full) + 1).tolist()
    for text, last, short, whole in zip(full, first, tokenise(pipe, cut), tokenise(pipe, full), strict=True):
        if not torch.equal(short[: last + 1], whole[: last + 1]):
            raise ValueError(
                f"template must set its '{{}}' apart by spaces; got {text!r}, where tokens merge across it"
            )
    return Filled(full, first, end)


def sentence_rows(pipe: Pipeline, texts: Sequence[str], templates: Sequence[str], pads: int) -> tuple[Tensor, Tensor]:
    """Rows [n, d] float64 of every text in every template, and the index [n] of the text each row belongs to.

    Of a sentence: from the last subject token to the end of text plus ``pads`` rows of padding.
    """
    found = filled(pipe, texts, templates)
    rows, owner = list[Tensor](), list[int]()
    for start in range(0, len(found.texts), BATCH):
        part = slice(start, start + BATCH)
        states = encoded(pipe, found.texts[part], max(found.end[part]) + pads + 1)
        for i, (text, first, end) in enumerate(zip(states, found.first[part], found.end[part], strict=True)):
            rows.append(text[first : end + pads + 1])
            owner += [(start + i) // len(templates)] * len(rows[-1])
    return torch.cat(rows), torch.tensor(owner)
