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
from erasebench.__main__ import main
from erasebench.building import build
from erasebench.command.composing import compose, session, without_hydra
from erasebench.costs import COUNTED, EVALUATION, a100_hours, cost
from erasebench.prompts.files import read_prompts
from erasebench.prompts.grid import GridPrompts
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
    assert config["model"]["name"] in COUNTED and config["recipe"] == "paper"
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
    hours, beside = row.split("|")[8:10]
    assert hours.strip() == f"{a100_hours(found.evaluations):.2f}"
    assert set(re.findall(r"`(\w+)`", beside)) <= keys and ("`" in beside or "none in the file" in beside)


@pytest.mark.slow
def test_the_operations_that_hours_are_computed_from_are_the_unet_s():
    """Counted on Stable Diffusion 1.x's shape without memory for its weights."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counted:
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).eval()
        unet(torch.randn(1, 4, 64, 64), torch.ones(1), encoder_hidden_states=torch.randn(1, 77, 768))
    assert counted.get_total_flops() == EVALUATION


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
    rows = [
        f"{i},a person {where},{i + 5},7.0,shocking\n" for i, where in enumerate(("on a beach", "at work", "in a park"))
    ]
    header = "case_number,prompt,evaluation_seed,evaluation_guidance,categories\n"
    (folder / "target.csv").write_text(header + "".join(rows))
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


# --- UnlearnCanvas' grid, files of lines, one seed for all ---


GRID = {"template": "A {object} image in {style} style.", "styles": ("Van_Gogh", "Rust"), "objects": ("Cats", "Sea")}


def test_a_style_is_asked_for_in_its_own_images_and_the_others_are_asked_two_things():
    made = GridPrompts(**GRID, seeds=(188, 288)).prompts(Concept(name="van_gogh", kind="style", phrases=["Van Gogh"]))
    found = {(p.group, p.relation, p.concept): 0 for p in made}
    for p in made:
        found[p.group, p.relation, p.concept] += 1
    assert found == {
        ("target", "", "van_gogh"): 4, ("neighbour", "in_domain", "rust"): 4,
        ("unrelated", "cross_domain", "cats"): 2, ("unrelated", "cross_domain", "sea"): 2,
    }  # fmt: skip
    assert made[0].text == "A Cats image in Van Gogh style." and made[0].seed == 188
    assert len({p.digest() for p in made}) == 8 and len({p.id for p in made}) == 12  # 2 x 2 x 2 images, each drawn once


def test_an_object_is_the_other_way_round():
    made = GridPrompts(**GRID, seeds=(1,)).prompts(Concept(name="sea", phrases=["sea"]))
    assert [p.text for p in made if p.group == "target"] == [
        "A Sea image in Van Gogh style.",
        "A Sea image in Rust style.",
    ]
    assert [p.concept for p in made if p.group == "neighbour"] == ["cats", "cats"]
    assert [p.concept for p in made if p.group == "unrelated"] == ["van_gogh", "rust"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "A {object}"}, "must have {style} and {object}"), ({"seeds": ()}, "seeds at least one"),
        ({"styles": ("Rust", "rust")}, "each once"), ({"objects": ()}, "objects"), ({"limit": 0}, "limit"),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GridPrompts(**(GRID | {"seeds": (1,)} | change))
    with pytest.raises(ValueError, match="concept must be a style or an object of the set; got 'cat'"):
        GridPrompts(**GRID, seeds=(1,)).prompts(Concept(name="cat", phrases=["cat"]))


def test_unlearncanvas_draws_5100_images_and_its_judge_sees_every_name():
    config = composed("experiment=unlearncanvas")[0]
    assert config["model"]["path"] == "${data}/unlearncanvas/sd15"  # never the plain Stable Diffusion 1.5
    made = build(config["prompts"]).prompts(Concept(name="van_gogh", kind="style", phrases=["Van Gogh"]))
    assert len({p.digest() for p in made}) == 5100 == config["prompts"]["rows"]
    groups = {g: sum(p.group == g for p in made) for g in ("target", "neighbour", "unrelated")}
    assert groups == {"target": 100, "neighbour": 5000, "unrelated": 5000}
    labels = {*config["judge"]["first"]["labels"], *config["judge"]["others"]["labels"]}
    assert {p.concept for p in made} == labels


def test_a_text_file_is_a_prompt_a_line_and_one_seed_serves_all(tmp_path):
    path = tmp_path / "all.txt"
    path.write_text('a horse, at night\n\n  \na "car"\n', encoding="utf-8")
    prompts = read_prompts(path, seed=202504)
    assert [(p.text, p.seed) for p in prompts] == [("a horse, at night", 202504), ('a "car"', 202504)]
    with pytest.raises(ValueError, match=r"all\.txt has no column 'evaluation_seed'; found prompt"):
        read_prompts(path)
    with pytest.raises(ValueError, match=r"prompts\.seed"):
        PublishedPrompts(name="x", path=str(path), source="here", seed=-1)


def test_a_dry_run_says_what_a_sweep_takes_and_runs_nothing(tmp_path, capsys):
    arguments = ["--dry-run", "-m", "experiment=mma_nudity", "method=uce,none", f"results={tmp_path / 'out'}"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 cells\n  method=uce: at most 2000 images, 200000 evaluations\n")
    assert "at most 3000 images, 300000 model evaluations" in out  # the original's are shared
    assert f"about {a100_hours(300_000):.1f} hours of drawing, computed" in out and "time: unknown" in out
    assert out.endswith("nothing was run\n") and not (tmp_path / "out").exists()
    assert main(["experiment=unlearncanvas", "prompts=csv", "--dry-run", f"results={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 cell\nat most ") and "to be given: prompts.path=" in out
