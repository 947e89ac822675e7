import random

import pytest
import yaml

from erasebench import conf_folder
from erasebench.emoji.training import captions, world
from erasebench.types import Concept


def test_the_world_is_as_large_as_promised():
    things = world.things()
    assert len(things) >= 60
    assert len({t.category for t in things.values()}) >= 5
    assert len(world.STYLES) >= 3 and len(world.BACKGROUNDS) >= 6
    assert sum(t.category == "weapon" for t in things.values()) >= 5


def test_every_phrase_names_one_concept_only():
    owners: dict[str, list[str]] = {}
    for thing in world.things().values():
        assert thing.synonyms
        for phrase in thing.phrases:
            owners.setdefault(phrase, []).append(thing.name)
    assert {p: o for p, o in owners.items() if len(o) > 1} == {}


def test_anchors_are_concepts_and_never_among_the_neighbours_they_would_spoil():
    for name, thing in world.things().items():
        assert thing.anchor in world.things()
        for relation, names in world.neighbours(name).items():
            assert thing.anchor not in names, (name, relation)
            assert name not in names and set(names) <= set(world.things())


def test_relations_the_issue_names():
    assert {"tiger", "lion"} <= set(world.neighbours("cat")["visual"])
    assert world.neighbours("sun")["binomial"] == ("moon",)
    assert "banana" in world.neighbours("apple")["subset_superset"]
    assert "artistic" in world.neighbours("noto")


@pytest.mark.parametrize("name, config", world.concept_configs().items())
def test_concept_yaml_is_the_world_s(name, config):
    written = yaml.safe_load((conf_folder() / "concept" / f"{name}.yaml").read_text())
    assert written == config
    Concept(**{k: v for k, v in written.items() if k != "_target_"})


def test_captions_fix_only_attributes_they_mention():
    rng = random.Random(0)
    for _ in range(300):
        name = rng.choice(list(world.things()))
        caption = captions.caption(rng, name, "noto", "blue")
        assert caption.concept == name
        if caption.background:
            assert "blue" in caption.text
        if caption.style:
            assert any(word in caption.text for word in ("noto", *world.STYLE_SYNONYMS["noto"]))
    assert captions.nothing_caption(rng, "red").concept == "nothing"
