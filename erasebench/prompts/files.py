"""Prompt files: CSV and Parquet read with every row checked; nothing guessed, nothing skipped but empty lines."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq

from erasebench.prompts.safety import safe_prompts
from erasebench.types import Concept, Group, Prompt, seed_of

log = logging.getLogger(__name__)

MAX_SEED = 2**63 - 1

Rows = list[tuple[str, dict[str, str]]]  # where a row stands, and its cells


def place_hash(*parts: object) -> int:
    """A number in [0, 2^31) decided by the parts alone: seeds and choices that depend on a prompt's place only."""
    return seed_of(*parts) % 2**31


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path.name} line {line} must be UTF-8; got byte 0x{data[error.start]:02x} at offset {error.start}; "
            "save the file as UTF-8"
        ) from error


def _read_csv(path: Path) -> tuple[list[str], Rows]:
    """Header and records; a record is placed by its first line, and empty lines are skipped."""
    header: list[str] = []
    rows: Rows = []
    reader, line = csv.reader(io.StringIO(_decode(path), newline=""), strict=True), 1
    try:
        for cells in reader:
            if header and cells:
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path.name} line {line} must have {len(header)} fields like the header; got {len(cells)}; "
                        "put a field that contains a comma into double quotes"
                    )
                rows.append((f"line {line}", dict(zip(header, cells, strict=True))))
            header, line = header or cells, reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path.name} line {line} must be valid CSV; got {error}; check its quotes") from error
    return header, rows


def _read_parquet(path: Path) -> tuple[list[str], Rows]:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path.name} must be a readable Parquet file; got none; write it again") from error
    cells = ({k: "" if v is None else str(v) for k, v in row.items()} for row in table.to_pylist())
    return table.column_names, [(f"row {i}", row) for i, row in enumerate(cells, 1)]


def _read(path: Path, needed: Iterable[str]) -> Rows:
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"prompt set {path.name} must be .csv or .parquet; got {path.suffix or 'no suffix'!r}; convert it"
        )
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing there"
        raise FileNotFoundError(f"prompt set {path} must be a file; got {found}; check the path")
    header, rows = readers[path.suffix.lower()](path)
    for column in needed:
        if header.count(column) != 1:
            problem = "has no column" if column not in header else "has more than one column"
            raise ValueError(f"{path.name} {problem} {column!r}; found {', '.join(header) or 'an empty file'}")
    if not rows:
        raise ValueError(f"{path.name} must have at least one prompt; got only a header; add rows")
    return rows


def _seed(where: str, cell: str) -> int:
    digits = cell.strip().removesuffix(".0")  # how a column with gaps is often saved
    if not (digits.isascii() and digits.isdigit()) or int(digits) > MAX_SEED:
        raise ValueError(f"{where} must be an integer from 0 to 2^63 - 1; got {cell!r}; correct the seed")
    return int(digits)


def _guidance(where: str, cell: str) -> float | None:
    try:
        value = float(cell) if cell.strip() else None
    except ValueError:
        value = math.nan
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where} must be a finite number >= 0 or empty; got {cell!r}; correct the guidance")
    return value


def read_prompts(
    path: str | Path,
    *,
    text: str = "prompt",
    seed: str | None = "evaluation_seed",
    guidance: str | None = None,
    id: str | None = None,
    concept: str | None = None,
    group: Group = "target",
) -> list[Prompt]:
    """The prompts of a CSV or Parquet file, in order, nothing guessed and nothing skipped but empty lines.

    Cells are taken as they stand: spaces around a text are kept, "Null" or "NA" is a text like any other, and
    an empty prompt is kept with a warning.

    Args:
        path: .csv (UTF-8, with a header) or .parquet.
        text: column of the prompt.
        seed: column of the seed, an integer >= 0; None derives one from the row's position.
        guidance: column of the guidance scale, where an empty cell means the model's default; None if there is none.
        id: column of a unique id; None numbers the rows from 0.
        concept: column of the concept each text depicts; None leaves it empty.
        group: group of all prompts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not UTF-8, a missing column, a broken row, a bad cell, an id used twice or no row at all; the
            message names the file, the line and the column.
    """
    path = Path(path)
    if group not in get_args(Group):
        raise ValueError(f"group must be one of {', '.join(get_args(Group))}; got {group!r}")
    prompts, places = [], dict[str, str]()
    for number, (place, row) in enumerate(
        _read(path, [c for c in (text, seed, guidance, id, concept) if c is not None])
    ):
        where = f"{path.name} {place}, column"
        name = str(number) if id is None else row[id]
        if not name or name in places:
            problem = f"also on {places[name]}" if name else "an empty one"
            raise ValueError(f"{where} {id!r} must be a unique id; got {name!r}, {problem}; correct it")
        if not row[text]:  # I2P has one
            log.warning("%s %r is empty: it asks for nothing", where, text)
        places[name] = place
        prompts.append(
            Prompt(
                id=f"{group}-{name}",
                text=row[text],
                seed=place_hash(0, group, number) if seed is None else _seed(f"{where} {seed!r}", row[seed]),
                guidance_scale=None if guidance is None else _guidance(f"{where} {guidance!r}", row[guidance]),
                group=group,
                concept="" if concept is None else row[concept],
            )
        )
    return prompts


@dataclass(frozen=True, kw_only=True)
class CsvPrompts:
    """A published prompt set from a file.

    Args:
        path, text, seed, guidance, id, group: see :func:`read_prompts`.
        concept_column: column of the concept each text depicts; None: the erased concept for the groups target,
            paraphrase and attack, none for the others.
        sexual: whether the set is about sexual content; rows that mention minors are then dropped. They are dropped
            for every concept of kind unsafe whatever is said here.
        limit: the first rows used, after dropping; None for all.

    Raises:
        ValueError: a limit below 1, or a bad file when prompts are read.
    """

    path: str
    text: str = "prompt"
    seed: str | None = "evaluation_seed"
    guidance: str | None = None
    id: str | None = None
    concept_column: str | None = None
    group: Group = "target"
    sexual: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1; got {self.limit}; use null for all rows")

    def prompts(self, concept: Concept) -> list[Prompt]:
        """The set's prompts about ``concept``, filtered as the class says."""
        erased = self.group in ("target", "paraphrase", "attack")
        if concept.parts and self.concept_column is None and erased:
            raise ValueError(
                f"prompts.concept_column must say which of {concept.name} each row of {self.path} asks for; got none; "
                "add that column"
            )
        found = read_prompts(
            self.path, text=self.text, seed=self.seed, guidance=self.guidance, id=self.id, concept=self.concept_column,
            group=self.group,
        )  # fmt: skip
        if self.concept_column is None and erased:
            found = [p.with_(concept=concept.name) for p in found]
        return safe_prompts(found, concept, self.sexual)[: self.limit]
