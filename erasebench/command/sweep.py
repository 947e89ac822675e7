"""The cells of a sweep as one thing: what became of each, whichever process ran it, and what is said at the end.

Each cell leaves one JSON file in a folder that all processes of the sweep know (``ERASEBENCH_SWEEP``), so that the exit
code, the closing table and the list of failures do not depend on Hydra's launcher.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from erasebench.progress import duration
from erasebench.store.files import check_writable, replacing, work_path

VARIABLE = "ERASEBENCH_SWEEP"


@dataclass(frozen=True)
class Outcome:
    """What became of one cell.

    Args:
        number: from 0, as Hydra counts.
        label: what sets it apart in its sweep, ``method=uce attack=none``.
        status: ok, error (the user's), fault (ours), full (the disk) or lost (its process ended without a word).
        text: the error's line, or the cell's headline numbers.
        seconds: it took.
        cached: whether all of it was there.
        folder: of the run, "" if there is none.
    """

    number: int
    label: str
    status: Literal["ok", "error", "fault", "full", "lost"]
    text: str = ""
    seconds: float = 0.0
    cached: bool = False
    folder: str = ""


@dataclass(frozen=True)
class Sweep:
    """A folder with the sweep's plan and its outcomes so far."""

    folder: Path

    @classmethod
    def begin(cls, root: Path, labels: Sequence[str]) -> Sweep:
        """A new sweep of ``labels`` cells under a results folder; none: their number is not known beforehand."""
        folder = work_path(check_writable(root / "cache") / "sweep").resolve()
        folder.mkdir()
        sweep = cls(folder)
        sweep._write("sweep.json", {"labels": list(labels), "started": time.time()})
        return sweep

    @classmethod
    def current(cls) -> Sweep | None:
        """The sweep this process runs a cell of."""
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder)) if folder and Path(folder).is_dir() else None

    @property
    def plan(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "sweep.json").read_text(encoding="utf-8"))
        return found

    def label(self, number: int) -> str:
        labels = self.plan["labels"]
        return labels[number] if number < len(labels) else ""

    def name(self, number: int) -> str:
        """``cell 2 of 6``."""
        labels = self.plan["labels"]
        return f"cell {number + 1}" + (f" of {len(labels)}" if labels else "")

    def add(self, outcome: Outcome) -> None:
        self._write(f"{outcome.number}.json", asdict(outcome))

    def outcomes(self) -> list[Outcome]:
        """In the order of the cells; those without a word are lost."""
        found = {}
        for path in self.folder.glob("[0-9]*.json"):
            outcome = Outcome(**json.loads(path.read_text(encoding="utf-8")))
            found[outcome.number] = outcome
        for number, label in enumerate(self.plan["labels"]):
            if number not in found:
                found[number] = Outcome(
                    number, label, "lost", "its process ended without a word; run the command again"
                )
        return [found[number] for number in sorted(found)]

    def left(self) -> str:
        """How many cells are done and how long the others will take, at the mean of those that had to be computed."""
        done = [o for o in self.outcomes() if o.status != "lost"]
        computed = [o for o in done if not o.cached]
        missing = len(self.plan["labels"]) - len(done)
        if missing <= 0 or not computed:
            return ""
        passed = time.time() - self.plan["started"]
        return f"{duration(passed / max(1, len(done)) * missing)} left"

    def end(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        with replacing(self.folder / name) as work:
            work.write_text(json.dumps(content), encoding="utf-8")


def labels(cells: Sequence[Sequence[str]], swept: Sequence[str]) -> list[str]:
    """What sets each cell apart: its values of the swept keys.

    >>> labels([["method=uce", "seed=0", "concept=cat"], ["method=uce", "seed=1", "concept=cat"]], ["seed"])
    ['seed=0', 'seed=1']
    """
    return [" ".join(o for o in cell if o.lstrip("+~").partition("=")[0] in swept) for cell in cells]


def headline(summary: Any) -> str:
    """A cell in a few numbers, what stands first in its table: ``target 0 %, attack 4 %, unrelated 98 %``."""
    parts = []
    for row in summary.to_dict("records"):
        if row["role"] in ("present", "kept") and not row["relation"] and row["mean"] == row["mean"]:
            parts.append((row["place"], f"{row['head'] or row['group']} {100 * row['mean']:.0f} %"))
    return ", ".join(dict.fromkeys(text for _, text in sorted(parts)))


def closing(outcomes: Sequence[Outcome], started: float) -> str:
    """The sweep's last words: the table over all its cells, doubts grouped, and what failed."""
    good, bad = [o for o in outcomes if o.status == "ok"], [o for o in outcomes if o.status != "ok"]
    lines = ["", *table(good)] if good else [""]
    lines += _flags(good)
    stored = sum(o.cached for o in good)
    count = f"{len(good)} of {len(outcomes)} cells"
    lines.append(
        f"{count} in {duration(time.time() - started)}" + (f", {stored} of them stored before" if stored else "")
    )
    lines += [f"failed: cell {o.number + 1} ({o.label}): {o.text}" for o in bad]
    if bad:
        lines.append(f"{len(bad)} cell(s) failed (ERASEBENCH_TRACEBACK=1 shows where)")
    return "\n".join(lines)


def table(good: Sequence[Outcome]) -> list[str]:
    """The leaderboard of these cells alone."""
    import pandas as pd

    from erasebench.report.leaderboard import grid, leaderboard
    from erasebench.report.printing import as_text
    from erasebench.report.tables import read_scores

    folders = dict.fromkeys(o.folder for o in good)  # a cell that grew is one
    frames = [read_scores(Path(folder) / "scores.parquet") for folder in folders]
    return [*as_text(grid(leaderboard(pd.concat(frames)))).splitlines(), ""]


def _flags(good: Sequence[Outcome]) -> list[str]:
    """One line for each flag, with the cells that have it."""
    found: dict[str, list[tuple[Outcome, dict[str, Any]]]] = {}
    for outcome in good:
        record = json.loads((Path(outcome.folder) / "run.json").read_text(encoding="utf-8"))
        for flag in record["flags"]:
            found.setdefault(flag["flag"], []).append((outcome, flag))
    lines = []
    for name, cells in found.items():
        where = list(dict.fromkeys(o.label or f"cell {o.number + 1}" for o, _ in cells))
        many = f"{len(where)} cells, first {where[0]}" if len(where) > 1 else where[0]
        lines.append(f"! {name} ({many}): {cells[0][1]['message']} {cells[0][1]['what_to_do']}")
    return [*lines, ""] if lines else []
