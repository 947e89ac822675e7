"""What the store of a results folder holds: ``python -m erasebench.cache [results=DIR] [--check] [--prune [--yes]]``.

Without an option: its size by step and model, and what no run refers to. ``--check`` reads every byte and names what is
damaged. ``--prune`` says what it would delete: what no run refers to and a day has not touched, and what killed
processes left behind; ``--prune --yes`` deletes it. Step ``tables`` is what boards and tables derived from the runs: it
is signed, what of it is damaged is derived again by whoever asks for it, and what is no run's or cell's own is pruned
once a day has not asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from erasebench.command.arguments import Incomplete, Misused, command, parse
from erasebench.report import units
from erasebench.report.printing import as_text
from erasebench.report.runs import Run, read_runs
from erasebench.store import inventory
from erasebench.store.inventory import Entry

USAGE = "usage: python -m erasebench.cache [results=DIR] [--check] [--prune [--yes]]"
NOBODY = "no run"


def references(found: Iterable[Run]) -> tuple[dict[str, dict[str, set[str]]], list[Run]]:
    """Step -> key -> the models of the runs that refer to it; and the runs that do not say what they refer to."""
    used: dict[str, dict[str, set[str]]] = {}
    silent = []
    for run in found:
        stored = run.record.get("stored")
        if not isinstance(stored, dict):
            silent.append(run)
            continue
        for step, keys in stored.items():
            for key in keys:
                used.setdefault(step, {}).setdefault(str(key), set()).add(run.names["model"])
    return used, silent


def overview(found: Sequence[Entry], used: dict[str, dict[str, set[str]]]) -> str:
    """A table by step and model."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for entry in found:
        models = sorted(used.get(entry.step, {}).get(entry.key, ()))
        nobody = "" if entry.step in ("leftover", inventory.TABLES) else NOBODY
        place = (entry.step, ", ".join(models) or nobody)
        number, size = sums.get(place, (0, 0))
        sums[place] = (number + 1, size + entry.bytes)
    lines = [[step, model, str(n), megabytes(size)] for (step, model), (n, size) in sums.items()]
    total = megabytes(sum(entry.bytes for entry in found))
    return as_text([["step", "model", "entries", "MB"], *lines, ["all", "", str(len(found)), total]])


def megabytes(size: float) -> str:
    return f"{size / 2**20:.1f}"


def look(root: Path) -> tuple[list[Entry], dict[str, dict[str, set[str]]], list[str], bool]:
    """Entries, references, a line for each run that cannot be read, and whether some run does not say what it needs.

    Raises:
        FileNotFoundError: no store there.
    """
    if not (root / "cache").is_dir():
        raise FileNotFoundError(f"results - must be a results folder with a cache; {root} has none; give results=DIR")
    skipped: list[str] = []
    try:
        runs = read_runs(root, skipped)
    except FileNotFoundError:  # a store of runs that were killed
        runs = []
    used, silent = references(runs)
    for name, run in units.kept_of(root, runs).items():
        used.setdefault(inventory.TABLES, {})[name] = {run.names["model"]}
    return inventory.entries(root), used, skipped, bool(silent or skipped)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, check or prune; returns the exit code, 1 if something is damaged, 2 for bad input."""

    def work(words: list[str]) -> str:
        given = parse(words, {"results": "results", "check": False, "prune": False, "yes": False})
        if given["yes"] and not given["prune"]:
            raise Misused("yes - must go with --prune; got no --prune; add it, or leave --yes out")
        root = Path(given["results"])
        found, used, skipped, partly = look(root)
        if given["check"]:
            return _check(found, skipped)
        doomed = inventory.unused(found, used, partly)
        if given["prune"]:
            return _prune(doomed, given["yes"], partly)
        idle = f"{len(doomed)} of them ({megabytes(sum(e.bytes for e in doomed))} MB) could be pruned: --prune"
        return f"{overview(found, used)}\n\n{idle}"

    return command(USAGE, __doc__, arguments, work)


def _check(found: Sequence[Entry], skipped: Sequence[str]) -> str:
    bad = [f"{entry.path} {why}; what needs it makes it anew" for entry, why in inventory.damages(found)]
    found = [entry for entry in found if entry.step != inventory.TABLES]
    kept = sum(entry.step != "leftover" for entry in found)
    said = f"{kept} entries read, {megabytes(sum(e.bytes for e in found))} MB; {len(bad)} damaged"
    if bad or skipped:
        raise Incomplete(said, [*bad, *skipped])
    return said


def _prune(doomed: Sequence[Entry], sure: bool, partly: bool) -> str:
    lines = [f"{entry.step} {entry.key}: {megabytes(entry.bytes)} MB" for entry in doomed]
    size = megabytes(sum(entry.bytes for entry in doomed))
    if partly:
        lines.append(
            "some run is damaged or does not say what it refers to (an older version's): only leftovers and tables are "
            "pruned; delete its folder and run its cell again, which only reads what is stored"
        )
    if not sure:
        return "\n".join([*lines, f"{len(doomed)} entries, {size} MB would be deleted; --prune --yes deletes them"])
    for entry in doomed:
        inventory.remove(entry)
    return "\n".join([*lines, f"{len(doomed)} entries, {size} MB deleted"])


if __name__ == "__main__":
    sys.exit(main())
