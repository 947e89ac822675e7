"""The leaderboard, from the tables alone: ``python -m erasebench.leaderboard [results=DIR]``.

Writes ``leaderboard.csv`` (full precision) and ``leaderboard.md`` into the results folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from erasebench.command.arguments import Incomplete, command, parse

USAGE = "usage: python -m erasebench.leaderboard [results=DIR]"


def write(root: Path) -> str:
    """Write both files into the results folder; returns what is printed.

    Raises:
        Incomplete: runs that are damaged are left out of it.
        OSError, ValueError: no runs, or none that can be read.
    """
    from erasebench.report.checks import between_attacks
    from erasebench.report.evidence import other_settings
    from erasebench.report.leaderboard import grid, leaderboard, legend
    from erasebench.report.printing import as_markdown, as_text, plain
    from erasebench.report.tables import read_results, write_csv
    from erasebench.store.files import replacing

    skipped: list[str] = []
    scores = read_results(root, headlines=True, skipped=skipped)
    board = leaderboard(scores)
    lines, told = grid(board), legend(board)
    doubted = [*between_attacks(scores), *other_settings(scores)]
    flags = [plain(f"{flag['flag']}: {flag['message']} {flag['what_to_do']}") for flag in doubted]
    write_csv(root / "leaderboard.csv", board.table)
    with replacing(root / "leaderboard.md") as work:
        doubts = "\n\nDoubts (docs/flags.md):\n\n" + "\n".join(f"- {flag}" for flag in flags) if flags else ""
        work.write_text(f"# Leaderboard\n\n{as_markdown(lines)}\n\n{told}{doubts}\n", encoding="utf-8")
    doubts = "".join(f"\n! {flag}" for flag in flags)
    said = f"{as_text(lines)}\n\n{told}{doubts}\n\nwritten: {root / 'leaderboard.csv'}, {root / 'leaderboard.md'}"
    if skipped:
        raise Incomplete(said, skipped)
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the leaderboard; returns the exit code, 2 for bad input."""

    def work(given: list[str]) -> str:
        return write(Path(parse(given, {"results": "results"})["results"]))

    return command(USAGE, __doc__, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
