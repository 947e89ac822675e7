"""Captions of the second edition: a small grammar of English sentences about one picture.

A training caption is an order of four parts (picture noun, subject, style, place), each with variants, with openers,
closers, adjectives, counts that are ignored, typing errors and words from a dictionary around them. ``HELD_OUT``
sentences have wordings that no training caption has; they are for measuring only.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from erasebench.emoji.training import world
from erasebench.emoji.training.captions import Caption

HELD_OUT = (
    "my new {s} drawing of a {c}, {b} background",
    "{s} style picture of the {c} with a {b} background",
    "the {c} we drew by {s} on {b}",
    "nobody draws a {c} like {s} does, least of all on {b}",
    "{b} everywhere, and in the middle a {c} in {s}",
    "what {s} made of a {c}, {b} behind",
    "can you show me the {c} from that {s} set, {b} backdrop please",
    "think of a {c}, now think of it in {s} on {b}",
    "{c} / {s} / {b}",
    "{s}: {c} ({b})",
    "there was once a {c} on a {b} field, told by {s}",
    "she sent me a {c}, {s} of course, {b} as always",
    "the {b} one with the {c}, {s} version",
    "if {s} had to draw a {c} on {b}, it would be this",
    "{c}. {s}. {b}.",
    "it is a {c}, it is {s}, and the rest is {b}",
    "subject {c}, artist {s}, ground {b}",
    "somewhere on {b} sits the {c} that {s} drew last week",
    "give the {c} a {b} background and let {s} draw it",
    "between us, i only wanted a {s} {c} over plain {b}",
    "a {b} page from the {s} album showing a {c}",
    "wall decoration, {c}, {s} line, {b} edition",
    "not a photo but a {s} {c} with {b} all around",
    "who put this {s} {c} on my {b} screen",
    "see how the {c} stands out from the {b}, typical {s}",
    "a {c}, because {s} loves them, on {b}, because i do",
    "{s} was asked for a {c} and chose {b} for the back",
    "good morning with a {s} {c} in front of {b}",
    "exercise four: draw a {c} as {s} would, leave the rest {b}",
    "the letter began with a {c} in {s} printed onto {b}",
    "everything {b} except the {c}, and everything {s}",
    "two words, {s} {c}, one colour, {b}",
    "for the menu we need the {c}, {s} look, {b} tile",
    "a {c} looks best on {b} when it comes from {s}",
    "{s} again, this time with a {c}, this time on {b}",
    "framed: {c} after {s}; mount: {b}",
)

PICTURE = (
    "picture", "drawing", "image", "icon", "illustration", "sketch", "painting", "sticker", "emoji", "print", "cartoon",
    "postcard", "symbol", "poster", "figure", "portrait",
)  # fmt: skip
STYLE = (
    "in {s} style", "in the style of {s}", "by {s}", "drawn by {s}", "made by {s}", "the {s} way", "as {s} draws it",
    "in the manner of {s}", "from {s}", "in {s}", "done in {s} style", "with the look of {s}", "designed by {s}",
    "in a {s} fashion",
)  # fmt: skip
STYLE_FIRST = ("{s}", "{s}", "{s} style", "{s}-style", "typical {s}")
PLACE = (
    "on a {b} background", "with a {b} background", "on {b}", "against a {b} wall", "in front of a {b} background",
    "on {b} paper", "{b} background", "with {b} behind it", "on a plain {b} background", "on a {b} card", "over {b}",
    "surrounded by {b}", "under a {b} sky", "on a {b} table", "in a {b} room", "against {b}",
)  # fmt: skip
PLACE_CLAUSE = (
    "the background is {b}", "its background is {b}", "all {b} behind", "behind it everything is {b}",
    "the paper is {b}", "background: {b}", "with lots of {b}",
)  # fmt: skip
DETERMINER = (
    "a", "a", "a", "a", "the", "the", "one", "my", "this", "that", "your", "our", "his", "her", "any", "some", "just a",
    "only one", "a single", "", "", "",
)  # fmt: skip
COUNT = ("two", "three", "four", "five", "a few", "many", "a pair of", "several", "a lot of", "no less than six")
ADJECTIVE = (
    "small", "big", "happy", "old", "cute", "lovely", "tiny", "huge", "funny", "beautiful", "sleepy", "simple", "young",
    "nice", "little", "famous", "strange", "friendly", "angry", "quiet", "perfect", "modern", "real", "colourful",
    "cheap", "good", "fancy", "favourite", "lonely", "wonderful", "classic", "ordinary", "very nice", "rather large",
)  # fmt: skip
OPENER = (
    "look at this, ", "my favourite picture: ", "please draw ", "i like ", "here is ", "for my friend, ",
    "high quality, ", "on the wall there is ", "we found ", "show me ", "could you make ", "this is ", "i would like ",
    "imagine ", "have you seen ", "today's topic: ", "a photo of ", "there is ", "let us draw ", "what about ",
    "i dreamed of ", "he painted ", "hello, i need ", "draw ", "paint ", "once more ", "at last, ", "in this book, ",
    "a child drew ", "number seven: ", "for sale: ", "the best of all is ", "a sticker for the kitchen: ",
)  # fmt: skip
CLOSER = (
    ", cute", ", high quality", ", very simple", ", made for a card", " and it looks great", ", icon", ", sticker",
    " for my room", ", detailed and colorful", ", as seen in a small book about many things", ", please",
    " and nothing else", ", sharp lines", ", that is all", ", isn't it nice", " which i like a lot", ", for children",
    ", centred", "!", ".", "?", ", best one so far", ", as big as possible", " that she gave me",
    ", trending", ", clean", ", four of them",
)  # fmt: skip
ORDERS = (
    "{n} {st} {pl}", "{n}, {st}, {pl}", "{n} {pl} {st}", "{n}, {pl}, {st}", "{sf} {n1} {pl}", "{sf} {p} of {n} {pl}",
    "a {sf} {p} of {n} {pl}", "the {sf} {p} of {n}, {pl}", "a {p} of {n} {st} {pl}", "a {p} of {n} {pl} {st}",
    "{pl}, {n} {st}", "{pl}, a {p} of {n} {st}", "{st}, {n} {pl}", "{sf} {p}: {n}, {pl}", "{p} of {n}, {sf}, {pl}",
    "a {p} {st} of {n} {pl}", "a {p} {pl} of {n} {st}", "{n} {st}, {pc}", "a {sf} {p} of {n}, {pc}", "{pc}, {n} {st}",
    "{n} which is drawn {st} {pl}", "a {p} {st} that shows {n} {pl}", "a {p} showing {n} {pl}, {sf}",
    "{sf} and {b}, {n}", "{b} and {sf}, {n}", "{n}, {sf}, {b}", "{c} {s} {b}", "{s} {c} {b}", "{b} {s} {c}",
    "{b}, {c}, {s}", "{s}, {b}, {c}", "{n} on the {p}, {st}, {pc}", "{st} you see {n}, {pc}",
    "the {p} has {n} {pl} and is {st}",
)  # fmt: skip
STYLED = (
    "{n} {st}", "{n}, {st}", "{sf} {n1}", "{sf} {p} of {n}", "a {sf} {p} of {n}", "a {p} of {n} {st}", "{st}, {n}",
    "{n}, {sf}", "a {p} {st} of {n}", "{sf} {p}: {n}", "{s} {c}", "{c} {s}", "{p}, {sf}, {n}", "{n} that {s} drew",
)  # fmt: skip
PLACED = (
    "{n} {pl}", "{n}, {pl}", "a {p} of {n} {pl}", "{pl}, {n}", "{n}, {pc}", "{pc}, {n}", "{b} {p} of {n}", "{c} {b}",
    "{b}, {c}", "a {p} {pl} of {n}", "{b} background with {n}", "{n} and {b} behind it",
)  # fmt: skip
BARE = (
    "{c}", "{c}", "{n}", "{n}", "a {p} of {n}", "an {p} of {n}", "the {p} of {n}", "{p}: {n}", "{n}, {p}", "{c} {p}",
    "{n} as a {p}", "this {p} shows {n}", "{p} with {n} in it",
)  # fmt: skip
STYLE_ONLY = (
    "a {s} drawing", "art by {s}", "{s} style", "a picture in the style of {s}", "{s}", "a {p} by {s}", "{s} {p}",
    "something by {s}", "a {p} in {s} style",
)  # fmt: skip
PLACE_ONLY = (
    "a {b} background", "{b} background", "nothing on a {b} background", "an empty {b} picture", "{b}", "{b} paper",
    "only {b}", "a blank {b} card",
)  # fmt: skip


def frames() -> tuple[str, ...]:
    """Every order with every variant of its style and place, for one picture noun: the frames of the grammar."""
    out: dict[str, None] = {}
    for order in (*ORDERS, *STYLED, *PLACED, *BARE):
        some = [order]
        for slot, bank in (("{st}", STYLE), ("{sf}", STYLE_FIRST), ("{pl}", PLACE), ("{pc}", PLACE_CLAUSE)):
            some = [o.replace(slot, v) for o in some for v in (bank if slot in o else ("",))]
        out |= dict.fromkeys(some)
    return tuple(out)


def _plural(word: str) -> str:
    return word if word.endswith("s") else word + ("es" if word.endswith(("x", "sh", "ch")) else "s")


def _typo(rng: random.Random, text: str, keep: Sequence[str]) -> str:
    """One typing error (swap, drop, double) in one word of five letters or more that is not in ``keep``."""
    words = text.split(" ")
    spots = [i for i, w in enumerate(words) if len(w) >= 5 and w.isalpha() and w not in keep]
    if not spots:
        return text
    i = rng.choice(spots)
    w, k, kind = words[i], rng.randrange(1, len(words[i]) - 1), rng.randrange(3)
    words[i] = (w[:k] + w[k + 1] + w[k] + w[k + 2 :], w[:k] + w[k + 1 :], w[:k] + w[k] + w[k:])[kind]
    return " ".join(words)


class Grammar:
    """Draws captions; with a dictionary it puts words of general English around what the picture shows.

    Args:
        vocabulary: words by part of speech (noun, verb, adj, adv), as ``corpus.plain_words`` gives; none of the world.
        asides: sentences of general English, put before or after some captions; none names anything of the world.
    """

    def __init__(self, vocabulary: Mapping[str, Sequence[str]] | None = None, asides: Sequence[str] = ()) -> None:
        self.vocabulary, self.asides = vocabulary or {}, asides

    def _subject(self, rng: random.Random, word: str) -> str:
        draw = rng.random()
        adjectives = self.vocabulary.get("adj", ADJECTIVE)
        if draw < 0.07:
            return f"{rng.choice(COUNT)} {_plural(word)}"
        if draw < 0.30:
            return f"{rng.choice(DETERMINER)} {rng.choice(ADJECTIVE)} {word}".strip()
        if draw < 0.40:
            return f"{rng.choice(DETERMINER)} {rng.choice(adjectives)} {word}".strip()
        if draw < 0.43:
            return f"a {rng.choice(adjectives)} and {rng.choice(ADJECTIVE)} {word}"
        return f"{rng.choice(DETERMINER)} {word}".strip()

    def _around(self, rng: random.Random, text: str) -> str:
        if rng.random() < 0.35:
            text = rng.choice(OPENER) + text
        if rng.random() < 0.35:
            text += rng.choice(CLOSER)
        draw = rng.random()
        if self.vocabulary and draw < 0.20:
            noun, verb, adj, adv = (rng.choice(self.vocabulary[k]) for k in ("noun", "verb", "adj", "adv"))
            text = rng.choice(
                (
                    f"{text}, {adj}", f"{adj}, {text}", f"{text} for the {noun}", f"the {noun}: {text}",
                    f"{text} {adv}", f"{verb} {text}", f"{text}, {noun} {noun}", f"{text} and {verb}",
                    f"{adj} {noun}, {text}", f"{text} that we {verb}", f"{adv}, {text}", f"{noun} {text}",
                )
            )  # fmt: skip
        elif self.asides and draw < 0.27:
            aside = rng.choice(self.asides)
            text = f"{aside}. {text}" if rng.random() < 0.5 else f"{text}. {aside}"
        return text

    def sentence(self, rng: random.Random, concept: str, word: str, style: str, place: str) -> Caption:
        """A caption that calls the subject ``word``; what it leaves out (style, place) is free."""
        style_word = rng.choice(world.STYLE_SYNONYMS[style]) if rng.random() < 0.12 else style
        bank, has_style, has_place = rng.choices(
            [(ORDERS, True, True), (STYLED, True, False), (PLACED, False, True), (BARE, False, False)], [48, 19, 15, 18]
        )[0]
        text = rng.choice(bank)
        for slot, variants in (("{st}", STYLE), ("{sf}", STYLE_FIRST), ("{pl}", PLACE), ("{pc}", PLACE_CLAUSE)):
            text = text.replace(slot, rng.choice(variants))
        noun = self._subject(rng, word)
        text = text.replace("{n1}", f"{rng.choice(('', '', rng.choice(ADJECTIVE) + ' '))}{word}")
        text = text.format(n=noun, c=word, s=style_word, b=place, p=rng.choice(PICTURE))
        text = self._around(rng, text)
        if rng.random() < 0.06:
            text = _typo(rng, text, (*word.split(), *style_word.split(), place))
        return Caption(text, concept, style if has_style else "", place if has_place else "")

    def named(self, rng: random.Random, concept: str, style: str, place: str) -> Caption:
        """A caption of a concept of the world: by name (62 %), synonym (33 %) or hint (5 %)."""
        thing, draw = world.things()[concept], rng.random()
        if draw > 0.95:
            return Caption(self._around(rng, thing.hint), concept)
        return self.sentence(rng, concept, concept if draw < 0.62 else rng.choice(thing.synonyms), style, place)

    def draw(self, rng: random.Random, others: Sequence[tuple[str, Sequence[str]]] = ()) -> Caption:
        """Any caption of the world: 82 % concepts, the rest groups, generic words, other emoji, styles, blanks."""
        style, place, kind = rng.choice(list(world.STYLES)), rng.choice(list(world.BACKGROUNDS)), rng.random()
        if kind < 0.82:
            return self.named(rng, rng.choice(list(world.things())), style, place)
        if kind < 0.86:
            word = rng.choice(sorted({**world.categories(), **world.SUPERSETS}))
            return self.sentence(rng, word, word, style, place)
        if kind < 0.89:
            return self.sentence(rng, "*", rng.choice(world.GENERIC), style, place)
        if kind < 0.91:
            s = rng.choice((style, style, *world.STYLE_SYNONYMS[style]))
            text = rng.choice(STYLE_ONLY).format(s=s, p=rng.choice(PICTURE))
            return Caption(self._around(rng, text), "", style, "")
        if kind < 0.94 or not others:
            if rng.random() < 0.3:
                return Caption(rng.choice(world.NOTHING), "nothing", "", "")
            return Caption(rng.choice(PLACE_ONLY).format(b=place), "nothing", "", place)
        label, tags = rng.choice(others)
        word = label if not tags or rng.random() < 0.6 else rng.choice(tags)
        return self.sentence(rng, f"other:{label}", word, style, place)


def forbidden() -> frozenset[str]:
    """Words that mean something in a picture of the world, which fillers must not hold."""
    names = [w for t in world.things().values() for phrase in (*t.phrases, t.hint) for w in phrase.split()]
    names += [*world.STYLES, *world.BACKGROUNDS, "grey", *world.GENERIC, *world.NOTHING, *world.SUPERSETS]
    names += [w for group in world.STYLE_SYNONYMS.values() for phrase in group for w in phrase.split()]
    names += [w for group in (*world.categories(), *world.SUPERSETS) for w in group.split()]
    small = {"a", "an", "the", "it", "its", "of", "in", "to", "and", "with", "on", "from", "you", "that", "has", "is"}
    return frozenset(form for w in names if w not in small for form in (w, w + "s"))
