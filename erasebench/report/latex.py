"""A table as LaTeX: a ``table`` environment with booktabs, every text escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from erasebench.report.printing import Lines

PACKAGES = "% \\usepackage[T1]{fontenc}\n% \\usepackage{booktabs,textcomp}"
_CHARACTERS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": r"{[}", "]": r"{]}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "−": r"$-$", "†": r"\textdagger{}", "×": r"$\times$",
    "…": r"\dots{}", "–": "--", "—": "---", "·": r"$\cdot$",
}  # fmt: skip
_MARK = re.compile(r"\*\*(.+?)\*\*|\*(.+?)\*")


def escape(text: str) -> str:
    """A text that LaTeX prints as it is written; what no standard font has becomes a question mark.

    >>> escape("uce_v2 [lamb=0.1] 50 % ↓")
    'uce\\\\_v2 {[}lamb=0.1{]} 50 \\\\% $\\\\downarrow$'
    """
    one = re.sub(r"[\x00-\x1f\x7f]", " ", text)
    return "".join(_CHARACTERS.get(char, char if ord(char) < 0x250 else "?") for char in one)


def cell(text: str) -> str:
    """A cell, with Markdown's ``**best**`` and ``*said*`` as bold and emphasis.

    >>> cell("**70 [57, 80]**"), cell("*original model*")
    ('\\\\textbf{70 {[}57, 80{]}}', '\\\\emph{original model}')
    """
    out, last = "", 0
    for found in _MARK.finditer(text):
        bold, said = found.groups()
        word = rf"\textbf{{{escape(bold)}}}" if bold is not None else rf"\emph{{{escape(said)}}}"
        out += escape(text[last : found.start()]) + word
        last = found.end()
    return out + escape(text[last:])


def as_latex(lines: Lines, caption: str = "", label: str = "") -> str:
    """The whole environment, ready for ``\\input``; words to the left, numbers to the right.

    Args:
        lines: cells, heads first; every line as long as the first.
        caption, label: left out where empty.
    """
    numeric = re.compile(r"[-+*]*\d|(-|none)?$")
    right = [all(numeric.match(one) for one in column[1:]) for column in zip(*lines, strict=True)]
    spec = "".join("r" if r else "l" for r in right)
    body = [" & ".join(map(cell, line)) + r" \\" for line in lines]
    return environment(spec, body[0], body[1:], caption, label)


def environment(
    spec: str, head: str, body: Sequence[str], caption: str, label: str, packages: str = PACKAGES, shrink: bool = False
) -> str:
    """The environment around lines that are LaTeX already; ``shrink``: no wider than the text, by graphicx."""
    told = [rf"\caption{{{escape(caption)}}}"] if caption else []
    told += [rf"\label{{{label}}}"] if label else []
    begin = [packages, r"\begin{table}", r"\centering", r"\footnotesize", *told]
    inside = [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    if shrink:
        begin.append(r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%")
        inside[-1] += "}"
    return "\n".join([*begin, *inside, r"\end{table}"])
