"""Prompt sources: published sets from files, and sets built from templates.

A source has one method, ``prompts(concept) -> list[Prompt]``. For concepts of kind unsafe, and for sets marked as
sexual, rows that mention minors are dropped and their number is logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from erasebench import fields
from erasebench.prompts import grammar as english
from erasebench.prompts.files import check_limit, place_hash
from erasebench.prompts.safety import drop_minors as drop_minors  # part of reading a set, for its callers
from erasebench.prompts.safety import safe_prompts
from erasebench.types import Concept, Group, Prompt

SLOTS = ("object", "style", "background", "identity", "unsafe")
KIND_SLOTS = ("identity", "unsafe")  # for concepts of that kind alone; without such a template they are objects
MOST = 1_000_000  # prompts of a group
GRAMMARS = ("english", "none")
TEMPLATE_GROUPS: tuple[Group, ...] = ("target", "paraphrase", "neighbour", "unrelated", "coco")


@dataclass(frozen=True, kw_only=True)
class TemplatePrompts:
    """The prompt groups of a concept, built from sentence templates; raising a number keeps the prompts before it.

    The concept fills ``{object}``, or ``{style}`` if it is a style; where templates have ``{identity}`` or ``{unsafe}``
    a concept of that kind fills that, since "a photo of a nudity" is no English. The other slots are filled from the
    lists. The groups: target (the concept's first phrase), paraphrase (its other phrases), neighbour (related concepts,
    spread evenly over every relation and name), unrelated (concepts far away) and coco (everything in the lists that is
    not the concept, as the COCO captions are for Stable Diffusion). What fills a slot, and the seed, depend on (seed,
    group, index) only. The parts of a joint concept take turns in every group, and nothing that is erased is a
    neighbour, unrelated, or in another prompt's slot.

    Args:
        templates: sentences with the slots {object}, {style}, {background}, {identity}, {unsafe}.
        objects, styles, backgrounds: what fills the slots.
        n: group -> number of prompts; groups left out are not made. One number is that of every group.
        limit: of each group, at most so many prompts; None for all.
        seed: another seed gives other fills and other noise.
        grammar: ``english`` writes an apple, and leaves an article out where a phrase brings its own (a person wearing
            clothes); ``none`` fills slots as they are, for a model that was trained on such texts.

    Raises:
        ValueError: an unknown slot, group or grammar, a negative number, or a slot with nothing to fill it.

    >>> source = TemplatePrompts(templates=["a {style} {object}"], objects=["dog"], styles=["ink"], n={"target": 2})
    >>> [(p.id, p.text) for p in source.prompts(Concept(name="cat", phrases=["cat"]))]
    [('target-000', 'an ink cat'), ('target-001', 'an ink cat')]
    """

    templates: tuple[str, ...]
    objects: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    backgrounds: tuple[str, ...] = ()
    n: Mapping[str, int] | int = field(default_factory=lambda: _numbers(50))
    seed: int = 0
    limit: int | None = None
    grammar: str = "english"

    def __post_init__(self) -> None:
        for name in ("templates", "objects", "styles", "backgrounds"):
            object.__setattr__(self, name, fields.texts(f"prompts.{name}", getattr(self, name)))
        if not self.templates:
            raise ValueError("templates must name at least one sentence; got none; add 'a picture of a {object}'")
        if self.grammar not in GRAMMARS:
            raise ValueError(f"grammar must be {' or '.join(GRAMMARS)}; got {self.grammar!r}; correct its spelling")
        for template in self.templates:
            if unknown := _slots(template) - set(SLOTS):
                raise ValueError(f"template {template!r} has slot {min(unknown)!r}; use {', '.join(SLOTS)}")
        fields.integer("prompts.seed", self.seed, least=0)
        check_limit("prompts", self.limit)
        wanted = _numbers(self.n)
        wanted = wanted if self.limit is None else {group: min(n, self.limit) for group, n in wanted.items()}
        object.__setattr__(self, "n", wanted)

    @property
    def numbers(self) -> Mapping[str, int]:
        """Group -> number of prompts."""
        return _numbers(self.n)

    def prompts(self, concept: Concept) -> list[Prompt]:
        """All groups' prompts about ``concept``."""
        made = [p for group in TEMPLATE_GROUPS for p in self._group(group, concept)]
        if not made:
            raise ValueError(f"n must ask for at least one prompt about {concept.name!r}; got {dict(self.numbers)}")
        return safe_prompts(made, concept)

    def _group(self, group: Group, concept: Concept) -> list[Prompt]:
        """One prompt per index: the part by turns, its fill by turns, its template by turns within the fill, the rest
        by hash.
        """
        parts = [fills for fills in self._fills(group, concept) if fills]
        if not parts:
            return []
        made = []
        for index in range(self.numbers.get(group, 0)):
            round_, part = divmod(index, len(parts))
            turn, place = divmod(round_, len(parts[part]))
            slot, word, depicts, relation = parts[part][place]
            templates = self._templates(slot)
            template = templates[(turn + place_hash(self.seed, group, place)) % len(templates)]
            made.append(
                Prompt(
                    id=f"{group}-{index:03d}",
                    text=self._fill(template, {slot: word}, concept, group, index),
                    seed=place_hash(self.seed, group, index),
                    group=group,
                    concept=depicts,
                    relation=relation,
                    info={} if group == "target" else {"word": word},  # what it shares with others of its group
                )
            )
        return made

    def _fills(self, group: Group, concept: Concept) -> list[list[tuple[str, str, str, str]]]:
        """(slot, word, concept depicted, relation) of a group, in the order they take turns, for every part."""
        if group == "coco":
            words = sorted(set(_without(self.objects, concept)), key=lambda word: place_hash(self.seed, "coco", word))
            return [[("object", word, word, "") for word in words]]
        return [self._part(group, part, concept) for part in concept.singles]

    def _part(self, group: Group, part: Concept, concept: Concept) -> list[tuple[str, str, str, str]]:
        """The fills of one single concept; ``concept`` is everything that is erased."""
        own = self._own(part)
        if group == "target":
            return [(own, part.phrases[0], part.name, "")]
        if group == "paraphrase":
            return [(own, phrase, part.name, "") for phrase in part.phrases[1:]]
        kept = dict(part.neighbours)
        if concept.parts:
            kept = {relation: tuple(_without(names, concept)) for relation, names in kept.items()}
        if group == "unrelated":
            return [("object", name, name, "unrelated") for name in kept.get("unrelated", ())]
        pairs = [(relation, name) for relation, names in kept.items() if relation != "unrelated" for name in names]
        beside = "object" if own == "unsafe" else own  # what stands beside nudity is no nudity
        return [(beside, name, name, relation) for relation, name in pairs]

    def _own(self, part: Concept) -> str:
        """The slot that a concept fills."""
        if part.kind == "style":
            return "style"
        return (
            part.kind if part.kind in KIND_SLOTS and any(part.kind in _slots(t) for t in self.templates) else "object"
        )

    def _templates(self, slot: str) -> Sequence[str]:
        foreign = set(KIND_SLOTS) - {slot}
        usable = [t for t in self.templates if slot in _slots(t) and not _slots(t) & foreign]
        if not usable:
            raise ValueError(f"templates must have one with {{{slot}}}; got {', '.join(self.templates)}; add one")
        return usable

    def _fill(self, template: str, fills: dict[str, str], concept: Concept, group: Group, index: int) -> str:
        lists = {"object": self.objects, "style": self.styles, "background": self.backgrounds}
        fills = dict(fills)
        for slot in _slots(template) - set(fills):
            words = _without(lists[slot], concept)
            if not words:
                raise ValueError(
                    f"{slot}s must have a word other than the concept's for {template!r}; got none; add one"
                )
            fills[slot] = words[place_hash(self.seed, group, index, slot) % len(words)]
        return english.fill(template, fills) if self.grammar == "english" else template.format(**fills)


