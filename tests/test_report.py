"""The report: what its pages say is what the tables say, whatever the results folder holds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from PIL import Image

from erasebench.report import __main__ as report
from erasebench.report import figures
from erasebench.report.board import boards, run_facts
from erasebench.report.runs import read_runs
from erasebench.report.site.curves import needed
from erasebench.report.site.gather import gather
from erasebench.report.site.render import command_of, data, sorting
from erasebench.report.tables import read_results
from tests.small import report_runs, small_run

NAMED = re.compile(r'<script type="application/json" id="grid-data">(.*?)</script>', re.DOTALL)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Real runs of the embedded model: two methods, an attack, an unsafe concept."""
    return report_runs(tmp_path_factory.mktemp("report") / "results")


@pytest.fixture(scope="module")
def site(results):
    assert report.main([f"results={results}"]) == 0
    return results / "report"


def grid(page):
    return json.loads(NAMED.search(page.read_text()).group(1))


def cell(site, *words):
    (found,) = (p for p in (site / "cells").iterdir() if p.name[5:].startswith("-".join(words)))
    return found


def test_each_verdict_on_a_page_is_the_tables(results, site):
    scores = read_results(results)
    rows = scores[(scores.method == "uce") & (scores.concept == "cat") & scores.attack.str.startswith("reseed")]
    shown = grid(cell(site, "cat", "uce", "reseed"))
    assert [group["name"] for group in shown["groups"]] == ["target", "attack", "unrelated"]
    for group in shown["groups"]:
        for column in group["columns"]:
            if "plain" in column["title"]:
                continue
            for i, name in enumerate(group["ids"]):
                own = rows[(rows.group == group["name"]) & (rows.prompt_id == name) & (rows.side == column["side"])]
                said = own[own.role.isin(["present", "kept"])].value.item()
                assert column["seen"][i] == said
                assert column["score"][i] == pytest.approx(
                    own[own.metric.str.startswith("probability")].value.item(), rel=1e-3
                )
                for metric, values in column["values"].items():
                    known = own[own.metric == metric].value
                    assert (values[i] is None) == (known.empty or known.isna().all())


def test_plain_columns_of_an_attack_are_those_of_the_prompts_it_started_from(site):
    target, attack, _ = grid(cell(site, "cat", "uce", "reseed"))["groups"]
    assert [c["title"] for c in attack["columns"]] == [
        *("original model, plain prompt", "erased model, plain prompt"),
        *("erased model, attacked", "original model, attacked"),
    ]
    assert set(attack["columns"][0]["src"]) <= set(target["columns"][0]["src"])
    assert set(attack["columns"][1]["src"]) <= set(target["columns"][1]["src"])


def test_every_picture_is_there_and_as_it_was_drawn(results, site):
    shown = grid(cell(site, "cat", "uce", "none"))
    names = {src for group in shown["groups"] for column in group["columns"] for src in column["src"]}
    assert names == set(shown["files"])
    for file in shown["files"].values():
        with Image.open(site / "images" / file) as image:
            assert image.size == (64, 64) and image.format == "PNG"


def test_pictures_of_unsafe_concepts_are_veiled_or_left_out(results, site, tmp_path):
    shown = grid(cell(site, "gun", "uce", "none"))
    assert shown["unsafe"] and not grid(cell(site, "cat", "uce", "none"))["unsafe"]
    for name in shown["files"]:
        with Image.open(site / "images" / f"{name}.veil.png") as veil:
            assert max(veil.size) <= 6
    assert report.main([f"results={results}", f"out={tmp_path}", "concept=gun", "unsafe=false"]) == 0
    left = sorted(p.name for p in (tmp_path / "images").rglob("*.png"))
    assert left and all(name.endswith(".veil.png") for name in left)


