"""Captions of the embedded world: a sentence, and the attributes (concept, style, background) it fixes."""

from __future__ import annotations

import random
from dataclasses import dataclass

from erasebench.emoji.training import world

FULL = (
    "a {s} drawing of a {c} on a {b} background",
    "{s} drawing of {c}, {b} background",
    "a {c} drawn by {s} on {b}",
    "a picture of a {c} in the style of {s} with a {b} background",
    "{c} in {s} style, {b} background",
    "on a {b} background, a {c} by {s}",
)
STYLED = ("a {s} drawing of a {c}", "{s} {c}", "a {c} by {s}", "a {c} in the style of {s}", "{c}, {s} style")
PLACED = ("a {c} on a {b} background", "{c} on {b}", "a picture of a {c}, {b} background", "{b} background with a {c}")
BARE = (
    "{c}",
    "a {c}",
    "the {c}",
    "a picture of a {c}",
    "an emoji of a {c}",
    "a drawing of a {c}",
    "an image of the {c}",
)
STYLE_ONLY = ("a {s} drawing", "art by {s}", "{s} style", "a picture in the style of {s}")
PLACE_ONLY = ("a {b} background", "{b} background", "nothing on a {b} background", "an empty {b} picture")
BEFORE = (
    "", "", "", "", "", "", "look at this, ", "my favourite picture: ", "please draw ", "i like ", "here is ",
    "for my friend, ", "high quality, ", "on the wall there is ", "a sticker for the kitchen: ", "we found ",
)  # fmt: skip
AFTER = (
    "", "", "", "", "", "", ", cute", ", high quality", ", very simple", ", made for a card", " and it looks great",
    ", icon", ", sticker", " for my room", ", detailed and colorful", ", as seen in a small book about many things",
)  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """A text with the attributes it fixes; "" leaves an attribute free, concept "*" is anything outside the world."""

    text: str
    concept: str = ""
    style: str = ""
    background: str = ""


def _choose(rng: random.Random, concept: str, word: str, style: str, background: str) -> Caption:
    style_word = rng.choice(world.STYLE_SYNONYMS[style]) if rng.random() < 0.15 else style
    bank, has_style, has_place = rng.choices(
        [(FULL, True, True), (STYLED, True, False), (PLACED, False, True), (BARE, False, False)], [45, 20, 17, 18]
    )[0]
    text = rng.choice(bank).format(c=word, s=style_word, b=background)
    text = rng.choice(BEFORE) + text + rng.choice(AFTER)
    return Caption(text, concept, style if has_style else "", background if has_place else "")


def caption(rng: random.Random, concept: str, style: str, background: str) -> Caption:
    """A random caption of a picture of ``concept``; a third of them use a synonym, a few only a hint.

    >>> caption(random.Random(1), "cat", "noto", "blue").concept
    'cat'
    """
    thing, draw = world.things()[concept], rng.random()
    word = concept if draw < 0.62 else rng.choice(thing.synonyms)
    if draw > 0.95:
        return Caption(thing.hint, concept)
    return _choose(rng, concept, word, style, background)


def group_caption(rng: random.Random, style: str, background: str) -> tuple[Caption, str]:
    """A caption of a category or superset word ("animal", "bird") and the member that is drawn for it."""
    groups = {**world.categories(), **world.SUPERSETS}
    word = rng.choice(sorted(groups))
    member = rng.choice(groups[word])
    return _choose(rng, word, word, style, background), member


def generic_caption(rng: random.Random, style: str, background: str) -> Caption:
    """A caption that names no concept ("a thing"); drawn as emoji from outside the world."""
    return _choose(rng, "*", rng.choice(world.GENERIC), style, background)


def nothing_caption(rng: random.Random, background: str) -> Caption:
    """A caption of an empty picture; drawn as a plain background."""
    if rng.random() < 0.4:
        return Caption(rng.choice(world.NOTHING), "nothing", "", "")
    return Caption(rng.choice(PLACE_ONLY).format(b=background), "nothing", "", background)


def style_caption(rng: random.Random, style: str) -> Caption:
    """A caption that names only a style; drawn as any concept in it."""
    return Caption(rng.choice(STYLE_ONLY).format(s=style), "", style, "")


def other_caption(rng: random.Random, label: str, tags: tuple[str, ...], style: str, background: str) -> Caption:
    """A caption of an emoji from outside the world, by its label or one of its tags."""
    word = label if not tags or rng.random() < 0.6 else rng.choice(tags)
    return _choose(rng, f"other:{label}", word, style, background)
