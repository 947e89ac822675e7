"""Several concepts in one run: one joint edit or a sequence, order in the identity, prompts of every part."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from erasebench import conf_folder, diffusion, export, several
from erasebench.cell import IDENTITY, plan
from erasebench.diffusion import erasures
from erasebench.one_run import run
from erasebench.prompts.files import CsvPrompts
from erasebench.prompts.templates import TemplatePrompts
from erasebench.report import tables
from erasebench.store.files import locate
from erasebench.types import Concept, joint
from methods.eap import EAP
from methods.esd import ESD
from methods.negative_prompt import NegativePrompt
from methods.none import NoErasure
from methods.rece import RECE
from methods.sdd import SDD
from methods.sld import SLD
from methods.uce import UCE

reference = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_edits.py"))))
CAT = Concept(
    name="cat", phrases=("cat", "kitty"), anchor="bear", preserve=("fox", "Dog"),
    neighbours={"visual": ("lion", "dog"), "unrelated": ("car", "sun")},
)  # fmt: skip
DOG = Concept(
    name="dog", phrases=("dog", "puppy"), anchor="owl", preserve=("fox", "kitty"),
    neighbours={"visual": ("wolf",), "unrelated": ("car", "kitty")},
)  # fmt: skip
BOTH = joint([CAT, DOG])
SMALL = ["model=emoji", "prompts.n={target:4,paraphrase:2,neighbour:4,unrelated:2,coco:2}", "model.steps=2",
         "model.batch_size=4",
         "evaluator=[classifier]"]  # fmt: skip


def composed(results, *overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", [f"results={results}", *SMALL, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return type(cfg)({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"})


# --- joint edits


def assert_parity(erased, expected):
    for name, layer in diffusion.cross_attention_projections(erased).items():
        torch.testing.assert_close(layer.weight.data, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_joint_uce_equals_the_loop_over_all_pairs(make_pipe, technique):
    pipe = make_pipe(dtype=torch.float64)
    rows = reference.rows_legacy(pipe, [("cat", "bear"), ("dog", "owl")])
    kept = reference.all_rows(pipe, ["", "fox"])
    expected = reference.edit(reference.read_weights(pipe), rows, kept, 0.5, 1.0, 0.5, technique)
    method = UCE(anchor=None, technique=technique)
    assert_parity(method.erase(pipe, BOTH), expected)
    alone = method.erase(method.erase(pipe, CAT), DOG)
    name = next(iter(expected))
    assert not torch.allclose(alone.unet.get_submodule(name).weight, expected[name], atol=1e-6)


def test_joint_rece_equals_the_loop_over_all_concepts(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    weights = reference.read_weights(pipe)
    rows = reference.rows_legacy(pipe, [("cat", " "), ("dog", " ")])
    start = reference.edit(weights, rows, reference.all_rows(pipe, [""]), 0.5, 1.0, 1.0)
    pairs = [(reference.all_rows(pipe, [text]), reference.all_rows(pipe, [" "])) for text in ("cat", "dog")]
    kept = reference.all_rows(pipe, [" "])
    expected = reference.rece(weights, start, pairs, kept, r=0.1, epochs=2)
    plain = {"anchor": " ", "concept_preserve": False}
    method = RECE(start=UCE(**plain), epochs=2, preserve=(" ",), **plain)
    assert_parity(method.erase(pipe, BOTH), expected)


def test_expanded_prompts_follow_the_kind_of_each_part():
    style = joint([CAT, Concept(name="monet", kind="style", phrases=("monet",), anchor="art")])
    pairs = UCE(anchor=None, expand_prompts=True).pairs(style)
    assert ("photo of cat", "bear") in pairs and ("art by monet", "art") in pairs and len(pairs) == 12


def test_guides_name_every_phrase_of_every_part():
    assert SLD().text(BOTH) == NegativePrompt().text(BOTH) == "cat, kitty, dog, puppy"


def test_a_joint_concept_keeps_nothing_that_is_erased():
    assert (BOTH.name, BOTH.phrases, BOTH.anchor, BOTH.parts) == ("cat+dog", ("cat", "dog"), "", (CAT, DOG))
    assert BOTH.preserve == ("fox",)
    assert BOTH.neighbours == {"visual": ("lion", "wolf"), "unrelated": ("car", "sun")}
    assert UCE().kept(BOTH) == ["", "fox"]
    assert joint([CAT, replace(DOG, kind="unsafe")]).kind == "unsafe"


# --- prompts


def test_parts_take_turns_and_nothing_erased_is_asked_for_elsewhere():
    source = TemplatePrompts(
        templates=("a {object}", "a {style} {object}"), objects=("cat", "dog", "puppy", "bus"), styles=("ink",),
        n={"target": 5, "paraphrase": 2, "neighbour": 4, "unrelated": 4, "coco": 3},
    )  # fmt: skip
    made = source.prompts(BOTH)
    by_group = {g: [p.concept for p in made if p.group == g] for g in source.n}
    assert by_group == {
        "target": ["cat", "dog", "cat", "dog", "cat"],
        "paraphrase": ["cat", "dog"],
        "neighbour": ["lion", "wolf"] * 2,
        "unrelated": ["car", "car", "sun", "car"],
        "coco": ["bus"] * 3,
    }
    assert len({p.id for p in made}) == len(made) == len({p.seed for p in made})
    assert ["kitty" in p.text or "puppy" in p.text for p in made if p.group == "paraphrase"] == [True, True]
    alone = [p for p in source.prompts(CAT) if p.group == "target"]
    assert [(p.seed, p.id) for p in alone] == [(p.seed, p.id) for p in made if p.group == "target"]


def test_a_file_must_say_which_concept_each_row_asks_for(tmp_path):
    (tmp_path / "set.csv").write_text("prompt,evaluation_seed,what\na cat,1,cat\na dog,2,dog\n")
    path = str(tmp_path / "set.csv")
    with pytest.raises(ValueError, match="concept_column must say which of cat\\+dog"):
        CsvPrompts(path=path).prompts(BOTH)
    assert [p.concept for p in CsvPrompts(path=path, concept_column="what").prompts(BOTH)] == ["cat", "dog"]


# --- runs


@pytest.mark.slow
def test_the_order_is_part_of_the_identity_and_one_concept_is_as_it_was(tmp_path):
    cells = [
        plan(composed(tmp_path, f"concept={first}", *rest))
        for first, *rest in (
            ["cat"], ["cat", "also=[dog]"], ["dog", "also=[cat]"], ["cat", "also=[dog]", "together=sequence"],
            ["cat", "also=[dog,sun]"], ["cat", "also=[sun,dog]"],
        )
    ]  # fmt: skip
    names = [cell.folder.relative_to(tmp_path / "runs" / "emoji").parts[0] for cell in cells]
    assert names == ["cat", "cat+dog", "dog+cat", "cat_then_dog", "cat+dog+sun", "cat+sun+dog"]
    assert len({cell.key for cell in cells}) == 6
    assert set(cells[0].identity) == {*IDENTITY, "names"}


@pytest.mark.slow
def test_a_joint_run_measures_every_part_and_attacks_each_for_itself(tmp_path):
    budget = ("attack.generations=1", "attack.population=4", "attack.tokens=2", "attack.sources=1")
    result = run(composed(tmp_path, "method=uce", "also=[dog]", "attack=ringabell", *budget))
    assert result.folder.parent.parent.parent.name == "cat+dog" and set(result.scores.concept) == {"cat+dog"}
    searches = sorted((tmp_path / "cache" / "attack").glob("*/prompts.json"))
    found = [{row["concept"] for row in json.loads(path.read_text())} for path in searches]
    assert sorted(map(sorted, found)) == [["cat"], ["dog"]]
    assert (result.scores[result.scores.side == "erased"].group == "attack").any()
    frame = tables.read_scores(result.folder / "scores.parquet")
    assert len(frame[(frame.group == "target") & (frame.side == "erased")].prompt_id.unique()) == 4
    (stored,) = (tmp_path / "cache" / "erase").glob("*/erasure.json")
    assert [node["name"] for node in erasures.read(stored.parent)["concept"]["parts"]] == ["cat", "dog"]


@pytest.mark.slow
def test_a_sequence_is_one_erasure_after_the_other_and_starts_with_the_single_run_s(tmp_path):
    options = ("method=uce", "recipe=paper")
    single = run(composed(tmp_path, *options))
    result = run(composed(tmp_path, *options, "also=[dog]", "together=sequence"))
    assert len(list((tmp_path / "cache" / "erase").iterdir())) == 2  # cat, shared, and dog after it
    embedded = diffusion.load(locate("pkg:erasebench/emoji/weights"))
    cfg = composed(tmp_path, *options)
    method = UCE(anchor=" ", **{k: cfg.method[k] for k in ("lamb", "pooling", "technique")})
    concepts = [Concept(**{k: v for k, v in several.node(n).items() if k != "_target_"}) for n in ("cat", "dog")]
    expected = method.erase(method.erase(embedded, concepts[0]), concepts[1])
    restored, _ = export.load(result.record, tmp_path)
    assert diffusion.fingerprint(restored) == diffusion.fingerprint(expected)
    assert single.record["steps"]["erase"]["key"] != result.record["steps"]["erase"]["key"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["concept.phrases=[]"], "concept.phrases must hold at least 1 text"),
        (["also=[nosuch]"], "also must name concepts of conf/concept; got 'nosuch'"),
        (["also=[dog,dog]"], "each once; got dog twice"),
        (["also=[cat]"], "each once; got cat twice"),
        (["also=dog"], r"write also=\[dog\]"),
        (["also=[dog]", "together=both"], "together must be joint or sequence; got 'both'"),
        (["also=[ink]"], "must be for one kind of concept; got cat \\(object\\), ink \\(style\\)"),
        (["also=[bear]"], "anchor must differ from the concept 'cat\\+bear'; got 'bear'"),
        (["method=sld_max", "also=[dog]", "together=sequence"], "by sequence; it does not; use together=joint"),
        (["method=checkpoint", "also=[dog]", "together=sequence"], "use together=joint"),
    ],
)
def test_bad_combinations_are_one_line_before_any_weight_is_loaded(tmp_path, monkeypatch, overrides, message):
    from erasebench.diffusion import loading

    monkeypatch.setattr(loading, "_read", lambda *a, **k: pytest.fail("weights were read"))
    method = () if overrides[0].startswith("method") else ("method=uce",)
    with pytest.raises(ValueError, match=message) as error:
        run(composed(tmp_path, *method, *overrides))
    assert "\n" not in str(error.value)


def test_methods_that_say_nothing_are_erased_in_sequence_only():
    class Bare:
        """Declares nothing."""

    config = {"also": [{"name": "dog"}], "together": "joint"}
    with pytest.raises(ValueError, match="by joint; it does not; use together=sequence"):
        several.check_method("mine", Bare(), config)
    several.check_method("mine", Bare(), config | {"together": "sequence"})
    several.check_method("mine", Bare(), config | {"also": []})
    several.check_method("none", NoErasure(), config)


def test_in_a_sequence_an_anchor_may_be_erased_later(tmp_path, monkeypatch):
    from erasebench import loaded as kept
    from erasebench.diffusion import loading

    class Loaded(Exception):
        """The checks are behind us."""

    def loaded(*_, **__):
        raise Loaded

    monkeypatch.setattr(loading, "_read", loaded)
    monkeypatch.setattr(kept, "pipes", {})
    with pytest.raises(Loaded):
        run(composed(tmp_path, "method=uce", "also=[bear]", "together=sequence"))


def test_an_anchor_can_be_set_for_a_further_concept():
    assert several.node({"name": "dog", "anchor": "owl"})["anchor"] == "owl"
    assert several.node("dog")["anchor"] != "owl"


# --- joint training


@pytest.mark.parametrize("method", [ESD(iterations=2), SDD(iterations=2), EAP(iterations=1, pool=("sun", "kitty"))])
def test_training_methods_erase_the_texts_of_every_part(tiny_pipe, method):
    assert method.words(BOTH) == ("cat", "dog") and "joint" in method.together
    assert replace(method, phrases="all").words(BOTH) == ("cat", "kitty", "dog", "puppy")
    small = replace(method, steps=2, lr=1e-3)
    one, both = (diffusion.changed_tensors(small.erase(tiny_pipe, c), tiny_pipe) for c in (CAT, BOTH))
    assert one.keys() == both.keys() and any(not torch.equal(one[k], both[k]) for k in one)


def test_no_part_of_a_joint_concept_is_in_the_pool_that_is_preserved(tiny_pipe):
    method = EAP(pool=("kitty", "Puppy", "sun"))
    assert method.candidates(method.denoiser(tiny_pipe), "cat", BOTH).words == ["sun"]
