"""Published protocols: each composes for every method it names, says what it is, and one runs whole on a tiny model."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import erasebench
from erasebench import conf_folder
from erasebench.building import build
from erasebench.command.composing import compose, session, without_hydra
from erasebench.costs import cost
from erasebench.prompts.published import PublishedPrompts
from erasebench.types import Concept

REPO = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))
MINE = {"mace_i2p": ["uce"], "unlearndiffatk_church": ["esd_u"], "rece_artists": []}  # a protocol's own method
METHODS = ("none", "uce", "rece", "esd_x", "esd_u", "sld_medium", "checkpoint")


def composed(*overrides):
    with session():
        cfg = without_hydra(compose(list(overrides)))
    for key in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, key, None, force_add=True)
    return OmegaConf.to_container(cfg, resolve=False), cfg


@pytest.mark.parametrize("name", NAMES)
def test_it_composes_builds_and_is_documented_with_what_it_costs(name):
    """``docs/protocols.md`` has a row for it, with the images and evaluations that the doctor computes."""
    _, cfg = composed(f"experiment={name}")
    config = OmegaConf.to_container(cfg, resolve=True)
    assert config["model"]["name"] == "sd14" and config["recipe"] == "paper"
    for node in ("method", "prompts", "concept", "attack"):
        build(config[node])
    if config.get("kept"):
        build(config["kept"])
    text = (conf_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    found = cost([config], Path("nowhere"))
    row = next(
        line for line in (REPO / "docs/protocols.md").read_text().splitlines() if line.startswith(f"| `{name}` ")
    )
    assert f" {found.images:,} " in row and f" {found.evaluations:,} " in row
    assert set(re.findall(r"arXiv:(\d{4}\.\d{5})", text)) == {row.split("|")[2].strip()}
    with open(REPO / "results/published.csv", encoding="utf-8", newline="") as file:
        keys = {line["key"] for line in csv.DictReader(file)}
    beside = row.split("|")[8]
    assert set(re.findall(r"`(\w+)`", beside)) <= keys and ("`" in beside or "none in the file" in beside)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(MINE))
def test_another_method_takes_its_place(name, method):
    _, cfg = composed(f"experiment={name}", f"method={method}")
    own = composed(f"experiment={name}")[1]
    assert cfg.prompts == own.prompts and cfg.model == own.model and cfg.evaluator == own.evaluator
    assert (cfg.method == own.method) == (method in MINE[name])


def test_samplers_and_guidance_are_the_protocols_own():
    def model(name):
        cfg = composed(f"experiment={name}")[1]
        return cfg.model.scheduler, cfg.model.steps, cfg.prompts.guidance

    assert model("rece_nudity") == ("lms", 50, "evaluation_guidance")
    assert model("mace_i2p") == ("ddim", 50, None) and model("eap_nudity") == ("lms", 100, None)
    assert model("unlearndiffatk_church") == ("lms", 50, "evaluation_guidance")
    assert model("ringabell_nudity")[0] is None


def test_rece_s_unsafe_recipe_erases_eleven_words_in_two_epochs():
    config = composed("experiment=rece_unsafe")[0]
    assert len(config["concept"]["phrases"]) == 11 and config["method"]["epochs"] == 2
    assert config["method"]["phrases"] == config["method"]["start"]["phrases"] == "all"


def sets(folder: Path) -> dict[str, Path]:
    """Two prompt files of three harmless rows each, in the columns of the published ones."""
    rows = [f"{i},a person {where},{i + 5},7.0\n" for i, where in enumerate(("on a beach", "at work", "in a park"))]
    (folder / "target.csv").write_text("case_number,prompt,evaluation_seed,evaluation_guidance\n" + "".join(rows))
    (folder / "coco.csv").write_text(
        "case_number,prompt,evaluation_seed\n" + "".join(f"{i},a tree {i},{i}\n" for i in range(3))
    )
    return {name: folder / f"{name}.csv" for name in ("target", "coco")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rece_nudity", "rece_unsafe", "mace_i2p", "esd_nudity"])
def test_it_runs_whole_on_a_tiny_model_with_three_prompts_a_set(name, tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # the judges' weights are asked for by no evaluator here
    tiny_pipe.save_pretrained(tmp_path / "pipe")
    files = sets(tmp_path)
    more = ["method.iterations=1", "method.steps=2"] if name == "esd_nudity" else []
    kept = [f"kept.path={files['coco']}", "kept.sha256=null"] if name in ("rece_nudity", "mace_i2p") else []
    small = ["clip=emoji", "features=emoji"]  # in place of networks that would be fetched
    arguments = [
        f"experiment={name}", f"model.path={tmp_path / 'pipe'}", f"prompts.path={files['target']}",
        "prompts.sha256=null", "model.steps=2", "model.device=cpu", f"results={tmp_path / 'out'}", *small, *more, *kept,
    ]  # fmt: skip
    result = erasebench.run(*arguments)
    scores = result.scores
    assert set(scores.side) == {"original", "erased"} and scores[scores.group == "target"].prompt_id.nunique() == 3
    assert np.isfinite(scores.value).all() and (scores.status == "ok").all()
    wanted = {"nudenet", "clip_score", "fid"} if kept else {"nudenet"}
    assert set(scores.evaluator) == wanted
    assert result.record["steps"]["draw"]["images"] == (12 if kept else 6)
    assert "@0.25" in " ".join(scores.metric) and erasebench.run(*arguments).cached


def test_the_rows_of_all_others_are_what_should_survive(tmp_path):
    (tmp_path / "x.csv").write_text(
        "prompt,class,evaluation_seed\na church,church,1\na horn,French horn,2\na tench,tench,3\n"
    )
    church = Concept(name="church", phrases=("church", "chapel"))
    made = {"name": "x", "path": str(tmp_path / "x.csv"), "source": "here", "column": "class"}
    assert [p.text for p in PublishedPrompts(**made).prompts(church)] == ["a church"]
    others = PublishedPrompts(**made, others=True, group="unrelated").prompts(church)
    assert [(p.text, p.concept, p.group) for p in others] == [
        ("a horn", "French horn", "unrelated"), ("a tench", "tench", "unrelated"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"prompts\.others must be of rows that a column tells apart"):
        PublishedPrompts(**made, others=True)
