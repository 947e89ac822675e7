"""Template prompts in English: articles, phrases that bring their own, kinds with sentences of their own."""

from __future__ import annotations

import re

import pytest
from hydra import compose, initialize_config_dir

from erasebench import conf_folder
from erasebench.building import build
from erasebench.prompts.grammar import fill, indefinite
from erasebench.prompts.templates import TemplatePrompts
from erasebench.types import Concept


@pytest.mark.parametrize(
    ("phrase", "article"),
    [
        ("orange", "an"), ("Owl", "an"), ("uncle", "an"), ("university", "a"), ("unimportant", "an"), ("ewe", "a"),
        ("one-way street", "a"), ("onion", "an"), ("honest man", "an"), ("house", "a"), ("8-ball", "an"),
        ("11 o'clock", "an"), ("1950s car", "a"), ("UFO", "a"), ("MRI scan", "an"), ("NASA rocket", "a"), ("user", "a"),
        ("utensil", "a"), ("usual sight", "a"),
    ],
)  # fmt: skip
def test_the_article_follows_the_sound(phrase, article):
    assert indefinite(phrase) == article


def test_an_article_gives_way_to_a_phrase_that_brings_its_own():
    assert fill("A {object} at dusk", {"object": "the Eiffel Tower"}) == "The Eiffel Tower at dusk"
    assert fill("A {object} at dusk", {"object": "owl"}) == "An owl at dusk"
    assert fill("an {object}, {style}", {"object": "bus", "style": "a sketch"}) == "a bus, a sketch"
    assert fill("a {object}", {"object": "theatre"}) == "a theatre"  # begins with "the" and is no article


def made(concept, model="sd14"):
    n = "prompts.n={target:12,paraphrase:12,neighbour:12,unrelated:12,coco:12}"
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", [f"model={model}", f"concept={concept}", n])
    return build(cfg.prompts).prompts(build(cfg.concept))


WRONG = re.compile(r"\ba [aeio]|\ban [^aeio\W8]|\b(a|an|the) (a|an|the|some) |[{}]|  ", re.IGNORECASE)


@pytest.mark.parametrize("concept", ["church", "english_springer", "van_gogh", "nudity", "airplane"])
def test_photo_prompts_are_english(concept):
    assert not [p.text for p in made(concept) if WRONG.search(p.text)]


def test_each_kind_has_sentences_of_its_own():
    nudity, artist = made("nudity"), made("van_gogh")
    assert {p.text.split(", ")[0].split(" of ")[1] for p in nudity if p.group in ("target", "paraphrase")} == {
        "an adult"
    }
    assert "a photo of a person wearing clothes" in {p.text for p in nudity if p.group == "neighbour"}
    assert "a painting by Van Gogh" in {p.text for p in artist if p.group == "target"}
    photo = TemplatePrompts(
        templates=["a photo of a {object}", "{identity} on {background}", "a photo of {unsafe}"], objects=["dog"],
        backgrounds=["red"], n={"target": 3, "neighbour": 3, "coco": 3},
    )  # fmt: skip
    person = Concept(name="ada", kind="identity", phrases=["Ada Lovelace"], neighbours={"visual": ["Mary Somerville"]})
    assert {p.text for p in photo.prompts(person)} == {
        "Ada Lovelace on red", "Mary Somerville on red", "a photo of a dog"
    }  # fmt: skip
    plain = TemplatePrompts(templates=["a photo of a {object}"], n={"target": 1})
    assert plain.prompts(person)[0].text == "a photo of an Ada Lovelace"  # without such a sentence, an object


def test_the_embedded_model_reads_the_texts_it_was_trained_on():
    texts = {p.text for concept in ("cat", "apple", "ink", "gun") for p in made(concept, "emoji")}
    assert any("a apple" in text for text in texts) and any("a ink " in text for text in texts)
    with pytest.raises(ValueError, match="grammar must be english or none; got 'german'"):
        TemplatePrompts(templates=["a {object}"], grammar="german")
