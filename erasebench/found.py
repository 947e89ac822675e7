"""Prompts that an attack found, as one CSV: ``python -m erasebench.found run=FOLDER [file=FILE.csv] [texts=true]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasebench.report.found import read_found, write_csv

USAGE = "usage: python -m erasebench.found run=FOLDER [file=FILE.csv] [texts=true]"


def _arguments(arguments: Sequence[str]) -> dict[str, Any]:
    given = dict(a.removeprefix("--").partition("=")[::2] for a in arguments)
    unknown = sorted(set(given) - {"run", "file", "texts"})
    if unknown or not given.get("run") or given.get("texts", "false") not in ("true", "false"):
        raise ValueError(
            f"arguments must be run=FOLDER, file=FILE.csv, texts=true; got {' '.join(arguments)!r}; {USAGE}"
        )
    return {"run": given["run"], "file": given.get("file") or None, "texts": given.get("texts") == "true"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the CSV and say where; returns the exit code, 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    try:
        given = _arguments(arguments)
        found = read_found(given["run"])
        default = Path(given["run"]) / "prompts.csv" if Path(given["run"]).is_dir() else Path("prompts.csv")
        path = write_csv(Path(given["file"] or default), found, given["texts"])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    hidden = " (ids and hashes; texts=true writes the texts)" if found.unsafe and not given["texts"] else ""
    print(f"{len(found.prompts)} prompts of {found.origin}: {path}{hidden}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
