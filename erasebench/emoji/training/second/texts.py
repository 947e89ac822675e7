"""Stage ``texts``: captions, definitions, the tokenizer trained on them, and their tokens in one file."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from erasebench.emoji.training import artwork, parts, world
from erasebench.emoji.training.captions import Caption
from erasebench.emoji.training.loop import save
from erasebench.emoji.training.second import corpus, grammar

CAPTIONS, VOCABULARY = 180_000, 6144
SHORT = 48  # tokens kept of a text in training
STYLES, PLACES, THINGS = list(world.STYLES), list(world.BACKGROUNDS), list(world.things())
ZERO_SHOT = (
    "{}", "a {}", "a picture of a {}", "a drawing of a {}", "an emoji of a {}", "the {}", "this {} is nice",
    "look at this, a small {}", "here is the {} as a sticker", "icon of one {}, please", "an old {}", "my favourite {}",
)  # fmt: skip
log = logging.getLogger("erasebench.emoji.training.train")


def codes(labels: list[str]) -> list[str]:
    """What a caption can be of, in the order of the tables: concepts, other emoji, "nothing", groups, "*", ""."""
    groups = {**world.categories(), **world.SUPERSETS}
    return [*THINGS, *(f"other:{label}" for label in labels), "nothing", *sorted(groups), "*", ""]


def members(labels: list[str]) -> list[list[int]]:
    """For each code the pictures it can be of: concepts first, then other emoji, last the blank."""
    groups, n, blank = {**world.categories(), **world.SUPERSETS}, len(THINGS), len(THINGS) + len(labels)
    inside, outside = list(range(n)), list(range(n, blank))
    alone = [[i] for i in range(blank + 1)]
    return [*alone, *([THINGS.index(m) for m in groups[g]] for g in sorted(groups)), outside, inside]


def pool(data: Path, wordnet: Path, n: int) -> tuple[list[Caption], list[str]]:
    """n different captions and all definitions; the same for the same arguments."""
    art, words = artwork.load(data), grammar.forbidden()
    read = corpus.glosses(wordnet)
    asides = [g for g in read if ": " not in g and len(g) < 70 and not words & set(corpus.words(g))]
    maker = grammar.Grammar(corpus.plain_words(wordnet, words), asides)
    others = [
        (label, [t for t in tags if not words & set(corpus.words(t)) and not corpus.unread(t)])
        for label, tags in zip(art.labels, art.tags, strict=True) if not corpus.unread(label)
    ]  # fmt: skip
    rng, found = random.Random(14), {"": Caption("")}
    while len(found) < n:
        caption = maker.draw(rng, others)
        found.setdefault(caption.text, caption)
    return list(found.values()), read


def texts(out: Path, data: Path, wordnet: Path, scale: float = 1.0) -> None:
    """Write ``out/tokenizer`` and ``out/texts/tables.safetensors``; done once."""
    done = out / "texts" / "tables.safetensors"
    if done.exists():
        return
    art = artwork.load(data)
    captions, read = pool(data, wordnet, max(2000, int(CAPTIONS * scale)))
    sample = [c.text for c in captions[:40_000]]
    sample += [phrase for thing in world.things().values() for phrase in thing.phrases] * 150  # a token each
    tok = parts.train_tokenizer([*sample, *read, *art.labels], out / "tokenizer", VOCABULARY)
    listed = codes(art.labels)
    index = {code: i for i, code in enumerate(listed)}
    tables = {
        "captions": _ids(tok, [c.text for c in captions]),
        "code": torch.tensor([index[c.concept] for c in captions], dtype=torch.int16),
        "style": torch.tensor([STYLES.index(c.style) if c.style else -1 for c in captions], dtype=torch.int8),
        "place": torch.tensor([PLACES.index(c.background) if c.background else -1 for c in captions], dtype=torch.int8),
        "glosses": _ids(tok, read if scale >= 0.5 else read[:: int(1 / scale)]),
        "names": torch.stack([_ids(tok, [f.format(n) for n in THINGS]) for f in ZERO_SHOT]),
        "styles": torch.stack(
            [_ids(tok, [f.format(s=s, p="picture") for s in STYLES]) for f in grammar.STYLE_ONLY]
        ),
    }  # fmt: skip
    save(done, tables)
    log.info("texts: %d captions, %d definitions, %d tokens", len(captions), len(tables["glosses"]), len(tok))


def _ids(tok: CLIPTokenizer, lines: list[str]) -> Tensor:
    """Tokens int16 [n, 48]: start, text, end, then ends as padding."""
    rows = tok(lines, padding="max_length", truncation=True, max_length=SHORT, return_tensors="np").input_ids
    return torch.from_numpy(rows.astype(np.int16))


def tokenizer(out: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(out / "tokenizer")


def load(out: Path) -> dict[str, Tensor]:
    return load_file(out / "texts" / "tables.safetensors")
