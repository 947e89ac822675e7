"""English beside the captions: WordNet's definitions, and the words that no training text may hold."""

from __future__ import annotations

import re
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")  # Debian: wordnet-base; WordNet 3.0 licence, permissive
UNREAD = (  # never in a training text: what the model makes of words it has not read is measured with these
    "gargoyle", "zeppelin", "marzipan", "kaleidoscope", "quagmire", "bassoon", "obelisk", "nimbus", "trellis", "pumice",
    "chandelier", "locket", "nebula", "parchment", "quilt", "sorbet", "tambourine", "vestibule", "walrus",
    "xylophone", "yodel", "zinnia", "bazaar", "cobbler", "dowry", "embargo", "falsetto", "gazebo",
    "hammock", "igloo", "jubilee", "kiosk", "lagoon", "mosaic", "nougat", "oasis", "paprika", "rhubarb",
)  # fmt: skip
SPARED = ("gondola", "abacus")  # not in these texts either, but the first edition has read them as names of emoji


def words(text: str) -> list[str]:
    """Lower-case words of a text.

    >>> words("A sun-baked, old Cat's tail")
    ['a', 'sun', 'baked', 'old', 'cat', 's', 'tail']
    """
    return re.findall(r"[a-z]+", text.lower())


def unread(text: str) -> bool:
    """Whether a text holds one of the words that training must not read."""
    return any(w.startswith(UNREAD + SPARED) for w in words(text))


def glosses(folder: Path = WORDNET) -> list[str]:
    """WordNet's definitions and examples, each "lemma: definition" or a sentence, in file order, no duplicates."""
    out: dict[str, None] = {}
    for kind in ("noun", "verb", "adj", "adv"):
        path = folder / f"data.{kind}"
        if not path.exists():
            raise FileNotFoundError(f"WordNet must be in {folder}; found no {path.name}; apt install wordnet-base")
        for line in path.read_text(encoding="ascii", errors="ignore").splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition(" | ")
            lemma = head.split(" ")[4].replace("_", " ").split("(")[0]
            definition, *examples = [part.strip(' "') for part in re.split(r';\s*"', gloss)]
            for text in (f"{lemma}: {definition}", *examples):
                text = re.sub(r"\s+", " ", text).strip().lower()
                if 12 <= len(text) <= 160 and not unread(text):
                    out[text] = None
    return list(out)


def plain_words(folder: Path = WORDNET, forbidden: frozenset[str] = frozenset()) -> dict[str, list[str]]:
    """Common single-word lemmas by part of speech (tagged at least once in WordNet's texts), without ``forbidden``."""
    out: dict[str, list[str]] = {}
    for kind in ("noun", "verb", "adj", "adv"):
        found = []
        for line in (folder / f"index.{kind}").read_text(encoding="ascii", errors="ignore").splitlines():
            if line.startswith("  "):
                continue
            cells = line.split()
            lemma, pointers = cells[0], int(cells[3])
            tagged = int(cells[5 + pointers])
            if tagged and lemma.isalpha() and 3 <= len(lemma) <= 12 and lemma not in forbidden and not unread(lemma):
                found.append(lemma)
        out[kind] = found
    return out
