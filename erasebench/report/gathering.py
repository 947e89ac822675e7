"""What the leaderboard and the report show of all runs, from what is kept of each where they are many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from erasebench.report import units
from erasebench.report.board import Board, boards, boards_of, run_facts
from erasebench.report.cells import frame
from erasebench.report.checks import Flag, between_attacks, flags_between
from erasebench.report.evidence import other_settings
from erasebench.report.leaderboard import by_versions, cell_summaries
from erasebench.report.pooling import ROW
from erasebench.report.runs import Run
from erasebench.report.tables import CELL, read_results

Filter = Callable[[Any, Mapping[str, Sequence[str]]], Any]


@dataclass(frozen=True)
class Gathered:
    """Of some runs: boards, summaries with the versions of the evaluators, doubts between cells, cells and records.

    ``cells``: ``run`` and the names of ``CELL``, each once, in path order.
    """

    boards: list[Board]
    summaries: list[tuple[str, pd.DataFrame]]
    doubts: list[Flag]
    cells: pd.DataFrame
    runs: list[Run]


def gathered(
    root: Path, wanted: Mapping[str, Sequence[str]], chosen: Filter, skipped: list[str], *, recorded: bool = False
) -> Gathered:
    """Everything about the wanted runs of a results folder.

    Args:
        root: the results folder.
        wanted: what ``chosen`` is asked for.
        chosen: takes rows with the columns of a table's cell, gives those of the wanted runs.
        skipped: a line is added for each run that is damaged.
        recorded: leave out runs that have no record.

    Raises:
        OSError, ValueError: nothing that can be read, or a filter that fits no run.
    """
    lost: list[str] = []
    found = units.known(root, lost)
    if found is not None:
        own = found.only(chosen(found.cells, wanted))
        if (out := _from_kept(own)) is not None:
            skipped += lost
            return out
    known: list[Run] = []
    scores = chosen(read_results(root, headlines=True, skipped=skipped, runs=known), wanted)
    shown = set(scores.run.unique())
    runs = [run for run in known if run.key in shown]
    if recorded:
        scores = scores[scores.run.isin([run.key for run in runs])]
    files = {run.key: run.folder / "summary.csv" for run in runs}
    summaries = [(versions, cell_summaries(part, files)) for versions, part in by_versions(scores)]
    doubts = [*between_attacks(scores), *other_settings(scores)]
    cells = scores[["run", *CELL]].drop_duplicates()
    return Gathered(boards(scores, run_facts(runs)), summaries, doubts, cells, runs)


def _from_kept(found: units.Known) -> Gathered | None:
    said = units.said(found)
    if said is None:
        return None
    runs = [one.run for one in found.runs]
    summary = frame(said, "summaries")
    summaries = [(str(v), own.drop(columns="versions").reset_index(drop=True))
                 for v, own in summary.groupby("versions", sort=True)]  # fmt: skip
    doubts = [*flags_between(frame(said, "attacks")), *other_settings(found.cells)]
    series = [one.table for one in found.runs]
    return Gathered(
        boards_of(series, found.cells[[*ROW, "run"]], run_facts(runs)), summaries, doubts, found.cells, runs
    )
