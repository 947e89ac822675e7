"""UCE against a literal derivation, and what an edit must leave alone."""

from __future__ import annotations

import runpy
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from erasebench.diffusion import changed_tensors, cross_attention_projections, encode
from erasebench.types import Concept
from methods.rece import RECE
from methods.template_rows import TemplateRows
from methods.uce import UCE

reference = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_edits.py"))))
CONF = Path(__file__).parents[1] / "conf" / "method"
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
MONET = Concept(name="monet", kind="style", phrases=("monet",), preserve=("hals", "manet", "Monet"))


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


def recipe(name: str, **changes):
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes), _convert_="all")


def assert_parity(erased, expected):
    layers = cross_attention_projections(erased)
    assert set(layers) == set(expected)
    for name, layer in layers.items():
        assert layer.weight.dtype == torch.float64
        torch.testing.assert_close(layer.weight.data, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "technique"), [("uce", "replace"), ("uce_tensor", "tensor")])
def test_legacy_recipes_equal_the_literal_derivation(double_pipe, name, technique):
    weights = reference.read_weights(double_pipe)
    rows = reference.rows_legacy(double_pipe, [("cat", " ")])
    kept = reference.all_rows(double_pipe, [""])
    expected = reference.edit(weights, rows, kept, 0.5, 1.0, 1.0, technique)
    assert_parity(recipe(name).erase(double_pipe, CAT), expected)


def test_artist_recipe_equals_the_literal_derivation(double_pipe):
    weights = reference.read_weights(double_pipe)
    rows = reference.rows_legacy(double_pipe, [("monet", "art")])
    kept = reference.all_rows(double_pipe, ["", "hals", "manet"])
    assert_parity(recipe("uce_artists").erase(double_pipe, MONET), reference.edit(weights, rows, kept, 0.5, 1.0, 1 / 3))


def test_v2_recipe_equals_the_literal_derivation(double_pipe):
    weights = reference.read_weights(double_pipe)
    rows = reference.rows_v2(double_pipe, [("cat", ""), ("kitty", "")])
    assert_parity(
        recipe("uce_v2", phrases="all").erase(double_pipe, CAT), reference.edit(weights, rows, [], 0.5, 1.0, 1.0)
    )


def test_several_pairs_are_edited_jointly_under_tensor(double_pipe):
    weights = reference.read_weights(double_pipe)
    rows = reference.rows_legacy(double_pipe, [("cat", "dog"), ("kitty", "dog")])
    kept = reference.last_rows(double_pipe, [])
    expected = reference.edit(weights, rows, kept, 0.3, 2.0, 1.0, "tensor")
    method = UCE(technique="tensor", anchor=None, phrases="all", preserve=(), lamb=0.3, erase_scale=2.0)
    assert_parity(method.erase(double_pipe, CAT), expected)


def test_expanded_prompts_follow_the_kind_of_concept():
    art = UCE(expand_prompts=True, anchor="art").pairs(MONET)
    assert ("style of monet", "art") in art and ("monet", "art") in art and len(art) == 6
    assert ("photo of cat", "") in UCE(expand_prompts=True).pairs(CAT)
    assert ("photo of cat", "photo of ") in UCE(expand_prompts=True, pooling="last").pairs(CAT)


@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_only_keys_and_values_of_cross_attention_change(tiny_pipe, technique):
    before = {name: tensor.clone() for name, tensor in tiny_pipe.unet.state_dict().items()}
    erased = UCE(technique=technique).erase(tiny_pipe, CAT)
    changed = {name.removeprefix("unet.") for name in changed_tensors(erased, tiny_pipe)}
    assert changed == {f"{name}.weight" for name in cross_attention_projections(tiny_pipe)}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_pipe.unet.state_dict().items())


def test_one_matrix_is_the_edit_of_every_layer(double_pipe):
    erased = cross_attention_projections(UCE().erase(double_pipe, CAT))
    matrices = [
        torch.linalg.pinv(layer.weight) @ erased[name].weight
        for name, layer in cross_attention_projections(double_pipe).items()
        if layer.out_features >= layer.in_features
    ]
    assert len(matrices) >= 2
    for matrix in matrices:
        torch.testing.assert_close(matrix, UCE().matrix(double_pipe, CAT), rtol=1e-8, atol=1e-8)


