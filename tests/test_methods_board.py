"""The big table's command: what it covers, what it plans, and the whole of it on three small cells."""

from __future__ import annotations

import pytest

from benchmarks import methods_board
from erasebench import conf_folder
from erasebench.command.typed import Typed

SMALL = ("model.steps=2", "evaluator=[classifier]", "prompts.n={target:3,paraphrase:0,neighbour:2,unrelated:3,coco:0}")


def cells(words):
    found, _ = Typed(tuple(words), (conf_folder().resolve(),), "config").cells()
    return [{part.partition("=")[0]: part.partition("=")[2] for part in cell} for cell in found]


def test_every_recipe_is_measured_on_every_concept_or_on_that_of_its_kind():
    found = [cell for words in methods_board.sweeps(methods_board.CONCEPTS, "", []) for cell in cells(words)]
    stems = {path.stem for path in (conf_folder() / "method").glob("*.yaml")}
    plain = [(c["method"], c["concept"]) for c in found if c["attack"] == "none"]
    assert len(plain) == len(set(plain)) == len([c for c in found if c["attack"] == "ringabell"])
    where = {stem: {concept for method, concept in plain if method == stem} for stem in stems}
    assert {s for s in stems if not where[s]} == {"checkpoint", "mace_celebrity", "speed_celebrity"}
    for stem, concepts in where.items():
        if stem.endswith(("_artists", "_style")):
            assert concepts == {"ink"}
        elif stem.endswith(("_nudity", "_unsafe")):
            assert concepts == {"gun"}
        elif concepts:
            assert concepts == set(methods_board.CONCEPTS), stem
    adaptive = [c for c in found if c["attack"] == "unlearndiffatk"]
    assert {c["concept"] for c in adaptive} == {"cat", "gun", "ink"}
    assert {c["method"] for c in adaptive} == {s for s in stems if len(where[s]) == 6}


def test_the_plan_tells_cells_images_and_evaluations(tmp_path, capsys):
    line = ["--dry-run", "--results", str(tmp_path), "--concepts", "cat", "--methods", "none,uce", *SMALL]
    assert methods_board.main(line) == 0
    said = capsys.readouterr().out
    assert "6 cells" in said and "nothing was run" in said
    assert "method=uce attack=ringabell: " in said and "method=uce attack=unlearndiffatk: " in said
    assert "time: unknown" in said and not any(tmp_path.iterdir())


@pytest.mark.slow
def test_three_small_cells_end_in_table_scatter_costs_and_pictures_and_the_same_line_reads_only(tmp_path, capsys):
    line = ["--results", str(tmp_path), "--concepts", "cat", "--methods", "none,uce,oracle", "--without", "adaptive",
            "attack=none", *SMALL]  # fmt: skip
    for _ in range(2):
        assert methods_board.main(line) == 0
    board = (tmp_path / "leaderboard.md").read_text()
    assert all(f"| {name}" in board for name in ("uce", "never knew (oracle)", "original model"))
    assert "| uce | cat |" in (tmp_path / "cost.md").read_text()
    assert (tmp_path / "compare_cat.png").exists() and list((tmp_path / "report").rglob("*tradeoff*.png"))
    assert "drawn" not in capsys.readouterr().err
    assert methods_board.main(["--pages", "--results", str(tmp_path), "--concepts", "cat,sun"]) == 0
