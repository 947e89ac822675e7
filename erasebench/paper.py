"""The tables and pictures of README and docs, from the runs in a results folder; nothing is measured here.

    python -m erasebench.paper table=NAME [format=markdown|latex|csv] [results=DIR] [model=A,B] [concept=...]
                               [method=...] [attack=...] [seed=...] [out=FILE]
    python -m erasebench.paper table=budget concept=cat method=uce out=FILE.png [results=DIR] [attack=...]

``methods``: one row per run, its concept, method and recipe, with the attack's column where runs have one. ``cost``:
seconds, peak memory and model evaluations of the erase step. ``paired``: the differences of every two methods on the
same prompts and noise, p-values adjusted for all that are shown (Holm), and what each allows one to say. ``attacks``:
one row per concept, method and attack, with what it spent and its best control; bold: shown to be better than that
(95 %). ``attack_matrix``: the same as concepts and attacks by methods. ``transfer``: prompts found on one model, tried
on others; bold: where they were found. ``disagreement``: what several papers printed about one method, concept and
attack, how far apart, and in which settings they differ (results/published.csv; needs no runs).
``budget``: a picture of the success of all attacks on one model after each image judged, controls dashed. Cells are the
erased model's value [95 % interval], shares in %; the original model has rows or columns of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasebench.command.arguments import Incomplete, command, parse

USAGE = (
    "usage: python -m erasebench.paper table=NAME [format=markdown|latex|csv] [results=DIR] [model=A,B] [concept=] "
    "[method=] [attack=] [seed=] [out=FILE]"
)
TABLES = ("methods", "cost", "paired", "attacks", "attack_matrix", "transfer", "disagreement", "budget")
FORMATS = ("markdown", "latex", "csv")
FILTERS: dict[str, list[str]] = {"model": [], "concept": [], "method": [], "attack": [], "seed": []}
DEFAULTS: dict[str, Any] = {"table": "", "format": "markdown", "results": "results", "out": "", **FILTERS}


def table(name: str, root: Path, wanted: Mapping[str, Sequence[str]], out: str, format: str = "markdown") -> str:
    """A table in a format, or the name of the file it was written to; of ``budget`` that of the picture.

    Raises:
        Incomplete: runs that are damaged are left out of it.
        OSError, ValueError: no runs, none that are wanted, or files that cannot be read.
    """
    import pandas as pd

    from erasebench.report import attack_tables, paired, readme_tables
    from erasebench.report.published import disagreement, read_published
    from erasebench.report.runs import read_runs
    from erasebench.report.tables import read_scores

    if name == "disagreement":
        return written(disagreement(read_published()), name, out, format)
    skipped: list[str] = []
    found = read_runs(root, skipped)
    if not any(run.is_(wanted) for run in found):
        asked = " ".join(f"{key}={','.join(values)}" for key, values in wanted.items())
        raise ValueError(f"{root / 'runs'} must hold what is asked for; got none with {asked}; leave a filter out")
    if name in ("methods", "cost"):
        lines = getattr(readme_tables, name)(found, wanted)
    elif name == "paired":
        scores = [read_scores(run.folder / "scores.parquet") for run in found if run.is_(wanted)]
        lines = paired.lines(paired.compare_methods(pd.concat(scores), methods=wanted.get("method", ())))
    elif name == "budget":
        lines = []
        attack_tables.draw_budget(attack_tables.cells(found, wanted), Path(out or "budget.png"))
    else:
        lines = getattr(attack_tables, name)(attack_tables.cells(found, wanted))
    said = written(lines, name, out, format) if lines else out or "budget.png"
    if skipped:
        raise Incomplete(said, skipped)
    return said


def written(lines: Sequence[Sequence[str]], name: str, out: str, format: str) -> str:
    """The lines as text, or, written to a file, its name."""
    from erasebench.report.latex import as_latex
    from erasebench.report.printing import as_csv, as_markdown
    from erasebench.store.files import replacing

    text = {"markdown": as_markdown, "csv": as_csv, "latex": as_latex}[format](lines)
    if not out:
        return text
    with replacing(Path(out)) as work:
        work.write_text(f"{text}\n", encoding="utf-8")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code, 2 for bad input."""

    def work(words: list[str]) -> str:
        given = parse(words, DEFAULTS, needed=["table"])
        if given["table"] not in TABLES:
            raise ValueError(f"table must be one of {', '.join(TABLES)}; got {given['table']!r}; see --help")
        if given["format"] not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {given['format']!r}")
        wanted = {key: given[key] for key in FILTERS if given[key]}
        return table(given["table"], Path(given["results"]), wanted, given["out"], given["format"])

    return command(USAGE, __doc__, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
