"""Prompts of two sources in one run: what asks for the concept, and what should survive."""

import re

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from erasebench import conf_folder
from erasebench.__main__ import main
from erasebench.cell import plan
from erasebench.one_run import build_parts, kept_prompts, run
from erasebench.prompts.published import PublishedPrompts
from erasebench.types import Concept, Prompt

SMALL = ["method=none", "model.steps=2", "prompts.n={target:3,paraphrase:0,neighbour:0,unrelated:0,coco:0}"]


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("prompt\n" + "".join(f"a street with {n} cars\n" for n in range(20)), encoding="utf-8")
    return path


def planned(tmp_path, captions, *overrides):
    more = ["prompts@kept=csv", f"kept.path={captions}", "kept.group=coco", "kept.seed=null", "kept.guidance=null"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", [f"results={tmp_path}", *SMALL, *more, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.create({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"})


@pytest.mark.slow
def test_targets_and_captions_are_measured_in_one_run_and_captions_are_about_nothing(tmp_path, captions):
    result = run(planned(tmp_path, captions, "kept.limit=12", "evaluator=[classifier,clip_score,fid]"))
    assert "kept-csv" in result.folder.parts[-2]  # what differs from the model's own prompts is in the name
    scores = result.scores
    assert set(scores[scores.evaluator == "classifier"].group) == {"target"}  # nothing to be seen in a caption
    assert (scores[scores.evaluator == "clip_score"].groupby("group").prompt_id.nunique()).to_dict() == {
        "coco": 12,
        "target": 3,
    }
    summary = result.summary
    assert summary[summary.metric.str.endswith("vs_original")].n.tolist() == [12]
    more = run(planned(tmp_path, captions, "kept.limit=15", "evaluator=[clip_score]"))  # the cell grows
    assert more.folder == result.folder
    assert more.summary[(more.summary.evaluator == "fid") & (more.summary.role == "distance")].n.max() == 15


@pytest.mark.slow
def test_a_second_source_gives_what_should_survive_and_nothing_else(tmp_path, captions):
    cell = plan(planned(tmp_path, captions))
    prompts = build_parts(cell).prompts
    assert [p.group for p in prompts] == ["target"] * 3 + ["coco"] * 20
    assert len({p.id for p in prompts}) == 23 and {p.concept for p in prompts} == {"cat", ""}
    with pytest.raises(ValueError, match=r"kept - must be a source .* got target; write kept.group=coco"):
        kept_prompts([Prompt(id="1", text="a cat")], set())
    other = plan(planned(tmp_path, captions, "kept.limit=5"))
    assert other.folder == cell.folder and other.key != cell.key


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["kept=coco_30k"], "choose one with prompts@kept=coco_30k"),
        (["kept.limit=4"], "kept.limit - .* write prompts@kept=NAME too"),
        (["prompts@kept=coco30k"], "did you mean coco_30k"),
        (["prompts@kept=csv", "kept.gruop=coco"], "kept.gruop - must be a setting of kept .* did you mean group"),
    ],
)
def test_what_is_mistyped_is_one_line(capsys, tmp_path, typed, said):
    assert main([f"results={tmp_path}", *typed]) == 2
    err = capsys.readouterr().err
    assert re.search(said, err) and len(err.splitlines()) == 1


def test_a_published_set_of_captions_names_no_concept(tmp_path, captions):
    cat = Concept(name="cat", phrases=("cat",))
    read = {"name": "set", "path": str(captions), "source": "here", "seed": None}
    assert {p.concept for p in PublishedPrompts(**read, group="coco").prompts(cat)} == {""}
    assert {p.concept for p in PublishedPrompts(**read).prompts(cat)} == {"cat"}


@pytest.mark.slow
def test_captions_alone_have_their_rows_everywhere(tmp_path, captions, capsys):
    from erasebench import leaderboard

    only = [
        "prompts=csv",
        f"prompts.path={captions}",
        "prompts.group=coco",
        "prompts.seed=null",
        "prompts.guidance=null",
    ]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose(
            "config", [f"results={tmp_path}", "method=none", "model.steps=2", *only], return_hydra_config=True
        )
    HydraConfig.instance().set_config(cfg)
    result = run(OmegaConf.create({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"}))
    assert set(result.scores.group) <= {"coco", "kept"}
    assert leaderboard.main([f"results={tmp_path}"]) == 0
    board = pd.read_csv(tmp_path / "leaderboard_cells.csv")
    assert len(board) == 1 and board.filter(like="fid").notna().any(axis=None)
