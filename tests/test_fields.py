"""Checks of hyper-parameters: what they take, what they refuse, and that the line says what to write."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from erasebench import fields


@pytest.mark.parametrize("value", [0, 3, 2.5, 10**400])
def test_numbers_pass_as_they_stand(value: Any) -> None:
    if value == 10**400:
        with pytest.raises(ValueError, match="finite"):
            fields.number("x", value)
    else:
        assert fields.number("x", value, least=0) is value


@pytest.mark.parametrize("value", [True, None, math.nan, math.inf, "0.5", "", [1], -1, 7.5])
def test_what_is_no_number_in_range_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^method.lamb must be a finite number >= 0 and < 7") as error:
        fields.number("method.lamb", value, least=0, below=7)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "write"),
    [("12", "12"), (2.0, "2"), ("9007199254740993", "9007199254740993"), ("1e3", "1000"), ("4.0", "4")],
)
def test_an_integer_written_otherwise_says_how_to_write_it(value: Any, write: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"write n={write}") + "$"):
        fields.integer("n", value, least=0)


@pytest.mark.parametrize("value", [True, 2.5, "two", None, -1, 11])
def test_what_is_no_integer_in_range_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"n must be an integer >= 0 and <= 10; got .*; the paper uses 3"):
        fields.integer("n", value, least=0, most=10, hint="the paper uses 3")


def test_a_choice_is_typed() -> None:
    assert fields.choice("bits", 8, [4, 8]) == 8
    with pytest.raises(ValueError, match="correct its spelling"):
        fields.choice("precise", 1, [True, "cpu"])


@pytest.mark.parametrize("word", ["dog", "", None, 7, {"a": 1}])
def test_one_word_is_no_list(word: Any) -> None:
    with pytest.raises(ValueError, match=r"prompts.styles must be a list of texts; got .*; write prompts.styles=\["):
        fields.texts("prompts.styles", word)


@pytest.mark.parametrize("entry", [None, True, 1.5, " ", ["x"]])
def test_only_texts_are_in_a_list_of_texts(entry: Any) -> None:
    with pytest.raises(ValueError, match="must be a list of non-empty texts"):
        fields.texts("words", ["a", entry])


def test_too_few_texts() -> None:
    with pytest.raises(ValueError, match=r"words must hold at least 2 texts; got \['a'\]; a pair"):
        fields.texts("words", ["a"], least=2, hint="a pair")


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert fields.path("weights", "~/w.onnx") == Path("/somewhere/w.onnx")
