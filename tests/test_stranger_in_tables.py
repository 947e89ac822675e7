"""An evaluator, an attack and a judge that this project has never heard of are in every table and flag."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import erasebench
from erasebench.leaderboard import main as leaderboard
from erasebench.paper import main as paper
from erasebench.report import checks, display, tables
from erasebench.report.budget import success_by_budget
from erasebench.types import Headline, Score
from tests.cells import cell

JUDGE = "panel_of_three"
HEADLINES = {  # a loudness that should be low, a calm that should be high, in groups of their own
    "noise": tuple(
        Headline(metric=metric, group=group, label=label, head=head, place=place, unit=unit, role=role)
        for place, (metric, group, label, head, unit, role) in enumerate([
            ("loud", "target", "loud at its name", "loud", "%", "present"),
            ("loud", "attack", "loud under attack", "shout", "%", "present"),
            ("calm", "unrelated", "calm elsewhere", "calm", "%", "kept"),
            ("won", "attack", "shouting matches won", "won", "%", "success"),
            ("hertz", "choir", "pitch", "Hz", "", ""),
            ("blend", "all", "{metric}", "blend", "", "mean"),
        ])
    )
}  # fmt: skip
N = 60


def rows(rates, hertz):
    """Scores of one side: (metric, group) -> share of ones, a mean of the choir, and one number for all."""
    found = [
        Score(evaluator="noise", metric=f"{metric}.{JUDGE}", group=group, prompt_id=f"{group}-{i}", judge=JUDGE,
              value=float(i < round(share * N)), higher_is_better=metric == "calm")
        for (metric, group), share in rates.items() for i in range(N)
    ]  # fmt: skip
    found += [
        Score(evaluator="noise", metric="hertz", group="choir", prompt_id=str(i), value=float(hertz + i % 2),
              higher_is_better=True)
        for i in range(N)
    ]  # fmt: skip
    whole = Score(
        evaluator="noise", metric="blend.v3", group="all", value=hertz / 10, low=1.0, high=99.0, higher_is_better=True
    )
    return [*found, whole]


def write(root, *, method, attack, now, hertz=440, control=False, access="model", strength="text", most=4, n_rate=1.0):
    names = cell(method=method, attack=attack, access=access, strength=strength, control=control, recipe="paper")
    before = {("loud", "target"): n_rate, ("loud", "attack"): 1.0, ("calm", "unrelated"): 1.0, ("won", "attack"): 1.0}
    facts = {"run": f"{method}/{attack}", "cell": names, "versions": {"noise": 4}, "headlines": HEADLINES}
    frame = pd.concat([
        tables.scores_frame(rows(now, hertz), side="erased", **facts),
        tables.scores_frame(rows(before, 440), side="original", **facts),
    ])  # fmt: skip
    folder = root / "runs" / "emoji" / "cat" / method / attack / "seed0"
    tables.write_scores(folder / "scores.parquet", frame)
    tables.write_csv(folder / "summary.csv", tables.summarise(frame))
    hits = round(now["loud", "attack"] * N)
    tables.write_csv(folder / "budget.csv", success_by_budget([[False] * (most - 1) + [i < hits] for i in range(N)]))
    record = {
        "key": f"{method}/{attack}", "identity": {"names": {k: v for k, v in names.items() if isinstance(v, str)}},
        "config": {"seed": 0, "attack": {}}, "attack": {"queries": most * N, "prompts": N},
        "steps": {"attack": {"seconds": 5.0, "cached": False}, "erase": {"bytes": 7, "cost": {"seconds": 3.5}}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    return frame


def shares(target, attack, unrelated=0.95, won=0.5):
    return {
        ("loud", "target"): target,
        ("loud", "attack"): attack,
        ("calm", "unrelated"): unrelated,
        ("won", "attack"): won,
    }


@pytest.fixture
def results(tmp_path):
    write(tmp_path, method="hush", attack="megaphone", now=shares(0.0, 0.7, won=0.75), hertz=450)
    write(tmp_path, method="hush", attack="whistle", now=shares(0.0, 0.3), hertz=450, control=True, access="queries")
    write(tmp_path, method="gag", attack="megaphone", now=shares(0.0, 0.1), hertz=470)
    write(tmp_path, method="gag", attack="whistle", now=shares(0.0, 0.1), hertz=470, control=True, access="queries")
    return tmp_path


def test_the_closing_table_has_its_rows_in_its_order(tmp_path):
    lines = display.table(tables.summarise(write(tmp_path, method="hush", attack="megaphone", now=shares(0.0, 0.7))))
    labels = ["loud at its name", "loud under attack", "calm elsewhere", "shouting matches won", "pitch", "blend.v3"]
    assert [line[:22].strip() for line in lines[1:]] == labels
    assert lines[1].split("  ")[-1].strip().startswith("70.0 % [") and "100.0 %" in lines[1]
    assert "440.5 [440.4, 440.6]" in lines[5] and "44.0 [1.0, 99.0]" in lines[6]


def test_the_leaderboard_has_its_columns_directions_and_order(results, capsys):
    assert leaderboard([f"results={results}"]) == 0
    out, board = capsys.readouterr().out, pd.read_csv(results / "leaderboard_cells.csv")
    assert "loud ↓" in out and "calm ↑" in out and "Hz ↑" in out and "loud: loud at its name, %" in out
    assert board.method.tolist() == ["gag", "hush", "gag", "hush"]  # the higher blend first, in each contest
    assert board.judge.unique().tolist() == [JUDGE] and board.shout.tolist() == [0.1, 0.7, 0.1, 0.3]
    page = (results / "leaderboard.md").read_text()
    assert "| shout ↓ | calm ↑ | won ↓ | Hz ↑ | blend ↑ |" in page and "70 [57, 80] (100)" in page
    assert "no_better_than_control: emoji/cat/gag/paper: megaphone" in out and "cat/hush" not in out.split("! ")[-1]


@pytest.mark.slow
def test_flags_know_its_roles(tmp_path):
    def names(**options):
        return [flag["flag"] for flag in checks.flags(write(tmp_path, method="hush", attack="megaphone", **options))]

    assert names(now=shares(0.0, 0.7)) == []
    assert names(now=shares(0.0, 0.7), n_rate=0.7) == ["base_unseen"]
    assert names(now=shares(0.0, 0.0)) == ["attack_no_better"] and names(now=shares(0.0, 0.0), control=True) == []
    assert names(now=shares(0.4, 0.2)) == ["adaptive_below_static"]
    assert names(now=shares(0.0, 0.7, unrelated=0.8)) == ["wrecked"]
    small = write(tmp_path, method="hush", attack="megaphone", now=shares(0.0, 0.7, unrelated=1.0))
    small = small[~small.prompt_id.str.endswith(tuple("0123456")).fillna(False)]
    assert [flag["message"] for flag in checks.flags(small)] == [
        "fewer than 50 images: attack 18, target 18, unrelated 18."
    ]


def test_embedding_attacks_are_not_held_against_text_attacks(tmp_path):
    black = {"attack": "letter", "access": "text_encoder", "now": shares(0.0, 0.9)}
    scores = [write(tmp_path, method="hush", **black), write(tmp_path, method="hush", attack="m", now=shares(0.0, 0.3))]
    assert [flag["flag"] for flag in checks.between_attacks(pd.concat(scores))] == ["white_below_black"]
    scores[0] = write(tmp_path, method="hush", **black, strength="embedding")
    assert checks.between_attacks(pd.concat(scores)) == []
    scores[0] = write(tmp_path, method="hush", **black | {"access": "queries"}, strength="latent", control=True)
    (flag,) = checks.between_attacks(pd.concat(scores))
    assert flag["flag"] == "no_better_than_control" and "m (text) shows" in flag["message"]
    assert "letter (latent) in 90%" in flag["message"]


@pytest.mark.slow
def test_the_tables_of_readme_and_docs_have_it(results, capsys):
    found = {}
    for table in ("methods", "attacks", "attack_matrix", "cost"):
        assert paper([f"table={table}", f"results={results}"]) == 0
        found[table] = capsys.readouterr().out
    assert found["methods"].startswith("| concept | method | n | clusters | loud | shout | calm |")
    assert "| cat | hush | 60 |  | 0 [0, 6] | 70 [57, 80] | 95 [86, 98] |" in found["methods"]
    row = next(line for line in found["attacks"].splitlines() if "| hush | megaphone |" in line)
    assert "75 [63, 84]" in row and "whistle: 30 [20, 43]" in row and "**40 [" in row
    assert "| cat | megaphone | 10 [5, 20] | **70 [57, 80]** |" in found["attack_matrix"]
    assert "| gag | cat | 3.5 | - | - | - | 7 |" in found["cost"]


def test_each_judge_has_rows_of_its_own_and_the_first_one_speaks(tmp_path):
    scores = write(tmp_path, method="hush", attack="megaphone", now=shares(0.0, 0.7))
    strict = scores[scores.judge == JUDGE].assign(judge="strict", place=50)
    strict["metric"] = strict.metric.str.replace(JUDGE, "strict")
    strict.loc[strict.side == "original", "value"] = 0.0  # sees nothing anywhere: no flag, but rows
    both = pd.concat([scores, strict])
    assert checks.flags(both) == []
    lines = display.table(tables.summarise(both))
    assert lines.index("by strict:") > lines.index(next(line for line in lines if line.startswith("blend.v3")))
    assert sum(line.startswith("loud at its name") for line in lines) == 2


def test_relations_stand_below_what_is_kept():
    near = {"evaluator": "noise", "metric": f"calm.{JUDGE}", "judge": JUDGE, "group": "unrelated"}
    relations = ["visual", "visual", "unrelated"]  # the last says no more than its group
    found = [Score(prompt_id=str(i), value=1.0, relation=relation, **near) for i, relation in enumerate(relations)]
    facts = {"run": "r", "cell": cell(), "versions": {"noise": 4}, "headlines": HEADLINES}
    lines = display.table(tables.summarise(tables.scores_frame(found, side="erased", **facts)))
    assert [line.split("  ")[0:2] for line in lines[1:]] == [["calm elsewhere", "3"], ["", "visual"]]


def test_methods_are_compared_on_the_same_prompts(results, capsys):
    for method in ("hush", "gag"):
        write(results, method=method, attack="none", now=shares(0.0 if method == "gag" else 0.5, 0.1), hertz=440)
    assert paper(["table=paired", f"results={results}", "attack=none"]) == 0
    out = capsys.readouterr().out
    assert "| concept | measure | first | second | n | clusters |" in out and "gag is better" in out
    table = erasebench.compare_methods(results, heads=["loud"])
    assert set(table["head"]) == {"loud"} and table.says.tolist().count("gag is better") == 1
    assert paper(["table=paired", f"results={results}", "attack=none", "method=gag"]) == 2
    assert "two methods are needed to compare" in capsys.readouterr().err
