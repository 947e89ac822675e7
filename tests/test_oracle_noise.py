"""Distance of predicted noise along the other model's way: against a loop written out, halved batches, real oracles."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from erasebench import devices, diffusion
from erasebench.diffusion.trajectories import noise_distances
from erasebench.store.images import ImageSet
from erasebench.types import Concept, Prompt
from evaluators.oracle_noise import OracleNoise
from methods.sld import SLD

HOW = {"steps": 3, "guidance_scale": 2.0}
PROMPTS = [Prompt(id=str(i), text=f"text {i}", seed=i) for i in range(5)]


@pytest.fixture(scope="module")
def other(tiny_pipe):
    """The tiny pipeline with other keys and values."""
    new, g = diffusion.fork(tiny_pipe), torch.Generator().manual_seed(1)
    for layer in diffusion.cross_attention_projections(new).values():
        layer.weight = torch.nn.Parameter(
            layer.weight + torch.randn(layer.weight.shape, generator=g), requires_grad=False
        )
    return new


@torch.inference_mode()
def by_hand(ours, theirs, prompt):
    """One prompt, one step after the other."""
    shape = diffusion.latent_shape(theirs)
    scheduler = copy.deepcopy(theirs.scheduler)
    scheduler.set_timesteps(HOW["steps"])
    x = diffusion.noise(prompt, shape)[None] * scheduler.init_noise_sigma
    above = below = 0.0
    for t in scheduler.timesteps:
        e = []
        for pipe in (ours, theirs):
            empty, text = (
                pipe.unet(x, t, diffusion.encode(pipe, [w]), return_dict=False)[0] for w in ("", prompt.text)
            )
            e.append(empty + HOW["guidance_scale"] * (text - empty))
        above += float((e[0] - e[1]).double().square().sum())
        below += float(e[1].double().square().sum())
        x = scheduler.step(e[1], t, x, return_dict=False)[0]
    return above / below


def test_it_is_the_sum_along_the_other_models_way(tiny_pipe, other):
    before = diffusion.fingerprint(tiny_pipe), diffusion.fingerprint(other)
    found = noise_distances(other, tiny_pipe, PROMPTS, batch_size=2, **HOW)
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx(
        [by_hand(other, tiny_pipe, p) for p in PROMPTS], rel=1e-4
    )
    assert (found > 0).all() and (diffusion.fingerprint(tiny_pipe), diffusion.fingerprint(other)) == before


def test_a_model_is_at_no_distance_from_itself_and_prompts_may_be_none(tiny_pipe):
    assert noise_distances(tiny_pipe, tiny_pipe, PROMPTS, **HOW).tolist() == [0.0] * 5
    assert noise_distances(tiny_pipe, tiny_pipe, [], **HOW).shape == (0,)


def test_batches_that_did_not_fit_into_memory_change_nothing(tiny_pipe, other, monkeypatch):
    whole = noise_distances(other, tiny_pipe, PROMPTS, batch_size=5, **HOW)
    monkeypatch.setattr(devices, "_room", {})
    forward, calls = type(tiny_pipe.unet).forward, []

    def narrow(unet, x, *args, **options):
        calls.append(len(x))
        if len(x) > 4 and len(calls) % 2 == 0:  # in the middle of a way
            raise torch.OutOfMemoryError("no room")
        return forward(unet, x, *args, **options)

    monkeypatch.setattr(type(tiny_pipe.unet), "forward", narrow)
    found = noise_distances(other, tiny_pipe, PROMPTS, batch_size=5, **HOW)
    assert min(calls) < 10 and found.tolist() == pytest.approx(whole.tolist(), rel=1e-4)


def test_a_defence_that_works_while_drawing_is_part_of_what_is_predicted(tiny_pipe):
    assert noise_distances(diffusion.fork(tiny_pipe), tiny_pipe, PROMPTS[:1], **HOW).item() == 0
    guided = SLD(warmup=0, threshold=1.0).erase(tiny_pipe, Concept(name="cat", phrases=("cat", "kitten")))
    assert noise_distances(guided, tiny_pipe, PROMPTS[:1], **HOW).item() > 0


def test_a_prediction_that_is_not_finite_is_a_row_without_a_value(tiny_pipe, tmp_path):
    broken = diffusion.fork(tiny_pipe)
    layer = next(iter(diffusion.cross_attention_projections(broken).values()))
    layer.weight = torch.nn.Parameter(torch.full_like(layer.weight, math.nan), requires_grad=False)
    how = HOW | {"batch_size": 4}
    sides = (
        ImageSet(key=str(i), folder=Path(tmp_path), prompts=tuple(PROMPTS), model=model, how=how)
        for i, model in enumerate((broken, tiny_pipe))
    )
    scores = OracleNoise(oracle=None).score(*sides)
    assert [s.status for s in scores] == ["nan"] * 5 and all(math.isnan(s.value) for s in scores)


def test_images_without_their_models_are_refused(tmp_path):
    alone = ImageSet(key="a", folder=Path(tmp_path), prompts=tuple(PROMPTS))
    with pytest.raises(ValueError, match=r"oracle_noise needs the models.*evaluator=\[oracle\]"):
        OracleNoise(oracle=None).score(alone, alone)
