"""Results as a dataset: whole, loadable by its card, without prompts, and never over somebody's files."""

import pandas as pd
import pytest
import yaml

from erasebench import export
from erasebench.report.tables import write_scores
from tests.test_board import world


@pytest.fixture
def results(tmp_path):
    for run, part in world().groupby("run"):
        write_scores(tmp_path / "r" / "runs" / str(run) / "scores.parquet", part)
    return tmp_path / "r"


def test_the_card_names_the_files_and_they_hold_everything(results, tmp_path, capsys):
    hub = tmp_path / "hub"
    for _ in range(2):  # an earlier export is replaced
        assert export.main([f"hub={hub}", f"results={results}"]) == 0
    assert "hf upload" in capsys.readouterr().out
    front = yaml.safe_load((hub / "README.md").read_text().split("---")[1])
    tables = {one["config_name"]: pd.read_parquet(hub / one["data_files"]) for one in front["configs"]}
    assert len(tables["scores"]) == len(world()) and set(tables["scores"].method) == {"good", "wreck", "weak"}
    assert {"mean", "low", "high"} <= set(tables["summary"]) and front["configs"][0]["default"]
    assert sorted(p.name for p in hub.rglob("*") if p.is_file()) == ["README.md", "scores.parquet", "summary.parquet"]


def test_damaged_runs_are_named_and_other_folders_left_alone(results, tmp_path, capsys):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "README.md").write_text("mine")
    assert export.main([f"hub={other}", f"results={results}"]) == 2
    assert (other / "README.md").read_text() == "mine" and "holds something else" in capsys.readouterr().err
    next(results.glob("runs/*/scores.parquet")).write_bytes(b"damaged")
    assert export.main([f"hub={tmp_path / 'hub'}", f"results={results}"]) == 1
    assert "left out" in capsys.readouterr().err
    assert export.main([f"hub={tmp_path / 'x'}", f"results={tmp_path / 'none'}"]) == 2
    assert export.main(["out=x"]) == 2 and not (tmp_path / "x").exists()
