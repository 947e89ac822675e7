"""How far the workers of ``executor=ray`` are that fill a results folder: cells, images, and what each worker does.

    erasebench status
    erasebench status results=/shared/results watch=5       again every 5 seconds, until Ctrl-C

Read from the results folder alone, from any machine that sees it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from erasebench.command.arguments import command, parse
from erasebench.command.errors import printable
from erasebench.executors import board

USAGE = "usage: erasebench status [results=results] [watch=SECONDS]"


def text(root: Path) -> str:
    """All that is known of a results folder's workers."""
    parts = []
    for _, state in board.read(root):
        where = f"process {state['pid']} on {str(state['machine']).split()[0]}"
        if board.gone(state):
            parts.append(f"{where} has ended without a word; the same command goes on from what is stored")
        else:
            parts.append("\n".join([where, *board.table(state)]))
    return "\n\n".join(parts) or f"nobody works for {root} through an executor"


def status(arguments: list[str]) -> str:
    """The text that ``erasebench status`` prints last."""
    given = parse(arguments, {"results": "results", "watch": 0.0})
    root = Path(given["results"])
    if not root.is_dir():
        raise ValueError(f"results - must be a results folder; found no {root}; check the path")
    while given["watch"] > 0:
        print(printable(text(root)), end="\n\n", flush=True, file=sys.stdout)
        time.sleep(given["watch"])
    return text(root)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the state; returns the exit code."""
    return command(USAGE, __doc__, arguments, status)
