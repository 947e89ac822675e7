"""Concepts as people write them: one word where a list belongs, nothing where a text belongs."""

from __future__ import annotations

import pytest

from erasebench.types import Concept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phrases": "sunflower"}, r"concept.phrases must be a list of texts; got 'sunflower'; write concept.phrases="),
        (
            {"preserve": "rose"},
            r"must be a list of texts; got 'rose'; write concept.preserve=\[rose\]",
        ),
        ({"neighbours": {"visual": "rose"}}, r"concept.neighbours.visual must be a list of texts; got 'rose'"),
        ({"neighbours": ["rose"]}, "concept.neighbours must map relations to lists of names"),
        ({"phrases": []}, r"concept.phrases must hold at least 1 text; got \[\]; write concept.phrases=\[sun\]"),
        ({"phrases": ["sun", None]}, "concept.phrases must be a list of non-empty texts"),
        ({"phrases": ["sun", 1.5]}, 'write it in quotes: "1.5"'),
        ({"anchor": None}, "concept.anchor must be a text; got null; write concept.anchor= for the unconditional text"),
        ({"anchor": ["sky"]}, "concept.anchor must be a text"),
        (
            {"kind": "sytle"},
            "concept.kind must be one of object, .*; got 'sytle'; did you mean style",
        ),
        ({"name": ""}, "concept.name must be a non-empty text"),
    ],
)
def test_what_cannot_be_a_concept_is_one_line_that_says_what_to_write(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        Concept(**{"name": "sun", "phrases": ["sun"], **changes})
    assert "\n" not in str(error.value)


def test_a_year_is_a_text():
    assert Concept(name="orwell", phrases=["orwell", 1949], anchor=2026).phrases == ("orwell", "1949")
