"""The attack views: seeds pooled, attacks beside their best control, replays by where they came from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from erasebench.paper import TABLES, main
from erasebench.report import budget
from erasebench.report.attack_tables import Rate, attack_matrix, attacks, draw_budget, transfer
from erasebench.report.attack_tables import cells as cells_of
from erasebench.report.budget import success_by_budget
from erasebench.report.intervals import wilson
from erasebench.report.runs import Run, method_names, read_runs
from erasebench.report.tables import read_scores, scores_frame, summarise, write_csv, write_scores
from erasebench.types import Score
from tests.cells import HEADLINES, cell

N = 20
CONTROLS = ("reseed", "best_of_n")
STRENGTH = {"inverse_edit": "embedding"}
ACCESS = {
    "none": "none", "nudity142": "none", "ringabell": "text_encoder", "reseed": "queries", "best_of_n": "queries",
    "unlearndiffatk": "model", "inverse_edit": "model",
}  # fmt: skip


def write_run(root, attack, after, *, method="uce", plain=2, seed=0, settings=(), most=0, cached=False, run=None):
    """A run of ``N`` prompts: ``plain`` of them show the concept as they are, ``after`` with the attack's prompts.

    With ``most`` the attack judged images: those it broke were broken by the last one, the plain ones by the first.
    """
    folder = root / "runs" / "emoji" / "cat" / method / attack / f"seed{seed}"
    access = ACCESS.get(attack, "none")
    groups = {"target": (plain, N), **({} if attack == "none" else {"attack": (after, N - 1)})}
    parts = []
    for side, at in (("erased", 0), ("original", 1)):
        rows = [
            Score(evaluator="classifier", metric="concept_present.j.top1", value=float(i < counts[at]), group=group,
                  prompt_id=f"{group}{i}", judge="j")
            for group, counts in groups.items() for i in range(N)
        ]  # fmt: skip
        if attack != "none":
            rows += [
                Score(evaluator="asr", metric="asr.j", value=float(i < max(plain, after)), group="attack",
                      prompt_id=str(i), judge="j")
                for i in range(N)
            ]  # fmt: skip
        names = {"model": "emoji", "concept": "cat", "method": method, "recipe": "r", "attack": attack}
        parts.append(
            scores_frame(
                rows,
                run=str(folder),
                cell=cell(**names, access=access, control=attack in CONTROLS, strength=STRENGTH.get(attack, "text")),
                side=side,
                versions={"classifier": 1, "asr": 1},
                headlines=HEADLINES,
            )
        )
    write_scores(folder / "scores.parquet", pd.concat(parts))
    spent = {}
    if most:
        curves = [[i < plain] if i < plain else [False] * (most - 1) + [i < after] for i in range(N)]
        write_csv(folder / "budget.csv", success_by_budget(curves))
        spent = {"queries": sum(map(len, curves)), "prompts": N}
    record = {
        "key": str(folder),
        "identity": {"names": names | {"budget": "paper"}},
        "config": {"seed": seed, "attack": {**dict(settings), **({"run": run} if run else {})}},
        "attack": spent,
        "steps": {"attack": {"seconds": 0.1 if cached else 30.0, "cached": cached, "folder": f"/{attack}"}},
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def cells(root, wanted):
    return cells_of(read_runs(root), wanted)


def rows(found):
    return {(row["method"], row["attack"]): row for row in (dict(zip(found[0], r, strict=True)) for r in found[1:])}


def text(hits, n=N):
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def test_rows_are_in_reading_order_and_hold_what_was_drawn(tmp_path):
    for attack in ("unlearndiffatk", "inverse_edit", "reseed", "ringabell", "nudity142", "none"):
        write_run(tmp_path, attack, 10, most=5 if ACCESS[attack] in ("queries", "model") else 0)
    write_run(tmp_path, "none", 0, method="none", plain=19)
    table = attacks(cells(tmp_path, {}))
    assert [row[2] for row in table[1:]] == [
        "none", "none", "nudity142", "ringabell", "reseed", "unlearndiffatk", "inverse_edit",
    ]  # fmt: skip
    found = rows(table)
    row = found["uce", "unlearndiffatk"]
    assert (row["n"], row["plain prompts"], row["attack prompts"], row["ASR"]) == ("20", text(2), text(10), text(10))
    assert row["original model"] == text(19) and row["strength"] == "text"
    assert row["images judged"] == f"5 ({(2 + 18 * 5) / 20:.1f})" and row["seconds"] == "30"
    assert found["none", "none"]["original model"] == "-" and found["uce", "none"]["original model"] == text(20)
    assert (
        found["uce", "none"]["attack prompts"] == "-"
        and found["uce", "ringabell"]["best control, as many images"] == "-"
    )
    assert found["uce", "inverse_edit"]["original model"] == "-"  # its embeddings undo an edit the original has not


def test_an_adaptive_attack_stands_beside_its_best_control(tmp_path):
    write_run(tmp_path, "unlearndiffatk", 16, most=5, settings={"timesteps": [1, 2, 3, 4]})
    write_run(tmp_path, "reseed", 4, most=5, settings={"queries": 5})
    write_run(tmp_path, "best_of_n", 6, most=5, settings={"queries": 5})
    write_run(tmp_path, "best_of_n", 20, method="rece", most=5, settings={"queries": 5})  # another model's
    row = rows(attacks(cells(tmp_path, {})))["uce", "unlearndiffatk"]
    assert row["best control, as many images"] == f"best_of_n: {text(6)}"
    (l1, u1), (l2, u2) = wilson(16, N), wilson(6, N)
    low, high = 0.5 - math.hypot(0.8 - l1, u2 - 0.3), 0.5 + math.hypot(u1 - 0.8, 0.3 - l2)
    assert row["ahead by"] == f"**50 [{100 * low:.0f}, {100 * high:.0f}]**"
    write_run(tmp_path, "best_of_n", 15, most=5, settings={"queries": 5})
    assert rows(attacks(cells(tmp_path, {})))["uce", "unlearndiffatk"]["ahead by"].startswith("5 [-")  # not bold


def test_other_budgets_are_read_at_the_smaller_one(tmp_path):
    write_run(tmp_path, "unlearndiffatk", 16, most=5, settings={"timesteps": [1, 2, 3, 4]})
    write_run(tmp_path, "reseed", 12, most=9, settings={"queries": 9})  # its success comes with the ninth image
    row = rows(attacks(cells(tmp_path, {})))["uce", "unlearndiffatk"]
    assert row["best control, as many images"] == f"reseed at 5: {text(2)}" and row["ahead by"].startswith("**70 ")
    write_run(tmp_path, "reseed", 12, most=3, settings={"queries": 3})
    row = rows(attacks(cells(tmp_path, {})))["uce", "unlearndiffatk"]
    assert row["best control, as many images"] == f"reseed at 3: {text(12)}"
    assert row["ahead by"].startswith("-50 ")  # after three images the attack had only the plain prompts' two


def test_seeds_are_pooled_and_shared_searches_say_their_seconds(tmp_path):
    write_run(tmp_path, "ringabell", 4)
    write_run(tmp_path, "ringabell", 8, seed=1)
    write_run(tmp_path, "ringabell", 5, method="rece", cached=True)  # the search of uce's run, from the store
    found = rows(attacks(cells(tmp_path, {})))
    assert (found["uce", "ringabell"]["n"], found["uce", "ringabell"]["attack prompts"]) == ("40", text(12, 40))
    assert found["rece", "ringabell"]["seconds"] == "30"
    assert rows(attacks(cells(tmp_path, {"method": ["rece"]})))["rece", "ringabell"]["seconds"] == "30"
    only = attacks(cells(tmp_path, {"seed": ["1"], "method": ["uce"]}))
    assert len(only) == 2 and rows(only)["uce", "ringabell"]["attack prompts"] == text(8)


def test_the_matrix_marks_what_beats_its_control(tmp_path):
    for method, hits in (("uce", 16), ("rece", 5)):
        write_run(tmp_path, "unlearndiffatk", hits, method=method, most=5, settings={"budget": 5})
        write_run(tmp_path, "reseed", 4, method=method, most=5, settings={"queries": 5})
    write_run(tmp_path, "none", 0, method="none", plain=19)
    table = attack_matrix(cells(tmp_path, {}))
    assert table == [
        ["concept", "attack", "none", "rece", "uce"],
        ["cat", "none", text(19), "-", "-"],
        ["cat", "reseed", "-", text(4), text(4)],
        ["cat", "unlearndiffatk", "-", text(5), f"**{text(16)}**"],
    ]


def test_replays_are_a_transfer_table(tmp_path):
    origin = write_run(tmp_path, "unlearndiffatk", 16, most=5)
    write_run(tmp_path, "replay-uce-unlearndiffatk", 7, method="rece", run=str(origin))
    write_run(tmp_path, "replay-found", 3, method="rece", run="somewhere/found.csv")
    assert transfer(cells(tmp_path, {})) == [
        ["concept", "found by", "on", "n", "original model", "rece", "uce"],
        ["cat", "found", "-", "20", text(19), text(3), "-"],
        ["cat", "unlearndiffatk", "uce", "20", text(19), text(7), f"**{text(16)}**"],
    ]


def test_one_picture_of_all_curves_on_one_model(tmp_path):
    write_run(tmp_path, "unlearndiffatk", 16, most=5, settings={"budget": 8})
    write_run(tmp_path, "reseed", 4, most=8, settings={"queries": 8})
    write_run(tmp_path, "none", 0)
    found = cells(tmp_path, {})
    draw_budget(found, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        colours = {c for _, c in image.convert("RGB").getcolors(1 << 20)}
    own = tuple(bytes.fromhex(budget.colour("unlearndiffatk")[1:]))
    assert own in colours and (0x66, 0x66, 0x66) in colours  # the attack's, the control's grey
    curve = next(c.curve for c in found if c.attack == "unlearndiffatk")
    assert curve.queries.tolist() == list(range(9)) and curve.present.tolist()[4:] == [2, 16, 16, 16, 16]
    write_run(tmp_path, "reseed", 4, method="rece", most=5)
    with pytest.raises(ValueError, match=r"must name one model .* got emoji/cat/rece/r, emoji/cat/uce/r"):
        draw_budget(cells(tmp_path, {}), tmp_path / "b.png")


def test_a_rate_that_was_not_measured_is_a_dash():
    assert str(Rate()) == "-" and str(Rate(0.5, 0.25, 0.75)) == "50 [25, 75]"


def test_settings_and_budgets_are_told_apart(tmp_path):
    write_run(tmp_path, "ringabell", 4)
    folder = write_run(tmp_path, "ringabell", 8, seed=1)
    table = read_scores(folder / "scores.parquet").assign(budget="small")
    write_scores(folder / "scores.parquet", table)
    assert [row[2] for row in attacks(cells(tmp_path, {}))[1:]] == ["ringabell (paper)", "ringabell (small)"]
    write_scores(folder / "scores.parquet", table.assign(settings="steps=2"))
    found = rows(attacks(cells(tmp_path, {})))
    assert found["uce", "ringabell"]["attack prompts"] == text(4)
    assert found["uce (steps=2)", "ringabell"]["attack prompts"] == text(8)


def test_recipes_of_one_method_are_told_apart():
    def run(method, recipe, model="emoji"):
        names = {"model": model, "method": method, "recipe": recipe}
        return Run(Path(), {"key": f"{model}{method}{recipe}", "identity": {"names": names}, "config": {"seed": 0}})

    found = method_names([
        run("uce", "paper"), run("uce", "uce_emoji"), run("esd_x", "paper"), run("rece", "rece_emoji"),
        run("sdd", "paper"), run("sdd", "sdd_emoji"), run("sdd", "sdd_emoji changed"), run("uce", "paper", "sd14"),
    ])  # fmt: skip
    assert list(found.values()) == [
        "uce (literal)", "uce", "esd_x", "rece", "sdd (literal)", "sdd (sdd_emoji)", "sdd (sdd_emoji changed)", "uce",
    ]  # fmt: skip


def test_the_command_prints_every_table(tmp_path, capsys):
    folder = write_run(tmp_path, "unlearndiffatk", 16, most=5, settings={"budget": 8})
    write_csv(folder / "summary.csv", summarise(read_scores(folder / "scores.parquet")))
    for table in (name for name in TABLES if name != "paired"):  # needs two methods: tests/test_stranger_in_tables.py
        out = [f"out={tmp_path / 'b.png'}"] if table == "budget" else []
        assert main([f"table={table}", f"results={tmp_path}", "concept=cat", *out]) == 0
    assert (
        "| cat | uce | 20 |  | 10 [3, 30] |" in capsys.readouterr().out and (tmp_path / "b.png").stat().st_size > 1000
    )
    assert main(["--help"]) == 0
    assert all(f"``{table}``" in capsys.readouterr().out for table in TABLES[:1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table=nothing"], "table must be one of methods, cost"),
        ([], "table - must be given"),
        (["table=cost", "concpt=cat"], "concpt - must be one of"),
        (["table=cost", "results=nowhere"], "no run.json under nowhere"),
        (["table=attacks", "concept=dog", "results={root}"], "got none with concept=dog"),
        (["table=budget", "results={root}"], "must name one model that attacks asked images of; got none"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    write_run(tmp_path, "none", 0)
    assert main([argument.format(root=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
