"""erasebench_open: the data as it stands, the source that reads it, and the tables made of it."""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict

import pandas as pd
import pytest
import yaml

from erasebench import conf_folder
from erasebench.prompts.open import make
from erasebench.prompts.open.wordnet import FOLDER, WordNet
from erasebench.prompts.related import RelatedPrompts
from erasebench.report import clusters
from erasebench.report.dimensions import dimensions, markdown
from erasebench.report.harmonic import harmonic_mean
from erasebench.types import Concept, joint

DATA = "pkg:erasebench/prompts/open/prompts.csv"


def table(name):
    with open(make.HERE / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


ROWS, PROMPTS = table("concepts"), table("prompts")
TARGETS = list(dict.fromkeys(row["target"] for row in ROWS))


def concept(name):
    node = yaml.safe_load((conf_folder() / "concept" / f"{name}.yaml").read_text(encoding="utf-8"))
    return Concept(**{key: value for key, value in node.items() if key != "_target_"})


# --- the data ---


def test_there_are_enough_concepts_and_prompts_of_every_dimension_with_sources():
    named = {row["text"] for row in ROWS if row["role"] != "paraphrase"}
    assert len(named) >= 100 and len(PROMPTS) >= 1000
    found = Counter(row["dimension"] for row in ROWS if row["role"] == "target")
    assert set(found) == {"visual", "artistic", "subset_superset", "binomial"} and min(found.values()) >= 10
    assert all(row["source"].startswith(("WordNet", "ours")) for row in ROWS)
    by = defaultdict(Counter)
    for row in ROWS:
        by[row["target"]][row["role"]] += 1
    assert all(c["paraphrase"] == 3 and c["neighbour"] >= 2 and c["unrelated"] == 6 for c in by.values())


def test_ids_and_images_are_unique_and_texts_say_the_word():
    assert len({row["id"] for row in PROMPTS}) == len(PROMPTS)
    assert len({(row["target"], row["prompt"], row["seed"]) for row in PROMPTS}) == len(PROMPTS)
    assert all(row["word"] in row["prompt"] and 0 <= int(row["seed"]) < 2**31 for row in PROMPTS)


def test_nothing_is_two_things_to_one_target():
    for target in TARGETS:
        own = [row["text"].casefold() for row in ROWS if row["target"] == target]
        assert len(set(own)) == len(own), target


@pytest.mark.parametrize("target", TARGETS)
def test_the_yaml_and_the_prompts_of_a_target_are_those_of_the_table(target):
    found = concept(target)
    rows = [make.Row(**row) for row in ROWS if row["target"] == target]
    text = (conf_folder() / "concept" / f"{target}.yaml").read_text(encoding="utf-8")
    assert text == make.concept_yaml(rows)
    made = RelatedPrompts(path=DATA).prompts(found)
    assert [p.text for p in made] == [row["prompt"] for row in make.prompts(rows)]
    seen = {found.name, *(name for names in found.neighbours.values() for name in names)}
    assert {p.concept for p in made} == seen  # so that the judge's labels, made of the yaml, hold every one
    assert {p.relation for p in made if p.group == "neighbour"} == set(found.neighbours) - {"unrelated"}


@pytest.mark.skipif(not (FOLDER / "data.noun").is_file(), reason="wordnet-base is not installed")
def test_the_data_is_what_the_workshop_makes():
    seeds = yaml.safe_load((make.HERE / "seeds.yaml").read_text(encoding="utf-8"))
    rows = make.concepts(seeds, WordNet())
    assert [{k: str(v) for k, v in vars(row).items()} for row in rows] == ROWS
    assert [{k: str(v) for k, v in row.items()} for row in make.prompts(rows)] == PROMPTS


# --- WordNet, as a folder of four nouns under one root ---


@pytest.fixture
def net(tmp_path):
    """entity > a > b > c > d > e > animal > {cat > siamese, dog}; entity > stone."""
    chain = ["entity", "a", "b", "c", "d", "e", "animal", "cat", "siamese"]
    above = dict(zip(chain[1:], chain, strict=False)) | {"dog": "animal", "stone": "entity"}
    names = [*chain, "dog", "stone"]
    at = {name: f"{i:08d}" for i, name in enumerate(names)}
    data = [
        f"{at[n]} 05 n 01 {n} 0 " + (f"001 @ {at[above[n]]} n 0000" if n in above else "000") + f" | a {n}  "
        for n in names
    ]
    licence = "  1 This software and database is being provided to you\n"
    (tmp_path / "data.noun").write_text(licence + "\n".join(data) + "\n")
    (tmp_path / "index.noun").write_text(licence + "".join(f"{n} n 1 1 @ 1 0 {at[n]}  \n" for n in names))
    return WordNet(tmp_path)


def test_relations_are_above_below_beside_or_none(net):
    at = {name: net.find(f"{name}.1") for name in ("cat", "dog", "siamese", "animal", "stone")}
    assert net.relation(at["siamese"], at["cat"]) == "superset, 1 up"
    assert net.relation(at["animal"], at["siamese"]) == "subset, 2 down"
    assert net.relation(at["siamese"], at["dog"]) == "sibling: both animal, 2 and 1 up"
    assert net.relation(at["cat"], at["stone"]) == ""  # they share no more than the root
    with pytest.raises(ValueError, match=r"word must be one of WordNet's .* got 'cat\.2'"):
        net.find("cat.2")


def test_a_claim_that_wordnet_does_not_have_is_no_row(net):
    seeds = {
        "subset_superset": {"siamese": {"word": "siamese.1", "say": ["cat"], "near": {"stone": "stone.1"}}},
        "unrelated": {"stone": "stone.1"},
    }
    with pytest.raises(ValueError, match="stone must be above, below or beside siamese in WordNet"):
        make.concepts(seeds, net)
    seeds["subset_superset"]["siamese"]["near"] = {"dog": "dog.1"}
    with pytest.raises(ValueError, match="siamese must have 6 unrelated controls; got 1"):
        make.concepts(seeds, net)


def test_without_wordnet_it_says_what_installs_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install wordnet-base"):
        WordNet(tmp_path)


# --- the source ---

HEAD = ",".join(("id", "target", "dimension", "role", "concept", "word", "prompt", "seed"))


def source(tmp_path, *lines, **more):
    (tmp_path / "mine.csv").write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")
    return RelatedPrompts(path=str(tmp_path / "mine.csv"), **more)


def test_a_run_takes_its_own_concept_s_rows_and_a_limit_is_of_each_group():
    made = RelatedPrompts(path=DATA, limit=4).prompts(concept("goldfish"))
    assert Counter(p.group for p in made) == dict.fromkeys(("target", "paraphrase", "neighbour", "unrelated"), 4)
    whole = RelatedPrompts(path=DATA).prompts(concept("goldfish"))
    assert {p.digest() for p in made} < {p.digest() for p in whole} and len(whole) == 51
    assert {p.info["word"] for p in whole if p.group == "paraphrase"} == set(concept("goldfish").phrases[1:])


def test_what_one_part_erases_is_no_other_s_neighbour(tmp_path):
    rows = (
        "0,cat,visual,target,cat,cat,a cat,1",
        "1,cat,visual,neighbour,dog,dog,a dog,2",
        "2,dog,visual,target,dog,dog,dog,3",
    )
    both = joint([Concept(name=name, phrases=[name]) for name in ("cat", "dog")])
    assert [p.id for p in source(tmp_path, *rows).prompts(both)] == ["0", "2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,cat,visual,bystander,cat,cat,a cat,1", r"mine\.csv line 2, column 'role' must be one of target"),
        ("0,cat,visual,target,dog,cat,a cat,1", "column 'concept' must be 'cat', its target; got 'dog'"),
        ("0,cat,visual,target,cat,cat,a cat,-1", "column 'seed' must be an integer from 0"),
        (",cat,visual,target,cat,cat,a cat,1", "column 'id' must be unique; got ''"),
        ("0,cot,visual,target,cot,cot,a cot,1", "must have rows for concept 'cat'; found none; did you mean cot"),
    ],
)
def test_a_bad_row_is_one_line(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        source(tmp_path, row).prompts(Concept(name="cat", phrases=["cat"]))


@pytest.mark.parametrize("more", [{"limit": 0}, {"n": {"coco": 1}}, {"n": 5}, {"n": {"target": -1}}])
def test_impossible_settings_are_refused(tmp_path, more):
    with pytest.raises(ValueError, match="prompts"):
        source(tmp_path, "0,cat,visual,target,cat,cat,a cat,1", **more)


# --- the table by dimension ---


def scores(**changes):
    """Four concepts of one method: three with visual neighbours, two with binomial ones."""
    values = {  # concept -> efficacy, generality, {dimension: sensitivity}, unrelated drop
        "a": (10, 20, {"visual": 60}, 0), "b": (20, 30, {"visual": 70, "binomial": 90}, 5),
        "c": (30, 10, {"visual": 80}, 10), "d": (0, 0, {"binomial": 50}, 1),
    }  # fmt: skip
    rows = []
    for name, (eff, gen, sens, far) in values.items():
        own = [("efficacy", "target", "", eff), ("generality", "paraphrase", "", gen), ("drop", "unrelated", "", far)]
        own += [("sensitivity", "neighbour", d, v) for d, v in sens.items()]
        own += [("drop", "neighbour", d, 100 - v) for d, v in sens.items()]
        own += [("drop.lynx", "neighbour", d, 1.0) for d in sens]  # of one neighbour: in no mean
        for side in ("original", "erased"):
            rows += [
                {
                    "evaluator": "spillover", "metric": f"{kind}.zs-{name}", "judge": f"zs-{name}", "group": group,
                    "relation": relation, "value": float(value) if side == "erased" else 0.0, "status": "ok",
                    "side": side, "model": "m", "method": "uce", "recipe": "paper", "attack": "none", "concept": name,
                    "seed": 0, "prompt_id": None,
                }
                for kind, group, relation, value in own
            ]  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


def test_a_dimension_is_the_mean_of_its_concepts_with_student_s_interval():
    found = dimensions(scores()).set_index(["method", "dimension"])
    visual = found.loc["uce", "visual"]
    assert visual.concepts == 3
    assert (visual.efficacy, visual.generality, visual.sensitivity, visual["drop"]) == (20, 20, 70, 30)
    assert visual.hm == pytest.approx(harmonic_mean(20, 20, 70))
    assert (visual.sensitivity_low, visual.sensitivity_high) == pytest.approx(clusters.mean([60, 70, 80], "abc"))
    assert visual.hm_low < visual.hm < visual.hm_high
    binomial = found.loc["uce", "binomial"]
    assert (binomial.concepts, binomial.efficacy, binomial.sensitivity) == (2, 10, 70) and math.isnan(binomial.hm_low)
    assert found.loc["uce", "unrelated"]["drop"] == 4 and math.isnan(found.loc["uce", "unrelated"].efficacy)
    base = found.loc["original", "visual"]
    assert base.hm == 0 == base.efficacy and math.isnan(base.efficacy_low)  # no spread, no interval
    text = markdown(dimensions(scores()))
    assert "| uce | binomial | 2 | 10.0 [too few] |" in text and "| uce | unrelated | 4 | - | - | - | - |" in text


def test_seeds_of_one_concept_are_one_draw():
    one = scores()
    two = pd.concat([one, one.assign(seed=1, value=one.value + 2)])
    found = dimensions(two).set_index(["method", "dimension"]).loc["uce", "visual"]
    assert found.concepts == 3 and found.efficacy == pytest.approx(21)
    low, high = clusters.mean([11, 21, 31], "abc")
    assert low < 0 and (found.efficacy_low, found.efficacy_high) == pytest.approx((0, high))  # cut to a percentage


def test_a_concept_without_all_of_its_numbers_is_in_no_dimension():
    gone = scores()
    gone.loc[(gone.concept == "c") & gone.metric.str.startswith("generality"), "status"] = "error"
    assert dimensions(gone).set_index(["method", "dimension"]).loc["uce", "visual"].concepts == 2


def test_tables_of_nothing_and_of_two_thresholds_are_refused():
    with pytest.raises(ValueError, match="must hold spillover's scores"):
        dimensions(scores(evaluator="fid"))
    mixed = scores()
    mixed.loc[mixed.concept == "a", "metric"] += ".admitted@0.7"
    with pytest.raises(ValueError, match=r"must have one threshold of admission; got 0, 0\.7"):
        dimensions(mixed)


# --- the protocol, whole ---


@pytest.mark.slow
def test_the_protocol_runs_whole_on_a_tiny_model(tiny_pipe, tmp_path, monkeypatch):
    """Random weights of Stable Diffusion's and CLIP's architecture: what is not admitted has no number."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    import erasebench

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {
        "vocab_size": len(tiny_pipe.tokenizer),
        "max_position_embeddings": tiny_pipe.tokenizer.model_max_length,
    }
    text |= {"eos_token_id": tiny_pipe.tokenizer.eos_token_id}
    vision = small | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(tmp_path / "clip")
    tiny_pipe.tokenizer.save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "clip")
    tiny_pipe.save_pretrained(tmp_path / "pipe")
    arguments = [
        "experiment=erasebench_open", f"model.path={tmp_path / 'pipe'}", "model.steps=2", "model.device=cpu",
        "prompts.limit=3", "clip=folder", f"clip.path={tmp_path / 'clip'}", "clip.device=cpu",
        f"results={tmp_path / 'out'}",
    ]  # fmt: skip
    found = erasebench.run(*arguments).scores
    whole = found[found.prompt_id.isna()]
    assert whole.metric.str.endswith(".admitted@0.7").sum() > 10
    base = whole[whole.metric.str.startswith("base_accuracy.")]
    assert set((base.value * 3).round()) <= {0, 100, 200, 300} and len(base[base.side == "erased"]) >= 5
    admitted = set(base[(base.value >= 70) & (base.group == "neighbour")].metric.str.split(".").str[1])
    drops = whole[whole.metric.str.startswith("drop.") & (whole.relation == "subset_superset") & (whole.status == "ok")]
    assert set(drops[~drops.metric.str.startswith("drop.zero_shot")].metric.str.split(".").str[1]) == admitted
    all_in = erasebench.run(*arguments, "evaluator.spillover.admit=0").scores
    table = dimensions(all_in)
    assert set(table.dimension) == {"subset_superset", "unrelated"} and set(table.method) == {"original", "uce"}
    lost = all_in[(all_in.evaluator == "spillover") & (all_in.status != "ok")]
    assert set(lost.metric.str.split(".").str[0]) <= {"retention"}  # of what the original never drew rightly
