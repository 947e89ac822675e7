"""WordNet's nouns as Debian's ``wordnet-base`` installs them: synsets, what lies above them, and how two are related.

WordNet 3.0, Princeton University (Miller, Communications of the ACM 38, 1995); its licence allows use and distribution
with its notice, which stands in the README beside this file. Format of the files: wndb(5WN).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path("/usr/share/wordnet")
SIBLING = 3  # steps up from the nearer of two words to what they are both of, at most
GENERAL = 5  # steps below the root (entity) of what two words may share and still be unrelated: artifact is 4


@dataclass(frozen=True)
class Synset:
    """Words of one meaning, and the offsets of its hypernyms, of instances too."""

    words: tuple[str, ...]
    above: tuple[str, ...]


@dataclass
class WordNet:
    """The nouns of a folder with ``index.noun`` and ``data.noun``.

    Raises:
        FileNotFoundError: there are none; says what installs them.
    """

    folder: Path = FOLDER
    senses: dict[str, list[str]] = field(default_factory=dict, repr=False)
    synsets: dict[str, Synset] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("index.noun", "data.noun"):
            if not (self.folder / name).is_file():
                raise FileNotFoundError(
                    f"{self.folder / name} must be WordNet's; got none; apt-get install wordnet-base"
                )
        for cells in _lines(self.folder / "index.noun"):
            self.senses[cells[0]] = cells[-int(cells[2]) :]
        for cells in _lines(self.folder / "data.noun"):
            n = int(cells[3], 16)
            start = 4 + 2 * n
            pointers = [cells[start + 1 + 4 * i : start + 5 + 4 * i] for i in range(int(cells[start]))]
            above = tuple(to for symbol, to, part, _ in pointers if symbol in ("@", "@i") and part == "n")
            self.synsets[cells[0]] = Synset(tuple(cells[4 : 4 + 2 * n : 2]), above)

    def find(self, word: str) -> str:
        """The synset of ``horse.1``: a noun and the number of its sense.

        Raises:
            ValueError: no such word or sense.
        """
        lemma, _, number = word.rpartition(".")
        found = self.senses.get(lemma, [])
        if not number.isdigit() or not 1 <= int(number) <= len(found):
            raise ValueError(f"word must be one of WordNet's with its sense; got {word!r} of {len(found)}; correct it")
        return found[int(number) - 1]

    def above(self, synset: str) -> dict[str, int]:
        """Everything a synset is, itself first -> steps up, the fewest."""
        found, todo = {synset: 0}, [synset]
        for one in todo:
            new = [up for up in self.synsets[one].above if up not in found]
            found |= dict.fromkeys(new, found[one] + 1)
            todo += new
        return found

    def shared(self, one: str, two: str) -> tuple[str, int, int]:
        """What two synsets both are, by the shortest way, with the steps up from either.

        Raises:
            ValueError: nothing: not two nouns of one tree.
        """
        a, b = self.above(one), self.above(two)
        both = [(a[up] + b[up], a[up], up) for up in a if up in b]
        if not both:
            raise ValueError(f"synsets {one} and {two} must share a hypernym; got none; name other senses")
        _, steps, up = min(both)
        return up, steps, b[up]

    def relation(self, one: str, two: str) -> str:
        """How the second is related to the first: superset, subset or sibling with what they are both of, or "".

        A sibling shares a hypernym that is at most :data:`SIBLING` steps above the nearer one and more special than
        :data:`GENERAL`.
        """
        up, first, second = self.shared(one, two)
        name = self.synsets[up].words[0]
        if first and not second:
            return f"superset, {first} up"
        if second and not first:
            return f"subset, {second} down"
        if min(first, second) <= SIBLING and not self.general(up):
            return f"sibling: both {name}, {first} and {second} up"
        return ""

    def general(self, synset: str) -> bool:
        """Whether it is so near the root that what shares nothing but it is unrelated."""
        return max(self.above(synset).values()) <= GENERAL


def _lines(file: Path) -> Iterator[list[str]]:
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith(" "):  # the licence stands first, indented
                yield line.split(" | ")[0].split()
