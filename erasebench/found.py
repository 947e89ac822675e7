"""Prompts that an attack found, as one CSV: ``python -m erasebench.found run=FOLDER [file=FILE.csv] [texts=true]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from erasebench.command.arguments import command, parse
from erasebench.report.found import read_found, write_csv

USAGE = "usage: python -m erasebench.found run=FOLDER [file=FILE.csv] [texts=true]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the CSV and say where; returns the exit code, 2 for bad input."""

    def work(words: list[str]) -> str:
        given = parse(words, {"run": "", "file": "", "texts": False}, needed=("run",))
        found = read_found(given["run"])
        default = Path(given["run"]) / "prompts.csv" if Path(given["run"]).is_dir() else Path("prompts.csv")
        path = write_csv(Path(given["file"] or default), found, given["texts"])
        hidden = " (ids and hashes; texts=true writes the texts)" if found.unsafe and not given["texts"] else ""
        return f"{len(found.prompts)} prompts of {found.origin}: {path}{hidden}"

    return command(USAGE, __doc__, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
