"""What boards and tables need of many runs: small, known when a run ends, and kept from then on.

Of a run that are its series (:mod:`erasebench.report.series`), of a cell the summaries of all its seeds together. A
run's last step keeps both (:func:`keep`); where one is missing, or of other bytes or other code, it is derived from the
tables, concepts side by side in several processes, and kept.

No number of a cell depends on another cell's rows, but for one thing: whether a metric whose evaluator does not say so
is a rate. Where two cells disagree on that, or where a table is not of one run and cell, nothing is given and the
caller reads everything at once, which is slower and always right. What is kept: ``erasebench.report.kept``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from erasebench.report import kept
from erasebench.report.cells import Said, cells_of
from erasebench.report.columns import CELL, DTYPES
from erasebench.report.reading import Means, read_coded
from erasebench.report.runs import Run, recorded
from erasebench.report.series import Table, packed, tables, unpacked
from erasebench.store.files import file_hash

LEAST = 200_000  # rows below which all is read at once
PART = 50  # runs that a process derives together, at most


@dataclass(frozen=True)
class One:
    """A run, its series, how many of its rows are headlines, and whether some of these are of the erased concept."""

    run: Run
    table: Table
    heads: int
    seen: bool


@dataclass(frozen=True)
class Known:
    """Runs whose tables are each of one run and cell, in path order.

    ``cells``: a row per run with ``run`` and the names of ``CELL``.
    """

    root: Path
    runs: tuple[One, ...]
    cells: pd.DataFrame

    def only(self, cells: pd.DataFrame) -> Known:
        """Some of the runs."""
        kept = set(cells.run)
        return Known(self.root, tuple(one for one in self.runs if one.run.key in kept), cells)


def known(root: Path, skipped: list[str]) -> Known | None:
    """The runs of a results folder that have headlines; None where there are few rows or it is not so simple.

    Args:
        root: the results folder.
        skipped: a line is added for each run that is damaged, if something is returned.
    """
    paths = sorted(root.glob("runs/**/scores.parquet"))
    if not _many(paths):
        return None
    lost, runs = list[str](), list[Run]()
    for path in paths:
        try:
            runs.append(recorded(path.parent / "run.json"))
        except (OSError, ValueError) as error:
            if not (path.parent / "run.json").exists():
                return None
            lost.append(f"left out: {error}")
    found = _ones(root, runs)
    if found is None or not (heads := [one for one in found if one.heads]):
        return None
    skipped += lost
    return _known(root, heads)


def of_runs(found: Sequence[Run]) -> Known | None:
    """Some runs of one results folder, as :func:`known` has them, whether or not they have headlines."""
    root = next((one.parent for one in found[0].folder.parents if one.name == "runs"), None) if found else None
    if root is None or not _many([run.folder / "scores.parquet" for run in found]):
        return None
    ones = _ones(root, found)
    return None if ones is None else _known(root, ones)


def series_of(found: Sequence[Run], means: Means) -> list[Table]:
    """The series of some runs, at least of the metrics of evaluators that are meant.

    Raises:
        FileNotFoundError, ValueError: a table that cannot be read.
    """
    if (own := of_runs(found)) is not None:
        return [one.table for one in own.runs]
    return tables(read_coded([run.folder / "scores.parquet" for run in found], means=means).reset_index(drop=True))


def said(found: Known) -> list[Said] | None:
    """What is said of each cell, in the order of their first runs; None where two disagree on what is a rate."""
    cells: dict[tuple[Any, ...], list[Run]] = {}
    for one in found.runs:
        cells.setdefault(tuple(one.table.cell[name] for name in CELL), []).append(one.run)
    groups = list(cells.values())
    names = [_cell_name(runs) for runs in groups]
    out = [kept.load(found.root, name, kept.CELL) for name in names]
    todo = [i for i, parts in enumerate(out) if parts is None]
    jobs = [(found.root, [groups[i] for i in part]) for part in _parts(todo, lambda i: groups[i])]
    for part, made in zip(_parts(todo, lambda i: groups[i]), together(_keep_cells, jobs), strict=True):
        if made is None:
            return None
        for i, one in zip(part, made, strict=True):
            out[i] = one
    whole = [Said(json.loads(parts["said"])) for parts in out if parts is not None]
    kinds: dict[tuple[Any, ...], bool] = {}
    for cell in whole:
        for *kind, rate in cell.kinds:
            if kinds.setdefault(tuple(kind), rate) != rate:
                return None
    return whole


def keep(folder: Path) -> None:
    """Keep what boards need of a run that has just ended, and of its cell; what cannot be kept is derived later.

    Args:
        folder: of the run, below a folder ``runs``.
    """
    root = next((one.parent for one in folder.parents if one.name == "runs"), None)
    if root is None:
        return
    with suppress(OSError, ValueError):
        seeds = [recorded(path) for path in sorted(folder.parent.glob("seed*/run.json"))]
        ones = _ones(root, seeds)
        own = next((one for one in ones or () if one.run.folder == folder), None)
        if ones is not None and own is not None:
            same = [one.run for one in ones if one.table.cell == own.table.cell]
            if kept.load(root, _cell_name(same), kept.CELL) is None:
                _keep_cells(root, [same])


def kept_of(root: Path, runs: Sequence[Run]) -> dict[str, Run]:
    """The names of the files of what is kept of some runs and of their cells -> one of these runs."""
    out, cells = dict[str, Run](), dict[tuple[Any, ...], list[Run]]()
    for run in runs:
        name = _run_name(run)
        if (parts := kept.load(root, name, kept.RUN, asked=False)) is not None:
            out[name + kept.RUN] = run
            cells.setdefault(tuple(unpacked(parts).cell[name] for name in CELL), []).append(run)
    return out | {_cell_name(own) + kept.CELL: own[0] for own in cells.values()}


def _many(paths: Iterable[Path]) -> bool:
    """Whether tables have as many rows as are worth it."""
    rows = 0
    for path in paths:
        with suppress(OSError, ValueError, pa.ArrowException):
            rows += pq.read_metadata(path).num_rows
        if rows >= LEAST:
            return True
    return rows >= LEAST


def _known(root: Path, ones: Sequence[One]) -> Known:
    dtypes = {name: DTYPES[name] for name in ("run", *CELL)}
    rows = [{"run": one.run.key, **one.table.cell} for one in ones]
    return Known(root, tuple(ones), pd.DataFrame(rows, columns=list(dtypes)).astype(dtypes))


def _ones(root: Path, runs: Sequence[Run]) -> list[One] | None:
    """What is kept of runs, or made anew; None where a table is not of one run and cell."""
    if len({run.key for run in runs}) < len(runs):
        return None
    found = [kept.load(root, _run_name(run), kept.RUN) for run in runs]
    todo = [i for i, parts in enumerate(found) if parts is None]
    parts = _parts(todo, lambda i: [runs[i]])
    for part, made in zip(
        parts, together(_keep_runs, [(root, [runs[i] for i in part]) for part in parts]), strict=True
    ):
        if made is None:
            return None
        for i, one in zip(part, made, strict=True):
            found[i] = one
    out = []
    for run, one in zip(runs, found, strict=True):
        if one is not None:
            counts = json.loads(one["counts"])
            out.append(One(run, unpacked(one), counts["heads"], counts["seen"]))
    return out


def _parts(todo: Sequence[int], runs: Callable[[int], Sequence[Run]]) -> list[list[int]]:
    """Places of one model and concept, :data:`PART` runs or so together."""
    out: list[list[int]] = []
    size, last = PART, None
    for i in todo:
        own = runs(i)
        names = own[0].names["model"], own[0].names["concept"]
        if names != last or size >= PART:
            out.append([])
            size, last = 0, names
        out[-1].append(i)
        size += len(own)
    return out


def _run_name(run: Run) -> str:
    return kept.named("run", _read(run), [])


def _cell_name(runs: Sequence[Run]) -> str:
    return kept.named("cell", [_read(run) for run in runs], [])


def _read(run: Run) -> list[str]:
    """What is read of a run, by its contents, which are as its record says."""
    files = run.record.get("files", {})
    paths = [run.folder / name for name in ("scores.parquet", "summary.csv")]
    hashes = [files.get(path.name) or (file_hash(path) if path.is_file() else "") for path in paths]
    return [run.key, str(run.record.get("checksum", "")) or file_hash(run.folder / "run.json"), *hashes]


def together(work: Callable[..., Any], jobs: Sequence[Sequence[Any]]) -> list[Any]:
    """What a function of a module makes of each job's arguments; done by other processes and this one, if several."""
    others = min(len(jobs), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1) - 1
    if others < 1 or not hasattr(sys.modules["__main__"], "__file__"):
        return [work(*job) for job in jobs]
    out: list[Any] = [None] * len(jobs)
    with ProcessPoolExecutor(others, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(work, *job) for job in jobs]
        for i in reversed(range(len(jobs))):  # what no other has begun
            if futures[i].cancel():
                out[i] = work(*jobs[i])
        for i, future in enumerate(futures):
            if not future.cancelled():
                out[i] = future.result()
    return out


