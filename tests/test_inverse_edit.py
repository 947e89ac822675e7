"""The inverse of a closed-form edit: keys and values of the attacked embeddings are the original model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from attacks.inverse_edit import InverseEdit, recover
from erasebench import diffusion
from methods.rece import RECE
from methods.uce import UCE
from tests.white_box import CAT, PROMPTS, SAMPLER, Brightness, blinded

CONF = Path(__file__).parents[1] / "conf"


def keys_and_values(pipe, states: torch.Tensor) -> torch.Tensor:
    layers = diffusion.cross_attention_projections(pipe).values()
    return torch.cat([layer(states.to(layer.weight.dtype)).double().flatten() for layer in layers])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("method", [UCE(), UCE(pooling="last"), RECE(start=UCE(), epochs=1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_keys_and_values_of_the_attacked_embeddings_are_the_original_s(make_pipe, method, dtype):
    pipe = make_pipe(dtype=dtype)
    erased = method.erase(pipe, CAT)
    found = InverseEdit(**SAMPLER).attack(erased, pipe, PROMPTS, CAT, Brightness())
    for prompt, attacked in zip(PROMPTS, found, strict=True):
        states = diffusion.encode(pipe, [prompt.text])
        wanted = keys_and_values(pipe, states)
        got = keys_and_values(erased, torch.from_numpy(attacked.embeds)[None])
        plain = keys_and_values(erased, states)
        assert distance(got, wanted) < 1e-4  # embeddings are float32
        assert distance(plain, wanted) > 100 * distance(got, wanted)
        assert attacked.info["edit"] == "shared" and attacked.info["residual"] < 1e-3
        assert attacked.info["queries"] == 2 and attacked.info["backward"] == 0
        assert (attacked.text, attacked.seed, attacked.group) == (prompt.text, prompt.seed, "attack")


def test_the_matrix_recovered_from_the_weights_is_the_method_s_own(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    edit = recover(UCE().erase(pipe, CAT), pipe)
    matrix = UCE().matrix(pipe, CAT)
    torch.testing.assert_close(edit.matrix, matrix, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(edit.inverse, torch.linalg.inv(matrix), rtol=1e-5, atol=1e-6)
    assert edit.condition == pytest.approx(float(torch.linalg.cond(matrix)), rel=1e-5)
    gram = sum(w.weight.T @ w.weight for w in diffusion.cross_attention_projections(pipe).values())
    pairs = zip(
        *(diffusion.cross_attention_projections(p).values() for p in (pipe, UCE().erase(pipe, CAT))), strict=True
    )
    by_gram = torch.linalg.pinv(gram) @ sum(old.weight.T @ new.weight for old, new in pairs)
    torch.testing.assert_close(edit.matrix, by_gram, rtol=1e-6, atol=1e-8)


def test_without_guidance_the_image_is_the_original_s(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    erased = blinded(pipe)
    attack = InverseEdit(**{**SAMPLER, "guidance_scale": 1.0})
    prompts = [replace(p, guidance_scale=None) for p in PROMPTS]
    found = attack.attack(erased, pipe, prompts, CAT, Brightness())
    original, plain, attacked = (
        np.stack([np.asarray(i, np.int16) for i in attack.images(m, p)])
        for m, p in ((pipe, prompts), (erased, prompts), (erased, found))
    )
    assert abs(attacked - original).max() <= 1 < abs(plain - original).max()
    guided = InverseEdit(**SAMPLER).attack(erased, pipe, prompts, CAT, Brightness())
    assert guided[0].info["unconditional_shift"] > 0.05  # under guidance the empty text's branch stays edited


def test_an_edit_that_is_no_shared_matrix_and_no_edit_pass_the_prompts_through(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    different = diffusion.fork(pipe)
    for i, layer in enumerate(diffusion.cross_attention_projections(different).values()):
        noise = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        layer.weight = torch.nn.Parameter(layer.weight + 0.05 * noise, requires_grad=False)
    different.unet.conv_in.weight = torch.nn.Parameter(different.unet.conv_in.weight * 1.1, requires_grad=False)
    tensor = UCE(technique="tensor").erase(pipe, CAT)
    # the tensor technique's matrices differ from layer to layer, but little: only a strict tolerance tells
    for model, edit, other, tolerance in (
        (different, "other", 1, 0.05),
        (tensor, "other", 0, 1e-5),
        (pipe, "none", 0, 0.05),
    ):
        found = InverseEdit(**SAMPLER, tolerance=tolerance).attack(model, pipe, PROMPTS, CAT, Brightness())
        assert [p.text for p in found] == [p.text for p in PROMPTS] and all(p.embeds is None for p in found)
        assert {p.info["edit"] for p in found} == {edit} and found[0].info["queries"] == 1
        assert found[0].info["other_tensors"] == other


def test_a_near_singular_edit_is_undone_as_far_as_floats_go(make_pipe):
    pipe = make_pipe()
    erased = UCE(lamb=1e-6).erase(pipe, CAT)
    info = InverseEdit(**SAMPLER).attack(erased, pipe, PROMPTS[:1], CAT, Brightness())[0].info
    assert info["condition"] > 1e3 and info["left"] < 0.05


def test_prompts_that_show_the_concept_already_are_passed_through(make_pipe):
    pipe = make_pipe()
    erased = blinded(pipe)
    found = InverseEdit(**SAMPLER).attack(erased, pipe, PROMPTS, CAT, Brightness(0.0))
    assert all(p.info["pre"] and p.info["success"] and p.info["queries"] == 1 and p.embeds is None for p in found)
    capped = InverseEdit(**SAMPLER, budget=1).attack(erased, pipe, PROMPTS, CAT, Brightness())
    assert all(p.embeds is None and not p.info["success"] for p in capped)
    assert InverseEdit().attack(erased, pipe, [], CAT, Brightness()) == []


def test_the_batch_changes_nothing(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    erased = blinded(pipe)
    whole = InverseEdit(**SAMPLER).attack(erased, pipe, PROMPTS, CAT, Brightness())
    alone = [InverseEdit(**SAMPLER).attack(erased, pipe, [p], CAT, Brightness())[0] for p in PROMPTS]
    for a, b in zip(whole, alone, strict=True):
        np.testing.assert_array_equal(a.embeds, b.embeds)


def test_the_yaml_has_the_defaults_and_bad_settings_are_one_line(tiny_xl_pipe):
    node = OmegaConf.to_container(OmegaConf.load(CONF / "attack" / "inverse_edit.yaml"))
    assert InverseEdit(**{k: v for k, v in node.items() if "${" not in str(v) and k != "_target_"}) == InverseEdit()
    with pytest.raises(ValueError, match=r"tolerance must be a finite number >= 0 and <= 1; got 2"):
        InverseEdit(tolerance=2)
    with pytest.raises(ValueError, match=r"rcond must be a finite number >= 0 and < 1; got 1"):
        InverseEdit(rcond=1.0)
    with pytest.raises(ValueError, match="SDXL"):
        InverseEdit().attack(tiny_xl_pipe, tiny_xl_pipe, PROMPTS, CAT, Brightness())
