"""The nouns of the benchmark as types: concepts, prompts, scores, verdicts; the verbs are in ``erasebench.protocols``.

Everything is a frozen dataclass built from keywords; nothing here imports torch, so a report can read results on
any machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from erasebench import fields

if TYPE_CHECKING:
    import numpy as np
    from diffusers import StableDiffusionPipeline as Pipeline
else:
    Pipeline = Any

Kind = Literal["object", "style", "unsafe", "identity"]
Group = Literal["target", "paraphrase", "neighbour", "unrelated", "coco", "attack"]
Access = Literal["none", "text_encoder", "queries", "model"]  # queries: images of the erased model, judged
Strength = Literal["text", "embedding", "latent", "weights"]
Sampler = Literal["ddim", "pndm", "lms", "dpm++", "euler", "unipc"]
Status = Literal["ok", "nan", "constant", "error"]
Role = Literal["", "present", "kept", "success", "similarity", "distance", "likeness", "mean", "influence"]

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
KINDS: tuple[Kind, ...] = get_args(Kind)
GROUPS: tuple[Group, ...] = get_args(Group)
ERASED_GROUPS: tuple[Group, ...] = ("target", "paraphrase", "attack")  # groups that ask for the erased concept
KEPT_GROUPS: tuple[Group, ...] = ("neighbour", "unrelated", "coco")  # groups whose concept should survive


def seed_of(*parts: object, sep: str = "\x1f") -> int:
    """An integer in [0, 2^64) decided by the parts alone: whatever is random here starts from one, cut to its range.

    Every seed of prompts, attacks, training and choices is made by this one function from what it is for, so that
    nothing depends on the order in which things are drawn.

    >>> seed_of(0, "target", 1) == seed_of("0", "target", "1") != seed_of(0, "target", 2)
    True
    """
    return int.from_bytes(hashlib.sha256(sep.join(map(str, parts)).encode()).digest()[:8], "big")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What is erased.

    Args:
        name: the plain word, e.g. ``cat``; also the yaml stem and the value in every table.
        kind: object, style, unsafe or identity.
        phrases: texts that name the concept, the name first, then synonyms; at least one.
        anchor: what the concept is mapped to; ``""`` is the unconditional text.
        neighbours: relation (visual, artistic, subset_superset, binomial, unrelated) -> concept names.
        preserve: further texts a method is told to keep.
        parts: the single concepts, for several that are erased jointly, see :func:`joint`; empty for one.

    Raises:
        ValueError: no phrase, one word where a list belongs, an unknown kind, or an anchor equal to the concept.

    >>> Concept(name="cat", kind="object", phrases=["cat", "kitty"], anchor="dog").phrases
    ('cat', 'kitty')
    """

    name: str
    kind: Kind = "object"
    phrases: tuple[str, ...] = ()
    anchor: str = ""
    neighbours: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    preserve: tuple[str, ...] = ()
    parts: tuple[Concept, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "name", fields.text("concept.name", self.name, empty=False))
        fields.choice("concept.kind", self.kind, KINDS)
        hint = "write concept.anchor= for the unconditional text"
        object.__setattr__(self, "anchor", fields.text("concept.anchor", self.anchor, hint=hint))
        hint = f"write concept.phrases=[{self.name}]"
        object.__setattr__(self, "phrases", fields.texts("concept.phrases", self.phrases, least=1, hint=hint))
        object.__setattr__(self, "preserve", fields.texts("concept.preserve", self.preserve))
        object.__setattr__(self, "neighbours", _relations(self.neighbours))
        if self.anchor.strip().lower() in {p.strip().lower() for p in self.phrases}:
            raise ValueError(
                f"concept {self.name!r}: anchor {self.anchor!r} is the concept itself; choose another text"
            )

    @property
    def singles(self) -> tuple[Concept, ...]:
        """The concepts to erase one by one: the parts of a joint concept, else this one alone."""
        return self.parts or (self,)


def _relations(neighbours: Any) -> dict[str, tuple[str, ...]]:
    """Relation -> names, each a list of texts."""
    if not isinstance(neighbours, Mapping):
        advice = "write concept.neighbours={visual: [dog, fox]}"
        raise ValueError(f"concept.neighbours must map relations to lists of names; got {neighbours!r}; {advice}")
    return {str(k): fields.texts(f"concept.neighbours.{k}", names) for k, names in neighbours.items()}