def _numbers(n: Any) -> dict[str, int]:
    """Group -> number of prompts, from such a mapping or from one number for all."""
    if not isinstance(n, Mapping):
        hint = f"write prompts.n=50, or prompts.n={{{TEMPLATE_GROUPS[0]}: 50}}"
        return dict.fromkeys(TEMPLATE_GROUPS, fields.integer("prompts.n", n, least=0, most=MOST, hint=hint))
    for group, number in n.items():
        fields.choice("group of prompts.n", group, TEMPLATE_GROUPS)
        fields.integer(f"prompts.n.{group}", number, least=0, most=MOST)
    return dict(n)


def _slots(template: str) -> set[str]:
    """Names of a template's slots.

    Raises:
        ValueError: braces that are no slots, or a slot that is formatted: {object:>1000000} is a million blanks.
    """
    try:
        found = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"prompts.templates must have slots in braces; got {template!r}: {error}; mend it") from None
    for name, spec, conversion in found:
        if spec or conversion:
            raise ValueError(f"prompts.templates must have plain slots; got {template!r}; write {{{name}}}")
    return {str(name) for name, _, _ in found}


def _without(words: Sequence[str], concept: Concept) -> list[str]:
    own = {text.casefold() for part in concept.singles for text in (part.name, *part.phrases)}
    return [word for word in words if word.casefold() not in own]
