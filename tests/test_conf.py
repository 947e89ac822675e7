"""Every config composes, and every method and attack in conf/ builds without reading a weight."""

from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from erasebench import cell as cell  # registers ${labels:}
from erasebench import conf_folder


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_folder() / group).glob("*.yaml"))


@cache
def config(*overrides: str):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", list(overrides))


def combinations() -> list[object]:
    """Every method and every attack under every adaptation, every model and every concept, in few compositions.

    What a model changes of a method or an attack is its adaptation's; models without one of their own share a turn.
    """
    attacks, methods, concepts = options("attack"), options("method"), options("concept")
    default = config().model.name
    own = [model for model in options("model") if model in options("adaptation")]
    plain = [model for model in options("model") if model not in own]
    turns = [[model] for model in own] + [plain]
    made: list[object] = []
    for turn in turns:
        for i in range(max(len(attacks), len(methods), len(turn))):
            chosen = [group[i % len(group)] for group in (attacks, methods)]
            concept = concepts[len(made) % len(concepts)]
            marks = [] if turn == [default] else [pytest.mark.slow]
            made.append(pytest.param(turn[i % len(turn)], *chosen, concept, marks=marks))
    assert len(made) >= len(concepts), "every concept must be composed: add a turn"
    return made


@pytest.mark.parametrize(("model", "attack", "method", "concept"), combinations())
def test_every_method_attack_and_concept_composes_and_builds_under_every_adaptation(model, attack, method, concept):
    cfg = config(f"model={model}", f"attack={attack}", f"method={method}", f"concept={concept}")
    OmegaConf.to_container(cfg, resolve=True)
    instantiate(cfg.method, _convert_="all")
    if not OmegaConf.missing_keys(cfg.attack):
        instantiate(cfg.attack, _convert_="all")
    assert instantiate(cfg.concept, _convert_="all").name == concept


@pytest.mark.parametrize("concept", ["cat", "ink"])
@pytest.mark.parametrize("model", ["emoji", "emoji2"])
def test_every_embedded_model_brings_texts_for_concept_vectors(model, concept):
    cfg = config(f"model={model}", f"concept={concept}", "attack=ringabell")
    assert not OmegaConf.missing_keys(cfg.attack)
    assert instantiate(cfg.attack, _convert_="all").vector.pairs


def test_the_embedded_model_takes_its_own_recipe_and_the_paper_s_is_one_override_away():
    assert config("method=uce").recipe == "uce_emoji"
    cfg = config("attack=ringabell")
    assert cfg.budget == cfg.strength == "ringabell_emoji"
    assert config("attack=ringabell", "strength=paper").attack.eta == 3.0
    literal = config("method=uce", "recipe=paper")
    assert literal.recipe == "paper" and literal.method.pooling == "last+pad"
    assert config("method=uce", "model=sd14").recipe == "paper"


@pytest.mark.slow
def test_the_second_edition_edits_objects_as_published_and_styles_with_rows_of_sentences():
    assert {config("model=emoji2", f"method={name}").recipe for name in ("uce", "rece_objects_easy")} == {"paper"}
    for name in ("uce", "rece"):
        styles = config("model=emoji2", f"method={name}_artists", "concept=ink")
        rows = config("model=emoji2", f"method={name}", "concept=ink", f"recipe={name}_emoji")
        assert (styles.recipe, styles.method) == (f"{name}_emoji", rows.method)
    cfg = config("model=emoji2", "method=rece", "attack=ringabell")
    assert (cfg.recipe, cfg.budget, cfg.strength) == ("rece_emoji2", "ringabell_emoji2", "ringabell_emoji")
    assert (cfg.method.epochs, config("model=emoji2", "method=rece", "recipe=paper").method.epochs) == (1, 3)
    assert cfg.method == config("model=emoji2", "method=rece_objects_easy").method
    assert cfg.attack.generations == 240


def test_the_second_edition_takes_over_what_it_has_no_word_of_its_own_for():
    mine, first = (config("model=emoji2", "method=esd_x", *more) for more in ((), ("adaptation=emoji",)))
    assert (mine.recipe, mine.method) == (first.recipe, first.method)


def test_recipes_strengths_and_budgets_name_existing_methods_and_attacks():
    known = {"recipe": options("method"), "strength": options("attack"), "budget": options("attack")}
    for group, stems in known.items():
        for stem in set(options(group)) - {"paper"}:
            assert any(stem.startswith(f"{name}_") for name in stems), Path(group) / stem


def of_attacks(group: str) -> list[tuple[str, str]]:
    """(file, attack) of every yaml of a group that is written for a model."""
    pairs = [(stem, stem.rpartition("_")[0]) for stem in options(group) if stem != "paper"]
    assert pairs and all(attack in options("attack") for _, attack in pairs)
    return pairs


def changed(group: str, stem: str) -> tuple[set[str], set[str]]:
    """The attack's fields that a yaml sets, and those that composing it really changes; the file must name itself, or
    take over the whole of another, name included."""
    node = OmegaConf.load(conf_folder() / group / f"{stem}.yaml")
    own = {stem}
    for other in node.pop("defaults", []):
        own = {stem} if node else {other}
        node = OmegaConf.merge(OmegaConf.load(conf_folder() / group / f"{other}.yaml"), node)
    assert set(node) == {group, "attack"} and {node[group]} == own
    attack, others = f"attack={stem.rpartition('_')[0]}", {"strength", "budget"} - {group}
    papers = [f"{other}=paper" for other in others]
    with_, without = (config(attack, *papers, *more).attack for more in ((f"{group}={stem}",), (f"{group}=paper",)))
    return set(node.attack), {key for key in with_ if with_[key] != without[key]}


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "attack"), of_attacks("budget"))
def test_a_budget_changes_what_its_attack_spends_and_nothing_else(stem, attack):
    kind = get_class(config(f"attack={attack}").attack._target_)
    named, different = changed("budget", stem)
    assert named <= set(kind.spends) and different


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "attack"), of_attacks("strength"))
def test_a_strength_changes_nothing_that_its_attack_spends(stem, attack):
    kind = get_class(config(f"attack={attack}").attack._target_)
    named, different = changed("strength", stem)
    assert not named & set(kind.spends) and different


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [(), ("model=emoji2",), ("budget=paper",), ("model=sd14",)],
    ids=["emoji", "emoji2", "paper", "sd14"],
)
def test_controls_judge_as_many_images_as_the_attacks_they_stand_beside(overrides):
    def spent(attack: str) -> int:
        node = config(f"attack={attack}", *overrides).attack
        return node.queries if "queries" in node else 1 + instantiate(node, _convert_="all").rounds

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