def test_editing_the_weights_is_mapping_the_text_embeddings(double_pipe):
    erased, edit = UCE().erase(double_pipe, CAT), UCE().matrix(double_pipe, CAT)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    text = encode(double_pipe, ["a kitten"])
    with torch.no_grad():
        by_weights = erased.unet(x, 500, encoder_hidden_states=text).sample
        by_text = double_pipe.unet(x, 500, encoder_hidden_states=text @ edit.T).sample
    torch.testing.assert_close(by_weights, by_text, rtol=1e-9, atol=1e-9)


def test_no_erasure_scale_changes_no_bit(tiny_pipe):
    assert not changed_tensors(UCE(erase_scale=0.0).erase(tiny_pipe, CAT), tiny_pipe)


def test_the_erased_rows_move_to_the_anchors(double_pipe):
    def gap(**scales: float) -> float:
        method = UCE(pooling="last", preserve=("sun",), anchor="dog", **scales)
        edit = method.matrix(double_pipe, CAT)
        [(c, a)], _ = method.rows(double_pipe, [("cat", "dog")], [])
        return float((c @ edit.T - a).norm())

    gaps = [gap(lamb=small, preserve_scale=small) for small in (1.0, 1e-3, 1e-6)]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4


def test_order_of_phrases_does_not_matter(double_pipe):
    method = UCE(phrases="all", anchor=None)
    turned = Concept(name="cat", phrases=("kitty", "cat"), anchor="dog")
    torch.testing.assert_close(method.matrix(double_pipe, CAT), method.matrix(double_pipe, turned))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_keep_their_dtype(make_pipe, dtype):
    erased = UCE(anchor=None).erase(make_pipe(dtype=dtype), CAT)
    for layer in cross_attention_projections(erased).values():
        assert layer.weight.dtype == dtype and torch.isfinite(layer.weight).all()


@pytest.mark.parametrize("pooling", ["last+pad", "last", TemplateRows(templates=("a {} here",))], ids=str)
def test_sdxl_is_edited_through_both_text_encoders(tiny_xl_pipe, pooling):
    erased = UCE(pooling=pooling, anchor=None).erase(tiny_xl_pipe, CAT)
    assert len(changed_tensors(erased, tiny_xl_pipe)) == len(cross_attention_projections(tiny_xl_pipe))


def test_a_model_with_broken_weights_is_an_error_not_a_result(make_pipe):
    pipe = make_pipe()
    next(iter(cross_attention_projections(pipe).values())).weight[0, 0] = float("nan")
    with pytest.raises(ArithmeticError, match="must be finite"):
        UCE().erase(pipe, CAT)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), "0.5", True])
def test_scales_must_be_finite_numbers_not_below_zero(value):
    for name in ("erase_scale", "preserve_scale"):
        with pytest.raises(ValueError, match=rf"^{name} must be a finite number >= 0; got"):
            UCE(**{name: value})
        assert UCE(**{name: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"technique": "magic"}, "technique must be one of replace, tensor"),
        ({"erase_scale": -1.0}, "erase_scale must be a finite number >= 0; got -1.0"),
        ({"preserve_scale": -0.1}, "preserve_scale must be a finite number >= 0"),
        ({"lamb": 0.0}, "lamb must be a finite number > 0"),
    ],
)
def test_bad_hyper_parameters_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        UCE(**changes)


def test_an_anchor_that_is_the_concept_is_refused(tiny_pipe):
    with pytest.raises(ValueError, match="anchor must differ"):
        UCE(anchor="Cat").erase(tiny_pipe, CAT)


@pytest.mark.parametrize(
    "path",
    sorted(p for p in CONF.glob("*.yaml") if p.stem.split("_")[0] in ("uce", "rece")),
    ids=lambda path: path.stem,
)
def test_every_recipe_names_every_field_and_nothing_else(path):
    config = OmegaConf.load(path)
    built = instantiate(config, _convert_="all")
    assert set(config) - {"_target_"} == {field.name for field in fields(built)}
    if isinstance(built, RECE):
        assert set(config.start) - {"_target_"} == {field.name for field in fields(UCE)}


def test_the_plain_recipe_is_the_class_with_its_defaults():
    assert recipe("uce") == UCE(anchor=" ")
    assert recipe("none").erase("a pipeline", CAT) == "a pipeline"
