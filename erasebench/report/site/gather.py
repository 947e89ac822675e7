"""What the report shows of a results folder: boards, cells pooled over seeds, and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from erasebench.report.board import Board
from erasebench.report.drawn import Run
from erasebench.report.gathering import gathered
from erasebench.report.runs import NOTHING
from erasebench.report.tables import CELL

CHECKPOINT = ("model", "concept", "method", "recipe", "settings")  # an erased model


@dataclass(frozen=True, eq=False)
class Cell:
    """All seeds of one cell.

    ``number``: its place in the report; ``names``: the keys of ``CELL``; ``summary``: the rows of its headlines.
    """

    number: int
    names: Mapping[str, Any]
    runs: tuple[Run, ...]
    summary: pd.DataFrame

    @property
    def page(self) -> str:
        """Its file, whatever characters its names have."""
        words = [re.sub(r"[^A-Za-z0-9]+", "-", str(self.names[k])).strip("-") for k in ("concept", "method", "attack")]
        return f"{self.number:04d}-{'-'.join(words)[:60]}.html"

    @property
    def title(self) -> str:
        attack = self.names["attack"]
        settings = f" ({self.names['settings']})" if self.names["settings"] else ""
        told = f", attacked by {attack}" if attack != NOTHING else ""
        return f"{self.names['concept']} erased from {self.names['model']} by {self.names['method']}{settings}{told}"

    @property
    def config(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.runs[0].record["config"]
        return found

    @cached_property
    def unsafe(self) -> bool:
        """Whether its images are shown only to whoever asks for each of them."""
        return any(node.get("kind") == "unsafe" for node in (self.config["concept"], *self.config["also"]))

    @cached_property
    def withheld(self) -> bool:
        """Whether its prompts are shown as ids: those of an unsafe concept that a file, a set or an attack brought."""
        return self.unsafe and ("templates" not in self.config["prompts"] or self.names["attack"] != NOTHING)

    @property
    def flags(self) -> list[Mapping[str, Any]]:
        """What its runs doubt, each once."""
        return list({(f["flag"], f["message"]): f for run in self.runs for f in run.record.get("flags", [])}.values())

    def of(self, group: str, *, role: str = "present") -> Mapping[str, Any] | None:
        """The headline of a group by the run's own judge; None if it was not measured."""
        rows = self.summary[(self.summary.group == group) & (self.summary.role == role) & (self.summary.relation == "")]
        rows = rows[rows.n > 0].sort_values("place", kind="stable")
        return None if rows.empty else rows.iloc[0].to_dict()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One erased model, trained with any number of seeds: its plain cell and its attacked ones."""

    number: int
    names: Mapping[str, str]
    cells: tuple[Cell, ...]

    @property
    def page(self) -> str:
        words = [re.sub(r"[^A-Za-z0-9]+", "-", str(self.names[k])).strip("-") for k in ("concept", "method")]
        return f"{self.number:04d}-{'-'.join(words)[:60]}.html"

    @property
    def plain(self) -> Cell:
        """The cell that shows its plain prompts: the one without an attack, else any."""
        return next((cell for cell in self.cells if cell.names["attack"] == NOTHING), self.cells[0])

    @property
    def attacked(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.names["attack"] != NOTHING]

    @property
    def worst(self) -> Cell | None:
        """The attacked cell whose images show the concept most often, controls apart."""
        found = [(cell, cell.of("attack")) for cell in self.attacked if not cell.names["control"]]
        measured = [(row["mean"], cell) for cell, row in found if row is not None]
        return max(measured, key=lambda pair: pair[0])[1] if measured else None


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that pages are made from."""

    root: Path
    boards: Sequence[Board]
    cells: Sequence[Cell]
    checkpoints: Sequence[Checkpoint]
    doubts: Sequence[Mapping[str, Any]]


def gather(root: Path, wanted: Mapping[str, Sequence[str]], skipped: list[str]) -> Report:
    """Read a results folder.

    Args:
        root: the results folder.
        wanted: column -> its values, of what is shown.
        skipped: a line is added for each run that is damaged.

    Raises:
        OSError, ValueError: nothing that can be read, or a filter that fits no run.
    """
    found = gathered(root, wanted, chosen, skipped, recorded=True)
    runs = {run.key: Run(run.folder, run.record) for run in found.runs}
    known = found.cells[found.cells.run.isin(list(runs))]
    cells = _cells(known, runs, pd.concat([summary for _, summary in found.summaries], ignore_index=True))
    return Report(root, found.boards, cells, _checkpoints(cells), found.doubts)


def chosen(scores: pd.DataFrame, wanted: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The rows of the wanted runs; the un-erased model stays beside the wanted methods, plain prompts beside attacks.

    Raises:
        ValueError: a value that no run has, with those there are.
    """
    for column, values in wanted.items():
        there = sorted(set(scores[column]))
        if absent := [value for value in values if value not in there]:
            raise ValueError(f"{column} must be one of {', '.join(there)}; got {absent[0]!r}; leave it out for all")
        keep = scores[column].isin([*values, *([NOTHING] if column == "attack" else [])])
        scores = scores[keep | scores.method.eq(NOTHING) if column in CHECKPOINT[2:] else keep]
    if not len(scores):
        told = " ".join(f"{name}={','.join(values)}" for name, values in wanted.items())
        raise ValueError(f"{told} together must fit a run; none does; leave one out")
    return scores


def _cells(cells: pd.DataFrame, runs: Mapping[str, Run], summaries: pd.DataFrame) -> list[Cell]:
    """One for each cell, in the order of their names; the summaries in their evaluators' order."""
    rows = dict(iter(summaries.groupby(list(CELL), sort=False)))
    found = []
    for i, (key, part) in enumerate(cells.groupby(list(CELL), sort=True)):
        own = sorted((runs[run] for run in part.run), key=lambda run: (len(run.names["seed"]), run.names["seed"]))
        summary = rows[key].sort_values(["place", "metric", "relation"], kind="stable")
        found.append(Cell(i + 1, dict(zip(CELL, key, strict=True)), tuple(own), summary))
    return found


def _checkpoints(cells: Sequence[Cell]) -> list[Checkpoint]:
    together: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        together.setdefault(tuple(str(cell.names[k]) for k in CHECKPOINT), []).append(cell)
    found = [
        Checkpoint(0, dict(zip(CHECKPOINT, key, strict=True)), tuple(own))
        for key, own in together.items()
        if key[2] != NOTHING
    ]
    return [replace(one, number=i + 1) for i, one in enumerate(found)]
