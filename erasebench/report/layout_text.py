"""A filled layout as people read it: Markdown, LaTeX or CSV, with what papers printed beside it in another colour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan

from erasebench.report.latex import environment, escape
from erasebench.report.layout_published import Printed
from erasebench.report.layout_tables import Shown, Table, Value
from erasebench.report.printing import as_csv, as_row, number, plain

COLOUR = "erasebenchpublished"
PACKAGES = (
    "% \\usepackage[T1]{fontenc}\n% \\usepackage{booktabs,graphicx,textcomp,xcolor}\n"
    f"\\providecolor{{{COLOUR}}}{{RGB}}{{0,90,181}}"
)
SPREAD = {
    "interval": "[95 % interval by text, from three concepts on by concept too]",
    "se": "± standard error: half of the 95 % interval by cluster over the quantile it was made with",
}


@dataclass(frozen=True)
class Line:
    """A line of texts: heads of the row, cells with their marks, the key of its source ("" if it was measured)."""

    block: str
    label: str
    cells: tuple[str, ...]
    marks: tuple[str, ...]
    source: str = ""


def heads(table: Table) -> list[str]:
    """The columns' heads, each with the direction that is better."""
    arrows = {None: "", True: " ↑", False: " ↓"}
    return [f"{one.title}{arrows[one.better]}" for one in table.columns]


def shown(value: Value | None, column: Shown, spread: str) -> str:
    """``2 [0, 7]``, ``2 ± 1`` or ``2``; ``-`` where nothing was measured, "too few" where clusters are for a spread."""
    if value is None:
        return "-"
    asked = column.asked
    scale = asked.scale * (value.n if asked.total else 1)
    digits = asked.decimals if asked.decimals is not None else 0 if asked.total else None
    few = value.n > 1 and spread != "none"
    mean, low, error = scale * value.value, scale * value.low, scale * value.error
    if asked.total and value.value >= 0 and low < 0:
        low = 0.0  # nobody counts fewer
    if spread == "interval":
        return number(mean, low, scale * value.high, column.unit, digits, few)
    if spread == "none" or error != error:
        return number(mean, nan, nan, column.unit, digits, few)
    return f"{number(mean, nan, nan, column.unit, digits)} ± {number(error, nan, nan, column.unit, digits)}"


def lines(table: Table, spread: str, printed: Iterable[Printed] = ()) -> list[Line]:
    """Measured lines, below those of each block what was printed of it."""
    printed = list(printed)
    found = []
    for block in dict.fromkeys(row.block for row in table.rows):
        for row in table.rows:
            if row.block == block:
                cells = [shown(v, c, spread) for v, c in zip(row.cells, table.columns, strict=True)]
                marks = tuple(value.mark if value else "" for value in row.cells)
                found.append(Line(block, row.label, tuple(cells), marks))
        for one in printed:
            if one.block == block:
                found.append(Line(block, one.label, one.cells, ("",) * len(one.cells), one.key))
    return found


def caption(table: Table, spread: str, found: Sequence[Line]) -> str:
    """What the cells are, of which concepts and how many images, and what the marks and the colour say."""
    counts = sorted(
        {v.n for row in table.rows for v, c in zip(row.cells, table.columns, strict=True) if v and not c.whole}
    )
    images = (
        f" {counts[0]} to {counts[-1]} images a cell."
        if len(counts) > 1
        else f" {counts[0]} images a cell."
        if counts
        else ""
    )
    told = [f"{table.layout.title} Model {table.model}{f', {table.task}' if table.task else ''}."]
    told.append(f"Concepts: {', '.join(table.concepts)}.{images}")
    if any(column.unit for column in table.columns):
        told.append("Shares in %.")
    if spread in SPREAD:
        told.append(f"{SPREAD[spread]}.")
    if any(mark for line in found for mark in line.marks):
        told.append(
            "Bold: best, underlined: second; methods that are not shown to be worse (paired on the same prompts and "
            "noise, 95 %, Holm over all pairs of the column) share a mark."
        )
    empty = [c.title for i, c in enumerate(table.columns) if not any(row.cells[i] for row in table.rows)]
    if empty:
        told.append(f"Not measured here (-): {', '.join(dict.fromkeys(empty))}.")
    if any(line.source for line in found):
        told.append(
            "Coloured or in italics, with their sources: numbers as others printed them, with their own prompts, "
            "detectors and checkpoints, not reproduced here; a range where one source prints several, † where the "
            "source leaves something open."
        )
    return " ".join(told)