def _keep_runs(root: Path, runs: Sequence[Run]) -> list[dict[str, bytes]] | None:
    """Keep the series of some runs; None where one cannot be read, or is of several runs or cells."""
    try:
        scores = read_coded([run.folder / "scores.parquet" for run in runs])
    except (OSError, ValueError):  # reading everything at once says what is wrong
        return None
    place = scores.index.to_numpy()
    scores = scores.reset_index(drop=True)
    own = tables(scores)
    found = {table.run: table for table in own}
    whole = scores[["run", *CELL]].assign(at=place).drop_duplicates()
    if len(own) > len(found) or not (whole["at"].is_unique and whole.run.tolist() == [run.key for run in runs]):
        return None
    heads = scores.place.notna()
    seen = heads & scores.group.isin(["target", "attack"])
    counts = pd.DataFrame({"at": place, "heads": heads, "seen": seen}).groupby("at").sum()
    out: list[dict[str, bytes]] = []
    for row, (n, some) in zip(whole[list(CELL)].astype(object).to_dict("records"), counts.to_numpy(), strict=True):
        run = runs[len(out)]
        empty = Table(run.key, {str(k): v for k, v in row.items()}, (), (), (), pd.Series(dtype=float).to_numpy(), {})
        said = json.dumps({"heads": int(n), "seen": bool(some)}).encode()
        parts = {**packed(found.get(run.key, empty)), "counts": said}
        kept.save(root, _run_name(run), parts, kept.RUN)
        out.append(parts)
    return out


def _keep_cells(root: Path, cells: Sequence[Sequence[Run]]) -> list[dict[str, bytes]] | None:
    """Keep what is said of some cells; None where a table cannot be read, or cells disagree on what is a rate."""
    try:
        found = cells_of(cells)
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    out: list[dict[str, bytes]] = []
    for runs, said in zip(cells, found, strict=True):
        parts = {"said": json.dumps(said, separators=(",", ":")).encode()}
        kept.save(root, _cell_name(runs), parts, kept.CELL)
        out.append(parts)
    return out
