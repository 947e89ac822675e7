"""Write down what a run measured as an entry that others can check.

    python -m erasebench.submit run=FOLDER[,FOLDER] [paper=TITLE] [authors=NAMES] [venue=] [url=] [out=results/entries]

Several runs must be one cell with different seeds. The entry, a JSON file, holds the resolved settings, every headline
number with its interval, what papers report of this method and concept (results/published.csv), the flags, and the
hashes of the tables: docs/entries.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasebench.command.arguments import command, parse

USAGE = "usage: python -m erasebench.submit run=FOLDER[,FOLDER] [paper=] [authors=] [venue=] [url=] [out=DIR]"
DEFAULTS: dict[str, Any] = {"run": [], "paper": "", "authors": "", "venue": "", "url": "", "out": "results/entries"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the entry and say where; returns the exit code, 2 for bad input."""

    def work(words: list[str]) -> str:
        from erasebench.report.entries import ABOUT, entry, write_entry
        from erasebench.report.runs import find_run, recorded

        given = parse(words, DEFAULTS, needed=("run",))
        runs = [recorded(find_run(folder) / "run.json") for folder in given["run"]]
        found = entry(runs, {name: given[name] for name in ABOUT})
        path = write_entry(Path(given["out"]), found)
        counts = f"{len(found['measured'])} numbers, {len(found['reported'])} reported, {len(found['doubts'])} doubts"
        return f"written: {path} ({counts}); check it with python -m erasebench.verify {path}"

    return command(USAGE, __doc__, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
