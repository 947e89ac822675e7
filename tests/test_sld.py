"""Safe Latent Diffusion against an image-by-image loop, and against diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.pipelines.deprecated import StableDiffusionPipelineSafe
from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from erasebench import conf_folder, diffusion
from erasebench.one_run import run
from erasebench.types import Concept, Prompt
from methods.sld import SLD, SafetyGuide

CONF = Path(__file__).parents[1] / "conf" / "method"
RECIPES = sorted(path.stem for path in CONF.glob("sld_*.yaml"))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
PROMPTS = [
    Prompt(id="0", text="a cat", seed=3),
    Prompt(id="1", text="a dog on a sofa", seed=4, guidance_scale=2.0),
    Prompt(id="2", text="", seed=5, guidance_scale=1.0),
]
# every branch of the equations within six steps: thresholds that some elements pass, momentum, warm-up
SETTINGS = {"safety_scale": 30.0, "threshold": 0.002, "warmup": 2, "momentum_scale": 0.4, "momentum_beta": 0.6}


def recipe(name: str, **changes) -> SLD:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes), _convert_="all")


def latents(pipe, prompts, steps=6, guidance_scale=7.5):
    texts = diffusion.encoding.Texts(pipe)
    return diffusion.sampling._sample(pipe, prompts, texts, (4, 8, 8), steps, guidance_scale)


def pixels(drawn):
    return {p.id: np.asarray(image).astype(int) for p, image, _ in drawn}


@torch.no_grad()
def by_hand(pipe, prompt, safety_text, steps, scale, s):
    """One image, one branch at a time, one element at a time."""
    g = scale if prompt.guidance_scale is None else prompt.guidance_scale
    c_empty, c_text, c_safety = (pipe.encode_prompt(t, "cpu", 1, False)[0] for t in ("", prompt.text, safety_text))
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(prompt.seed)
    x = torch.randn((1, 4, 8, 8), generator=generator, dtype=torch.float32).double()
    nu, used, kept = np.zeros(256), 0, 0
    for i, t in enumerate(scheduler.timesteps):
        empty, text, safety = (
            pipe.unet(x, t, encoder_hidden_states=c).sample.flatten().tolist() for c in (c_empty, c_text, c_safety)
        )
        out = []
        for j in range(256):
            mu = 0.0
            if text[j] - safety[j] < s["threshold"]:
                mu = min(1.0, abs(text[j] - safety[j]) * s["safety_scale"])
                used += 0 < mu < 1
            kept += mu == 0
            gamma = mu * (safety[j] - empty[j]) + s["momentum_scale"] * nu[j]
            nu[j] = s["momentum_beta"] * nu[j] + (1 - s["momentum_beta"]) * gamma
            safe = gamma if i >= s["warmup"] else 0.0
            out.append(empty[j] + g * (text[j] - empty[j] - safe))
        x = scheduler.step(torch.tensor(out, dtype=torch.float64).view(1, 4, 8, 8), t, x).prev_sample
    return x, used, kept


def test_every_image_equals_the_loop_over_its_elements(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    erased = SLD(**SETTINGS).erase(pipe, CAT)
    together = latents(erased, PROMPTS)
    plain = latents(pipe, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        expected, used, kept = by_hand(pipe, prompt, "cat, kitty", 6, 7.5, SETTINGS)
        assert used > 20 and kept > 20  # neither branch of mu is empty
        torch.testing.assert_close(together[i : i + 1], expected, rtol=1e-9, atol=1e-9)
        alone = latents(erased, [prompt])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)
        assert (expected - plain[i]).abs().max() > 1e-4  # safety guidance does something


def test_during_warm_up_nothing_is_led_away_and_afterwards_it_is(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    plain = latents(pipe, PROMPTS)
    for warmup, same in ((6, True), (5, False)):
        erased = SLD(**SETTINGS | {"warmup": warmup}).erase(pipe, CAT)
        assert torch.allclose(latents(erased, PROMPTS), plain, atol=1e-10, rtol=0) == same


def test_the_momentum_of_the_warm_up_counts():
    guide = SafetyGuide(extra=("cat",), safety_scale=1000.0, threshold=1.0, warmup=1, momentum_scale=0.5,
                        momentum_beta=0.7)  # fmt: skip
    empty, text, safety = torch.zeros(1), torch.zeros(1), torch.full((1,), 0.5, dtype=torch.float64)
    state: dict = {}
    first = guide.combine(empty, text, [safety], torch.ones(1), 0, state)
    second = guide.combine(empty, text, [safety], torch.ones(1), 1, state)
    assert first == 0  # warm-up
    assert second == pytest.approx(-(0.5 + 0.5 * 0.3 * 0.5))


def safe_pipeline(pipe):
    """diffusers' own SLD on the parts of a pipeline."""
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        safe = StableDiffusionPipelineSafe(**parts, requires_safety_checker=False)
    safe.set_progress_bar_config(disable=True)
    return safe


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WEAK", "MEDIUM", "STRONG", "MAX"])
def test_recipes_equal_diffusers_own_pipeline(make_pipe, name):
    pipe = make_pipe(dtype=torch.float64)
    theirs = safe_pipeline(pipe)
    theirs.safety_concept = "an image showing cat, kitty"
    plain = [p.with_(guidance_scale=None) for p in PROMPTS]
    start, last = torch.stack([diffusion.noise(p, (4, 8, 8)) for p in plain]).double(), {}
    theirs(
        [p.text for p in plain], latents=start, num_inference_steps=18, height=64, width=64,
        callback=lambda i, t, x: last.update(x=x), **getattr(SafetyConfig, name),
    )  # fmt: skip
    stem = "sld_weak_diffusers" if name == "WEAK" else f"sld_{name.lower()}"
    erased = recipe(stem, prefix="an image showing ").erase(pipe, CAT)
    torch.testing.assert_close(latents(erased, plain, steps=18), last["x"], rtol=1e-9, atol=1e-9)
    assert (last["x"] - latents(pipe, plain, steps=18)).abs().max() > 1e-5


