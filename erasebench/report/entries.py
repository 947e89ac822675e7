"""Entries: what was measured of one cell, as data that others can check (after RobustBench, arXiv:2010.09670).

An entry is a JSON file with a checksum: what was run, what was measured with intervals, what papers report of the same
method and concept, doubts, and the hashes of the tables it was derived from. It holds numbers and ids, no prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import isclose, isnan
from pathlib import Path
from typing import Any

import pandas as pd

from erasebench.limits import read_text
from erasebench.report.published import read_published
from erasebench.report.runs import Run, opened, sealed
from erasebench.report.tables import CELL, read_scores, summarise
from erasebench.store.files import replacing

SCHEMA = 1
ABOUT = ("paper", "authors", "venue", "url")  # what its author says of the method
SAME = ("evaluator", "metric", "judge", "group")  # what makes two measured numbers one
NUMBERS = ("mean", "low", "high", "base", "n", "clusters")
HEADS = ["measure", "group", "recorded", "now", "says"]


def measured(runs: Sequence[Run]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The cell that some runs are of, and its headline numbers, pooled over their seeds.

    Raises:
        ValueError: the runs are of several cells, or a table cannot be read.
    """
    scores = pd.concat([read_scores(run.folder / "scores.parquet") for run in runs], ignore_index=True)
    cells = scores[list(CELL)].drop_duplicates()
    if len(cells) > 1:
        varies = [name for name in CELL if cells[name].nunique() > 1]
        raise ValueError(f"run must name runs of one cell; these differ in {', '.join(varies)}; submit each by itself")
    table = summarise(scores[scores.place.notna()])
    table = table[(table.relation == "") & (table.role != "influence")].sort_values([*SAME], kind="stable")
    rows = table[[*SAME, "evaluator_version", "head", "unit", *NUMBERS]].rename(columns={"mean": "value"})
    return cells.iloc[0].to_dict(), [_plain(row) for row in rows.to_dict("records")]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Python's own numbers, None for what is missing."""
    out = {}
    for name, value in row.items():
        number = value.item() if hasattr(value, "item") else value
        out[str(name)] = None if isinstance(number, float) and isnan(number) else number
    return out


def entry(runs: Sequence[Run], about: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What is known of one cell, ready to be written.

    Args:
        runs: one run, or several that differ in their seeds.
        about: paper, authors, venue, url.
    """
    cell, numbers = measured(runs)
    first = runs[0].record
    config = first["config"]
    parts = ("model", "method", "attack", "prompts", "concept", "also", "evaluator", "judge")
    return {
        "schema": SCHEMA,
        **_plain(cell),
        **{name: str((about or {}).get(name, "")) for name in ABOUT},
        "protocol": {
            "seeds": sorted(int(run.names["seed"]) for run in runs),
            "model_hash": first.get("model_hash", ""),
            "config": {name: config[name] for name in parts if name in config},
        },
        "measured": numbers,
        "reported": reported(str(cell["method"]), str(cell["concept"])),
        "doubts": [flag for run in runs for flag in run.record.get("flags", [])],
        "runs": [{"key": run.key, "files": run.record.get("files", {})} for run in sorted(runs, key=lambda r: r.key)],
        "packages": first.get("packages", {}),
    }


def reported(method: str, concept: str) -> list[dict[str, Any]]:
    """Published rows of this method on this concept; numbers of Stable Diffusion, whatever model was measured."""
    table = read_published()
    names = table.concept.str.lower().str.replace(r"\W+", "_", regex=True)
    rows = table[(table.ours == method.partition("[")[0]) & (names == concept)]
    return [_plain(row) for row in rows.drop(columns="ours").to_dict("records")]


def name_of(found: Mapping[str, Any]) -> str:
    """``emoji-cat-uce-ringabell``: a file's name, of plain words."""
    words = (str(found[name]) for name in ("model", "concept", "method", "attack"))
    return "-".join(re.sub(r"[^\w.=]+", "_", word).strip("_.") or "_" for word in words)[:150]


def write_entry(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write an entry into a folder, in one move, with its checksum."""
    path = folder / f"{name_of(found)}.json"
    with replacing(path) as work:
        work.write_text(sealed(found) + "\n", encoding="utf-8")
    return path


def read_entry(path: str | Path) -> dict[str, Any]:
    """An entry as it was written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no entry, was changed by hand, or is of another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"entry - must be a JSON file; found no {path}; write one with erasebench.submit")
    try:
        found = opened(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be an entry in JSON; {error}") from None
    needed = {*CELL, "measured", "runs", "schema", "checksum"}
    if missing := sorted(needed - set(found)):
        raise ValueError(f"{path} must be an entry; it has no {missing[0]}; write it with erasebench.submit")
    if found["schema"] != SCHEMA:
        raise ValueError(f"{path} must have schema {SCHEMA}; got {found['schema']!r}; submit its run again")
    return found


def compare(found: Mapping[str, Any], runs: Sequence[Run]) -> tuple[list[list[str]], bool]:
    """An entry beside what its tables say now: lines with heads, and whether every number is the recorded one.

    A number is ``same``; of ``another version`` of its evaluator, and then not compared; ``inside`` or ``outside`` the
    recorded interval; ``gone``, or ``not recorded``.
    """
    _, numbers = measured(runs)
    now = {tuple(row[name] for name in SAME): row for row in numbers}
    before = {tuple(row[name] for name in SAME): row for row in found["measured"]}
    lines = [HEADS]
    for key in sorted({*now, *before}):
        old, new = before.get(key), now.get(key)
        shown = [_shown(one["value"]) if one else "-" for one in (old, new)]
        lines.append([key[1], key[3], *shown, _says(old, new)])
    return lines, all(line[-1] == "same" for line in lines[1:])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _says(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    if old is None or new is None:
        return "gone" if new is None else "not recorded"
    if old["evaluator_version"] != new["evaluator_version"]:
        return f"another version ({old['evaluator_version']}, now {new['evaluator_version']})"
    pairs = [(old[name], new[name]) for name in ("value", "low", "high", "base", "n", "clusters")]
    if all(a == b or (None not in (a, b) and isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)) for a, b in pairs):
        return "same"
    if None in (old["low"], old["high"], new["value"]):
        return "another number, no interval"
    return "inside" if old["low"] <= new["value"] <= old["high"] else "outside"
