"""English as far as a template needs it: a or an, and no article before a phrase that brings its own."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SLOT = re.compile(r"(?:\b(?P<article>[Aa])n? )?\{(?P<slot>\w+)\}")
_OWN_ARTICLE = re.compile(
    r"(?:an?|the|some|any|no|this|that|these|those|my|your|his|her|its|our|their|one|two|three|four|five|six|seven"
    r"|eight|nine|ten|many|several|each|every|\d+)\s",
    re.IGNORECASE,
)
_SPOKEN_AS_VOWEL = re.compile(r"(?:hour|honest|honou?r|heir|8|11\b|18\b)", re.IGNORECASE)
_SPOKEN_AS_CONSONANT = re.compile(r"(?:eu|ew|one\b|once\b|uni(?![nm])|u[bcfhjkqrst][aeiou])", re.IGNORECASE)
_SPELT_OUT = re.compile(r"[A-Z]{2,3}\b")


def indefinite(phrase: str) -> str:
    """``a`` or ``an``, by the sound that ``phrase`` begins with.

    >>> [f"{indefinite(p)} {p}" for p in ("apple", "unicorn", "umbrella", "hour", "SUV", "European owl")]
    ['an apple', 'a unicorn', 'an umbrella', 'an hour', 'an SUV', 'a European owl']
    """
    if _SPELT_OUT.match(phrase):
        return "an" if phrase[0] in "AEFHILMNORSX" else "a"
    if _SPOKEN_AS_VOWEL.match(phrase):
        return "an"
    return "an" if phrase[:1].lower() in set("aeiou") and not _SPOKEN_AS_CONSONANT.match(phrase) else "a"


def fill(template: str, words: Mapping[str, str]) -> str:
    """The sentence with its slots filled; an article right before a slot agrees with the phrase, or gives way to it.

    >>> fill("a photo of a {object}", {"object": "English springer"})
    'a photo of an English springer'
    >>> fill("a painting of a {object} by {style}", {"object": "a person in a coat", "style": "Claude Monet"})
    'a painting of a person in a coat by Claude Monet'
    """

    def one(match: re.Match[str]) -> str:
        article, phrase = match["article"], words[match["slot"]]
        if article is None or not phrase:
            return match[0].replace(f"{{{match['slot']}}}", phrase)
        if _OWN_ARTICLE.match(phrase):
            return phrase if article == "a" else phrase[0].upper() + phrase[1:]
        return article + indefinite(phrase)[1:] + " " + phrase

    return _SLOT.sub(one, template)
