"""Which rows of which texts a closed-form edit moves and which it keeps.

A text becomes E(text) [tokens, d]; its row k is that of the last token of its last word ("last subject token"), row
k + 1 that of the end-of-text token, and the rest is padding. The literature pools these rows in different ways, and
the same name (UCE) stands for two of them:

========= ====================================================== ===================================================
pooling   rows of concept and anchor                             rows of a preserved text
========= ====================================================== ===================================================
last+pad  from k on: last subject token, end, padding            all, start token included
last      k alone                                                k alone (the start token for ``""``)
all       all, aligned one to one                                all
templates in each template, from k to the end of text plus       in each of ``preserve_templates``, from the start
          ``pads`` rows of padding                               token to the end of text plus ``pads`` rows
========= ====================================================== ===================================================

``last+pad`` is the code of the UCE paper (also RECE's baseline), ``last`` its rewrite of April 2025, ``all`` RECE's own
re-edit. ``templates`` is this benchmark's, for models whose text encoder has seen little besides captions: there, rows
of a bare word differ from those inside a sentence, and moving 70 rows of padding drags every prompt along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from erasebench.diffusion import cross_attention_projections, encode, last_token, tokenise
from erasebench.types import Concept, Pipeline
from methods.closed_form import Pair

Pooling = Literal["last+pad", "last", "all", "templates"]


@dataclass(frozen=True, kw_only=True)
class EditTexts:
    """The texts of a closed-form edit and how their rows are pooled; a part of every closed-form method.

    Args:
        pooling: ``last+pad``, ``last``, ``all`` or ``templates``, see the table above.
        anchor: text the concept is mapped to; ``""`` and ``" "`` are the unconditional text; None is the concept's own.
        preserve: texts to keep. Those that name the erased concept are left out, whatever their case.
        concept_preserve: keep the texts of ``concept.preserve`` too.
        phrases: erase the ``name`` (the concept's first phrase, as the papers do) or ``all`` its phrases.
        templates: sentences with one ``{}`` for the concept; read by pooling ``templates`` only.
        preserve_templates: the same for preserved texts; empty means the bare text.
        pads: padding rows after the end of text, >= 0; read by pooling ``templates`` only.

    Raises:
        ValueError: an unknown pooling or choice of phrases, a template without exactly one ``{}``, no template where
            the pooling needs one, a string where a list is wanted, negative pads.
    """

    pooling: Pooling = "last+pad"
    anchor: str | None = ""
    preserve: tuple[str, ...] = ("",)
    concept_preserve: bool = True
    phrases: Literal["name", "all"] = "name"
    templates: tuple[str, ...] = ()
    preserve_templates: tuple[str, ...] = ()
    pads: int = 8

    together: ClassVar[tuple[str, ...]] = ("joint", "sequence")

    def __post_init__(self) -> None:
        for name in ("preserve", "templates", "preserve_templates"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(text, str) for text in value):
                raise ValueError(f"{name} must be a list of texts; got {value!r}; write [{value!r}]")
            object.__setattr__(self, name, tuple(value))
        check_choice("pooling", self.pooling, get_args(Pooling))
        check_choice("phrases", self.phrases, ("name", "all"))
        for template in (*self.templates, *self.preserve_templates):
            if template.count("{}") != 1:
                raise ValueError(f"template must hold one '{{}}' for the concept; got {template!r}; add or remove one")
        if self.pooling == "templates" and not self.templates:
            raise ValueError("templates must not be empty with pooling templates; got none; add '{}' for the bare text")
        if isinstance(self.pads, bool) or not isinstance(self.pads, int) or self.pads < 0:
            raise ValueError(f"pads must be an integer >= 0; got {self.pads!r}; 0 stops at the end of text")

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
        texts = (*self.preserve, *concept.preserve) if self.concept_preserve else self.preserve
        erased = {_plain(phrase) for part in concept.singles for phrase in part.phrases}
        return [text for text in texts if _plain(text) not in erased]

    def rows(self, pipe: Pipeline, pairs: Sequence[tuple[str, str]], kept: Sequence[str]) -> tuple[list[Pair], Tensor]:
        """Pooled rows of the pairs, [n, d] float64 each, and the Gram matrix of the preserved rows, [d, d] float64.

        With pooling ``templates`` rows are divided by the square root of how many there are over all pairs, and the
        Gram matrix by the number of preserved rows: every later sum over rows is a mean, and scales do not depend on
        how many templates were written.
        """
        bare = ("{}",)
        templates, preserve_templates = self.templates, self.preserve_templates or bare
        if self.pooling != "templates":
            templates, preserve_templates = bare, bare
        pooled = _pooled_pairs(pipe, pairs, self.pooling, templates, self.pads)
        gram, count = _pooled_gram(pipe, kept, self.pooling, preserve_templates, self.pads)
        if self.pooling == "templates":
            root = sum(len(c) for c, _ in pooled) ** 0.5
            return [(c / root, a / root) for c, a in pooled], gram / max(count, 1)
        return pooled, gram


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    >>> check_choice("technique", "magic", ("replace", "tensor"))
    Traceback (most recent call last):
    ValueError: technique must be one of replace, tensor; got 'magic'; correct its spelling
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}; correct its spelling")


@dataclass(frozen=True)
class _Filled:
    """Texts in templates; ``first``: index of the last subject token, ``end``: of the end-of-text token."""

    texts: list[str]
    first: list[int]
    end: list[int]


def _filled(pipe: Pipeline, texts: Sequence[str], templates: Sequence[str]) -> _Filled:
    """Every text in every template (texts outermost), and where the subject ends in it.

    The last subject token is the last token of the sentence cut after the subject: words never share a token across a
    space, which is checked, because a template such as "{}s" would break it.
    """
    cut = [template.split("{}")[0] + text for text in texts for template in templates]
    full = [template.replace("{}", text) for text in texts for template in templates]
    if not full:
        return _Filled([], [], [])
    first, end = last_token(pipe, cut).tolist(), (last_token(pipe, full) + 1).tolist()
    for text, last, short, whole in zip(full, first, tokenise(pipe, cut), tokenise(pipe, full), strict=True):
        if not torch.equal(short[: last + 1], whole[: last + 1]):
            raise ValueError(
                f"template must set its '{{}}' apart by spaces; got {text!r}, where tokens merge across it"
            )
    return _Filled(full, first, end)


def _pooled_pairs(
    pipe: Pipeline, pairs: Sequence[tuple[str, str]], pooling: Pooling, templates: Sequence[str], pads: int
) -> list[Pair]:
    concepts = _filled(pipe, [concept for concept, _ in pairs], templates)
    anchors = _filled(pipe, [anchor for _, anchor in pairs], templates)
    needed = max(*concepts.end, *anchors.end) + pads + 1 if pooling == "templates" else None
    states = _states(pipe, concepts.texts + anchors.texts, needed)
    tokens, half = states.shape[1], len(concepts.texts)
    pooled = []
    for i in range(half):
        left, right = (0, 0) if pooling == "all" else (concepts.first[i], anchors.first[i])
        length = tokens - max(left, right)
        if pooling == "last":
            length = 1
        if pooling == "templates":
            ends = (min(concepts.end[i] + pads + 1, tokens) - left, min(anchors.end[i] + pads + 1, tokens) - right)
            length = min(ends)
        pooled.append((states[i, left : left + length], states[half + i, right : right + length]))
    return pooled


def _pooled_gram(
    pipe: Pipeline, texts: Sequence[str], pooling: Pooling, templates: Sequence[str], pads: int, batch_size: int = 64
) -> tuple[Tensor, int]:
    """Gram matrix [d, d] float64 and number of the preserved rows, a batch at a time: 1,734 artists fit in memory."""
    width = next(iter(cross_attention_projections(pipe).values())).in_features
    gram, count = torch.zeros(width, width, dtype=torch.float64), 0
    filled = _filled(pipe, texts, templates)
    for rows in _kept_rows(pipe, filled, pooling, pads, batch_size):
        gram += rows.T @ rows
        count += len(rows)
    return gram, count


def _kept_rows(pipe: Pipeline, filled: _Filled, pooling: Pooling, pads: int, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, len(filled.texts), batch_size):
        part = slice(start, start + batch_size)
        needed = max(filled.end[part]) + pads + 1 if pooling == "templates" else None
        states = _states(pipe, filled.texts[part], needed)
        for text, first, end in zip(states, filled.first[part], filled.end[part], strict=True):
            if pooling == "last":
                yield text[first : first + 1]
            elif pooling == "templates":
                yield text[: end + pads + 1]
            else:
                yield text


def _states(pipe: Pipeline, texts: Sequence[str], rows: int | None = None) -> Tensor:
    """E(text) [n, rows, d] float64 on the CPU (None: all); equal tokens (``""`` and ``" "``) are encoded once."""
    keys = [tuple(ids) for ids in tokenise(pipe, texts).tolist()]
    distinct = dict(zip(keys, texts, strict=True))
    place = {key: i for i, key in enumerate(distinct)}
    states = encode(pipe, list(distinct.values()), rows=rows).detach().to("cpu", torch.float64)
    return states[[place[key] for key in keys]]


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()
