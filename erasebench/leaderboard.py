"""The leaderboard: methods pooled over concepts and seeds, ranked only where a difference is shown.

    python -m erasebench.leaderboard [results=DIR] [model=A,B] [methods=A,B] [concepts=A,B] [attack=A,B]

One board per model and task, the un-erased model always in it, from the tables alone. Writes ``leaderboard.csv`` (full
precision), ``leaderboard.md`` and ``leaderboard.html`` into the results folder, and every cell behind it as
``leaderboard_cells.csv``. How to read it: docs/leaderboard.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasebench.command.arguments import Incomplete, command, parse

USAGE = "usage: python -m erasebench.leaderboard [results=DIR] [model=A,B] [methods=] [concepts=] [attack=]"
FILTERS = {"model": "model", "methods": "method", "concepts": "concept", "attack": "attack"}  # word -> column


def write(root: Path, wanted: Mapping[str, Sequence[str]] | None = None) -> str:
    """Write the files into the results folder; returns what is printed.

    Args:
        root: the results folder.
        wanted: column of :data:`FILTERS` -> its values.

    Raises:
        Incomplete: runs that are damaged are left out of it.
        OSError, ValueError: no runs, none that can be read, or a filter that fits none.
    """
    from erasebench.report import kept
    from erasebench.store.files import replacing

    made = kept.once(root, "leaderboard", [str(root), wanted], lambda: _made(root, wanted or {}))
    for name, text in made["files"].items():
        with replacing(root / name) as work:
            work.write_text(text, encoding="utf-8", newline="")
    if made["skipped"]:
        raise Incomplete(made["said"], made["skipped"])
    return str(made["said"])


def _made(root: Path, wanted: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The files' texts by name, what is said, and a line for each run that is left out."""
    from erasebench.report import board_text
    from erasebench.report.gathering import gathered
    from erasebench.report.leaderboard import board_of, grid, legend
    from erasebench.report.printing import as_markdown, as_text, plain
    from erasebench.report.tables import csv_text

    skipped: list[str] = []
    all_of_it = gathered(root, wanted, filtered, skipped)
    found, cells = all_of_it.boards, board_of(all_of_it.summaries)
    lines = grid(cells)
    doubts = [plain(f"{flag['flag']}: {flag['message']} {flag['what_to_do']}") for flag in all_of_it.doubts]
    told_below = "\n".join(map(plain, legend(cells).split("\n")))
    below = f"## Cells\n\n{as_markdown(lines)}\n\n{told_below}"
    listed = f"\n\nDoubts (docs/flags.md):\n\n{chr(10).join(f'- {doubt}' for doubt in doubts)}" if doubts else ""
    texts = {
        "leaderboard.csv": csv_text(board_text.wide(found)),
        "leaderboard_cells.csv": csv_text(cells.table),
        "leaderboard.md": f"# Leaderboard\n\n{board_text.markdown(found)}\n\n{below}{listed}\n",
        "leaderboard.html": board_text.page(found, lines, doubts),
    }
    told = "\n\n".join(f"{one.name}\n{as_text(board_text.grid(one))}\n{board_text.legend(one)}" for one in found)
    files = ", ".join(str(root / name) for name in texts)
    said = f"{told}\n\n{board_text.LEGEND}{''.join(f'{chr(10)}! {doubt}' for doubt in doubts)}\n\nwritten: {files}"
    return {"files": texts, "said": said, "skipped": skipped}


def filtered(scores: Any, wanted: Mapping[str, Sequence[str]]) -> Any:
    """The rows with the wanted values; the plain prompts of every attack's runs stay, and so does the null method.

    Raises:
        ValueError: a value that nothing has, with those there are.
    """
    from erasebench.report.runs import NOTHING

    for name, values in wanted.items():
        column = FILTERS[name]
        there = sorted(set(scores[column]))
        if absent := [value for value in values if value not in there]:
            raise ValueError(f"{name} must be one of {', '.join(there)}; got {absent[0]!r}; leave it out for all")
        keep = scores[column].isin([*values, *([NOTHING] if column in ("method", "attack") else [])])
        scores = scores[keep]
    if not len(scores):
        told = " ".join(f"{name}={','.join(values)}" for name, values in wanted.items())
        raise ValueError(f"{told} together must fit a run; none does; leave one out")
    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and write the leaderboard; returns the exit code, 2 for bad input."""

    def work(words: list[str]) -> str:
        given = parse(words, {"results": "results", **{name: list[str]() for name in FILTERS}})
        return write(Path(given["results"]), {name: given[name] for name in FILTERS if given[name]})

    return command(USAGE, __doc__, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
