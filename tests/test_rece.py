"""RECE against a literal derivation that edits every layer in every epoch, and what its embeddings must do."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from erasebench.diffusion import changed_tensors, cross_attention_projections, encode
from erasebench.types import Concept
from methods.closed_form import derive, grams, weight64
from methods.none import NoErasure
from methods.rece import RECE
from methods.template_rows import TemplateRows
from methods.uce import UCE

reference = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_edits.py"))))
CONF = Path(__file__).parents[1] / "conf" / "method"
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


@pytest.fixture(scope="module")
def original(double_pipe):
    return reference.read_weights(double_pipe)


@pytest.fixture(scope="module")
def started(double_pipe, original):
    """The literal UCE start by technique."""
    rows, kept = reference.rows_legacy(double_pipe, [("cat", " ")]), reference.all_rows(double_pipe, [""])
    return {t: reference.edit(original, rows, kept, 0.5, 1.0, 1.0, t) for t in ("replace", "tensor")}


def recipe(name: str, **changes):
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes), _convert_="all")


def literal(pipe, original, start, **settings):
    rows = [(reference.all_rows(pipe, ["cat"]), reference.all_rows(pipe, [" "]))]
    return reference.rece(original, start, rows, reference.all_rows(pipe, [" "]), **settings)


def assert_parity(erased, expected):
    for name, layer in cross_attention_projections(erased).items():
        assert layer.weight.dtype == torch.float64
        torch.testing.assert_close(layer.weight.data, expected[name], rtol=1e-9, atol=1e-9)


def adversary(pipe, edited, r: float, regulariser="zero"):
    """RECE's matrix K for an edited pipeline."""
    layers = zip(cross_attention_projections(edited).values(), cross_attention_projections(pipe).values(), strict=True)
    square, cross = grams((weight64(new), weight64(old)) for new, old in layers)
    return derive(square, cross, regular_scale=r, regulariser=regulariser)


