"""Tables as LaTeX: what is written is what is printed, and a real TeX takes it."""

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasebench import paper
from erasebench.report.latex import as_latex, cell, escape

NASTY = r"""a_b & 50 % #1 $x$ {y} ~ ^ \input{/etc/passwd} < > | "q" [0, 7] ↑ ↓ ± − † × … – — · é ß 火 """ + "\n\t\x00"


@given(st.text())
def test_no_text_is_a_command(text):
    out = escape(text)
    for known in ("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar",
                  "textquotedbl", "textdagger", "uparrow", "downarrow", "pm", "times", "dots", "cdot"):  # fmt: skip
        out = out.replace(f"\\{known}", "")
    for mark in "{}$&%#_":
        out = out.replace(f"\\{mark}", "")
    assert "\\" not in out and not set(out) & set("&%#_~^\n\r\t\x00")


def test_marks_of_markdown_become_commands():
    assert cell("**7**") == r"\textbf{7}" and cell("*x_y*") == r"\emph{x\_y}" and cell("2 * 3") == "2 * 3"


def test_a_table_has_rules_and_aligned_columns():
    text = as_latex([["method", "target"], ["uce", "0 [0, 7]"]], caption="50 %", label="tab:x")
    assert r"\begin{tabular}{lr}" in text and r"\caption{50 \%}" in text and r"\label{tab:x}" in text
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


def test_an_unknown_format_is_one_line(capsys):
    assert paper.main(["table=disagreement", "format=word"]) == 2
    assert "format must be one of markdown, latex, csv; got 'word'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex (Debian: texlive-latex-recommended)")
def test_a_real_tex_compiles_it(tmp_path):
    lines = [["name", "value"], [NASTY, "1"], ["**best**", NASTY]]
    out = tmp_path / "d.tex"
    assert paper.main(["table=disagreement", "format=latex", f"out={out}"]) == 0
    body = as_latex(lines, caption=NASTY) + "\n" + out.read_text().replace(r"\footnotesize", r"\tiny")
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,textcomp}\begin{document}"
    (tmp_path / "all.tex").write_text(f"{head}\n{body}\n\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 5000
