"""What boards need of many runs: derived a concept at a time, in several processes, and kept between calls.

No number of a concept depends on another concept's rows, but for one thing: whether a metric whose evaluator does not
say so is a rate. Where two concepts disagree on that, or where a table is not of one run and cell, nothing is given and
the caller reads everything at once, which is slower and always right.

What was derived is kept: ``erasebench.report.kept``.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from erasebench.report import kept
from erasebench.report.codes import sorted_words
from erasebench.report.runs import Run, recorded
from erasebench.report.tables import CELL, DTYPES
from erasebench.store.files import file_hash

LEAST = 200_000  # rows below which all is read at once
Frames = Mapping[str, pd.DataFrame]
Work = Callable[..., Frames]


@dataclass(frozen=True)
class Known:
    """Runs whose tables are each of one run and cell, by what their footers say.

    ``cells``: a row per run with ``run`` and the names of ``CELL``, in path order; ``runs``: the same by key.
    """

    root: Path
    cells: pd.DataFrame
    runs: Mapping[str, Run]
    rows: int

    def only(self, cells: pd.DataFrame) -> Known:
        """Some of the runs."""
        return Known(self.root, cells, {run: self.runs[run] for run in cells.run}, self.rows)

    def units(self) -> list[list[Run]]:
        """The runs of each model and concept."""
        parts = self.cells.groupby(["model", "concept"], sort=False)
        return [[self.runs[run] for run in part.run] for _, part in parts]


def known(root: Path, skipped: list[str]) -> Known | None:
    """The runs of a results folder that have headlines; None where there are few rows or it is not so simple.

    Args:
        root: the results folder.
        skipped: a line is added for each run that is damaged, if something is returned.
    """
    paths = sorted(root.glob("runs/**/scores.parquet"))
    lost, runs, rows, heads = list[str](), dict[str, Run](), list[dict[str, Any]](), dict[Path, Any]()
    with suppress(OSError, ValueError, pa.ArrowException, KeyError):
        heads = {path: pq.read_metadata(path) for path in paths}
    if (total := sum(head.num_rows for head in heads.values())) < LEAST:
        return None
    for path in paths:
        try:
            run = recorded(path.parent / "run.json")
        except (OSError, ValueError) as error:
            if not (path.parent / "run.json").exists():
                return None
            lost.append(f"left out: {error}")
            continue
        found = _footer(heads.get(path))
        if found is None or run.key in runs or found.pop("run") != run.key:
            return None
        if found.pop("heads"):
            runs[run.key] = run
            rows.append({"run": run.key, **found})
    if not rows:
        return None
    skipped += lost
    dtypes = {name: DTYPES[name] for name in ("run", *CELL)}
    return Known(root, pd.DataFrame(rows, columns=list(dtypes)).astype(dtypes), runs, total)


def of_runs(found: Sequence[Run]) -> Known | None:
    """Some runs of one results folder, as :func:`known` has them, whether or not they have headlines."""
    runs, rows, total = dict[str, Run](), list[dict[str, Any]](), 0
    for run in found:
        try:
            head = pq.read_metadata(run.folder / "scores.parquet")
        except (OSError, pa.ArrowException):
            return None
        said = _footer(head)
        if said is None or run.key in runs or said.pop("run") != run.key:
            return None
        runs[run.key], total = run, total + head.num_rows
        del said["heads"]
        rows.append({"run": run.key, **said})
    root = next((one.parent for one in found[0].folder.parents if one.name == "runs"), None) if found else None
    if root is None or total < LEAST:
        return None
    dtypes = {name: DTYPES[name] for name in ("run", *CELL)}
    return Known(root, pd.DataFrame(rows, columns=list(dtypes)).astype(dtypes), runs, total)


def _footer(data: Any) -> dict[str, Any] | None:
    """The run and cell of a table, and how many headline rows it has; None unless its footer says that it is one."""
    try:
        place = {name: i for i, name in enumerate(data.schema.names)}
        found: dict[str, Any] = {"heads": 0}
        for i in range(data.num_row_groups):
            group = data.row_group(i)
            for name in ("run", *CELL):
                said = group.column(place[name]).statistics
                if said is None or not said.has_min_max or said.null_count or said.min != said.max:
                    return None
                if found.setdefault(name, said.min) != said.min:
                    return None
            found["heads"] += group.num_rows - group.column(place["place"]).statistics.null_count
        return found if "run" in found else None
    except (OSError, ValueError, pa.ArrowException, KeyError, AttributeError, TypeError):
        return None


def single(scores: pd.DataFrame, runs: Sequence[Run], model: str, concept: str) -> bool:
    """Whether rows that were read are what the footers said."""
    whole = scores[["run", *CELL]].drop_duplicates()
    same = whole.model.eq(model).all() and whole.concept.eq(concept).all()
    return bool(same and whole.run.is_unique and set(whole.run) == {run.key for run in runs})


def derived(found: Known, kind: str, work: Work) -> list[Frames] | None:
    """What a function makes of each unit, from what was kept or anew, in their order; None where one cannot be made.

    Args:
        found: the runs.
        kind: a name for what is made, part of what it is kept by.
        work: of a module; takes the runs of a unit.
    """
    units = found.units()
    names = [kept.named(kind, [_read(run) for run in runs], []) for runs in units]
    out = {i: _frames(parts) for i, name in enumerate(names) if (parts := kept.load(found.root, name)) is not None}
    todo = [i for i in range(len(units)) if i not in out]
    jobs = [(work, units[i], found.root, names[i]) for i in todo]
    for i, frames in zip(todo, together(_make, jobs), strict=True):
        if frames is None:
            return None
        out[i] = frames
    return [out[i] for i in range(len(units))]


def _read(run: Run) -> list[str]:
    """What is read of a run, by its contents."""
    paths = (run.folder / name for name in kept.READ[:3])
    return [run.key, *(file_hash(path) if path.is_file() else "" for path in paths)]


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


def _make(work: Work, runs: Sequence[Run], root: Path, name: str) -> Frames | None:
    try:
        frames = {part: sorted_words(frame) for part, frame in work(runs).items()}
    except (OSError, ValueError):  # reading everything at once says what is wrong
        return None
    parts = {}
    for part, frame in frames.items():
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, compression="zstd")
        parts[part] = sink.getvalue().to_pybytes()
    kept.save(root, name, parts)
    return frames


def _frames(parts: Mapping[str, bytes]) -> Frames:
    return {part: pq.read_table(pa.BufferReader(data)).to_pandas() for part, data in parts.items()}
