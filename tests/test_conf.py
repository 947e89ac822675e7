"""Every config composes, and every method and attack in conf/ builds without reading a weight."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from erasebench import cell as cell  # registers ${labels:}
from erasebench import conf_folder


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_folder() / group).glob("*.yaml"))


def config(*overrides: str):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.mark.parametrize("model", options("model"))
@pytest.mark.parametrize("method", options("method"))
def test_every_method_composes_and_builds_on_every_model(model, method):
    cfg = config(f"model={model}", f"method={method}")
    OmegaConf.to_container(cfg, resolve=True)
    instantiate(cfg.method, _convert_="all")


@pytest.mark.parametrize("model", options("model"))
@pytest.mark.parametrize("attack", options("attack"))
def test_every_attack_composes_and_builds_on_every_model(model, attack):
    cfg = config(f"model={model}", f"attack={attack}")
    OmegaConf.to_container(cfg, resolve=True)
    if not OmegaConf.missing_keys(cfg.attack):
        instantiate(cfg.attack, _convert_="all")


@pytest.mark.parametrize("concept", options("concept"))
def test_every_concept_builds_under_its_own_name(concept):
    assert instantiate(config(f"concept={concept}").concept, _convert_="all").name == concept


def test_the_embedded_model_takes_its_own_recipe_and_the_paper_s_is_one_override_away():
    assert config("method=uce").recipe == "uce_emoji"
    assert config("method=rece", "attack=ringabell").budget == "ringabell_emoji"
    literal = config("method=uce", "recipe=paper")
    assert literal.recipe == "paper" and literal.method.pooling == "last+pad"
    assert config("method=uce", "model=sd14").recipe == "paper"


def test_recipes_and_budgets_name_existing_methods_and_attacks():
    known = {"recipe": options("method"), "budget": options("attack")}
    for group, stems in known.items():
        for stem in set(options(group)) - {"paper"}:
            assert any(stem.startswith(f"{name}_") for name in stems), Path(group) / stem


@pytest.mark.parametrize("overrides", [(), ("budget=paper",), ("model=sd14",)], ids=["emoji", "paper", "sd14"])
def test_controls_judge_as_many_images_as_the_attacks_they_stand_beside(overrides):
    def spent(attack: str) -> int:
        node = config(f"attack={attack}", *overrides).attack
        return node.queries if "queries" in node else 1 + instantiate(node, _convert_="all").schedule()[0]

    controls = {attack: spent(attack) for attack in ("random_prefix", "reseed", "best_of_n")}
    assert controls == dict.fromkeys(controls, spent("unlearndiffatk")) == dict.fromkeys(controls, spent("p4d"))
    if not overrides:
        assert {spent("p4d_n"), spent("p4d_k")} == {spent("p4d")}


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes(name):
    cfg = config(f"experiment={name}")
    assert OmegaConf.to_container(cfg, resolve=True)["model"]["name"] in options("model")
    for node in (cfg.method, cfg.attack, cfg.prompts):
        instantiate(node, _convert_="all")
