"""How far the workers are: a file that ``erasebench status`` reads, a table on a terminal, lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasebench import progress
from erasebench.limits import read_json
from erasebench.report.printing import as_text
from erasebench.store.claims import born, machine, place, runs
from erasebench.store.files import replacing

EVERY = 1.0  # seconds between two looks
ROWS = 20  # cells shown
State = dict[str, Any]


def folder(root: Path) -> Path:
    return root / "cache" / "executor"


class Board:
    """The state of one command's workers, written for others once a second and removed at the end."""

    def __init__(self, root: Path) -> None:
        self.path = folder(root) / f"{os.getpid()}-{place()}.json"
        self._told = self._written = 0.0
        self._shown = 0  # lines that stand on the terminal
        self._me = {"machine": machine(), "pid": os.getpid(), "born": born(os.getpid()), "started": time.time()}

    def __enter__(self) -> Board:
        for path, state in read(self.path.parent.parent.parent):  # of killed commands
            if gone(state):
                path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)

    def tell(self, state: State, now: bool = False) -> None:
        """Write the state, and show it: a table that is drawn anew on a terminal, a line every 30 seconds elsewhere."""
        if not now and time.monotonic() - self._written < EVERY:
            return
        self._written, full = time.monotonic(), {**self._me, **state, "at": time.time()}
        with replacing(self.path) as work:
            work.write_text(json.dumps(full), encoding="utf-8")
        if progress.terminal():
            lines = table(full)
            print(f"\x1b[{self._shown}F\x1b[J" * bool(self._shown) + "\n".join(lines), file=sys.stderr, flush=True)
            self._shown = sum(line.count("\n") + 1 for line in lines)
        elif now or time.monotonic() - self._told > progress.EVERY:
            self._told = time.monotonic()
            progress.say(line(full))

    def apart(self) -> None:
        """Something else was printed: the table begins anew below it."""
        self._shown = 0


def line(state: Mapping[str, Any]) -> str:
    """The state in one line.

    >>> cells, workers = [{"state": "at work"}], [{"doing": "draw"}, {"doing": ""}]
    >>> counts = {"images": [32, 64], "lost": 0, "starting": 0}
    >>> line({"cells": cells, "workers": workers, **counts, "started": 1.0, "at": 9.0})
    'executor: 0 of 1 cells, 32 of 64 images, 1 of 2 workers busy, 8.0 s so far'
    """
    cells, workers = state["cells"], state["workers"]
    ended = sum(cell["state"] in ("done", "failed") for cell in cells)
    text = f"executor: {ended} of {len(cells)} cells, {state['images'][0]} of {state['images'][1]} images, "
    text += f"{sum(bool(w['doing']) for w in workers)} of {len(workers)} workers busy"
    text += f", {state['starting']} starting" if state["starting"] else ""
    text += f", {state['lost']} lost" if state["lost"] else ""
    return f"{text}, {progress.duration(state['at'] - state['started'])} so far"


def table(state: Mapping[str, Any]) -> list[str]:
    """The state as text: a line of sums, the cells, those at work first, and the workers."""
    cells = sorted(state["cells"], key=lambda cell: cell["state"] in ("done", "failed"))
    rows = [["cell", "state", "erase", "attack", "images", "scores"]]
    rows += [
        [c["label"] or "the run", c["state"], *(f"{c[k][0]}/{c[k][1]}" for k in ("erase", "attack", "draw", "score"))]
        for c in cells[:ROWS]
    ]
    lines = [line(state), as_text(rows)]
    if len(cells) > ROWS:
        lines.append(f"and {len(cells) - ROWS} cells more")
    if state["workers"]:
        heads = ["worker", "process", "on", "does", "for", "pieces"]
        people = [
            [w["node"], str(w["pid"]), w["device"], w["doing"] or "waits",
             progress.duration(max(0.0, state["at"] - w["since"])), str(w["pieces"])]
            for w in state["workers"]
        ]  # fmt: skip
        lines += ["", as_text([heads, *people])]
    return lines


def read(root: Path) -> list[tuple[Path, State]]:
    """The states in a results folder, the oldest first; damaged ones are left out."""
    found = []
    for path in sorted(folder(root).glob("*.json")):
        try:
            state = read_json(path)
            line(state)
            found.append((path, state))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
    return sorted(found, key=lambda pair: float(pair[1]["started"]))


def gone(state: Mapping[str, Any]) -> bool:
    """Whether the process behind a state has ended without a word; of another machine: after a day."""
    if state.get("machine") == machine():
        return not runs(int(state.get("pid", 0)), str(state.get("born", "")))
    return time.time() - float(state["at"]) > 24 * 3600
