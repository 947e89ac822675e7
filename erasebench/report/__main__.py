"""The report: a folder of pages to browse, sort and filter, with every image; no server, no network.

    python -m erasebench.report [results=DIR] [out=DIR] [model=A,B] [concept=A,B] [method=A,B] [attack=A,B]
    python -m erasebench.report run=results/runs/emoji/cat/uce/none/seed0      that erased model alone

Written to ``results/report``; open its ``index.html``. Each erased model has a decision summary to print: what was
tried, what came back with intervals, what was not tried. Images of unsafe concepts are blurred until each is pressed;
``unsafe=false`` leaves them out, for a folder that is passed on. How to read it: docs/report.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasebench.command.arguments import Incomplete, command, parse

USAGE = (
    "usage: python -m erasebench.report [results=DIR] [out=DIR] [run=DIR] [model=A,B] [concept=] [method=] [attack=] "
    "[unsafe=true]"
)
FILTERS = ("model", "concept", "method", "attack")
DEFAULTS: dict[str, Any] = {
    "results": "results", "out": "", "run": "", "unsafe": True, **{name: list[str]() for name in FILTERS},
}  # fmt: skip


def report(root: Path, out: Path, wanted: dict[str, list[str]], *, unsafe: bool = True) -> str:
    """Write the pages; returns what is printed.

    Raises:
        Incomplete: runs that are damaged are left out of it.
        OSError, ValueError: no runs, none that can be read, or a filter that fits none.
    """
    from erasebench.report.site.gather import gather
    from erasebench.report.site.render import write

    skipped: list[str] = []
    found = gather(root, wanted, skipped)
    pages = write(found, out, skipped=skipped, unsafe=unsafe)
    only = [f"decision summary: {pages[1]}"] if len(pages) == 2 else []
    told = f"{len(found.cells)} cells, {len(found.checkpoints)} erased models"
    said = "\n".join([f"written: {pages[0]} ({told})", *only])
    if skipped:
        raise Incomplete(said, skipped)
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code, 2 for bad input."""

    def work(words: list[str]) -> str:
        given = parse(words, DEFAULTS)
        root, wanted = Path(given["results"]), {name: given[name] for name in FILTERS if given[name]}
        if given["run"]:
            root, wanted = _of_run(Path(given["run"]), wanted)
        return report(root, Path(given["out"] or root / "report"), wanted, unsafe=given["unsafe"])

    return command(USAGE, __doc__, arguments, work)


def _of_run(path: Path, wanted: dict[str, list[str]]) -> tuple[Path, dict[str, list[str]]]:
    """The results folder of a run, and the filters that show its erased model alone."""
    from erasebench.report.runs import find_run, recorded

    folder = find_run(path)
    folder = folder.parent if folder.name == "run.json" else folder
    if not (folder / "run.json").is_file():
        raise FileNotFoundError(
            f"run must be the folder of a finished run; found no {folder / 'run.json'}; check the path"
        )
    if wanted:
        raise ValueError(f"run= already says which model; got {', '.join(wanted)} as well; leave one out")
    run = recorded(folder / "run.json")
    root = next((parent.parent for parent in folder.resolve().parents if parent.name == "runs"), None)
    if root is None:
        raise ValueError(f"run must lie below a folder runs; got {folder}; give results=DIR and concept= instead")
    return root, {name: [run.names[name]] for name in ("model", "concept", "method", "recipe", "settings")}


if __name__ == "__main__":
    sys.exit(main())
