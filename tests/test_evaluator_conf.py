"""The yaml files of evaluators, judges and models build what they say, with the defaults of the code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

import erasebench.one_run  # noqa: F401  registers ${labels:}
from erasebench.judges.clip import OpenClip
from erasebench.judges.inception import Inception
from erasebench.judges.zero_shot import ZeroShotJudge

CONF = Path(__file__).parent.parent / "conf"
EVALUATORS = sorted(path.stem for path in (CONF / "evaluator").glob("*.yaml"))
GIVEN = {"judge": "a judge", "clip": "a model", "features": "a network"}  # nodes the run defines


def test_the_evaluators_are_there():
    assert EVALUATORS == [
        "asr", "classifier", "clip_score", "cmmd", "face_accuracy", "fid", "inappropriate", "kid", "layer_distance",
        "lpips", "nudenet", "oracle", "oracle_noise", "spillover", "top_k", "unlearn_canvas",
    ]  # fmt: skip


def whole(path):
    """A yaml with what its defaults list puts into it, ``/group@where: file``."""
    loaded = OmegaConf.load(path)
    for choice in loaded.pop("defaults", []):
        for where, stem in choice.items() if choice != "_self_" else ():
            group, _, place = where.removeprefix("/").partition("@")
            OmegaConf.update(loaded, place, whole(CONF / group / f"{stem}.yaml"), force_add=True)
    return loaded


@pytest.mark.parametrize("name", EVALUATORS)
def test_an_evaluator_yaml_lists_every_field_with_its_default(name, tmp_path):
    loaded = whole(CONF / "evaluator" / f"{name}.yaml")
    assert list(loaded) == [name]
    node = OmegaConf.create({**GIVEN, **loaded})[name]
    assert node["_target_"].startswith(f"evaluators.{name}.")
    fields = {field.name: field.default for field in dataclasses.fields(get_class(node["_target_"]))}
    assert set(node) - {"_target_"} == set(fields) - {"version"}
    for missing in OmegaConf.missing_keys(node):  # files that only a user has
        ending = ".onnx" if missing.endswith(".path") else ".json"
        (tmp_path / f"x{ending}").write_text('["a", "b"]')
        OmegaConf.update(node, missing.removeprefix(f"{name}."), str(tmp_path / f"x{ending}"))
    built = instantiate(node, _convert_="all")
    for field, default in fields.items():
        if default is not dataclasses.MISSING:
            assert getattr(built, field) == default, field


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("clip/openai_l14", OpenClip(model="ViT-L-14", pretrained="openai")),
        ("clip/openai_b32", OpenClip(model="ViT-B-32", pretrained="openai")),
        ("features/inception", Inception()),
    ],
)
def test_models_are_built_without_loading_anything(path, expected):
    assert instantiate(OmegaConf.load(CONF / f"{path}.yaml"), _convert_="all") == expected


def test_the_zero_shot_judge_takes_the_concept_and_its_neighbours_as_labels_unless_told():
    clip = OmegaConf.load(CONF / "clip" / "openai_b32.yaml")
    concept = {"name": "church", "neighbours": {"visual": ["castle"], "unrelated": ["tench", "castle"]}}
    node = OmegaConf.create({"clip": clip, "concept": concept, "judge": OmegaConf.load(CONF / "judge" / "clip.yaml")})
    assert node.judge.labels == ["church", "castle", "tench"]
    node.judge.labels = ["cat", "dog"]
    judge = instantiate(node.judge, _convert_="all")
    said = ("a photo of a cat", "a photo of a dog")
    assert judge == ZeroShotJudge(model=OpenClip(model="ViT-B-32"), labels=("cat", "dog"), wording=said)
    assert judge.name.startswith("zero_shot.ViT-B-32.openai.2labels-")


@pytest.mark.parametrize(
    ("concept", "said"),
    [
        ("van_gogh", {"van_gogh": "a painting by Van Gogh", "Claude Monet": "a painting by Claude Monet",
                      "church": "a photo of a church"}),
        ("nudity", {"nudity": "a photo of nudity", "a person wearing clothes": "a photo of a person wearing clothes"}),
        ("english_springer", {"english_springer": "a photo of an English springer"}),
    ],
)  # fmt: skip
def test_a_label_is_asked_for_in_words_that_fit_what_it_is(concept, said):
    from erasebench import cell as cell  # registers the resolvers

    files = {"clip": "openai_b32", "judge": "clip", "concept": concept}
    node = OmegaConf.create({group: OmegaConf.load(CONF / group / f"{stem}.yaml") for group, stem in files.items()})
    node.concept.pop("defaults", None)
    judge = instantiate(node.judge, _convert_="all")
    found = dict(zip(judge.labels, judge.texts, strict=True))
    assert {label: found[label] for label in said} == said
    node.judge.template = "an image of a {}"
    assert instantiate(node.judge, _convert_="all").texts[0].startswith("an image of ")
    with pytest.raises(ValueError, match="one text for each of 2 labels"):
        ZeroShotJudge(model=None, labels=("a", "b"), wording=("x", "x"))