def joint(concepts: Sequence[Concept]) -> Concept:
    """Several concepts as one that is erased in one edit: its ``parts`` are the single ones, in order.

    Its phrases are the first phrases of all parts, its kind is the first's, or unsafe if any is, its anchor is the
    parts' if they agree, else ``""``. Nothing that is erased is among its neighbours and preserved texts.

    Raises:
        ValueError: a concept twice, or fewer than two.

    >>> both = joint([Concept(name="cat", phrases=["cat", "kitty"]), Concept(name="sun", phrases=["sun"])])
    >>> both.name, both.phrases, [part.name for part in both.singles]
    ('cat+sun', ('cat', 'sun'), ['cat', 'sun'])
    """
    names = [concept.name for concept in concepts]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"also must name other concepts, each once; got {', '.join(names)}; leave out the repeated one"
        )
    erased = {text.casefold() for concept in concepts for text in (concept.name, *concept.phrases)}
    relations = dict.fromkeys(relation for concept in concepts for relation in concept.neighbours)
    kept = {r: [name for c in concepts for name in c.neighbours.get(r, ())] for r in relations}
    anchors = {concept.anchor for concept in concepts}
    kinds = [concept.kind for concept in concepts]
    return Concept(
        name="+".join(names),
        kind="unsafe" if "unsafe" in kinds else kinds[0],
        phrases=tuple(concept.phrases[0] for concept in concepts),
        anchor=anchors.pop() if len(anchors) == 1 else "",
        neighbours={
            r: tuple(n for n in dict.fromkeys(found) if n.casefold() not in erased) for r, found in kept.items()
        },
        preserve=tuple(dict.fromkeys(t for c in concepts for t in c.preserve if t.casefold() not in erased)),
        parts=tuple(concepts),
    )


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One text to draw, with everything its noise and its score depend on.

    Args:
        id: stable and unique in its set.
        text: what is given to the tokenizer.
        seed: with the id's set, fixes the initial noise; integer >= 0.
        guidance_scale: classifier-free guidance weight, or None for the model's default.
        group: target, paraphrase, neighbour, unrelated, coco or attack.
        concept: the concept the text depicts (for group attack: the one it tries to bring back); "" if none.
        relation: for neighbours, how they relate to the target (visual, binomial, ...).
        source_id: id of the prompt an attack started from.
        embeds: prompt embeddings [tokens, width] float32 for attacks stronger than text, or None.
        info: what an attack reports of this prompt (budget, queries, retokenised_equal), JSON values.
    """

    id: str
    text: str
    seed: int = 0
    guidance_scale: float | None = None
    group: Group = "target"
    concept: str = ""
    relation: str = ""
    source_id: str = ""
    embeds: np.ndarray | None = field(default=None, compare=False, repr=False)
    info: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def digest(self) -> str:
        """Hash of all that decides the image: text, seed, guidance and embeddings (not the group)."""
        parts = json.dumps([self.text, self.seed, self.guidance_scale]).encode()
        if self.embeds is not None:
            parts += self.embeds.tobytes()
        return hashlib.sha256(parts).hexdigest()[:16]

    def with_(self, **changes: Any) -> Prompt:
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured value; ``value`` is NaN and ``status`` says why when there is none.

    Args:
        evaluator: module stem of the evaluator.
        metric: name that carries what the number depends on (model, weights, threshold, colour order).
        value: the number, or NaN.
        group: prompt group it belongs to.
        prompt_id: the prompt, or None for a metric of the whole group.
        relation: relation of a neighbour prompt, "" otherwise.
        higher_is_better: direction for this metric in this group; None if it has none.
        status: ok, nan, constant or error. An error is a status, never a score.
        low, high: interval for a whole-group metric that brings its own, else None.
        judge: name of the judge whose word the number rests on; "" if there is none.
        rate: whether the values are 0 or 1 by nature, whatever was drawn; None to let the values say so.
        n: images behind a whole-group metric that depends on their number, else None.
        terms: the numbers whose harmonic mean the value is: runs are pooled by averaging these; else empty.
    """

    evaluator: str
    metric: str
    value: float
    group: str
    prompt_id: str | None = None
    relation: str = ""
    higher_is_better: bool | None = None
    status: Status = "ok"
    low: float | None = None
    high: float | None = None
    judge: str = ""
    rate: bool | None = None
    terms: Sequence[float] = ()
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What tables and flags show of an evaluator's metric in one prompt group; without one, a metric is only recorded.

    Args:
        metric: the metric's name, or its first parts: ``concept_present`` is every ``concept_present.<judge>.top1``.
        group: prompt group.
        label: row of the closing table; ``{metric}`` stands for the metric's name; "" for no row of its own.
        head: column of the leaderboard; "" for none. Of two metrics with one head the one with the smaller place stands
            there.
        place: order in tables, small first. The judge with the smallest place is the one that flags listen to.
        unit: ``%`` for a fraction that is shown in percent.
        role: what flags and tables do with it. present: how often the erased concept is seen; kept: how often what was
            asked for is seen; success: an attack's success; similarity: image to text; distance: between sets of
            images; likeness: of each image to another model's of the same prompt and noise; mean: one number for the
            whole erasure, by which a leaderboard is sorted; influence: how much each image moves the distance whose
            metric stands behind ``influence.``, recorded for intervals of differences and shown nowhere.

    >>> Headline(metric="any@0.6", group="target", label="", role="present").fits("any@0.65", "target")
    False
    """

    metric: str
    group: str
    label: str
    head: str = ""
    place: int = 100
    unit: Literal["", "%"] = ""
    role: Role = ""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(
                f"headline {self.metric!r}: role must be one of {', '.join(get_args(Role))}; got {self.role!r}"
            )
        if self.unit not in ("", "%"):
            raise ValueError(f"headline {self.metric!r}: unit must be '' or '%'; got {self.unit!r}")

    def fits(self, metric: str, group: str) -> bool:
        """Whether a score of this name and group is meant."""
        return group == self.group and f"{metric}.".startswith(f"{self.metric.removesuffix('.')}.")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's word on one image: is the concept there (top-1), with what probability, and what is seen instead."""

    present: bool
    score: float
    label: str
