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

Any other NAME is a layout: one of those below, or a yaml of your own, ``table=mine.yaml`` (docs/paper.md). They pool
over concepts and seeds as the leaderboard does and mark the best and the second best, with ties.
``spread=interval|se|none`` is what stands beside a value; ``published=true`` adds what papers printed, coloured and
cited; ``bib=FILE.bib`` writes the entries of these papers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasebench.command.arguments import Incomplete, command, parse

if TYPE_CHECKING:
    from erasebench.report.layouts import Layout

USAGE = (
    "usage: python -m erasebench.paper table=NAME [format=markdown|latex|csv] [results=DIR] [model=A,B] [concept=] "
    "[method=] [attack=] [seed=] [out=FILE] [spread=interval|se|none] [published=true] [bib=FILE.bib]"
)
TABLES = ("methods", "cost", "paired", "attacks", "attack_matrix", "transfer", "disagreement", "budget")
FORMATS = ("markdown", "latex", "csv")
FILTERS: dict[str, list[str]] = {"model": [], "concept": [], "method": [], "attack": [], "seed": []}
DEFAULTS: dict[str, Any] = {"table": "", "format": "markdown", "results": "results", "out": "", **FILTERS}
OF_LAYOUTS: dict[str, Any] = {"spread": "", "published": False, "bib": ""}


def table(name: str, root: Path, wanted: Mapping[str, Sequence[str]], out: str, format: str = "markdown") -> str:
    """A table in a format, or the name of the file it was written to; of ``budget`` that of the picture.

    Raises:
        Incomplete: runs that are damaged are left out of it.
        OSError, ValueError: no runs, none that are wanted, or files that cannot be read.
    """
    from erasebench.report import kept
    from erasebench.report.published import disagreement, read_published

    if name == "disagreement":
        return written(disagreement(read_published()), name, out, format)
    if name in ("methods", "cost", "paired", "attacks", "attack_matrix"):
        made = kept.once(root, "table", [str(root), name, wanted], lambda: _lines(name, root, wanted, ""))
    else:  # they read more than the tables of these runs
        made = _lines(name, root, wanted, out)
    said = written(made["lines"], name, out, format) if made["lines"] else out or "budget.png"
    if made["skipped"]:
        raise Incomplete(said, made["skipped"])
    return said


def _lines(name: str, root: Path, wanted: Mapping[str, Sequence[str]], out: str) -> dict[str, list[Any]]:
    """A table's lines, and a line for each run that is left out of it."""
    from erasebench.report import attack_tables, paired, readme_tables
    from erasebench.report.runs import read_runs
    from erasebench.report.tables import read_coded

    skipped: list[str] = []
    found = read_runs(root, skipped)
    if not any(run.is_(wanted) for run in found):
        asked = " ".join(f"{key}={','.join(values)}" for key, values in wanted.items())
        raise ValueError(f"{root / 'runs'} must hold what is asked for; got none with {asked}; leave a filter out")
    lines: list[list[str]] = []
    if name in ("methods", "cost"):
        lines = getattr(readme_tables, name)(found, wanted)
    elif name == "paired":
        scores = read_coded([run.folder / "scores.parquet" for run in found if run.is_(wanted)])
        lines = paired.lines(paired.compare_methods(scores, methods=wanted.get("method", ())))
    elif name == "budget":
        attack_tables.draw_budget(attack_tables.cells(found, wanted), Path(out or "budget.png"))
    else:
        lines = getattr(attack_tables, name)(attack_tables.cells(found, wanted))
    return {"lines": lines, "skipped": skipped}


