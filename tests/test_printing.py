"""What is written for spreadsheets and Markdown is text there, whatever it holds."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasebench.report.printing import as_markdown, cell, plain, uncell
from erasebench.report.tables import write_csv

HOSTILE = [
    "=HYPERLINK(\"http://x\",1)", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "'=1", "\uff1d1+1",
    "=cmd|' /C calc'!A0",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_is_a_formula(tmp_path, text):
    frame = pd.DataFrame({"name": [text, None], text: ["a", "b"], "value": [-0.5, 1.0]})
    write_csv(tmp_path / "t.csv", frame)
    back = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert back.columns[1].startswith("'") and back.name[0].startswith("'") and back.name[1] == ""
    assert uncell(back.columns[1]) == uncell(back.name[0]) == text
    assert list(back.value) == [-0.5, 1.0]  # numbers stay numbers


@given(st.text())
def test_every_text_comes_back(text):
    assert uncell(cell(text)) == text
    assert not cell(text)[:1] or cell(text)[0] not in "=+-@\t\r\n"


@given(st.text(alphabet="ab[]()!<>|\\\n`*", max_size=20))
def test_a_cell_of_markdown_is_one_cell_without_html_links_or_images(text):
    lines = as_markdown([["head"], [text]]).splitlines()
    assert len(lines) == 3
    assert "<" not in lines[2] and "](" not in lines[2] and "![" not in lines[2]
    assert plain(text).count("\n") == 0
