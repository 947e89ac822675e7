"""The whole run on the embedded model's first edition, small: few prompts and steps; all else is as a user has it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from erasebench import conf_folder
from erasebench.one_run import run
from erasebench.report import tables

SMALL = [
    "model=emoji",
    "prompts.n={target:4,paraphrase:2,neighbour:4,unrelated:4,coco:0}", "model.steps=3",
    "evaluator=[classifier,spillover]",
    "model.batch_size=4",
]  # fmt: skip
COLUMNS = {"run", "model", "concept", "method", "attack", "access", "group", "evaluator", "evaluator_version"}
REPO = Path(__file__).parents[1]


def composed(results: Path, *overrides: str):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        small = [o for o in SMALL if "prompts=csv" not in overrides or not o.startswith("prompts.n=")]
        cfg = compose("config", [f"results={results}", *small, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    plain = {k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"}
    return type(cfg)(plain)


def cell(results: Path, *overrides: str):
    return run(composed(results, *overrides))


def command(results: Path, *overrides: str, **options):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    flags = [o for o in overrides if o.startswith("-")]  # argparse wants them before the first key=value
    rest = [o for o in overrides if o not in flags]
    small = [o for o in SMALL if o.split("=")[0] not in {r.split("=")[0] for r in rest}]  # a key is given once
    args = [sys.executable, "-m", "erasebench", *flags, f"results={results}", *small, *rest]
    return subprocess.Popen(
        args, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_cell_leaves_exactly_its_four_files_and_is_read_the_second_time(tmp_path):
    first = cell(tmp_path, "method=uce")
    assert first.folder == tmp_path / "runs/emoji/cat/uce/none@steps-3/seed0"
    assert sorted(p.name for p in first.folder.iterdir()) == ["grid.png", "run.json", "scores.parquet", "summary.csv"]
    kept = sorted(path.suffix for path in (tmp_path / "cache" / "tables").iterdir())
    assert kept == [".cell", ".run"] and not first.cached  # what boards need of it is in the store
    frame = pd.read_parquet(first.folder / "scores.parquet")
    assert {
        "run",
        "model",
        "concept",
        "method",
        "attack",
        "access",
        "group",
        "evaluator",
        "evaluator_version",
        "metric",
        "prompt_id",
        "seed",
        "value",
        "status",
    } <= set(frame)
    assert set(frame.side) == {"erased", "original"} and set(frame.recipe) == {"uce_emoji"}
    record = json.loads((first.folder / "run.json").read_text())
    assert {"load", "erase", "attack", "draw", "score"} <= set(record["steps"])
    again = cell(tmp_path, "method=uce")
    assert again.cached
    pd.testing.assert_frame_equal(again.scores, first.scores)


@pytest.mark.slow
def test_methods_share_the_original_model_s_images_and_the_literal_recipe_has_its_own_folder(tmp_path):
    cell(tmp_path, "method=none")
    second = cell(tmp_path, "method=uce")
    assert second.record["steps"]["draw"]["images"] == 14  # the erased model's only
    literal = cell(tmp_path, "method=uce", "recipe=paper")
    assert literal.folder.parts[-3] == "uce-paper" and set(literal.scores.recipe) == {"paper"}
    base = second.scores[second.scores.side == "original"].value.to_numpy()
    none = tables.read_scores(tmp_path / "runs/emoji/cat/none/none@steps-3/seed0/scores.parquet")
    np.testing.assert_array_equal(none[none.side == "erased"].value, none[none.side == "original"].value)
    np.testing.assert_array_equal(none[none.side == "original"].value, base)


@pytest.mark.slow
def test_batch_size_changes_nothing_but_speed(tmp_path):
    a = cell(tmp_path / "a", "method=none")
    b = cell(tmp_path / "b", "method=none", "model.batch_size=7")
    assert a.record["identity"] == b.record["identity"]
    same = a.scores.metric.str.startswith(("concept_present", "accuracy"))
    assert (a.scores[same].value.to_numpy() == b.scores[same].value.to_numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, message",
    [
        (["method=uce", "method.lamb=-1"], "lamb"),
        (["concept=church"], "church"),
        (["concept.anchor=kitty"], "anchor"),
        (["model.path={tmp}/nowhere"], "nowhere"),
        (["model.path={tmp}/empty"], "model_index.json"),
        (["model.path={tmp}/pickled.ckpt"], "pickle"),
        (["seed=-1"], "seed"),
        (["prompts=csv", "prompts.path={tmp}/none.csv"], "none.csv"),
        (["prompts.n={{target:0,paraphrase:0,neighbour:0,unrelated:0,coco:0}}"], "at least one"),
    ],
)
def test_bad_input_is_one_line_before_any_weight_is_loaded(tmp_path, monkeypatch, overrides, message):
    from erasebench.diffusion import loading

    monkeypatch.setattr(loading, "_read", lambda *a, **k: pytest.fail("weights were read"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises((ValueError, OSError)) as error:
        cell(tmp_path / "results", *(o.format(tmp=tmp_path) for o in overrides))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_a_sweep_of_a_setting_leaves_rows_apart(tmp_path):
    first, second = cell(tmp_path, "method=none"), cell(tmp_path, "method=none", "model.steps=4")
    assert first.folder != second.folder and set(second.scores.settings) == {"steps=4"}


@pytest.mark.slow
def test_images_that_are_no_images_are_flagged_rows_and_never_scores(tmp_path, monkeypatch):
    from erasebench import diffusion

    drawn = diffusion.generate

    def spoiled(pipe, prompts, **options):
        for i, (prompt, image, status) in enumerate(drawn(pipe, prompts, **options)):
            yield (prompt, None, "nan") if i == 0 else (prompt, image, status)

    monkeypatch.setattr(diffusion, "generate", spoiled)
    result = cell(tmp_path, "method=none")
    bad = result.scores[result.scores.status == "nan"]
    assert len(bad) and bad.value.isna().all()
    assert any(f["flag"] == "failed_images" for f in result.record["flags"])
    assert (result.summary[result.summary.n_failed > 0].n > 0).any()


@pytest.mark.slow
def test_killed_and_run_again_equals_undisturbed(tmp_path):
    whole = cell(tmp_path / "whole", "method=rece", "evaluator=[classifier,clip_score,fid,spillover]")
    options = ("method=rece", "evaluator=[classifier,clip_score,fid,spillover]")
    for moment in ("runs", "cache/erase", "cache/images"):
        running = command(tmp_path / "killed", *options)
        deadline = time.time() + 120
        while (
            running.poll() is None and time.time() < deadline and not list((tmp_path / "killed" / moment).glob("*/*"))
        ):
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    done = command(tmp_path / "killed", *options)
    _, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    killed = tables.read_scores(tmp_path / "killed" / whole.folder.relative_to(tmp_path / "whole") / "scores.parquet")
    pd.testing.assert_frame_equal(killed, whole.scores, check_exact=True)


@pytest.mark.slow
def test_two_processes_on_one_cell_give_one_result_and_no_error(tmp_path):
    both = [command(tmp_path, "method=uce") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert len(list(tmp_path.glob("runs/**/run.json"))) == 1
    assert cell(tmp_path, "method=uce").cached


@pytest.mark.slow
def test_the_command_line_names_the_choices_and_fails_loudly(tmp_path):
    unknown = command(tmp_path, "method=nosuch")
    out, err = unknown.communicate(timeout=120)
    assert unknown.returncode != 0 and "rece" in err + out
    key = command(tmp_path, "method=uce", "method.nosuch=1")
    out, err = key.communicate(timeout=120)
    assert key.returncode != 0 and "nosuch" in err + out
    bad = command(tmp_path, "method=uce", "method.lamb=-1")
    out, err = bad.communicate(timeout=120)
    assert bad.returncode == 2 and "lamb" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_grid_and_its_leaderboard(tmp_path):
    grid = command(tmp_path, "-m", "method=none,uce", "concept=cat,sun")
    _, err = grid.communicate(timeout=300)
    assert grid.returncode == 0, err
    assert len(list(tmp_path.glob("runs/emoji/*/*/none@*/seed0/run.json"))) == 4
    board = subprocess.run(
        [sys.executable, "-m", "erasebench.leaderboard", f"results={tmp_path}"],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert board.returncode == 0, board.stderr
    assert len(pd.read_csv(tmp_path / "leaderboard_cells.csv")) == 4
