"""Prompt files: CSV and Parquet read with every row checked; nothing guessed, nothing skipped but empty lines."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from erasebench import fields
from erasebench.limits import MOST_TEXT, check_size, read_parquet
from erasebench.prompts.safety import safe_prompts
from erasebench.types import ERASED_GROUPS, GROUPS, Concept, Group, Prompt, seed_of

log = logging.getLogger(__name__)

MAX_SEED = 2**63 - 1
EXACT = 2**53  # integers up to here survive a column of floats

Rows = list[tuple[str, dict[str, str]]]  # where a row stands, and its cells


def place_hash(*parts: object) -> int:
    """A number in [0, 2^31) decided by the parts alone: seeds and choices that depend on a prompt's place only."""
    return seed_of(*parts) % 2**31


# --- rows ---


def read_rows(path: str | Path, columns: Mapping[str, str]) -> Rows:
    """Every row of a CSV, Parquet or text file as texts, with its place ("line 3"); empty lines are skipped.

    The one reader of tables people hand in: prompts, pairs, words. Cells are taken as they stand.

    Args:
        path: .csv (UTF-8, with a header, commas between), .parquet, or .txt (UTF-8, a prompt a line, read as the one
            column ``prompt``); ``~`` is the home folder.
        columns: needed columns -> what to do without one; "" if there is no advice.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, not UTF-8, broken quotes, a row of another length than the header, a needed
            column that is missing or there twice, or no row.
    """
    path = fields.path("path", path)
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_lines}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path.name} must be .csv, .parquet or .txt; got {path.suffix or 'no suffix'!r}; convert it")
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing there"
        raise FileNotFoundError(f"{path} must be a file; got {found}; check the path")
    header, rows = readers[path.suffix.lower()](path)
    for column, advice in columns.items():
        if header.count(column) != 1:
            problem = "has no column" if column not in header else "has more than one column"
            if len(header) == 1 and re.search("[;\t]", header[0]):
                advice = "save it with commas between the columns"
            line = f"{path.name} {problem} {column!r}; found {', '.join(header) or 'an empty file'}"
            raise ValueError("; ".join(filter(None, (line, fields.meant(column, header), advice))))
    if not rows:
        raise ValueError(f"{path.name} must have at least one row; got only a header; add rows")
    return rows


def _decode(path: Path) -> str:
    data = check_size(path, MOST_TEXT).read_bytes()
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


def _read_lines(path: Path) -> tuple[list[str], Rows]:
    """One prompt a line, as it stands."""
    lines = _decode(path).splitlines()
    return ["prompt"], [(f"line {i}", {"prompt": line}) for i, line in enumerate(lines, 1) if line.strip()]


def _read_parquet(path: Path) -> tuple[list[str], Rows]:
    try:
        table = read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path.name} must be a readable Parquet file; got none; write it again") from error
    cells = ({k: "" if v is None else str(v) for k, v in row.items()} for row in table.to_pylist())
    return table.column_names, [(f"row {i}", row) for i, row in enumerate(cells, 1)]


# --- cells ---


def seed_cell(where: str, cell: str) -> int:
    """A seed as people and spreadsheets write it: ``11``, or ``11.0`` from a column with gaps.

    A number beyond 2^53 that has been a float is no longer the seed it was, and is refused.

    >>> seed_cell("set.csv line 2, column 'seed'", "11.0")
    11
    """
    found = re.fullmatch(r"([0-9]+)(\.0*)?", cell.strip())
    if found is None or int(found[1]) > MAX_SEED:
        raise ValueError(f"{where} must be an integer from 0 to 2^63 - 1; got {cell!r}; correct the seed")
    if found[2] and int(found[1]) > EXACT:
        raise ValueError(f"{where} must be an integer; got {cell!r}, which was rounded as a float; save it as integer")
    return int(found[1])


def guidance_cell(where: str, cell: str) -> float | None:
    """A guidance scale, or None for an empty cell."""
    try:
        value = float(cell) if cell.strip() else None
    except ValueError:
        value = math.nan
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where} must be a finite number >= 0 or empty; got {cell!r}; correct the guidance")
    return value


def truth_cell(where: str, cell: str) -> bool | None:
    """Yes or no as people, spreadsheets and pandas write it, or None for an empty cell.

    >>> [truth_cell("x", cell) for cell in ("1", "0.0", "TRUE", "no", "")]
    [True, False, True, False, None]
    """
    word = cell.strip().casefold()
    known = {"": None, **dict.fromkeys(("1", "true", "yes"), True), **dict.fromkeys(("0", "false", "no"), False)}
    word = re.sub(r"^([01])\.0*$", r"\1", word)
    if word not in known:
        raise ValueError(f"{where} must be 1, 0, true, false, yes, no or empty; got {cell!r}; correct it")
    return known[word]


# --- prompts ---