def _headed(table: Table) -> list[str]:
    return [*(["concept"] if len(table.layout.rows) > 1 else []), "method", *heads(table)]


def markdown(table: Table, spread: str, found: Sequence[Line]) -> str:
    """The table with the best in bold, the second underlined, published lines in italics; its caption below it."""
    around = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    head = _headed(table)
    out = [as_row(head), as_row(["---"] * len(head))]
    for line in found:
        names = [*([line.block] if len(table.layout.rows) > 1 else []), line.label]
        texts = [_cell(text) for text in (*names, *line.cells)]
        if line.source:
            texts[len(names) - 1] += f" [{_cell(line.source)}]"
            texts = [*texts[: len(names) - 1], *(f"*{text}*" for text in texts[len(names) - 1 :])]
        else:
            marks = ("",) * len(names) + line.marks
            texts = [around[mark].format(text) for mark, text in zip(marks, texts, strict=True)]
        out.append(f"| {' | '.join(texts)} |")
    return "\n".join([*out, "", plain(caption(table, spread, found))])


def _cell(text: str) -> str:
    return plain(text).replace("|", "\\|").replace("*", "\\*")


def latex(table: Table, spread: str, found: Sequence[Line]) -> str:
    """A ``table`` environment: the best in bold, the second underlined, published lines coloured and cited."""
    around = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
    blocks = len(table.layout.rows) > 1
    body, last = list[str](), ("", "")
    for line in found:
        block, source = line.block, bool(line.source)
        if body and (block, str(source)) != last:
            body.append(r"\midrule" if block != last[0] or not blocks else r"\addlinespace")
        first = [escape(block if block != last[0] or not body else "")] if blocks else []
        last = (block, str(source))
        label, cells = escape(line.label), [around[m] % escape(t) for t, m in zip(line.cells, line.marks, strict=True)]
        if source:
            label, *cells = (rf"\textcolor{{{COLOUR}}}{{{text}}}" for text in (label, *cells))
            label += rf"~\cite{{{line.source}}}"
        body.append(" & ".join([*first, label, *cells]) + r" \\")
    spec = "l" * (1 + blocks) + "r" * len(table.columns)
    head = " & ".join(map(escape, _headed(table))) + r" \\"
    name = "-".join(re.sub(r"\W+", "-", part) for part in (table.layout.name, table.model, table.task) if part)
    return environment(spec, head, body, caption(table, spread, found), f"tab:{name}", PACKAGES, shrink=True)


def csv(parts: Sequence[tuple[Table, Sequence[Line]]]) -> str:
    """All tables as one, without marks: model, task and, last, the source of every line."""
    rows = [
        {
            "model": table.model,
            "task": table.task,
            "concept": line.block or "+".join(table.concepts),
            "method": line.label,
        }
        | dict(zip(_unique(heads(table)), line.cells, strict=True))
        | {"source": line.source or "measured"}
        for table, found in parts
        for line in found
    ]
    names = list(dict.fromkeys(name for row in rows for name in row if name != "source"))
    return as_csv([[*names, "source"], *([*(row.get(name, "-") for name in names), row["source"]] for row in rows)])


def _unique(names: Sequence[str]) -> list[str]:
    """The names, a number behind what stood there before."""
    return [f"{name} {names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]


def text(parts: Sequence[tuple[Table, Sequence[Line]]], spread: str, format: str) -> str:
    """All tables in a format."""
    if format == "csv":
        return csv(parts)
    return "\n\n".join({"markdown": markdown, "latex": latex}[format](table, spread, found) for table, found in parts)


def bibliography(bib: str, sources: Iterable[str]) -> str:
    """The entries of a BibTeX file with these keys, in its order.

    Raises:
        ValueError: a source that has no entry.
    """
    keys = set(sources)
    entries = {
        re.split(r"[{,]", one)[1].strip(): one.strip() for one in re.split(r"(?m)^(?=@)", bib) if one.startswith("@")
    }
    if missing := sorted(keys - set(entries)):
        raise ValueError(f"published.bib must have an entry for every source; got none for {missing[0]}; add it")
    told = [entry for key, entry in entries.items() if key in keys]
    return "\n\n".join(told) if told else "% nothing published is shown"
