"""The concept vector that both Ring-A-Bells add to a prompt, from pairs of texts with and without the concept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from erasebench import diffusion
from erasebench.fields import path as path_of
from erasebench.fields import texts
from erasebench.prompts.files import read_rows
from erasebench.prompts.safety import mentions_minors
from erasebench.types import Concept, Pipeline

log = logging.getLogger(__name__)

Pair = tuple[str, str]
GIVE = "use attack/vector=csv attack.vector.path=FILE, pairs of texts with and without the concept (or npy)"


def concept_vector(pipe: Pipeline, pairs: Sequence[Pair]) -> torch.Tensor:
    """The direction from texts without a concept to texts with it, in the text encoder's output.

    c = mean_i [E(p_i+) - E(p_i-)], the plain mean over the pairs, accumulated in float64 (Ring-A-Bell,
    arXiv 2310.10012, eq. 3). Deviations: the notebook of Ring-A-Bell weights its nudity pairs by the number of images
    kept of each, and RECE's script takes the mean of the means of batches of eight, which gives the pairs of the last
    batch another weight; for those exact vectors use a saved one.

    Args:
        pipe: any pipeline that ``diffusion.encode`` takes; E is its text encoder, padding rows included.
        pairs: texts (with, without); at least one pair.

    Returns:
        float64 [tokens, width]; zero if both texts of every pair are equal.

    Raises:
        ValueError: no pair.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one (with, without) pair of texts; got none; give pairs or a vector")
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    weight = dict.fromkeys(texts, 0)
    for with_, without in pairs:
        weight[with_] += 1
        weight[without] -= 1
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(texts), 64):
        chunk = texts[start : start + 64]
        weights = torch.tensor([weight[text] for text in chunk], dtype=torch.float64)
        total = total + torch.einsum("n,ntd->td", weights, diffusion.encode(pipe, chunk).double().cpu())
    return total / len(pairs)


class VectorSource(Protocol):
    """Where an attack has its concept vector from."""

    def check(self, concept: Concept) -> None:
        """Raise a one-line ValueError or OSError, before any weight is loaded, if there is none for ``concept``."""
        ...

    def vector(self, pipe: Pipeline, concept: Concept) -> torch.Tensor:
        """The concept vector, float64 [tokens, width], of the pipeline's text encoder."""
        ...


def given(source: VectorSource | None) -> VectorSource:
    """The source itself; a ValueError that says what to give if the model brings none and the user gave none.

    >>> given(None)
    Traceback (most recent call last):
    ValueError: attack.vector must be given, for this model brings none for the concept; got none; use ...
    """
    if not source:
        raise ValueError(f"attack.vector must be given, for this model brings none for the concept; got none; {GIVE}")
    return source