def read_prompts(
    path: str | Path,
    *,
    text: str = "prompt",
    seed: str | int | None = "evaluation_seed",
    guidance: str | None = None,
    id: str | None = None,
    concept: str | None = None,
    group: Group = "target",
    node: str = "prompts",
) -> list[Prompt]:
    """The prompts of a CSV or Parquet file, in order, nothing guessed and nothing skipped but empty lines.

    Cells are taken as they stand: spaces around a text are kept, "Null" or "NA" is a text like any other, and
    an empty prompt is kept with a warning.

    Args:
        path: as in :func:`read_rows`.
        text: column of the prompt.
        seed: column of the seed, an integer >= 0; a number is the seed of every row; None derives one from the row's
            position.
        guidance: column of the guidance scale, where an empty cell means the model's default; None if there is none.
        id: column of a unique id; None numbers the rows from 0.
        concept: column of the concept each text depicts; None leaves it empty.
        group: group of all prompts.
        node: where these settings stand in the config, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not UTF-8, a missing column, a broken row, a bad cell, an id used twice or no row at all; the
            message names the file, the line and the column.
    """
    fields.choice(f"{node}.group", group, GROUPS)
    needed = {text: f"name the column of the texts: {node}.text=COLUMN"}
    needed |= (
        {seed: f"name its column, or {node}.seed=null makes one of each row's place"} if isinstance(seed, str) else {}
    )
    needed |= {guidance: f"name its column, or {node}.guidance=null for the model's own"} if guidance else {}
    needed |= {id: f"name its column, or {node}.id=null numbers the rows"} if id else {}
    needed |= {concept: f"name the column of {node}"} if concept else {}
    name_of = fields.path(f"{node}.path", path).name
    column = seed if isinstance(seed, str) else None
    prompts, places, same = [], dict[str, str](), dict[tuple[str, ...], str]()
    for number, (place, row) in enumerate(read_rows(path, needed)):
        where = f"{name_of} {place}, column"
        name = str(number) if id is None else row[id]
        if not name or name in places:
            problem = f"also on {places[name]}" if name else "an empty one"
            raise ValueError(f"{where} {id!r} must be a unique id; got {name!r}, {problem}; correct it")
        if not row[text]:  # I2P has one
            log.warning("%s %r is empty: it asks for nothing", where, text)
        places[name] = place
        drawn = tuple(row[one] for one in (text, column, guidance) if one is not None)
        if seed is not None and (first := same.setdefault(drawn, place)) != place:
            log.warning("%s %s is the same image as %s: same text, seed and guidance", name_of, place, first)
        prompts.append(
            Prompt(
                id=f"{group}-{name}",
                text=row[text],
                seed=_seed(seed, row, where, group, number),
                guidance_scale=None if guidance is None else guidance_cell(f"{where} {guidance!r}", row[guidance]),
                group=group,
                concept="" if concept is None else row[concept],
            )
        )
    return prompts


def _seed(seed: str | int | None, row: Mapping[str, str], where: str, group: str, number: int) -> int:
    if isinstance(seed, str):
        return seed_cell(f"{where} {seed!r}", row[seed])
    return place_hash(0, group, number) if seed is None else seed


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
    seed: str | int | None = "evaluation_seed"
    guidance: str | None = None
    id: str | None = None
    concept_column: str | None = None
    group: Group = "target"
    sexual: bool = False
    limit: int | None = None

    node: ClassVar[str] = "prompts"  # where its fields stand in the config

    def __post_init__(self) -> None:
        check_source(
            self.node, text=self.text, group=self.group, sexual=self.sexual, limit=self.limit, seed=self.seed,
            guidance=self.guidance, id=self.id, concept_column=self.concept_column,
        )  # fmt: skip

    def prompts(self, concept: Concept) -> list[Prompt]:
        """The set's prompts about ``concept``, filtered as the class says."""
        erased = self.group in ERASED_GROUPS
        if concept.parts and self.concept_column is None and erased:
            raise ValueError(
                f"prompts.concept_column must say which of {concept.name} each row of {self.path} asks for; got none; "
                "add that column"
            )
        found = read_prompts(
            self.path, text=self.text, seed=self.seed, guidance=self.guidance, id=self.id, concept=self.concept_column,
            group=self.group, node=self.node,
        )  # fmt: skip
        if self.concept_column is None and erased:
            found = [p.with_(concept=concept.name) for p in found]
        return safe_prompts(found, concept, self.sexual)[: self.limit]


def check_source(node: str, *, text: object, group: object, sexual: object, limit: object, **columns: object) -> None:
    """The fields that all sources of prompts from a file share; ``columns`` are names of columns, or None, or a seed.

    Raises:
        ValueError: the first that cannot be right.
    """
    fields.text(f"{node}.text", text, empty=False)
    for name, column in columns.items():
        if name == "seed" and isinstance(column, int):
            fields.integer(f"{node}.seed", column, least=0, most=MAX_SEED)
        elif column is not None:
            fields.text(f"{node}.{name}", column, empty=False, hint="name a column, or null")
    fields.choice(f"{node}.group", group, GROUPS)
    fields.flag(f"{node}.sexual", sexual)
    check_limit(node, limit)


def check_limit(node: str, limit: object) -> None:
    """``limit`` of any source: how many prompts at most, or None for all."""
    if limit is not None:
        fields.integer(f"{node}.limit", limit, least=1, hint="use null for all")
