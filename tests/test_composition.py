"""Methods in one run: order, settings by stage, recipes, what is stored and added up, names, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

import erasebench.composed_configs  # noqa: F401  registers what method=a+b chooses
from erasebench import conf_folder, diffusion, several
from erasebench.building import build
from erasebench.cell import plan
from erasebench.command.typed import Typed
from erasebench.composition import Composed, stages
from erasebench.one_run import run
from erasebench.types import Concept, joint
from methods.esd import ESD
from methods.negative_prompt import NegativePrompt
from methods.sld import SLD
from methods.uce import UCE

CAT = Concept(name="cat", phrases=("cat",), anchor="dog")
DOG = Concept(name="dog", phrases=("dog",), anchor="cow")
SMALL = ["model=emoji", "prompts.n={target:2,paraphrase:0,neighbour:0,unrelated:2,coco:0}", "model.steps=2",
         "model.batch_size=4",
         "evaluator=[classifier]"]  # fmt: skip


def composed(results, *overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", [f"results={results}", *SMALL, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return type(cfg)({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"})


def test_the_composed_method_is_its_stages_one_after_another(tiny_pipe):
    both = Composed(stages={"uce": UCE(), "sld_max": SLD(safety_scale=5000.0, warmup=0)})
    edited = UCE().erase(tiny_pipe, CAT)
    erased = both.erase(tiny_pipe, CAT)
    assert not diffusion.changed_tensors(erased, edited) and diffusion.changed_tensors(erased, tiny_pipe)
    assert erased.guide == SLD(safety_scale=5000.0, warmup=0).erase(tiny_pipe, CAT).guide
    assert getattr(tiny_pipe, "guide", None) is None and both.guard and both.together == ("joint",)
    twice = Composed(stages={"uce": UCE(), "uce_v2": UCE(pooling="last")}).erase(tiny_pipe, CAT)
    assert not diffusion.changed_tensors(twice, UCE(pooling="last").erase(edited, CAT))
    several_at_once = Composed(stages={"uce": UCE(), "n": NegativePrompt()}).erase(tiny_pipe, joint([CAT, DOG]))
    assert several_at_once.guide.empty == "cat, dog"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"uce": UCE()}, "method must name at least two methods to compose; got uce; write method=uce"),
        ({"sld_max": SLD(), "uce": UCE()}, r"got sld_max before uce; write method=uce\+sld_max"),
        ({"sld_max": SLD(), "esd_x": ESD()}, r"got sld_max before esd_x; write method=esd_x\+sld_max"),
        ({"uce": UCE(), "sld_max": SLD(), "negative_prompt": NegativePrompt()}, "at most one method that works while"),
        ({"uce": UCE(), "two": CAT}, "stages.two must be a method; got Concept"),
    ],
)
def test_what_cannot_be_composed_is_refused_at_once(stages, message):
    with pytest.raises(ValueError, match=message) as error:
        Composed(stages=stages)
    assert "\n" not in str(error.value)


def test_every_stage_is_checked_before_weights_load():
    with pytest.raises(ValueError, match="anchor must differ"):
        Composed(stages={"uce": UCE(anchor="cat"), "sld": SLD()}).check(CAT, {})


def test_what_is_typed_as_a_list_is_one_choice_and_a_sweep_still_is_one():
    one, sweep = Typed(("method=[uce, sld_max]",)), Typed(("method=none,[uce,sld_max],rece+negative_prompt",))
    one.check(), sweep.check()
    assert one.overrides == ("method=uce+sld_max",)
    assert [cell[0] for cell in sweep.cells()[0]] == [
        "method=none",
        "method=uce+sld_max",
        "method=rece+negative_prompt",
    ]
    for typed, message in (
        ("method=uce+sdl_max", "got 'sdl_max'; did you mean sld_max"),
        ("method=uce+uce", "must name each method once"),
        ("method=[]", "method"),
    ):
        with pytest.raises(ValueError, match=message):
            Typed((typed,)).check()


def test_settings_recipes_and_names_go_by_stage(tmp_path):
    cfg = composed(tmp_path, "method=uce+sld_medium", "method.stages.sld_medium.warmup=1")
    assert list(cfg.method.stages) == ["uce", "sld_medium"] and cfg.recipe == "uce_emoji+sld_medium_emoji"
    cell = plan(cfg)
    assert cfg.method.stages.uce == composed(tmp_path, "method=uce").method
    assert cell.names["method"] == "uce+sld_medium[stages.sld_medium.warmup=1]"
    assert cell.names["recipe"] == "uce_emoji+sld_medium_emoji changed"
    plain = plan(composed(tmp_path, "method=uce+sld_medium"))
    assert plain.names["method"] == "uce+sld_medium" and plain.folder.parts[-3] == "uce+sld_medium"
    paper = plan(composed(tmp_path, "method=uce+sld_medium", "recipe=paper"))
    assert paper.names["recipe"] == "paper" and paper.folder.parts[-3] == "uce+sld_medium-paper"
    assert len({cell.key, paper.key, plain.key}) == 3
    second = composed(
        tmp_path, "adaptation=emoji2", "method=sld_weak_diffusers+uce"
    )  # a suffix with an underscore; a default
    assert second.recipe == "sld_weak_diffusers_emoji2" and second.method.stages.uce.lamb == 0.5


def test_a_stage_s_bad_setting_is_named_as_typed(tmp_path):
    for typed, message in (
        ("method.stages.uce.lamb=abc", "method.stages.uce.lamb must be"),
        ("method.stages.uce.lamb=-1", "method.stages.uce.lamb must be"),
    ):
        cfg = composed(tmp_path, "method=uce+sld_max", typed)
        with pytest.raises(ValueError, match=message):
            build(plan(cfg).config["method"], "method")
    swapped = plan(composed(tmp_path, "method=sld_max+uce"))
    with pytest.raises(ValueError, match=r"write method=uce\+sld_max"):
        build(swapped.config["method"], "method")


def test_a_sequence_only_method_and_a_joint_only_one_say_so():
    class Stranger(UCE):
        together = ("sequence",)

    both = Composed(stages={"mine": Stranger(), "sld": SLD()})
    with pytest.raises(ValueError, match="erase one concept a run"):
        several.check_method("mine+sld", both, {"also": [1], "together": "joint"})


@pytest.mark.slow
def test_a_run_stores_each_stage_takes_what_is_there_and_adds_up(tmp_path):
    alone = run(composed(tmp_path, "method=uce")).record["steps"]["erase"]
    found = run(composed(tmp_path, "method=uce+sld_max"))
    erase = found.record["steps"]["erase"]
    folders = list((tmp_path / "cache" / "erase").iterdir())
    assert len([f for f in folders if (f / "erasure.json").exists()]) == 2  # uce's is shared
    last = json.loads((tmp_path / "cache" / "erase" / erase["key"] / "erasure.json").read_text())
    assert last["base"] == alone["key"] and last["guide"]["_target_"] == "methods.sld.SafetyGuide"
    assert erase["guided"] and erase["changed_tensors"] == alone["changed_tensors"] > 0 and not erase["intact"]
    assert erase["bytes"] == alone["bytes"] + 16
    assert erase["cost"]["seconds"] == pytest.approx(alone["cost"]["seconds"] + last["cost"]["seconds"], abs=2e-3)
    assert run(composed(tmp_path, "method=uce+sld_max")).cached
    assert set(found.scores.method) == {"uce+sld_max"} and "uce+sld_max" in str(found.folder)
    method = build(found.record["config"]["method"], "method")
    pipe = diffusion.load(conf_folder().parent / "erasebench/emoji/weights")
    from erasebench.diffusion import erasures

    restored = erasures.restore(tmp_path, erase["key"], pipe)
    again = method.erase(pipe, build(found.record["config"]["concept"]))
    assert restored.guide == again.guide and not diffusion.changed_tensors(restored, again)
    assert [type(one).__name__ for one, _ in stages(method, found.record["config"]["method"])] == ["UCE", "SLD"]
    assert torch.isfinite(torch.tensor(found.scores.value.dropna().to_numpy())).all()
