"""The notebook of the docs runs as it stands: its code cells, in order, in one namespace."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ERASEBENCH_RESULTS", str(tmp_path))
    names: dict[str, object] = {}
    for cell in code_cells():
        tree = ast.parse(cell)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        if isinstance(last, ast.Expr):
            assert eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names) is not None
    said = capsys.readouterr().out
    assert "did you mean uce?" in said and "few_prompts" in said
    assert len(list(tmp_path.glob("runs/emoji/cat/*/*/seed0/run.json"))) == 2
