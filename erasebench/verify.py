"""Derive an entry's numbers again from its tables, and say which are as recorded.

    python -m erasebench.verify ENTRY.json [results=DIR]

Looks for the entry's own runs by their keys; without them for runs of the same cell, made elsewhere, whose numbers
should lie inside the recorded intervals. Exit code 0 if every number is the recorded one, 1 if not, 2 for bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasebench.command.arguments import Incomplete, command, parse

if TYPE_CHECKING:
    from erasebench.report.runs import Run

USAGE = "usage: python -m erasebench.verify ENTRY.json [results=DIR]"


def verify(path: Path, root: Path) -> str:
    """The comparison as text.

    Raises:
        Incomplete: a number is not the recorded one, or the runs are not the entry's own.
        OSError, ValueError: no entry, or no run of its cell.
    """
    from erasebench.report.entries import compare, read_entry
    from erasebench.report.printing import as_text

    found = read_entry(path)
    runs, own = runs_of(found, root)
    lines, same = compare(found, runs)
    counted: dict[str, int] = {}
    for line in lines[1:]:
        counted[line[-1].partition(" (")[0]] = counted.get(line[-1].partition(" (")[0], 0) + 1
    told = ", ".join(f"{n} {says}" for says, n in sorted(counted.items()))
    whose = "the entry's own runs" if own else "other runs of its cell, for its own are not here"
    said = f"{as_text(lines)}\n\n{told}; from {whose}"
    if not same:
        raise Incomplete(said, [f"{path} - not every number is as recorded: {told}"])
    return said


def runs_of(found: Mapping[str, Any], root: Path) -> tuple[list[Run], bool]:
    """The runs of an entry, and whether they are its own.

    Raises:
        FileNotFoundError: there is none of its cell.
        ValueError: a table of its own runs is damaged.
    """
    from erasebench.report.runs import read_runs

    keys = {str(run["key"]) for run in found["runs"]}
    skipped: list[str] = []
    try:
        there = read_runs(root, skipped)
    except FileNotFoundError:
        if skipped:
            raise ValueError(f"{root / 'runs'} must hold a run that can be read; {skipped[0]}") from None
        raise
    own = {run.key: run for run in there if run.key in keys}
    if set(own) == keys:
        return list(own.values()), True
    names = ("model", "concept", "method", "recipe", "attack", "budget", "settings")
    seeds = {str(seed) for seed in found.get("protocol", {}).get("seeds", [])}
    like = [run for run in there if all(run.names.get(n) == found[n] for n in names) and run.names["seed"] in seeds]
    if not like:
        cell = "/".join(str(found[name]) for name in names if found[name])
        more = f"; {skipped[0]}" if skipped else ""
        raise FileNotFoundError(f"{root / 'runs'} must hold the runs of {cell}; found none; run the cell first{more}")
    return like, False


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; returns the exit code."""

    def work(words: list[str]) -> str:
        given = parse(words, {"entry": "", "results": "results"}, needed=("entry",), plain=("entry",))
        return verify(Path(given["entry"]), Path(given["results"]))

    return command(USAGE, __doc__, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
