"""What can be chosen: the groups and yamls of the config folders, and the nearest of them to a misspelt word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

SHOWN = 40  # more choices than these are left to ``erasebench ls``


def stems(folders: Sequence[Path], group: str) -> list[str]:
    """Choices of a group (``method``, ``attack/vector``) over all config folders, sorted."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def groups(folders: Sequence[Path]) -> list[str]:
    """Names of all groups, nested ones with a slash."""
    found = {path.parent.relative_to(folder).as_posix() for folder in folders for path in folder.rglob("*.yaml")}
    return sorted(found - {"."})


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that was probably meant, or "".

    >>> nearest("metod", ["method", "model", "seed"]), nearest("xyz", ["method"])
    ('method', '')
    """
    lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.6)
    return lower[found[0]] if found else ""


def hint(word: str, choices: Iterable[str]) -> str:
    """What to do about a misspelt word: the nearest choice if there is one.

    >>> hint("recce", ["rece", "uce"]), hint("x", ["rece"])
    ('did you mean rece?', 'correct its spelling')
    """
    meant = nearest(word, choices)
    return f"did you mean {meant}?" if meant else "correct its spelling"


def listed(choices: Sequence[str], group: str = "") -> str:
    """The choices as text; of a long list the first ones and where the rest is found."""
    if len(choices) <= SHOWN:
        return ", ".join(choices)
    return f"{', '.join(choices[:SHOWN])}, ... (all: erasebench ls {group})"
