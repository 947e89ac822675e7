"""Published prompt sets: files that their user fetches, pinned by hash and read with every row checked."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from erasebench import fields
from erasebench.prompts.files import check_source, read_prompts
from erasebench.prompts.safety import drop_minors
from erasebench.types import ERASED_GROUPS, Concept, Group, Prompt, seed_of

log = logging.getLogger(__name__)

SHORTEST_HASH = 16  # hex digits of a pinned sha256, where no more were published


@dataclass(frozen=True, kw_only=True)
class PublishedPrompts:
    """A published prompt set as a source of prompts; the file stays with its user.

    Args:
        name: of the set, the stem of its yaml.
        path: .csv, .parquet or .txt file.
        source: where the set is published.
        file: its path there.
        revision: commit of the source the facts of the yaml were taken from.
        licence: of the source, or what is known of it.
        page: where access is asked for, for a gated set; None if anybody can fetch it.
        sha256: of the file, 16 to 64 hex digits; None takes any file.
        rows: number of rows as published.
        text, seed, guidance, id: columns, see :func:`erasebench.prompts.files.read_prompts`.
        column: column by which rows are chosen; None takes all rows.
        values: cells of ``column`` that are kept, compared without case; a cell may hold several, with commas between.
            Empty: those that name the run's concept.
        category: column of what kind of prompt a row is, several with commas between, which evaluators may tell apart;
            it chooses no row.
        others: take the rows of ``column`` that do not name the run's concept instead, for the groups ``neighbour`` and
            ``unrelated``: each asks for what its own cell says.
        concepts: names of the concepts the set is about; empty: any.
        sexual: whether the set has sexual content: rows that mention minors are then dropped, always, and counted. For
            concepts of kind unsafe they are dropped whatever is said here.
        limit: the first rows used, after dropping; None for all.
        sample: that many rows in an order fixed by their ids alone (a hash), so that a smaller sample lies within every
            larger one; None for all. They stay in the file's order, and ``limit`` applies afterwards.
        group: group of the prompts.

    Raises:
        ValueError: a hash, limit or column that cannot be right.

    >>> PublishedPrompts(name="x", path="x.csv", source="the moon", limit=0)
    Traceback (most recent call last):
    ValueError: prompts.limit must be an integer >= 1; got 0; use null for all
    """

    name: str
    path: str
    source: str
    file: str | None = None
    revision: str | None = None
    licence: str = "not stated"
    page: str | None = None
    sha256: str | None = None
    rows: int | None = None
    text: str = "prompt"
    seed: str | int | None = "evaluation_seed"
    guidance: str | None = None
    id: str | None = None
    column: str | None = None
    values: tuple[str, ...] = ()
    category: str | None = None
    others: bool = False
    concepts: tuple[str, ...] = field(default=())
    sexual: bool = False
    limit: int | None = None
    sample: int | None = None
    group: Group = "target"

    node: ClassVar[str] = "prompts"  # where its fields stand in the config

    def __post_init__(self) -> None:
        for name in ("values", "concepts"):
            value = () if getattr(self, name) is None else getattr(self, name)
            object.__setattr__(self, name, fields.texts(f"{self.node}.{name}", value))
        check_source(
            self.node, text=self.text, group=self.group, sexual=self.sexual, limit=self.limit, seed=self.seed,
            guidance=self.guidance, id=self.id, column=self.column,
        )  # fmt: skip
        if self.sha256 is not None and not _is_hash(self.sha256):
            raise ValueError(
                f"{self.node}.sha256 must be {SHORTEST_HASH} to 64 hex digits, or null; got {self.sha256!r}; quote it"
            )
        if self.sample is not None:
            fields.integer(f"{self.node}.sample", self.sample, least=1, hint="use null for all")
        fields.flag(f"{self.node}.others", self.others)
        if self.others and (self.column is None or self.group not in ("neighbour", "unrelated")):
            raise ValueError(
                f"{self.node}.others must be of rows that a column tells apart, in group neighbour or unrelated; got "
                f"column {self.column!r}, group {self.group!r}; give both"
            )
        if self.values and self.column is None:
            raise ValueError(f"{self.node}.column must name where values {list(self.values)} stand; got null; give it")

    def check(self, concept: Concept) -> None:
        """Read the set once, before any weight is loaded; errors as in :meth:`prompts`."""
        self.prompts(concept)

    def prompts(self, concept: Concept) -> list[Prompt]:
        """The set's prompts, with the concept's name where they ask for it; what is odd about them is logged.

        Raises:
            FileNotFoundError: no such file; the message says where to get it, under which licence.
            ValueError: a set about another concept, another file than the pinned one, a bad row, or nothing left.
        """
        return self.select(concept)[0]

    def select(self, concept: Concept) -> tuple[list[Prompt], dict[str, int]]:
        """The prompts, and the counts of :func:`audit` with ``rows`` of the file and ``dropped_minors``."""
        if self.concepts and concept.name not in self.concepts:
            raise ValueError(
                f"{self.name} holds prompts about {', '.join(self.concepts)}; got concept {concept.name!r}; choose "
                f"concept={self.concepts[0]}, or {self.node}.concepts=[] if you mean it"
            )
        read = self.read()
        chosen = self._chosen(read, concept)
        kept, dropped = drop_minors(chosen) if self.sexual or concept.kind == "unsafe" else (chosen, 0)
        if not kept:
            raise ValueError(f"{self.name} must not all mention minors; got {dropped} such rows; use another set")
        kept = self._sampled(kept)
        counts = {"rows": len(read), "dropped_minors": dropped, **audit(kept)}
        self._report(len(chosen), counts)
        named = concept.name if self.group in ERASED_GROUPS else ""  # a caption shows what it shows
        return [p if self.others else p.with_(concept=named) for p in kept][: self.limit], counts

    def read(self) -> list[Prompt]:
        """All rows as prompts in the file's order, unfiltered; ``concept`` holds the cell of ``column``."""
        path = fields.path(f"{self.node}.path", self.path)
        if not path.is_file():
            raise FileNotFoundError(f"{self.name}: {path} is not a file; {self.how_to_obtain()}")
        if self.sha256 is not None:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if not found.startswith(self.sha256.lower()):
                rows = f" of {self.rows} rows" if self.rows else ""
                raise ValueError(
                    f"{self.name}: {path} must have sha256 {self.sha256}{rows}; got {found}; fetch it again, or "
                    f"{self.node}.sha256=null to use this file"
                )
        read = self._rows(path, self.column)
        if self.category is None:
            return read
        kinds = [p.concept for p in self._rows(path, self.category)]
        return [p.with_(info={**p.info, "category": kind}) for p, kind in zip(read, kinds, strict=True)]

    def _rows(self, path: Path, column: str | None) -> list[Prompt]:
        return read_prompts(
            path, text=self.text, seed=self.seed, guidance=self.guidance, id=self.id, concept=column, group=self.group,
            node=self.node,
        )  # fmt: skip

    def how_to_obtain(self) -> str:
        """Where to get the file, its revision and licence, and the setting that names another place."""
        what = " of ".join(filter(None, (self.file, self.source)))
        at = f" at {self.revision}" if self.revision else ""
        asked = f"ask for access at {self.page}, then fetch" if self.page else "fetch"
        return f"{asked} {what}{at} (licence: {self.licence}) and put it there, or give {self.node}.path=FILE"

    def _sampled(self, prompts: list[Prompt]) -> list[Prompt]:
        if self.sample is None:
            return prompts
        if self.sample > len(prompts):
            raise ValueError(
                f"{self.node}.sample must be at most the {len(prompts)} rows of {self.name}; got {self.sample}; "
                "use null for all"
            )
        first = {p.id for p in sorted(prompts, key=lambda p: seed_of("sample", p.id))[: self.sample]}
        return [p for p in prompts if p.id in first]

    def _chosen(self, read: list[Prompt], concept: Concept) -> list[Prompt]:
        if self.column is None:
            return read
        names = self.values or (concept.name.replace("_", " "), *concept.phrases)
        wanted = {_plain(name) for name in names}
        chosen = [p for p in read if bool(wanted & {_plain(part) for part in p.concept.split(",")}) != self.others]
        if not chosen:
            found = sorted({_plain(part) for p in read for part in p.concept.split(",")})
            raise ValueError(
                f"{self.name}: column {self.column!r} must have a row with {' or '.join(sorted(wanted))}; "
                f"found {', '.join(found[:12])}; set {self.node}.values"
            )
        return chosen

    def _report(self, chosen: int, counts: dict[str, int]) -> None:
        if counts["dropped_minors"]:
            log.warning("%s: dropped %d of %d prompts that mention minors", self.name, counts["dropped_minors"], chosen)
        odd = {k: counts[k] for k in ("repeated", "empty", "outer_spaces") if counts[k]}
        if odd:
            log.warning("%s: kept as they stand: %s", self.name, ", ".join(f"{n} {k}" for k, n in odd.items()))


def audit(prompts: Sequence[Prompt]) -> dict[str, int]:
    """What is odd about some prompts, which are all kept.

    Returns:
        ``repeated``: prompts whose text, seed and guidance another one has already, which inflate the number of
        prompts but not what is known; ``empty``: texts without a character; ``outer_spaces``: texts that begin or end
        with white space.

    >>> audit([Prompt(id="0", text="a cat "), Prompt(id="1", text="a cat ")])
    {'repeated': 1, 'empty': 0, 'outer_spaces': 2}
    """
    images = Counter(p.digest() for p in prompts)
    return {
        "repeated": len(prompts) - len(images),
        "empty": sum(not p.text for p in prompts),
        "outer_spaces": sum(p.text != p.text.strip() for p in prompts),
    }


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _is_hash(text: object) -> bool:
    return isinstance(text, str) and SHORTEST_HASH <= len(text) <= 64 and set(text.lower()) <= set("0123456789abcdef")
