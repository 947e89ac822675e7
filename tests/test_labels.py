"""Labels are derived: a row says what was run, and a name never stands for settings it does not name."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from erasebench import conf_folder, labels
from erasebench.cell import plan
from erasebench.report.runs import find_run


@pytest.fixture(scope="module")
def job():
    """A function that plans a run as the command line would."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):

        def planned(root: Path, *overrides: str):
            cfg = compose("config", [f"results={root}", "model=emoji", *overrides], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            return plan(OmegaConf.create({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"}))

        yield planned
        HydraConfig.instance().cfg = None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "names", "folder"),
    [
        (["method=uce"], {"method": "uce", "recipe": "uce_emoji", "settings": ""}, "cat/uce/none"),
        (["method=uce", "recipe=paper"], {"method": "uce", "recipe": "paper"}, "cat/uce-paper/none"),
        (
            ["method=uce", "method.lamb=0.1"],
            {"method": "uce", "recipe": "uce_emoji"},
            "cat/uce/none",
        ),  # what it is already
        (
            ["method=uce", "method.lamb=5"],
            {"method": "uce[lamb=5]", "recipe": "uce_emoji changed"},
            "cat/uce@lamb-5/none",
        ),
        (
            ["method=uce", "recipe=paper", "method.lamb=1e-300"],
            {"method": "uce[lamb=1e-300]", "recipe": "paper changed"},
            "cat/uce@lamb-1e-300-paper/none",
        ),
        (["method=esd_x", "model.steps=7"], {"method": "esd_x", "settings": "steps=7"}, "cat/esd_x/none@steps-7"),
        (
            ["method=uce", "method.lamb=5", "name=mine"],
            {"method": "mine", "recipe": "uce_emoji changed"},
            "cat/mine/none",
        ),
        (["method=none", "concept.anchor=dog"], {"concept": "cat[anchor=dog]"}, "cat@anchor-dog/none/none"),
        (["method=none", "concept=sun", "also=[dog]"], {"concept": "sun+dog"}, "sun+dog/none/none"),
        (
            ["method=none", "attack=reseed", "attack.queries=3"],
            {"attack": "reseed[queries=3]", "budget": "reseed_emoji changed"},
            "cat/none/reseed@queries-3",
        ),
        (
            ["method=none", "attack=reseed", "budget=paper"],
            {"attack": "reseed", "budget": "paper"},
            "cat/none/reseed-paper",
        ),
        (
            ["method=none", "prompts.n.target=3"],
            {"settings": ""},
            "cat/none/none",
        ),  # more or fewer prompts: the same row
        (["method=none", "prompts=photo"], {"settings": "prompts=photo"}, "cat/none/none@prompts-photo"),
        (["method=none", "judge=clip"], {"settings": "judge=clip"}, "cat/none/none@judge-clip"),
        (["method=none", "model.batch_size=3", "seed=4"], {"settings": ""}, "cat/none/none"),
    ],
)
def test_a_label_says_what_differs(job, tmp_path, typed, names, folder):
    cell = job(tmp_path, *typed)
    assert {k: cell.names[k] for k in names} == names
    assert cell.folder.parent == tmp_path / "runs" / "emoji" / folder


def write(cell, **changes):
    cell.folder.mkdir(parents=True)
    (cell.folder / "run.json").write_text(json.dumps({"identity": cell.identity | changes}))


def test_a_cell_grows_by_evaluators_and_prompts(job, tmp_path):
    write(job(tmp_path, "method=none", "evaluator=[classifier,fid]", "prompts.n.target=40", "prompts.n.neighbour=9"))
    cell = job(tmp_path, "method=none", "evaluator=[clip_score]", "prompts.n.target=20", "prompts.n.neighbour=11")
    assert list(cell.config["evaluator"]) == ["classifier", "fid", "clip_score"]
    assert cell.config["prompts"]["n"]["target"] == 40 and cell.config["prompts"]["n"]["neighbour"] == 11


@pytest.mark.slow
def test_other_settings_under_one_name_are_refused_with_the_way_out(job, tmp_path):
    write(job(tmp_path, "method=uce", "method.lamb=5", "name=mine"))
    with pytest.raises(ValueError, match=r"method.lamb was 5.* and is 7.*name=NAME.*method.name=NAME"):
        job(tmp_path, "method=uce", "method.lamb=7", "name=mine")


@pytest.mark.slow
def test_a_sweep_gives_every_value_a_folder(job, tmp_path):
    cells = [job(tmp_path, "method=uce", f"method.lamb={v}") for v in (0.2, 1, 5)]
    assert len({c.folder for c in cells}) == len({c.names["method"] for c in cells}) == 3


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "a b"])
def test_a_name_is_a_plain_word(job, tmp_path, name):
    with pytest.raises(ValueError, match=r"method\.name must be a plain word"):
        job(tmp_path, "method=checkpoint", "method.path=x.safetensors", f"method.name='{name}'")


def test_many_changes_are_counted_and_told_apart():
    many = {f"k{i}": i for i in range(9)}
    text = labels.spelled(many)
    assert text.startswith("k0=0,k1=1,k2=2,6 more ") and text != labels.spelled(many | {"k8": 80})
    long = {"preserve": ["x" * 90, "y" * 90]}
    assert len(labels.folder_name(labels.label("uce", long))) < 130


def test_a_run_is_found_by_its_plain_names(tmp_path):
    for name in ("none@steps-2", "ringabell"):
        folder = tmp_path / "runs" / "emoji" / "cat" / "uce@lamb-5" / name / "seed0"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    plain = tmp_path / "runs" / "emoji" / "cat" / "uce"
    assert find_run(plain / "none" / "seed0").parent.name == "none@steps-2"
    assert find_run(plain / "none" / "seed1") == plain / "none" / "seed1"
    (tmp_path / "runs" / "emoji" / "cat" / "uce@lamb-7" / "none" / "seed0").mkdir(parents=True)
    (tmp_path / "runs" / "emoji" / "cat" / "uce@lamb-7" / "none" / "seed0" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="must name one run; got 2"):
        find_run(plain / "none" / "seed0")