def test_the_published_words_are_those_of_diffusers(tiny_pipe):
    assert SLD(safety="unsafe", prefix="an image showing ").text(CAT) == safe_pipeline(tiny_pipe).safety_concept


def test_both_published_weak_settings_are_named():
    assert (recipe("sld_weak").safety_scale, recipe("sld_weak_diffusers").safety_scale) == (200, 20)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_every_field(name):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert set(config) - {"_target_"} == {field.name for field in fields(SLD)}


def branches(pipe, prompts, steps=4, guidance_scale=7.5):
    rows = []
    pipe = diffusion.fork(pipe)
    pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    latents(pipe, prompts, steps, guidance_scale)
    return rows


def test_only_steps_and_batches_that_need_it_pay_for_the_third_branch(tiny_pipe):
    unguided = [p.with_(guidance_scale=0.0) for p in PROMPTS]
    weak = SLD(momentum_scale=0.0, warmup=2).erase(tiny_pipe, CAT)
    assert branches(weak, PROMPTS) == [6, 6, 9, 9]
    assert branches(weak, unguided) == [6] * 4
    assert branches(SLD(warmup=2).erase(tiny_pipe, CAT), PROMPTS) == [9] * 4  # momentum has to be built up
    assert branches(SLD(safety_scale=0.0).erase(tiny_pipe, CAT), PROMPTS) == [6] * 4
    assert branches(tiny_pipe, PROMPTS) == [6] * 4