def layout(name: str, root: Path, wanted: Mapping[str, Sequence[str]], given: Mapping[str, Any]) -> str:
    """A layout's tables in a format, or the name of the file they were written to.

    Args:
        name: of a layout that is shipped, or the path of a yaml.
        root: the results folder.
        wanted: filters.
        given: out, format and :data:`OF_LAYOUTS`.

    Raises:
        Incomplete: runs that are damaged are left out of it.
        OSError, ValueError: no such layout, nothing to fill it with, or files that cannot be read.
    """
    from erasebench.report import kept, layout_text
    from erasebench.report.layouts import SPREADS, read_layout, shipped
    from erasebench.report.published import published_folder
    from erasebench.store.files import file_hash

    path = shipped().get(name, name)
    asked = read_layout(path)
    spread = given["spread"] or asked.spread
    if spread not in SPREADS:
        raise ValueError(f"spread must be one of {', '.join(SPREADS)}; got {spread!r}")
    if given["bib"] and not given["published"]:
        raise ValueError("bib - must come with published=true; got none that is cited; add published=true")
    files = [path, *(published_folder() / one for one in ("published.csv", "published.bib") if given["published"])]
    depends = [str(root), asked.name, wanted, spread, given["published"], given["format"], *map(file_hash, files)]
    made = kept.once(root, "layout", depends, lambda: _filled(asked, root, wanted, spread, given))
    if given["bib"]:
        bib = (published_folder() / "published.bib").read_text(encoding="utf-8")
        saved(layout_text.bibliography(bib, made["sources"]), given["bib"])
    said = saved(made["text"], given["out"])
    if made["skipped"]:
        raise Incomplete(said, made["skipped"])
    return said


def _filled(
    asked: Layout, root: Path, wanted: Mapping[str, Sequence[str]], spread: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """A layout's text, the keys of what it cites, and a line for each run that is left out of it."""
    from erasebench.report import layout_published, layout_tables, layout_text
    from erasebench.report.published import read_published
    from erasebench.report.runs import read_runs

    skipped: list[str] = []
    found = [run for run in read_runs(root, skipped) if run.is_(wanted)]
    filled = layout_tables.fill(asked, *layout_tables.wanted_scores(found, asked), order=wanted.get("method", ()))
    known = read_published() if given["published"] else None
    parts = [
        (one, layout_text.lines(one, spread, [] if known is None else layout_published.printed(one, known)))
        for one in filled
    ]
    text = layout_text.text(parts, spread, given["format"])
    sources = sorted({line.source for _, lines in parts for line in lines} - {""})
    return {"text": text, "sources": sources, "skipped": skipped}


def written(lines: Sequence[Sequence[str]], name: str, out: str, format: str) -> str:
    """The lines as text, or, written to a file, its name."""
    from erasebench.report.latex import as_latex
    from erasebench.report.printing import as_csv, as_markdown

    return saved({"markdown": as_markdown, "csv": as_csv, "latex": as_latex}[format](lines), out)


def saved(text: str, out: str) -> str:
    """The text, or, written to a file, its name."""
    from erasebench.store.files import replacing

    if not out:
        return text
    with replacing(Path(out)) as work:
        work.write_text(f"{text}\n", encoding="utf-8")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code, 2 for bad input."""

    from erasebench.report.layouts import about, shipped

    def work(words: list[str]) -> str:
        given = parse(words, DEFAULTS | OF_LAYOUTS, needed=["table"])
        name, known = given["table"], [*TABLES, *shipped()]
        if name not in known and not name.endswith((".yaml", ".yml")):
            raise ValueError(f"table must be one of {', '.join(known)}, or a yaml; got {name!r}; see --help")
        if given["format"] not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {given['format']!r}")
        wanted = {key: given[key] for key in FILTERS if given[key]}
        if name not in TABLES:
            return layout(name, Path(given["results"]), wanted, given)
        if other := [key for key, value in OF_LAYOUTS.items() if given[key] != value]:
            raise ValueError(
                f"{other[0]} - must come with a layout; got table={name}; choose among {', '.join(shipped())}"
            )
        return table(name, Path(given["results"]), wanted, given["out"], given["format"])

    told = "\n".join(f"    {name:<12}{about(path)}" for name, path in shipped().items())
    return command(USAGE, f"{(__doc__ or '').strip()}\n\nLayouts:\n{told}", arguments, work)


if __name__ == "__main__":
    sys.exit(main())