@dataclass(frozen=True, kw_only=True)
class TextPairs:
    """Pairs written down as texts; a slot ``{}`` is filled with each of the concept's phrases.

    Args:
        pairs: (with, without) texts; a pair without a slot is used once as it is.
        pairs_style: the same for concepts of kind style; empty = ``pairs`` for every kind.

    Raises:
        ValueError: no pair, something that is not a pair of texts, or two equal texts.

    >>> cat = Concept(name="cat", phrases=("cat", "kitty"))
    >>> TextPairs(pairs=(("a {} on red", "red"),)).filled(cat)
    [('a cat on red', 'red'), ('a kitty on red', 'red')]
    """

    pairs: tuple[Pair, ...]
    pairs_style: tuple[Pair, ...] = ()

    def __post_init__(self) -> None:
        for name in ("pairs", "pairs_style"):
            if not isinstance(getattr(self, name), list | tuple):
                raise ValueError(f"{name} must be a list of [with, without] texts; got {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(_pair(name, pair) for pair in getattr(self, name)))
        if not self.pairs:
            raise ValueError("pairs must hold at least one (with, without) pair of texts; got none")

    def filled(self, concept: Concept) -> list[Pair]:
        """The pairs for one concept, slots filled."""
        chosen = self.pairs_style if concept.kind == "style" and self.pairs_style else self.pairs
        filled = [
            (with_.replace("{}", phrase), without.replace("{}", phrase))
            for with_, without in chosen
            for phrase in concept.phrases
        ]
        return list(dict.fromkeys(filled))

    def check(self, concept: Concept) -> None:
        """Nothing to refuse: the pairs take any concept."""

    def vector(self, pipe: Pipeline, concept: Concept) -> torch.Tensor:
        """``concept_vector`` of the filled pairs."""
        return concept_vector(pipe, self.filled(concept))


@dataclass(frozen=True, kw_only=True)
class CsvPairs:
    """Pairs from a CSV file, such as the nudity and Van Gogh pairs published with RECE (arXiv 2407.12383).

    Args:
        path: UTF-8 CSV file, read by ``check`` and ``vector``.
        columns: its columns (with, without).
        concepts: names of the concepts it is about; empty: any.
        source: where to get the file if it is not there.

    Raises:
        FileNotFoundError, ValueError: no such file; no such column; no row; an empty cell (names the line).
    """

    path: str
    columns: tuple[str, str] = ("sensitive prompt", "normal prompt")
    concepts: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("columns", "concepts"):
            object.__setattr__(self, name, texts(name, getattr(self, name)))
        if len(self.columns) != 2:
            raise ValueError(f"columns must name two columns (with, without); got {list(self.columns)}")

    def check(self, concept: Concept) -> None:
        """Read the file once, if it is about the concept."""
        _check_about(concept, self.concepts)
        self.read()

    def read(self) -> list[Pair]:
        """The pairs in the file's order, duplicates included."""
        with_, without = self.columns
        advice = "name the columns with and without the concept: attack.vector.columns=[WITH,WITHOUT]"
        rows = read_rows(_existing(self.path, self.source), dict.fromkeys(self.columns, advice))
        for place, cells in rows:
            if not cells[with_].strip():
                raise ValueError(
                    f"{self.path} {place}: {with_} must be a text; got an empty cell; mend or drop the row"
                )
        return [(cells[with_], cells[without]) for _, cells in rows]

    def vector(self, pipe: Pipeline, concept: Concept) -> torch.Tensor:
        """``concept_vector`` of the file's pairs; for concepts of kind unsafe without those that mention minors."""
        pairs = self.read()
        if concept.kind == "unsafe":
            kept = [pair for pair in pairs if not any(map(mentions_minors, pair))]
            if len(kept) < len(pairs):
                log.warning("%s: dropped %d pairs that mention minors", self.path, len(pairs) - len(kept))
            pairs = kept
        return concept_vector(pipe, pairs)


@dataclass(frozen=True, kw_only=True)
class SavedVector:
    """A concept vector from a ``.npy`` file, such as those published with Ring-A-Bell.

    Args:
        path: array [tokens, width] or [1, tokens, width] of finite floats; pickled arrays are refused.
        concepts: names of the concepts it is about; empty: any.
        source: where to get the file if it is not there.

    Raises:
        FileNotFoundError, ValueError: no such file; no plain array of floats; not finite; another shape.
    """

    path: str
    concepts: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "concepts", texts("concepts", self.concepts))

    def check(self, concept: Concept) -> None:
        """Read the file once, if it is about the concept."""
        _check_about(concept, self.concepts)
        self.read()

    def read(self) -> np.ndarray:
        """The array as float64 [tokens, width]."""
        path = _existing(self.path, self.source)
        try:
            found = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} must be a plain .npy array of floats; got {error}; save it with np.save"
            ) from None
        if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
            raise ValueError(f"{path} must be one .npy array of floats; got {getattr(found, 'dtype', 'an archive')}")
        array = found[0] if found.ndim == 3 and found.shape[0] == 1 else found
        if array.ndim != 2:
            raise ValueError(f"{path} must have shape [tokens, width]; got {list(found.shape)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{path} must be finite; got NaN or infinity; compute the vector again")
        return array.astype(np.float64)

    def vector(self, pipe: Pipeline, concept: Concept) -> torch.Tensor:
        """The saved vector, whatever the concept; its shape must be that of the pipeline's text encoder."""
        array, expected = self.read(), tuple(diffusion.encode(pipe, [""]).shape[1:])
        if array.shape != expected:
            raise ValueError(
                f"{self.path} must have the text encoder's shape {list(expected)}; got {list(array.shape)}"
            )
        return torch.from_numpy(array)


def _check_about(concept: Concept, known: Sequence[str]) -> None:
    if known and concept.name not in known:
        what = f"attack.vector must be about {concept.name!r}; got one about {', '.join(known)}"
        raise ValueError(f"{what}; attack one concept at a time, or {GIVE}")


def _pair(name: str, pair: object) -> Pair:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"{name} must hold [with, without] pairs of texts; got {pair!r}")
    with_, without = pair
    if not isinstance(with_, str) or not isinstance(without, str):
        raise ValueError(f"{name} must hold [with, without] pairs of texts; got {pair!r}")
    if with_ == without:
        raise ValueError(f"{name} must differ within a pair; got {with_!r} twice")
    return with_, without


def _existing(path: str, source: str) -> Path:
    found = path_of("attack.vector.path", path)
    if not found.is_file():
        fetch = f"fetch {source}, or {GIVE}" if source else "give the path of the pairs or the vector"
        raise FileNotFoundError(f"{path} must be a file; got {'a folder' if found.is_dir() else 'nothing'}; {fetch}")
    return found
