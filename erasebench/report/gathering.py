"""What the leaderboard and the report show of all runs, a concept at a time where they are many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from erasebench.report import units
from erasebench.report.board import Board, boards, boards_of, run_facts
from erasebench.report.checks import Flag, attack_rows, attack_summary, between_attacks, flags_between
from erasebench.report.codes import joined, plain
from erasebench.report.evidence import other_settings
from erasebench.report.leaderboard import by_versions, cell_summaries, told_apart
from erasebench.report.pooling import COLUMN, ROW, items
from erasebench.report.runs import Run
from erasebench.report.tables import CELL, METRIC, kinds, read_coded, read_results

POOLED = (  # role is one of COLUMN
    "run", "model", "task", "concept", *ROW, *COLUMN, "item", "text", "weights", "whole", "value", "low", "high",
    "unit", "label", "place", "higher_is_better",
)  # fmt: skip
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
        if (out := _by_concept(own)) is not None:
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


def _by_concept(found: units.Known) -> Gathered | None:
    facts = run_facts(found.runs.values())
    parts = units.derived(found, "boards", _unit)
    if parts is None:
        return None
    said = plain(joined([part["kinds"] for part in parts]))
    if said.drop_duplicates().duplicated(["scope", *METRIC]).any():  # two concepts disagree on what is a rate
        return None
    pooled = joined([part["pooled"][~part["pooled"].whole] for part in parts]
                          + [part["pooled"][part["pooled"].whole] for part in parts])  # fmt: skip
    summary = plain(joined([part["summaries"] for part in parts]))
    summaries = [(str(v), own.drop(columns="versions").reset_index(drop=True))
                 for v, own in summary.groupby("versions", sort=True)]  # fmt: skip
    attacked = plain(joined([part["attacks"] for part in parts]))
    doubts = [*flags_between(attacked), *other_settings(found.cells)]
    ran = found.cells[[*ROW, "run"]]
    return Gathered(boards_of(pooled, ran, facts), summaries, doubts, found.cells, list(found.runs.values()))


def _unit(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """What :func:`_by_concept` needs of the runs of one model and concept.

    Raises:
        ValueError: a table that cannot be read, or is of several.
    """
    scores = read_coded([run.folder / "scores.parquet" for run in runs], headlines=True).reset_index(drop=True)
    if not units.single(scores, runs, scores.model.iloc[0], scores.concept.iloc[0]):
        raise ValueError("tables must be of one run, model and concept each")
    facts = run_facts(runs)
    pooled = items(scores, dict(zip(facts.run, facts.task, strict=True)))[list(POOLED)]
    files = {run.key: run.folder / "summary.csv" for run in runs}
    summaries, said = [], [kinds(attack_rows(scores)).assign(scope="attacks")]
    for versions, part in by_versions(scores):
        summaries.append(cell_summaries(part, files).assign(versions=versions))
        said.append(kinds(told_apart(part, files)[1]).assign(scope=f"cells {versions}"))
    return {
        "pooled": pooled,
        "summaries": pd.concat(summaries, ignore_index=True).astype({"versions": "str"}),
        "attacks": attack_summary(scores).reset_index(drop=True),
        "kinds": pd.concat(said, ignore_index=True).astype({"scope": "str"}),
    }
