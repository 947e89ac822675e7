"""Stored bytes are checked when they are read: damage is said, made anew, and never quietly believed."""

import json
import random
import shutil

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from erasebench import conf_folder, leaderboard, paper
from erasebench.judges.nudenet import read_detections, write_detections
from erasebench.one_run import run
from erasebench.report import tables
from erasebench.report.runs import read_runs
from erasebench.store import files

SMALL = ["model=emoji", "prompts.n={target:2,paraphrase:1,neighbour:1,unrelated:2,coco:0}", "model.steps=2",
         "evaluator=[classifier]"]  # fmt: skip


NAMES = {"model": "emoji", "concept": "cat", "recipe": "paper", "attack": "none"}


def cell(results, *overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", [f"results={results}", *SMALL, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return run(OmegaConf.create({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"}))


def flip(path, seed=0):
    """One bit of a file, by a seed."""
    data = bytearray(path.read_bytes())
    at = random.Random(f"{seed} {path.name}").randrange(8 * len(data))
    data[at // 8] ^= 1 << at % 8
    path.write_bytes(data)


@pytest.mark.slow
def test_a_flipped_bit_anywhere_changes_no_table(tmp_path):
    """Every file of a finished run and of its steps, one at a time: the same rows again, and the damage is said."""
    first = cell(tmp_path, "method=uce")
    stored = [p for p in sorted(tmp_path.rglob("*")) if p.is_file() and p.name != "fingerprints.json"]
    kinds = {p.name.split("-")[0] for p in stored}
    assert {"scores.parquet", "summary.csv", "grid.png", "run.json", "matrix.safetensors", "erasure.json"} <= kinds
    copy = tmp_path.parent / "copy"
    for path in stored:
        shutil.copytree(tmp_path, copy)
        there = copy / path.relative_to(tmp_path)
        if "cache" in there.parts:
            shutil.rmtree(copy / "runs")  # its tables are made from the store
        flip(there)
        try:
            again = cell(copy, "method=uce")
        except OSError as error:  # a damaged shard is removed; the same command again draws it
            assert "was damaged and has been removed" in str(error)
            again = cell(copy, "method=uce")
        pd.testing.assert_frame_equal(again.scores, first.scores, check_exact=True)
        assert not again.cached or again.record == first.record, path
        shutil.rmtree(copy)


def test_boards_leave_out_a_damaged_run_and_say_so(tmp_path, capsys):
    from tests.test_paired import hits
    from tests.test_paired import run as scores

    for name, share in (("uce", 0.1), ("rece", 0.05), ("esd", 0.6)):
        folder = tmp_path / "runs/emoji/cat" / name / "none/seed0"
        frame = scores(name, hits(share))
        tables.write_scores(folder / "scores.parquet", frame)
        tables.write_csv(folder / "summary.csv", tables.summarise(frame))
        record = {
            "key": name, "config": {"seed": 0}, "steps": {},
            "identity": {"names": {**NAMES, "method": name}},
            "files": {n: files.file_hash(folder / n) for n in ("scores.parquet", "summary.csv")},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert leaderboard.main([f"results={tmp_path}"]) == 0
    whole = capsys.readouterr().out
    flip(tmp_path / "runs/emoji/cat/uce/none/seed0/scores.parquet")
    (tmp_path / "runs/emoji/cat/esd/none/seed0/run.json").write_text("[]", encoding="utf-8")
    for main, given in ((leaderboard.main, []), (paper.main, ["table=methods"])):
        assert main([f"results={tmp_path}", *given]) == 1
        said = capsys.readouterr()
        assert "rece" in said.out and "uce" not in said.out.split("written:")[0]
        lines = said.err.splitlines()
        assert len(lines) == 2 and "esd/none/seed0/run.json is no record of a run" in lines[0]
        assert "uce/none/seed0/scores.parquet is damaged or gone; run its cell again" in lines[1]
    assert "uce" in whole
    with pytest.raises(ValueError, match="is no record of a run"):
        read_runs(tmp_path)


@pytest.mark.parametrize("record", ["[]", "null", "{}", "3", '{"key": null}', "{", ""])
def test_a_record_that_is_none_is_named(tmp_path, record):
    folder = tmp_path / "runs/a/b/c/d/seed0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(record, encoding="utf-8")
    lines = []
    with pytest.raises(FileNotFoundError):
        read_runs(tmp_path, lines)
    assert len(lines) == 1 and "run.json is no record of a run; delete its folder" in lines[0]


def test_a_flipped_bit_in_stored_detections_is_noticed(tmp_path):
    box = {"class": "FEET_EXPOSED", "score": 0.61, "box": [1, 2, 3, 4]}
    found = {f"digest{i}": [box] * (i % 3) for i in range(30)}
    path = write_detections(tmp_path, "d", found)
    assert read_detections(tmp_path, "d") == found
    good = path.read_bytes()
    for seed in range(300):
        path.write_bytes(good)
        flip(path, seed)
        assert read_detections(tmp_path, "d") in ({}, found)  # looked at again, or a bit that decides nothing
