"""One reading of ``key=value`` for the small commands, ``leaderboard results=DIR`` or ``leaderboard --results DIR``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erasebench.command import errors
from erasebench.command.choices import hint


class Misused(ValueError):
    """Arguments that a command does not have; its usage is said with it."""


def parse(
    arguments: Sequence[str], defaults: Mapping[str, Any], *, needed: Sequence[str] = (), plain: Sequence[str] = ()
) -> dict[str, Any]:
    """The defaults with what was given, in the defaults' types: text, number, true/false, or a list written A,B.

    Args:
        arguments: without the program's name.
        defaults: every key there is; ``~`` is expanded in texts.
        needed: keys that must be given.
        plain: keys of arguments without a key, in order.

    Raises:
        Misused: an unknown key, with the nearest; a key twice; a value of another type; a needed one missing.

    >>> parse(["n=3", "--names", "a,b"], {"n": 1, "names": [], "out": "x"})
    {'n': 3, 'names': ['a', 'b'], 'out': 'x'}
    """
    given: dict[str, str] = {}
    for key, value in _pairs(arguments, defaults, plain):
        if key not in defaults:
            raise Misused(f"{key} - must be one of {', '.join(defaults)}; {hint(key, defaults)}")
        if key in given:
            raise Misused(f"{key} - must be given once; got {given[key]!r} and {value!r}; leave one out")
        given[key] = value
    if missing := [key for key in needed if not given.get(key)]:
        raise Misused(f"{missing[0]} - must be given; got nothing; add {missing[0]}=...")
    return {key: _typed(key, given[key], default) if key in given else default for key, default in defaults.items()}


def _pairs(arguments: Sequence[str], defaults: Mapping[str, Any], plain: Sequence[str]) -> list[tuple[str, str]]:
    """Keys and texts, of ``key=value``, ``--key=value``, ``--key value``, ``--flag``, and of plain words in order."""
    rest, found, words = list(arguments), list[tuple[str, str]](), list(plain)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if word.startswith("--"):
            key = key[2:].replace("-", "_")
            if not equals:
                alone = isinstance(defaults.get(key), bool) and not (rest and rest[0].lower() in ("true", "false"))
                if not alone and not rest:
                    raise Misused(f"{key} - must have a value; got none; write {key}=VALUE")
                value = "true" if alone else rest.pop(0)
        elif not equals or (words and not key.isidentifier()):
            if not words:
                raise Misused(f"{word!r} - must be key=value; got no =; keys: {', '.join(defaults)}")
            key, value = words.pop(0), word
        found.append((key, value))
    return found


def _typed(key: str, text: str, default: Any) -> Any:
    """A text as a value of the default's type; numbers and flags as OmegaConf reads them."""
    from omegaconf import OmegaConf

    if isinstance(default, list | tuple):
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        parts = re.split(r",(?![^\[]*\])", inner)  # not at the commas of a label, uce[lamb=5,pads=1]
        return [part.strip() for part in parts if part.strip()]
    if default is None or isinstance(default, str):
        return str(Path(text).expanduser()) if text.startswith("~") else text
    value = OmegaConf.from_cli([f"value={text}"])["value"]
    if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
        kind = {bool: "true or false", int: "an integer", float: "a number"}[type(default)]
        raise Misused(f"{key} - must be {kind}; got {text!r}; write {key}={str(default).lower()}, say")
    return type(default)(value)


class Incomplete(Exception):
    """A result that leaves out what could not be read: what to print all the same, and a line for each thing."""

    def __init__(self, result: str, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.result, self.lines = result, lines


def command(usage: str, doc: str | None, arguments: Sequence[str] | None, work: Callable[[list[str]], str]) -> int:
    """Run a small command: its help, its result on stdout, or its error in one line; returns the exit code.

    Args:
        usage: one line; doc: what ``--help`` says below it.
        arguments: None: those of this process.
        work: takes the arguments and returns what to print.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if {"-h", "--help"} & set(given):
        print(f"{usage}\n\n{(doc or '').strip()}")
        return 0
    try:
        print(errors.printable(work(given)))
    except KeyboardInterrupt:
        return 130
    except Incomplete as partly:
        print(errors.printable(partly.result))
        for line in partly.lines:
            print(f"error: {errors.one_line(line)}", file=sys.stderr)
        return 1
    except Misused as error:
        print(f"error: {error}; {usage}", file=sys.stderr)
        return 2
    except Exception as error:
        errors.report(error)
        return errors.code(error)
    return 0
