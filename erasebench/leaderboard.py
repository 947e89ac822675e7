"""The leaderboard, from the tables alone: ``python -m erasebench.leaderboard [results=DIR]``.

Writes ``leaderboard.csv`` (full precision) and ``leaderboard.md`` into the results folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from erasebench.report.checks import between_attacks
from erasebench.report.leaderboard import LEGEND, as_markdown, as_text, grid, leaderboard
from erasebench.report.tables import read_results, write_csv
from erasebench.store.files import replacing

USAGE = "usage: python -m erasebench.leaderboard [results=DIR]"


def folder(arguments: Sequence[str]) -> Path:
    """The results folder named on the command line: ``results=DIR``, ``--results DIR``, or ``results``.

    Raises:
        ValueError: anything else.
    """
    words = [w for a in arguments for w in (a.removeprefix("--").split("=", 1) if "=" in a else [a.removeprefix("--")])]
    if not words:
        return Path("results")
    if len(words) != 2 or words[0] != "results" or not words[1]:
        raise ValueError(f"arguments must be results=DIR; got {' '.join(arguments)!r}; {USAGE}")
    return Path(words[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the leaderboard; returns the exit code, 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    try:
        root = folder(arguments)
        scores = read_results(root)
        table = leaderboard(scores)
        lines = grid(table)
        flags = [f"! {flag['flag']}: {flag['message']} {flag['what_to_do']}" for flag in between_attacks(scores)]
        write_csv(root / "leaderboard.csv", table)
        with replacing(root / "leaderboard.md") as work:
            doubts = "\n\nDoubts (docs/flags.md):\n\n" + "\n".join(f"- {flag[2:]}" for flag in flags) if flags else ""
            work.write_text(f"# Leaderboard\n\n{as_markdown(lines)}\n\n{LEGEND}{doubts}\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    doubts = "".join(f"\n{flag}" for flag in flags)
    print(f"{as_text(lines)}\n\n{LEGEND}{doubts}\n\nwritten: {root / 'leaderboard.csv'}, {root / 'leaderboard.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