def test_the_original_pipeline_and_its_class_are_untouched(tiny_pipe):
    before, weights = latents(tiny_pipe, PROMPTS), diffusion.fingerprint(tiny_pipe)
    erased = SLD(warmup=0).erase(tiny_pipe, CAT)
    assert not torch.equal(latents(erased, PROMPTS), before)
    assert torch.equal(latents(tiny_pipe, PROMPTS), before)
    assert not hasattr(tiny_pipe, "guide") and not hasattr(type(tiny_pipe), "guide")
    assert diffusion.fingerprint(tiny_pipe) == weights and not diffusion.changed_tensors(erased, tiny_pipe)


def test_forks_and_edits_of_a_guided_pipeline_keep_the_guide(tiny_pipe):
    erased = SLD().erase(tiny_pipe, CAT)
    assert diffusion.fork(erased).guide == erased.guide == diffusion.apply_tensors(erased, {}).guide


def test_a_guide_comes_back_from_json(tiny_pipe):
    guide = SLD().erase(tiny_pipe, CAT).guide
    assert SafetyGuide(**json.loads(json.dumps(asdict(guide)))) == guide


def test_sdxl_is_guided_through_both_encoders(tiny_xl_pipe):
    erased = SLD(warmup=0).erase(tiny_xl_pipe, CAT)
    ours, plain = (pixels(diffusion.generate(pipe, PROMPTS[:2], steps=3)) for pipe in (erased, tiny_xl_pipe))
    assert np.abs(ours["0"] - plain["0"]).max() > 1
    alone = pixels(diffusion.generate(erased, PROMPTS[:1], steps=3))
    assert np.abs(ours["0"] - alone["0"]).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"safety": "all"}, "safety must be one of concept, unsafe; got 'all'"),
        ({"safety_scale": -1.0}, "safety_scale must be a finite number >= 0"),
        ({"threshold": float("nan")}, "threshold must be a finite number"),
        ({"momentum_scale": 1.5}, "momentum_scale must be a finite number >= 0 and <= 1"),
        ({"momentum_beta": 1.0}, "momentum_beta must be a finite number >= 0 and < 1"),
        ({"warmup": 2.5}, "warmup must be an integer >= 0"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        SLD(**changes)


def test_a_text_that_would_be_cut_and_a_second_guide_are_refused(tiny_pipe):
    with pytest.raises(ValueError, match="safety text must fit into 77 tokens; got 102"):
        SLD().erase(tiny_pipe, Concept(name="x", phrases=("x" * 100,)))
    with pytest.raises(ValueError, match="pipeline without a guide"):
        SLD().erase(SLD().erase(tiny_pipe, CAT), CAT)


# --- in a run


SMALL = ["model=emoji", "prompts.n={target:4,paraphrase:2,neighbour:2,unrelated:2,coco:0}", "model.steps=3",
         "model.batch_size=4",
         "evaluator=[classifier]", "method.warmup=0"]  # fmt: skip


def small_run(results, *overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", [f"results={results}", *SMALL, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return run(type(cfg)({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"}))


@pytest.mark.slow
def test_a_run_stores_the_guide_rebuilds_it_and_draws_with_it(tmp_path):
    first = small_run(tmp_path, "method=sld_max")
    (record,) = tmp_path.glob("cache/erase/*/erasure.json")
    assert json.loads(record.read_text())["guide"]["_target_"] == "methods.sld.SafetyGuide"
    assert first.record["steps"]["erase"]["changed_tensors"] == 0
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 2  # erased and original are told apart
    drawn = [pd.read_parquet(f).set_index("digest").png for f in sorted((tmp_path / "cache" / "images").iterdir())]
    assert (drawn[0] != drawn[1][drawn[0].index]).all()
    before = first.scores[first.scores.side == "erased"].value.to_numpy()
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "cache" / "images")
    shutil.rmtree(tmp_path / "cache" / "score")
    again = small_run(tmp_path, "method=sld_max")  # from the stored erasure
    assert again.record["steps"]["erase"]["cached"]
    assert (again.scores[again.scores.side == "erased"].value.to_numpy() == before).all()
