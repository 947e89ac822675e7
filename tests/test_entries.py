"""Entries hold what was measured, are refused when changed, and are derived again number by number."""

import json
import subprocess
import sys

import pytest

from erasebench import submit, verify
from erasebench.report.entries import name_of, read_entry, reported
from erasebench.report.runs import sealed
from erasebench.report.tables import read_scores, write_scores
from erasebench.store.files import file_hash
from tests.test_board import cell

NAMES = ("model", "concept", "method", "recipe", "attack", "budget", "settings")


def write(root, seed=0, version=1, rate=0.2, key=""):
    """A finished run with the tables and the record that the harness leaves."""
    scores = cell("uce", "cat", {"target": rate, "attack": rate, "unrelated": 1.0}, "a", version=version)
    key = key or f"key{seed}"
    scores = scores.assign(run=key, seed=seed, weights=scores.weights.where(scores.side != "erased", f"w{seed}"))
    folder = root / "runs" / "m" / "cat" / "uce" / "a" / f"seed{seed}"
    write_scores(folder / "scores.parquet", scores)
    names = {name: str(scores[name].iloc[0]) for name in NAMES}
    record = {
        "key": key, "identity": {"names": names}, "config": {"seed": seed, "concept": {"name": "cat"}}, "steps": {},
        "flags": [{"flag": "few_prompts", "level": "warning", "message": "few", "what_to_do": "more"}],
        "files": {"scores.parquet": file_hash(folder / "scores.parquet")}, "model_hash": "h", "packages": {"p": "1"},
    }  # fmt: skip
    (folder / "run.json").write_text(sealed(record))
    return folder


def submitted(root, *folders):
    words = [f"run={','.join(map(str, folders))}", f"out={root / 'entries'}", "paper=A paper"]
    assert submit.main(words) == 0
    return root / "entries" / "m-cat-uce-a.json"


def test_an_entry_is_verified_and_says_what_was_run(tmp_path, capsys):
    path = submitted(tmp_path, write(tmp_path))
    found = read_entry(path)
    assert found["paper"] == "A paper" and found["protocol"]["seeds"] == [0] and found["doubts"][0]["flag"]
    target = next(row for row in found["measured"] if row["group"] == "target")
    assert target["value"] == 0.2 and target["low"] < 0.2 < target["high"] and target["n"] == 40
    assert verify.main([str(path), f"results={tmp_path}"]) == 0
    assert "from the entry's own runs" in capsys.readouterr().out
    before = path.read_bytes()
    assert submitted(tmp_path, tmp_path / "runs/m/cat/uce/a/seed0").read_bytes() == before


def test_seeds_are_pooled_and_cells_are_not(tmp_path, capsys):
    both = write(tmp_path, 0), write(tmp_path, 1, rate=0.4)
    path = submitted(tmp_path, *both)
    found = read_entry(path)
    assert next(row for row in found["measured"] if row["group"] == "target")["value"] == pytest.approx(0.3)
    assert verify.main([str(path), f"results={tmp_path}"]) == 0
    scores = read_scores(both[1] / "scores.parquet").assign(method="rece")
    write_scores(both[1] / "scores.parquet", scores)
    record = json.loads((both[1] / "run.json").read_text())
    record["files"]["scores.parquet"] = file_hash(both[1] / "scores.parquet")
    record.pop("checksum")
    (both[1] / "run.json").write_text(sealed(record))
    capsys.readouterr()
    assert submit.main([f"run={both[0]},{both[1]}", f"out={tmp_path / 'e'}"]) == 2
    assert "these differ in method" in capsys.readouterr().err and not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("change", "says", "code"),
    [
        ({"rate": 0.225}, "inside", 1),
        ({"rate": 0.9}, "outside", 1),
        ({"version": 2}, "another version (1, now 2)", 1),
        ({}, "same", 0),
    ],
)
def test_runs_made_elsewhere_are_told_from_the_recorded_ones(change, says, code, tmp_path, capsys):
    path = submitted(tmp_path, write(tmp_path / "here"))
    write(tmp_path / "there", key="another", **change)
    assert verify.main([str(path), f"results={tmp_path / 'there'}"]) == code
    said = capsys.readouterr()
    assert says in said.out and "other runs of its cell" in said.out
    assert said.err.count("\n") == (code == 1)


def test_what_cannot_be_checked_is_one_line_and_exit_code_2(tmp_path, capsys):
    folder = write(tmp_path)
    path = submitted(tmp_path, folder)
    text = path.read_text()
    (tmp_path / "changed.json").write_text(text.replace('"few"', '"many"', 1).replace("0.2", "0.1", 1))
    (tmp_path / "broken.json").write_text(text[:-20])
    (tmp_path / "list.json").write_text("[1]")
    record = {k: v for k, v in json.loads(text).items() if k != "checksum"}
    (tmp_path / "newer.json").write_text(sealed({**record, "schema": 9}))
    (folder / "scores.parquet").write_bytes(b"damaged")
    cases = {"nope.json": "found no", "changed.json": "checksum", "broken.json": "JSON", "list.json": "JSON object",
             "newer.json": "schema", str(path): "damaged"}  # fmt: skip
    capsys.readouterr()
    for name, said in cases.items():
        assert verify.main([str(tmp_path / name), f"results={tmp_path}"]) == 2, name
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert submit.main([f"run={folder}"]) == 2 and submit.main([]) == 2


def test_reported_numbers_are_of_the_method_and_concept_alone():
    rows = reported("rece", "nudity")
    assert rows and {row["method"] for row in rows} == {"RECE"} and all(row["source"] for row in rows)
    assert reported("rece", "cat") == [] and reported("mine", "nudity") == []
    assert reported("rece[epochs=1]", "nudity") == rows


def test_names_of_files_are_plain_words():
    found = {"model": "../m", "concept": "a b", "method": "uce[lamb=0.1]", "attack": "/etc"}
    assert name_of(found) == "m-a_b-uce_lamb=0.1-etc"


@pytest.mark.parametrize(
    "name", ["leaderboard", "paper", "verify", "submit", "report", "compare", "export", "found", "report.entries"]
)
def test_no_command_that_reads_results_loads_torch_when_it_is_imported(name):
    code = f"import sys, erasebench.{name}; sys.exit(bool({{'torch', 'diffusers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
