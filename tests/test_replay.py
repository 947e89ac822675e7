"""Replay and export: what was found comes back as it was; hashes protect texts; unsafe ones stay hidden."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from safetensors.torch import save_file

from attacks.replay import Replay
from erasebench import conf_folder, one_run, store
from erasebench.cell import plan
from erasebench.found import main
from erasebench.report import tables
from erasebench.report.found import digest, read_found, write_csv
from erasebench.types import Concept, Prompt, Score
from tests.cells import cell

ROOT = Path(__file__).parents[1]
CAT = Concept(name="cat", phrases=("cat",))
TEXTS = ["a cat", 'odd, "quoted"\nlines � é', "", "Null"]


def found_prompts(embeds=False):
    return [
        Prompt(
            id=f"target-{i}-search", text=text, seed=100 + i, guidance_scale=[None, 7.5][i % 2], group="attack",
            concept="cat", source_id=f"target-{i}", info={"success": i % 2 == 0, "curve": [0.1], "present": [False]},
            embeds=np.full((2, 3), i, np.float32) if embeds else None,
        )
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip


def stored_run(root: Path, prompts=None, kind="object", concept="cat", attack="search") -> Path:
    """A run's folder and its cached prompts, as the run leaves them."""
    prompts = found_prompts() if prompts is None else prompts

    def make(folder: Path) -> None:
        rows = [{k: v for k, v in asdict(p).items() if k != "embeds"} for p in prompts]
        (folder / "prompts.json").write_text(json.dumps(rows))
        embeds = {p.id: torch.from_numpy(p.embeds) for p in prompts if p.embeds is not None}
        save_file(embeds, folder / "embeds.safetensors")

    cached = store.step(root, "attack", "0123456789", make)
    folder = root / "runs" / "emoji" / concept / "uce" / attack / "seed0"
    folder.mkdir(parents=True)
    names = {"model": "emoji", "concept": concept, "method": "uce", "attack": attack}
    record = {
        "key": "k", "identity": {"names": names}, "config": {"concept": {"kind": kind}},
        "steps": {"attack": {"folder": str(cached)}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    plain = [Prompt(id=f"target-{i}", text="t", seed=i) for i in range(4)]
    scores = [Score(evaluator="c", metric="m", value=1.0, group="target", prompt_id=p.id) for p in plain]
    frame = tables.scores_frame(
        scores, run="k", side="erased", cell=cell(**names, access="model"), versions={"c": 1}, prompts=plain
    )  # fmt: skip
    tables.write_scores(folder / "scores.parquet", frame)
    return folder


def replay(path, plain=(), concept=CAT, **fields):
    source = Replay(run=str(path), **fields)
    source.check(concept)
    return source.attack(None, None, list(plain), concept, None)


def essence(prompts):
    return [(p.id, p.text, p.seed, p.guidance_scale, p.group, p.concept) for p in prompts]


def test_a_run_s_prompts_come_back_with_their_origin_and_without_their_curve(tmp_path):
    found = replay(stored_run(tmp_path))
    assert essence(found) == essence(found_prompts())
    assert found[0].info == {"replayed_from": "emoji/cat/uce/search/seed0", "succeeded_there": True}
    assert Replay.access == "none"


@pytest.mark.parametrize(("embeds", "strength"), [(True, "embedding"), (False, "text")])
def test_what_is_replayed_keeps_its_strength(tmp_path, embeds, strength):
    assert Replay(run=str(stored_run(tmp_path, found_prompts(embeds=embeds)))).strength == strength


def test_results_may_move(tmp_path):
    stored_run(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    assert len(replay(tmp_path / "after/runs/emoji/cat/uce/search/seed0")) == 4


def test_embeddings_come_back_and_are_no_csv(tmp_path, capsys):
    folder = stored_run(tmp_path, found_prompts(embeds=True))
    assert [p.embeds.tolist() for p in replay(folder)] == [p.embeds.tolist() for p in found_prompts(embeds=True)]
    assert main([f"run={folder}"]) == 2
    assert "got embeddings; replay the run's folder instead" in capsys.readouterr().err


def test_sources_are_the_run_s_own_prompts_by_id_and_seed_or_nothing(tmp_path):
    plain = [Prompt(id=f"target-{i}", text="t", seed=[0, 1, 77, 3][i]) for i in range(3)]
    expected = ["target-0", "target-1", "", ""]  # another seed, and one this run does not have
    folder = stored_run(tmp_path)
    assert [p.source_id for p in replay(folder, plain)] == expected
    path = write_csv(tmp_path / "found.csv", read_found(folder))
    assert [p.source_id for p in replay(path, plain)] == expected


def test_an_exported_csv_replays_as_the_run_does(tmp_path, capsys):
    folder = stored_run(tmp_path)
    assert main([f"run={folder}"]) == 0
    assert f"4 prompts of emoji/cat/uce/search/seed0: {folder / 'prompts.csv'}" in capsys.readouterr().out
    again = replay(folder / "prompts.csv")
    assert essence(again) == essence(found_prompts())
    assert [p.info["succeeded_there"] for p in again] == [True, False, True, False]
    with (folder / "prompts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["sha256"] for r in rows] == [digest(t) for t in TEXTS] and rows[1]["source_seed"] == "1"
    before = (folder / "prompts.csv").read_bytes()
    assert main([f"--run={folder}", f"file={tmp_path / 'x.csv'}"]) == 0 and (tmp_path / "x.csv").read_bytes() == before


def test_only_successes_if_asked_for(tmp_path):
    folder = stored_run(tmp_path)
    assert [p.id for p in replay(folder, successes=True)] == ["target-0-search", "target-2-search"]
    failed = [p.with_(info={"success": False}) for p in found_prompts()]
    with pytest.raises(ValueError, match="must hold a prompt that succeeded; got none"):
        replay(stored_run(tmp_path / "b", failed), successes=True)


def test_unsafe_prompts_are_ids_and_hashes_unless_asked_for_and_lose_minors(tmp_path, capsys):
    texts = ["a", "a schoolgirl"]
    prompts = [Prompt(id=str(i), text=t, group="attack", concept="nudity") for i, t in enumerate(texts)]
    folder = stored_run(tmp_path, prompts, kind="unsafe", concept="nudity")
    assert main([f"run={folder}"]) == 0 and "ids and hashes" in capsys.readouterr().out
    written = (folder / "prompts.csv").read_text()
    assert "schoolgirl" not in written and digest("a schoolgirl") in written
    nudity = Concept(name="nudity", kind="unsafe", phrases=("nudity",))
    with pytest.raises(ValueError, match="has a hash and no text; export it with texts=true"):
        replay(folder / "prompts.csv", concept=nudity)
    assert main([f"run={folder}", "texts=true"]) == 0
    assert [p.text for p in replay(folder / "prompts.csv", concept=nudity)] == ["a"]
    assert [p.text for p in replay(folder, concept=nudity)] == ["a"]


def test_what_cannot_be_replayed_is_one_line(tmp_path, capsys):
    folder = stored_run(tmp_path)
    path = write_csv(tmp_path / "found.csv", read_found(folder))
    changed = tmp_path / "changed.csv"
    changed.write_text(path.read_text().replace("a cat", "a dog"))
    (tmp_path / "columns.csv").write_text("id,prompt,seed,guidance,concept\na,b,1,,cat\n")
    none = stored_run(tmp_path / "none", [], attack="none")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{}")
    cases = [
        (tmp_path / "nowhere", "must be a run's folder or an exported CSV; got neither"),
        (changed, "must have the text its sha256 says; it was changed"),
        (tmp_path / "columns.csv", "has no column 'source_id'"),
        (none, "has no attack prompts (attack none)"),
        (tmp_path / "broken", "must be the record of a run"),
    ]
    for where, message in cases:
        with pytest.raises((ValueError, OSError)) as error:
            replay(where)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert main([f"run={where}"]) == 2 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError, match="holds prompts about 'cat'; got concept 'dog'"):
        replay(folder, concept=Concept(name="dog", phrases=("dog",)))
    for arguments in ([], ["run="], ["run=a", "text=true"], ["run=a", "texts=yes"]):
        assert main(arguments) == 2
    (tmp_path / "cache" / "attack" / "0123456789" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="which is gone; run that cell again"):
        replay(folder)


def test_a_setting_without_a_default_is_asked_for(tmp_path):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", ["attack=replay", f"results={tmp_path}"])
    with pytest.raises(ValueError, match=r"^attack.run must be given, it has no default; got nothing; add attack.run="):
        plan(cfg)


def test_export_needs_no_torch(tmp_path):
    code = (
        "import sys; from erasebench.found import main; code = main(sys.argv[1:]);"
        "sys.exit(code or (3 if {'torch', 'diffusers', 'transformers'} & set(sys.modules) else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"run={stored_run(tmp_path)}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_transfer_table_of_two_methods(tmp_path):
    small = ["prompts.n={target:4,paraphrase:0,neighbour:0,unrelated:0,coco:0}", "model.steps=2"]
    small += ["evaluator=[classifier,asr]", f"results={tmp_path}"]

    def cell(*overrides):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            cfg = compose("config", [*small, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return one_run.run(type(cfg)({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"}))

    first = cell("method=uce", "attack=reseed", "attack.queries=3")
    for method in ("none", "uce"):
        moved = cell(f"method={method}", "attack=replay", f"attack.run={first.folder}")
        assert moved.folder == tmp_path / f"runs/emoji/cat/{method}/replay-uce-reseed@queries-3@steps-2@steps-2/seed0"
        assert sorted(p.name for p in moved.folder.iterdir()) == [
            "grid.png", "run.json", "scores.parquet", "summary.csv"
        ]  # fmt: skip
        assert moved.record["attack"]["replayed_from"] == "emoji/cat/uce/reseed[queries=3]/seed0"
        assert any(m.startswith("asr.") for m in moved.scores.metric)  # joined to the same plain prompts
    same = lambda r: r.scores[(r.scores.group == "attack") & (r.scores.side == "erased")].value.tolist()  # noqa: E731
    assert same(moved) == same(first)  # on the model they were found on they do what they did


# --- a CSV that went through a spreadsheet


ROW = "b,{text},6,2.5,cat,target-3,{seed},{success},{hash}"
HEADER = "id,prompt,seed,guidance,concept,source_id,source_seed,success,sha256"


def through_a_spreadsheet(path, seed="4", success="1"):
    text = "a drawing of a cat"
    path.write_text(f"{HEADER}\n{ROW.format(text=text, seed=seed, success=success, hash=digest(text))}\n")
    return read_found(path)


@pytest.mark.parametrize(("seed", "success"), [("4.0", "0.0"), ("4", "FALSE"), (" 4 ", "no"), ("4.", "False")])
def test_seeds_and_successes_are_read_as_spreadsheets_write_them(tmp_path, seed, success):
    found = through_a_spreadsheet(tmp_path / "f.csv", seed, success)
    assert found.source_seeds == {"target-3": 4} and found.prompts[0].info == {"success": False}


def test_empty_cells_say_nothing(tmp_path):
    found = through_a_spreadsheet(tmp_path / "f.csv", "", "")
    assert found.source_seeds == {} and found.prompts[0].info == {}


@pytest.mark.parametrize(
    ("seed", "success", "message"),
    [("four", "1", "line 2, column 'source_seed' must be an integer"), ("4", "maybe", "line 2, column 'success' must")],
)
def test_other_cells_name_file_row_and_column(tmp_path, seed, success, message):
    with pytest.raises(ValueError, match=f"f.csv {message}"):
        through_a_spreadsheet(tmp_path / "f.csv", seed, success)


def test_pandas_may_read_and_write_it(tmp_path):
    folder = stored_run(tmp_path / "results", [p.with_(text=f"text {p.id}") for p in found_prompts()])
    path = write_csv(tmp_path / "f.csv", read_found(folder))
    table = pd.read_csv(path)
    table.loc[0, ["source_seed", "success"]] = None  # gaps make floats of the columns
    table.to_csv(path, index=False)
    found = read_found(path)
    assert found.source_seeds == {f"target-{i}": i for i in (1, 2, 3)}
    assert [p.info.get("success") for p in found.prompts] == [None, False, True, False]