def test_a_folder_to_pass_on_has_nothing_of_an_earlier_report(results, tmp_path, capsys):
    out = tmp_path / "out"
    assert report.main([f"results={results}", f"out={out}"]) == 0
    assert report.main([f"results={results}", f"out={out}", "concept=gun", "unsafe=false"]) == 0
    left = [p for p in (out / "images").rglob("*") if p.is_file()]
    assert left and all(p.name.endswith(".veil.png") for p in left)
    assert all("gun" in p.name for p in (out / "cells").iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert report.main([f"results={results}", f"out={tmp_path / 'mine'}"]) == 2
    assert "holds other files" in capsys.readouterr().err


def test_an_unsafe_run_with_prompts_of_a_file_shows_ids_only(results):
    (unsafe,) = (one for one in gather(results, {"concept": ["gun"]}, []).cells if one.names["method"] == "uce")
    assert not unsafe.withheld  # our own templates
    record = {**unsafe.runs[0].record, "config": {**unsafe.config, "prompts": {"_target_": "x", "licence": "none"}}}
    run = type(unsafe.runs[0])(unsafe.runs[0].folder, record)
    assert type(unsafe)(1, unsafe.names, (run,), unsafe.summary).withheld


def test_the_decision_summary_says_what_was_and_was_not_tried(site):
    (page,) = (p.read_text() for p in (site / "models").iterdir() if "cat-uce" in p.name)
    tried = ("What was tried", " (control)", "plain: its name")
    for words in (*tried, "unlearndiffatk", "A second seed", "A second judge", "cannot be brought back"):
        assert words in page, words
    assert "none, " not in page.split("Attacks that come with erasebench:")[1].split("</li>")[0]


def test_pages_refer_to_nothing_outside_and_links_lead_somewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert "default-src 'none'" in text and not re.search(r'(src|href)="(https?:)?//', text)
        for link in re.findall(r'(?:src|href)="([^"#]+)"', text):
            assert (page.parent / link).exists(), (page.name, link)


def test_it_is_the_same_again_and_filters_name_what_there_is(results, site, tmp_path, capsys):
    before = {p: p.read_bytes() for p in site.rglob("*") if p.is_file()}
    assert report.main([f"results={results}"]) == 0
    assert {p: p.read_bytes() for p in site.rglob("*") if p.is_file()} == before
    capsys.readouterr()
    assert report.main([f"results={results}", "concept=cow"]) == 2
    assert "concept must be one of cat, gun; got 'cow'" in capsys.readouterr().err
    run = next(results.glob("runs/emoji/cat/uce*/none*/seed0"))
    assert report.main([f"run={run}", f"out={tmp_path}"]) == 0
    assert "decision summary: " in capsys.readouterr().out and len(list((tmp_path / "models").iterdir())) == 1
    assert report.main([f"run={tmp_path}"]) == 2 and "finished run" in capsys.readouterr().err
    assert report.main([f"results={tmp_path}"]) == 2 and "Traceback" not in capsys.readouterr().err


def test_damage_is_named_and_the_rest_is_shown(results, tmp_path, capsys):
    root = tmp_path / "results"
    shutil.copytree(results, root, ignore=shutil.ignore_patterns("report"))
    (next(root.glob("runs/emoji/cat/none*/none*/seed0")) / "scores.parquet").write_bytes(b"PAR1")
    shutil.rmtree(next(root.glob("runs/emoji/gun")))
    shutil.rmtree(root / "cache" / "images")
    shutil.rmtree(root / "cache" / "attack", ignore_errors=True)
    assert report.main([f"results={root}"]) == 1
    told = capsys.readouterr()
    assert "left out" in told.err and "Traceback" not in told.err
    index = (root / "report" / "index.html").read_text()
    assert "are not in the store" in index and "Left out" in index
    shown = grid(cell(root / "report", "cat", "uce", "none"))
    assert not shown["files"]
    assert all(one in (0, 1) for one in shown["groups"][0]["columns"][0]["seen"])


def test_texts_close_no_script_and_numbers_sort_as_numbers():
    assert "<" not in data({"text": "</script><script>alert(1)</script>&"})
    assert json.loads(data({"a": "</x>&"})) == {"a": "</x>&"}
    assert sorting("-13.5 [-16, -10]") == "-13.5" and sorting("uce") == "uce"


def test_the_command_line_of_a_label_with_settings():
    names = {"model": "emoji", "concept": "cat", "method": "uce[lamb=5,technique=tensor]", "attack": "p4d[restarts=3]"}
    told = command_of(names, "2")
    assert "method=uce method.lamb=5 method.technique=tensor attack=p4d attack.restarts=3 seed=2" in told


def test_figures_show_each_method_once_and_equal_ones_are_equal_files(results, tmp_path):
    scores = read_results(results, headlines=True)
    for board in boards(scores, run_facts(read_runs(results))):
        figure = figures.tradeoff(board)
        named = [text.get_text() for text in figure.legends[0].get_texts()]
        assert sorted(named) == sorted(board.table.row)
        files = figures.save(figure, tmp_path / "a"), figures.save(figures.tradeoff(board), tmp_path / "b")
        assert [p.suffix for p in files[0]] == [".png", ".pdf"]
        assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_a_threshold_curve_is_the_share_that_reaches_it():
    figure = figures.threshold("t", {"original": [0.2, 0.8, 0.8, 1.0], "none": []})
    (line,) = figure.axes[0].lines
    shares = pd.Series(line.get_ydata(), index=line.get_xdata().round(3))
    assert shares[0.0] == 100 and shares[0.5] == 75 and shares[0.805] == 25 and shares[1.0] == 25
    assert figures.threshold("t", {"original": []}) is None


def test_the_command_loads_no_torch_and_helps_at_once(results, tmp_path):
    code = (
        "import sys; from erasebench.report.__main__ import main; "
        f"code = main(['results={results}', 'out={tmp_path}']); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_other_concepts_are_drawn_over_the_distance_of_their_texts(tmp_path):
    """Distances are those in the tables; a run without them has no figure."""
    results = tmp_path / "results"
    small_run(results, "evaluator=[classifier,spillover]", "method=uce")
    assert report.main([f"results={results}"]) == 0
    assert (results / "report" / "figures" / "spillover-0.png").is_file()
    assert "by the distance of their texts" in (results / "report" / "index.html").read_text()
    scores = read_results(results)
    far = scores[scores.metric.str.startswith("text_distance.")].groupby("prompt_id").value.first()
    (page,) = (results / "report" / "cells").iterdir()
    (group,) = (one for one in grid(page)["groups"] if one["name"] == "unrelated")
    assert needed(group)["far"] == pytest.approx([far[name] for name in group["ids"]], rel=1e-3)
    assert needed({**group, "name": "target"})["far"] == []


def test_a_curve_over_distances_is_the_mean_of_each_part():
    figure = figures.spillover("t", {"original": [(0.2, 1.0), (0.2, 0.0), (0.9, 1.0)], "uce": [(0.9, 0.0)], "none": []})
    points, line, *_ = figure.axes[0].lines
    assert [*points.get_ydata()] == [50, 100] and [*line.get_ydata()] == [50, 100]
    assert figures.spillover("t", {"original": []}) is None
