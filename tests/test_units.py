"""Boards derived a concept at a time, by several processes and from what was kept, are those of all tables at once."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from benchmarks.synthetic import cells, write_prompts, write_run
from erasebench import leaderboard
from erasebench.report import attack_tables, units
from erasebench.report.runs import opened, read_runs, sealed
from erasebench.report.tables import read_scores, write_scores
from erasebench.store.files import file_hash

pytestmark = pytest.mark.slow
FILES = ("leaderboard.csv", "leaderboard.md", "leaderboard.html", "leaderboard_cells.csv")
FEW = [cell for cell in cells(130) if cell.method in ("none", "method2") and cell.attack in ("none", "ringabell")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two concepts, two methods, two attacks, two seeds."""
    root = tmp_path_factory.mktemp("units") / "results"
    write_prompts(root, 25)
    for cell in FEW:
        write_run(root, 25, cell)
    return root


@pytest.fixture
def results(made, tmp_path):
    shutil.copytree(made, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def alone(monkeypatch, request):
    """One process, but where several are what is tested."""
    if "several" not in request.node.name:
        monkeypatch.setattr(units, "together", lambda work, jobs: [work(*job) for job in jobs])


def written(root, wanted=None):
    said = leaderboard.write(root, wanted)
    return [said, *((root / name).read_bytes() for name in FILES)]


def kept(root):
    return sorted((root / "cache" / "tables").glob("*"))


def rewrite(root, cell, change):
    """Give a run another table, as its record says."""
    folder = root / cell.path
    write_scores(folder / "scores.parquet", change(read_scores(folder / "scores.parquet")))
    record = opened((folder / "run.json").read_text())
    record["files"]["scores.parquet"] = file_hash(folder / "scores.parquet")
    (folder / "run.json").write_text(sealed({k: v for k, v in record.items() if k != "checksum"}))


@pytest.mark.parametrize(
    "wanted", [None, {"methods": ["method2"]}, {"concepts": ["concept1"], "attack": ["ringabell"]}]
)
def test_a_leaderboard_by_concept_is_the_one_of_all_rows(results, monkeypatch, wanted):
    whole = written(results, wanted)
    assert not kept(results)  # few rows are read at once
    monkeypatch.setattr(units, "LEAST", 0)
    assert written(results, wanted) == whole
    assert kept(results)
    monkeypatch.setattr(units, "_keep_runs", None)  # nothing is derived again
    monkeypatch.setattr(units, "_keep_cells", None)
    assert written(results, wanted) == whole


def test_what_a_run_s_last_step_keeps_is_all_that_a_first_leaderboard_and_table_need(tmp_path, made, monkeypatch):
    root = tmp_path / "own"
    write_prompts(root, 25)
    for cell in FEW:
        write_run(root, 25, cell, kept=True)
    for name in ("_keep_runs", "_keep_cells"):
        monkeypatch.setattr(units, name, None)
    monkeypatch.setattr(units, "LEAST", 0)
    names = leaderboard.write(root).replace(str(root), "ROOT")
    found = attack_tables.attacks(attack_tables.cells(read_runs(root), {}))
    monkeypatch.setattr(units, "LEAST", 10**9)
    assert leaderboard.write(made).replace(str(made), "ROOT") == names
    assert [(root / name).read_bytes() for name in FILES] == [(made / name).read_bytes() for name in FILES]
    assert attack_tables.attacks(attack_tables.cells(read_runs(made), {})) == found


def test_failed_images_and_missing_seeds_change_nothing_of_that(results, monkeypatch):
    rng = np.random.default_rng(0)
    for cell in FEW[::3]:
        rewrite(results, cell, lambda t: t.assign(**_failed(t, rng)))
    for cell in FEW[1::7]:
        shutil.rmtree(results / cell.path)
    whole = written(results)
    monkeypatch.setattr(units, "LEAST", 0)
    assert written(results) == whole
    assert written(results) == whole


def _failed(table, rng):
    bad = rng.random(len(table)) < 0.1
    return {"status": table.status.where(~bad, "nan"), "value": table.value.where(~bad, np.nan)}


def test_what_is_kept_is_of_these_contents_alone(results, monkeypatch):
    monkeypatch.setattr(units, "LEAST", 0)
    before, names = written(results), kept(results)
    rewrite(results, FEW[5], lambda t: t.assign(value=t.value.where(t.group != "target", 1.0)))
    after = written(results)
    assert after != before and len(kept(results)) > len(names)
    shutil.rmtree(results / "cache")
    assert written(results) == after


def test_what_was_kept_and_is_damaged_is_derived_again(results, monkeypatch):
    monkeypatch.setattr(units, "LEAST", 0)
    whole = written(results)
    for i, path in enumerate(kept(results)):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data if i % 2 else data[: len(data) // 2])
    assert written(results) == whole


def test_concepts_that_disagree_on_what_is_a_rate_are_read_together(results, monkeypatch):
    def unsaid(table):
        said = table.metric.str.startswith("concept_present")
        value = table.value.where(~said | ~table.concept.eq("concept1"), 0.5)
        return table.assign(rate=table.rate.mask(said, pd.NA), value=value)

    for cell in FEW:
        rewrite(results, cell, unsaid)
    whole = written(results)
    monkeypatch.setattr(units, "LEAST", 0)
    assert units.known(results, []) is not None
    assert written(results) == whole


def test_a_damaged_run_is_named_and_the_rest_is_the_same(results, monkeypatch):
    (results / FEW[4].path / "summary.csv").write_text("no summary")
    told = []
    for least in (10**9, 0):
        monkeypatch.setattr(units, "LEAST", least)
        with pytest.raises(leaderboard.Incomplete) as partly:
            leaderboard.write(results)
        told.append((partly.value.result, partly.value.lines))
    assert told[0] == told[1]


def test_a_table_whose_footer_is_not_its_rows_is_read_with_all_others(results, monkeypatch):
    folder = results / FEW[0].path
    rewrite(results, FEW[0], lambda t: t.assign(concept=t.concept.where(t.group != "target", "other")))
    whole = written(results)
    monkeypatch.setattr(units, "LEAST", 0)
    assert units.known(results, []) is None and folder.is_dir()
    assert written(results) == whole


def test_several_processes_derive_the_same(results, monkeypatch):
    whole = written(results)
    monkeypatch.setattr(units, "LEAST", 0)
    assert written(results) == whole


def test_attack_tables_by_concept_are_the_ones_of_all_cells(results, monkeypatch):
    found = read_runs(results)
    whole = (
        attack_tables.attacks(attack_tables.cells(found, {})),
        attack_tables.attack_matrix(attack_tables.cells(found, {})),
    )
    monkeypatch.setattr(units, "LEAST", 0)
    for _ in range(2):
        own = attack_tables.cells(found, {})
        assert (attack_tables.attacks(own), attack_tables.attack_matrix(own)) == whole
    assert kept(results)