@pytest.mark.parametrize("regulariser", ["zero", "standard"])
def test_derived_rows_equal_the_literal_derivation(double_pipe, original, started, regulariser):
    rows = reference.all_rows(double_pipe, ["cat"])
    expected = reference.derive_rows(started["replace"], original, rows, 0.1, regulariser == "standard")
    back = adversary(double_pipe, recipe("uce").erase(double_pipe, CAT), 0.1, regulariser)
    torch.testing.assert_close(torch.stack(rows) @ back.T, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_one_epoch_equals_the_literal_derivation(double_pipe, original, started):
    expected = literal(double_pipe, original, started["replace"], r=1e-3, epochs=1)
    assert_parity(recipe("rece_objects").erase(double_pipe, CAT), expected)


def test_three_epochs_equal_the_literal_derivation(double_pipe, original, started):
    expected = literal(double_pipe, original, started["replace"], r=0.1, epochs=3)
    assert_parity(recipe("rece").erase(double_pipe, CAT), expected)


def test_a_start_that_differs_by_layer_equals_the_literal_derivation(double_pipe, original, started):
    expected = literal(double_pipe, original, started["tensor"], r=0.1, epochs=2)
    assert_parity(recipe("rece", epochs=2, start={"technique": "tensor"}).erase(double_pipe, CAT), expected)


def test_several_phrases_and_the_standard_regulariser_equal_the_literal_derivation(double_pipe, original):
    pairs = [("cat", "dog"), ("kitty", "dog")]
    start = reference.edit(
        original, reference.rows_legacy(double_pipe, pairs), reference.all_rows(double_pipe, [""]), 0.5, 1.0, 1.0
    )
    rows = [tuple(reference.all_rows(double_pipe, [text]) for text in pair) for pair in pairs]
    expected = reference.rece(
        original, start, rows, reference.all_rows(double_pipe, [""]), r=0.2, epochs=1, towards_itself=True
    )
    own = {"anchor": None, "phrases": "all"}
    method = RECE(start=UCE(**own), epochs=1, regular_scale=0.2, regulariser="standard", **own)
    assert_parity(method.erase(double_pipe, CAT), expected)


def test_the_derived_embedding_tends_to_the_inverse_of_the_edit(double_pipe):
    edit = UCE().matrix(double_pipe, CAT)
    erased = UCE().erase(double_pipe, CAT)
    concept = encode(double_pipe, ["cat"])[0]
    exact = torch.linalg.solve(edit, concept.T).T
    gaps = [float((concept @ adversary(double_pipe, erased, r).T - exact).norm()) for r in (1e-1, 1e-4, 1e-7, 0.0)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-6 * exact.norm()


def test_an_epoch_closes_the_way_back_that_uce_left_open(double_pipe):
    """What UCE's own adversary finds in UCE's model answers like the concept; after an epoch it does not."""
    method = recipe("rece", epochs=1)
    after_uce, after_rece = method.start.erase(double_pipe, CAT), method.erase(double_pipe, CAT)
    concept = encode(double_pipe, ["cat"])[0]
    found = concept @ adversary(double_pipe, after_uce, 0.1).T

    def distance(pipe) -> float:
        layers = cross_attention_projections(pipe)
        originals = cross_attention_projections(double_pipe)
        return sum(float((layers[n](found) - originals[n](concept)).square().sum()) for n in layers)

    with torch.no_grad():
        assert distance(after_rece) > 3 * distance(after_uce)


def test_no_epochs_is_the_start(tiny_pipe):
    start = UCE(anchor=None)
    same = RECE(start=start, epochs=0).erase(tiny_pipe, CAT)
    assert not changed_tensors(same, start.erase(tiny_pipe, CAT))


@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_only_keys_and_values_of_cross_attention_change(tiny_pipe, technique):
    before = {name: tensor.clone() for name, tensor in tiny_pipe.unet.state_dict().items()}
    erased = RECE(start=UCE(technique=technique)).erase(tiny_pipe, CAT)
    changed = {name.removeprefix("unet.") for name in changed_tensors(erased, tiny_pipe)}
    assert changed == {f"{name}.weight" for name in cross_attention_projections(tiny_pipe)}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_pipe.unet.state_dict().items())


def test_templates_are_re_edited_with_the_same_preserved_rows(tiny_pipe):
    rows = {"pooling": TemplateRows(templates=("a {} here",), preserve_templates=("{}",)), "anchor": None}
    strong = {"lamb": 0.1, "erase_scale": 100.0, "preserve_scale": 1000.0}
    method = RECE(start=UCE(**rows, **strong), epochs=1, **rows, **strong)
    erased = method.erase(tiny_pipe, CAT)
    assert changed_tensors(erased, method.start.erase(tiny_pipe, CAT))


def test_sdxl_is_edited_through_both_text_encoders(tiny_xl_pipe):
    erased = RECE(start=UCE(), epochs=1).erase(tiny_xl_pipe, CAT)
    assert len(changed_tensors(erased, tiny_xl_pipe)) == len(cross_attention_projections(tiny_xl_pipe))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, "epochs must be an integer >= 0; got -1"),
        ({"epochs": 1.5}, "epochs must be an integer >= 0; got 1.5"),
        ({"regular_scale": -0.1}, "regular_scale must be a finite number >= 0"),
        ({"lamb": -0.1}, "lamb must be a finite number > 0"),
        ({"regulariser": "surrogate"}, "regulariser must be one of zero, standard"),
        ({"pooling": "mean"}, "pooling must be one of"),
        ({"start": NoErasure()}, "start must be a closed-form edit"),
    ],
)
def test_bad_hyper_parameters_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        RECE(**{"start": UCE(), **changes})


def test_an_anchor_that_is_the_concept_is_refused(tiny_pipe):
    with pytest.raises(ValueError, match="anchor must differ"):
        RECE(start=UCE(), anchor="cat").erase(tiny_pipe, CAT)
