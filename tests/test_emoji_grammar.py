"""The second edition's language: what training may read, and what is kept for measuring."""

import random
import re

import pytest

from erasebench.emoji.training import captions, world
from erasebench.emoji.training.second import corpus, grammar

WORDS = {"noun": ["harbour"], "verb": ["wander"], "adj": ["brisk"], "adv": ["gladly"]}


@pytest.fixture(scope="module")
def drawn():
    maker = grammar.Grammar(WORDS, ["they were on friendly terms"])
    rng = random.Random(0)
    return [maker.draw(rng, [("red heart", ("love",))]) for _ in range(4000)]


def test_hundreds_of_frames_and_thirty_six_held_out():
    assert len(grammar.frames()) >= 300
    assert len(set(grammar.HELD_OUT)) == len(grammar.HELD_OUT) >= 30
    assert all(slot in frame for frame in grammar.HELD_OUT for slot in ("{c}", "{s}", "{b}"))


def test_no_training_caption_is_a_held_out_sentence(drawn):
    """Neither edition's: with every style and background taken for the slot, no caption fits a held-out frame."""
    styles, places = "|".join(world.STYLES), "|".join(world.BACKGROUNDS)
    slots = {"c": r"[\w' -]+", "s": f"({styles})", "b": f"({places})"}
    simple = {"{c} / {s} / {b}", "{c}. {s}. {b}.", "{s}: {c} ({b})"}  # bare enumerations, told by their punctuation
    patterns = [
        re.compile(re.sub(r"\\\{(\w)\\\}", lambda m: slots[m[1]], re.escape(frame)))
        for frame in grammar.HELD_OUT if frame not in simple
    ]  # fmt: skip
    first = random.Random(1)
    old = [captions.caption(first, "cat", "noto", "blue") for _ in range(2000)]
    assert not [c.text for c in (*drawn, *old) if any(p.fullmatch(c.text) for p in patterns)]


def test_captions_say_what_they_fix(drawn):
    for c in drawn:
        if c.style:
            assert any(w in c.text for w in (c.style, *world.STYLE_SYNONYMS[c.style]))
        if c.background:
            assert c.background in c.text
    named = [c for c in drawn if c.concept in world.things()]
    shares = [sum(c.concept == n for c in named) for n in world.things()]
    assert len(named) > 0.75 * len(drawn) and min(shares) > 10


def test_training_text_holds_no_word_that_is_kept_unread(drawn):
    banks = (grammar.PICTURE, grammar.OPENER, grammar.CLOSER, grammar.ADJECTIVE, grammar.HELD_OUT)
    assert not [text for bank in banks for text in bank if corpus.unread(text)]
    assert not [c.text for c in drawn if corpus.unread(c.text)]
    assert not [p for t in world.things().values() for p in (*t.phrases, t.hint) if corpus.unread(p)]


def test_fillers_name_nothing_of_the_world():
    words = grammar.forbidden()
    assert {"cat", "cats", "kitty", "blue", "grey", "ink", "animal", "thing"} <= words and "harbour" not in words
    drawn = {w for t in world.things().values() for p in t.phrases for w in p.split()} | {
        *world.STYLES,
        *world.BACKGROUNDS,
    }
    assert not [a for a in grammar.ADJECTIVE if drawn & set(corpus.words(a))]


def test_wordnet_is_read_from_its_files(tmp_path):
    line = '00001740 03 n 01 harbour 0 000 | a sheltered port; "the harbour was full"; "a walrus swam by"\n'
    for kind in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{kind}").write_text("  1 licence\n" + (line if kind == "noun" else ""))
        (tmp_path / f"index.{kind}").write_text("  1 licence\nharbour n 1 0 1 1 00001740\ncat n 1 0 1 1 00001741\n")
    assert corpus.glosses(tmp_path) == ["harbour: a sheltered port", "the harbour was full"]
    assert corpus.plain_words(tmp_path, frozenset({"cat"}))["noun"] == ["harbour"]
    with pytest.raises(FileNotFoundError, match="apt install wordnet-base"):
        corpus.glosses(tmp_path / "nowhere")


def test_the_same_seed_draws_the_same_captions():
    maker = grammar.Grammar(WORDS)
    assert maker.draw(random.Random(3)) == maker.draw(random.Random(3))
