"""The leaderboard: from tables alone, without torch, versions apart, bad input in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from erasebench.leaderboard import main
from erasebench.report.intervals import wilson
from erasebench.report.leaderboard import OWN, grid
from erasebench.report.leaderboard import leaderboard as board
from erasebench.report.tables import CELL, scores_frame, write_scores
from erasebench.types import Score
from tests.cells import HEADLINES, cell

ROOT = Path(__file__).resolve().parents[1]


def scores(method, *, target=0.1, hm=80.0, version=1, concept="cat", attack="none", run="", judge="j", n=50):
    """Scores of one run: a rate on target prompts, accuracy 1 on unrelated ones, a harmonic mean, FIDs, CLIP scores."""
    parts = []
    for side, rate in (("erased", target), ("original", 1.0)):

        def each(evaluator, metric, group, value, side=side):
            return [
                Score(
                    evaluator=evaluator,
                    metric=metric,
                    group=group,
                    prompt_id=f"{group}-{i}",
                    value=value(i),
                    judge=judge if evaluator == "classifier" else "",
                    higher_is_better=group == "unrelated",
                )
                for i in range(n)
            ]

        whole = [
            Score(
                evaluator="spillover",
                metric=f"hm.{judge}",
                value=hm,
                group="all",
                low=hm - 5,
                high=hm + 5,
                judge=judge,
                higher_is_better=True,
            ),
            Score(evaluator="fid", metric="fid.j.vs_original.n50", value=1.0, group="kept", higher_is_better=False),
            Score(
                evaluator="fid",
                metric="fid.j.vs_real.n50",
                value=12.5,
                group="kept",
                low=11.0,
                high=14.0,
                higher_is_better=False,
            ),
        ]
        rows = each("classifier", f"concept_present.{judge}.top1", "target", lambda i, rate=rate: float(i < rate * n))
        rows += each("classifier", f"accuracy.{judge}.top1", "unrelated", lambda i: 1.0)
        rows += each("clip_score", "clip_score.m", "unrelated", lambda i: 25.0 + i % 2)
        rows += each("clip_score", "clip_score.m", "target", lambda i: 10.0)
        parts.append(
            scores_frame(
                rows + whole, run=run or f"{concept}/{method}/{attack}/{version}", side=side, headlines=HEADLINES,
                cell=cell(concept=concept, method=method, attack=attack),
                versions={"classifier": version, "spillover": 1, "fid": 1, "clip_score": 1},
            )
        )  # fmt: skip
    return pd.concat(parts)


def leaderboard(scores):
    return board(scores).table


def test_a_row_holds_each_number_with_its_interval_and_its_base():
    table = leaderboard(scores("uce"))
    assert list(table.columns[: len(CELL) + 6]) == [*CELL, *OWN] and len(table) == 1
    row = table.iloc[0]
    assert (row.method, row.judge, row.n, row.versions) == (
        "uce",
        "j",
        50,
        "classifier 1, clip_score 1, fid 1, spillover 1",
    )
    assert (row.target, row.target_low, row.target_high, row.target_base) == (0.1, *wilson(5, 50), 1.0)
    assert (row.unrelated, row["clip"], row.clip_metric) == (1.0, 25.5, "clip_score.m on unrelated")
    assert (row.fid, row.fid_low, row.fid_metric) == (
        12.5,
        11.0,
        "fid.j.vs_real.n50 on kept",
    )  # real images before the original's
    assert (row.hm, row.hm_low, row.hm_high) == (80.0, 75.0, 85.0)
    assert row.clip_score_its_name == 10.0 and not {"attack_rate", "paraphrase"} & set(table.columns)


def test_the_block_s_own_headline_ranks_and_ties_are_ties():
    table = leaderboard(pd.concat([
        scores("uce", target=0.1, hm=50.0), scores("rece", target=0.02, hm=1.0), scores("none", target=1.0, hm=99.0),
        scores("esd", target=0.5), scores("uce", concept="ant"),
    ]))  # fmt: skip
    assert table[["concept", "method", "rank"]].to_numpy().tolist() == [
        ["ant", "uce", 1], ["cat", "rece", 1], ["cat", "uce", 1], ["cat", "esd", 3], ["cat", "none", 4],
    ]  # fmt: skip
    assert set(table.ranked_by) == {"target"} and table.resolves.between(0.05, 0.3).all()


def test_without_rates_the_mean_headline_ranks_and_overlap_is_a_tie():
    rows = [scores("uce", hm=50.0), scores("rece", hm=90.0), scores("esd", hm=92.0)]
    table = leaderboard(pd.concat([part[part.evaluator == "spillover"] for part in rows]))
    assert table[["method", "rank"]].to_numpy().tolist() == [["esd", 1], ["rece", 1], ["uce", 3]]


def test_an_attack_block_is_ranked_by_the_attack():
    def under(method, target, attack):
        rows = scores(method, target=target, attack="p4d")
        hit = rows[rows.metric.str.startswith("concept_present")]
        new = hit.assign(group="attack", place=30, label="attack", head="attack")
        return pd.concat([rows, new.assign(value=[float(i < attack * 50) for i in range(50)] * 2)])

    table = leaderboard(pd.concat([under("uce", 0.0, 0.9), under("rece", 0.4, 0.1)]))
    assert table[["method", "rank", "ranked_by"]].to_numpy().tolist() == [
        ["rece", 1, "attack_rate"], ["uce", 2, "attack_rate"],
    ]  # fmt: skip


def test_evaluator_versions_and_judges_get_rows_of_their_own():
    table = leaderboard(pd.concat([scores("uce", target=0.0), scores("uce", target=0.2, version=2)]))
    assert table.target.tolist() == [0.0, 0.2] and table.n.tolist() == [50, 50] and table.versions.nunique() == 2
    two = leaderboard(pd.concat([scores("uce", run="a"), scores("uce", judge="k", target=0.5, run="b")]))
    assert two[["judge", "target"]].to_numpy().tolist() == [["j", 0.1], ["k", 0.5]]


def test_seeds_of_one_cell_are_pooled():
    row = leaderboard(pd.concat([scores("uce", target=0.0, run="a"), scores("uce", target=0.2, run="b")])).iloc[0]
    assert (row.n, row.target, row.target_high) == (100, 0.1, wilson(10, 100)[1])


def attacked(judge, outcomes, method="uce"):
    """Rows of the evaluator asr: metric -> one 0 or 1 per prompt, on the erased model; all 1 on the original."""
    parts = []
    for side in ("erased", "original"):
        rows = [
            Score(evaluator="asr", metric=f"{name}.{judge}", group="attack", prompt_id=f"{name}-{i}",
                  value=float(v if side == "erased" else 1), judge=judge, higher_is_better=False)
            for name, values in outcomes.items() for i, v in enumerate(values)
        ]  # fmt: skip
        parts.append(
            scores_frame(rows, run=f"cat/{method}/p4d/1", cell=cell(method=method, attack="p4d"), side=side,
                         versions={"asr": 1}, headlines=HEADLINES)
        )  # fmt: skip
    return pd.concat(parts)


def test_attack_success_is_the_row_s_own_judge_s():
    run = "cat/uce/p4d/1"
    found = {"pre_asr": [1, 0, 0, 0], "asr": [1, 1, 1, 0], "asr_on_safe": [1, 1, 0], "asr_any_of_m": [1, 1, 0, 0]}
    parts = [scores("uce", attack="p4d", run=run), attacked("j", found), attacked("k", {"asr": [0, 0]})]
    table = leaderboard(pd.concat(parts))
    assert (
        table.judge.tolist() == ["j", "k"] and table.asr.tolist() == [0.75, 0.0] and table.fid.tolist() == [12.5, 12.5]
    )
    row = table.iloc[0]
    for name, hits, n in (("pre_asr_plain_prompts", 1, 4), ("asr", 3, 4), ("asr_on_safe_prompts", 2, 3)):
        assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == (hits / n, *wilson(hits, n))
        assert row[f"{name}_base"] == 1.0
    heads, *lines = grid(board(pd.concat(parts)))
    assert dict(zip(heads, lines[0], strict=True))["ASR ↓"] == "75 [30, 95] (100)"
    assert not any("safe" in head for head in heads)


def test_runs_without_asr_have_no_column_of_it():
    assert "asr" not in leaderboard(scores("uce")) and "ASR ↓" not in grid(board(scores("uce")))[0]


def test_settings_and_budget_are_shown_where_they_say_something():
    plain = scores("uce")
    assert not {"settings", "budget"} & set(grid(board(plain))[0]) and "strength" in grid(board(plain))[0]
    other = scores("uce", run="other").assign(settings="steps=2", budget="ringabell_emoji")
    heads, *lines = grid(board(pd.concat([plain, other])))
    assert {"settings", "budget"} <= set(heads) and len(lines) == 2  # never pooled
    table = leaderboard(pd.concat([plain, other.assign(strength="embedding")]))
    assert sorted(table.strength) == ["embedding", "text"]


def test_runs_without_target_prompts_have_rows():
    rows = scores("uce")
    (row,) = leaderboard(rows[rows.evaluator.isin(["fid", "clip_score"]) & (rows.group != "target")]).to_dict("records")
    assert (row["judge"], row["n"], row["clip"], row["fid"]) == ("", 50, 25.5, 12.5)
    with_kept = leaderboard(rows[rows.group == "unrelated"])
    assert with_kept[["judge", "unrelated", "n"]].to_numpy().tolist() == [["j", 1.0, 50]]


def test_the_command_prints_and_writes_the_table_without_torch(tmp_path):
    for method in ("uce", "rece"):
        write_scores(tmp_path / "runs" / "emoji" / "cat" / method / "none" / "seed0" / "scores.parquet", scores(method))
    code = (
        "import sys; from erasebench.leaderboard import main;"
        "import erasebench.paper, erasebench.report.attack_tables, erasebench.report.readme_tables;"
        "loaded = {'scipy'} & set(sys.modules); code = main(sys.argv[1:]);"  # of which only sums of rates need a part
        "loaded |= {'torch', 'diffusers', 'transformers', 'scipy.stats'} & set(sys.modules);"
        "sys.exit(code or (3 if loaded else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"results={tmp_path}"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("uce "))
    assert "10 [4, 21] (1)" in line and "12.5 [11.0, 14.0] (1)" in line
    back = pd.read_csv(tmp_path / "leaderboard_cells.csv")
    assert back.method.tolist() == ["rece", "uce"] and back.target_low[0] == wilson(5, 50)[0]
    page = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert page.startswith("# Leaderboard\n\n## emoji\n\n| method |") and "10 [4, 21] (100)" in page
    line = next(line for line in page.split("## Cells")[1].splitlines() if "| uce |" in line)
    assert "10 [4, 21] (100)" in line and "12.5 [11.0, 14.0] (12.5)" in line
    before = page.encode(), (tmp_path / "leaderboard_cells.csv").read_bytes()
    assert main([f"--results={tmp_path}"]) == 0
    assert before == ((tmp_path / "leaderboard.md").read_bytes(), (tmp_path / "leaderboard_cells.csv").read_bytes())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], "results"), (["results=a=b"], "a=b"), (["--results=c d"], "c d"), (["--results", "e"], "e")],
)
def test_the_folder_is_named_like_hydra_or_like_an_option(arguments, expected, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert f"no scores.parquet under {expected}/runs" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["reslts=a"], ["a", "b", "c"], ["--results"], ["results=a", "results=b"]])
def test_other_arguments_are_one_line_and_exit_code_2(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "usage: python -m erasebench.leaderboard" in error and error.count("\n") == 1


def test_no_results_and_broken_results_are_one_line_and_exit_code_2(tmp_path, capsys):
    assert main([f"results={tmp_path}"]) == 2
    assert "run `python -m erasebench` first" in capsys.readouterr().err
    path = write_scores(tmp_path / "runs" / "scores.parquet", scores("uce"))
    path.write_bytes(b"PAR1")
    assert main([f"results={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "delete it and run its cell again" in error and error.count("\n") == 1
    assert not (tmp_path / "leaderboard_cells.csv").exists()
