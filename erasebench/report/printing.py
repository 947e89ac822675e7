"""One printer of tables: lines of cells, heads first, as text for a terminal or as Markdown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

Lines = Sequence[Sequence[str]]

_NUMBER = re.compile(r"[-+*]*\d|(-|none|)$")  # 12.5 [11, 14], **70 ...**, -, none, or nothing


def as_text(lines: Lines, rule: bool = True) -> str:
    """Aligned columns: numbers to the right, words to the left.

    Args:
        lines: cells, heads first; every line as long as the first.
        rule: draw a line under the heads.

    >>> print(as_text([["method", "target"], ["uce", "0 [0, 7]"], ["none", "100 [93, 100]"]]))
    method         target
    ---------------------
    uce          0 [0, 7]
    none    100 [93, 100]
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [all(_NUMBER.match(cell) for cell in column[1:]) for column in zip(*lines, strict=True)]
    body = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([body[0], *(["-" * max(map(len, body))] if rule else []), *body[1:]])


def as_markdown(lines: Lines) -> str:
    """The same table in Markdown.

    >>> print(as_markdown([["method", "target"], ["a|b", "0"]]))
    | method | target |
    | --- | --- |
    | a\\|b | 0 |
    """
    return "\n".join(map(as_row, [lines[0], ["---"] * len(lines[0]), *lines[1:]]))


def as_csv(lines: Lines) -> str:
    """The same table as CSV, without marks of Markdown, and with no formula in it.

    >>> print(as_csv([["method", "target"], ["*none*", "0 [0, 7]"]]))
    method,target
    none,"0 [0, 7]"
    """
    text = io.StringIO()
    marks = re.compile(r"^\*{1,2}(.*?)\*{1,2}$")
    csv.writer(text, lineterminator="\n").writerows([cell(marks.sub(r"\1", one)) for one in line] for line in lines)
    return text.getvalue().rstrip("\n")


def as_row(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(plain(one).replace("|", "\\|") for one in cells) + " |"


def plain(text: str) -> str:
    """A text that Markdown shows as it is written: one line, no HTML, no link, no image.

    >>> print(plain("a <b>\\n![x](http://y)"))
    a &lt;b> !\\[x]\\(http://y)
    """
    one = re.sub(r"[\x00-\x1f\x7f\u2028\u2029]", " ", str(text)).replace("<", "&lt;")
    return one.replace("![", "!\\[").replace("](", "]\\(")


# What a spreadsheet takes for a formula, whatever stands before it that it skips
_FORMULA = re.compile(r"'*[\s\x00]*[=+\-@\uff1d\uff0b\uff0d\uff20]|'*[\t\r\n]")


def cell(text: Any) -> Any:
    """A text as a cell of a CSV that a spreadsheet reads as text: what could be a formula is led by an apostrophe.

    >>> cell("=1+1"), cell("cat"), cell(-0.5), uncell(cell("=1+1")), uncell(cell("'=1"))
    ("'=1+1", 'cat', -0.5, '=1+1', "'=1")
    """
    return f"'{text}" if isinstance(text, str) and _FORMULA.match(text) else text


def uncell(text: Any) -> Any:
    """The text of a :func:`cell`."""
    return text[1:] if isinstance(text, str) and text.startswith("'") and _FORMULA.match(text) else text


def too_few(row: Any) -> bool:
    """Whether a row of a summary lacks an interval because there are too few clusters or trainings for one."""
    return bool(row["n"] > 1 and (row["clusters"] < 3 or row["trainings"] == 2))


def number(value: float, low: float, high: float, unit: str = "", digits: int | None = None, few: bool = False) -> str:
    """A value with its interval: ``64 [50, 76]`` in percent, ``25.5 [24.9, 26.1]`` otherwise, ``-`` for NaN.

    ``few``: where there is no interval, clusters are too few for one, which is then said.

    >>> number(0.644, 0.5, 0.76, "%"), number(25.51, float("nan"), float("nan")), number(float("nan"), 0, 1)
    ('64 [50, 76]', '25.5', '-')
    >>> number(0.5, float("nan"), float("nan"), "%", few=True)
    '50 [too few]'
    """
    scale = 100 if unit == "%" else 1
    digits = (0 if unit == "%" else 1) if digits is None else digits
    if value != value:  # NaN
        return "-"
    shown = f"{scale * value:.{digits}f}"
    if low != low:
        return f"{shown} [too few]" if few else shown
    return f"{shown} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
