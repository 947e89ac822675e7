"""key=value of the small commands: typed by the defaults, whatever the spelling; what is wrong is one line."""

from pathlib import Path

import pytest

from erasebench.__main__ import main
from erasebench.command.arguments import Misused, parse
from erasebench.command.pages import help_page

DEFAULTS = {"results": "results", "n": 2, "texts": False, "method": [], "share": 0.5}


@pytest.mark.parametrize(
    "words, found",
    [
        (["results=a b", "n=7"], {"results": "a b", "n": 7}),
        (["--results", "no", "--texts"], {"results": "no", "texts": True}),  # YAML would read no as false
        (["--texts", "false", "results=1e3"], {"texts": False, "results": "1e3"}),
        (["method=uce[lamb=5,pads=1],rece"], {"method": ["uce[lamb=5,pads=1]", "rece"]}),
        (["method=[a, b]", "share=1"], {"method": ["a", "b"], "share": 1.0}),
        (["results=~/x=y"], {"results": str(Path.home() / "x=y")}),
        (["folder"], {"results": "folder"}),
    ],
)
def test_every_spelling_is_understood(words, found):
    assert parse(words, DEFAULTS, plain=["results"]) == DEFAULTS | found


@pytest.mark.parametrize(
    "words, said",
    [
        (["result=a"], "did you mean results?"),
        (["n=two"], "n - must be an integer; got 'two'"),
        (["texts=1"], "texts - must be true or false"),
        (["n=1", "--n", "2"], "must be given once"),
        (["--n"], "must have a value"),
        (["stray"], "must be key=value"),
    ],
)
def test_what_is_wrong_is_one_line(words, said):
    with pytest.raises(Misused) as error:
        parse(words, DEFAULTS)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_help_is_one_screen():
    lines = help_page().splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    "words, said",
    [
        (["ls", "methods"], "arXiv:2308.14761"),
        (["ls", "attacks", "model=emoji"], "adaptation=paper runs it as published"),
        (["ls", "concepts", "model=sd14"], "church"),
        (["--version"], "erasebench 0.1.0, python 3."),
        (["help"], "erasebench ls methods"),
        (["leaderboard", "--help"], "results=DIR"),
    ],
)
def test_words_are_commands(capsys, words, said):
    assert main(words) == 0
    assert said in capsys.readouterr().out


def test_concepts_of_another_model_and_misspelt_words_are_told_apart(capsys):
    assert main(["ls", "concept", "model=emoji"]) == 0
    found = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert "cat" in found and "church" not in found
    for words, said in (
        (["leaderbord"], "leaderboard"),
        (["ls", "methds"], "method"),
        (["ls", "method", "model=emogi"], "emoji"),
    ):
        assert main(words) == 2
        assert f"did you mean {said}?" in capsys.readouterr().err
