"""LEACE: the folded weights against the original model reading erased texts, and what no linear classifier may find."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from concept_erasure import LeaceEraser

from erasebench.diffusion import changed_tensors, encode, fork, last_token
from erasebench.types import Concept, joint
from methods.leace import LEACE, folded, probe
from methods.template_rows import sentence_rows

CAT = Concept(
    name="cat", phrases=("cat", "kitty"), anchor="dog", neighbours={"visual": ("lion",)}, preserve=("Cat", "sun")
)
OWL = Concept(name="owl", phrases=("owl",), anchor="bird")
SMALL = LEACE(templates=("{}", "a {} by a tree"), others=("car", "bus"), pads=3)
EXACT = replace(SMALL, shrinkage=False, constrain_trace=False, svd_tol=1e-9)


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


def rows_by_hand(pipe, texts, templates, pads):
    """Row by row, each sentence encoded alone and whole."""
    rows, owner = [], []
    for i, text in enumerate(texts):
        for template in templates:
            first = int(last_token(pipe, [template.split("{}")[0] + text]))
            end = int(last_token(pipe, [template.replace("{}", text)])) + 1
            (states,) = encode(pipe, [template.replace("{}", text)])
            rows += [states[k] for k in range(first, min(end + pads, 76) + 1)]
            owner += [i] * (len(rows) - len(owner))
    return torch.stack(rows), torch.tensor(owner)


def hidden(pipe, states, **extra):
    z = torch.randn(len(states), 4, 8, 8, generator=torch.Generator().manual_seed(3), dtype=states.dtype)
    return pipe.unet(z, torch.tensor(400), encoder_hidden_states=states, return_dict=False, **extra)[0]


@torch.no_grad()
@pytest.mark.parametrize("concept", [CAT, joint([CAT, OWL])], ids=lambda c: c.name)
def test_the_edited_model_draws_what_the_original_draws_from_erased_texts(double_pipe, concept):
    matrix, shift = SMALL.eraser(double_pipe, concept)
    erased, states = SMALL.erase(double_pipe, concept), encode(double_pipe, ["a cat", "", "a lion by a car"])
    hooked = hidden(double_pipe, states @ matrix.T + shift)
    torch.testing.assert_close(hidden(erased, states), hooked, rtol=1e-9, atol=1e-10)
    assert (hooked - hidden(double_pipe, states)).abs().max() > 1e-3
    without = fork(erased)  # the bias is needed: without it another image comes out
    for name, module in without.unet.named_modules():
        if name.endswith("attn2"):
            module.to_out[0].bias = double_pipe.unet.get_submodule(name).to_out[0].bias
    assert (hidden(without, states) - hooked).abs().max() > 1e-6


@torch.no_grad()
def test_the_fold_holds_for_any_affine_map_and_for_sdxl(make_xl_pipe):
    pipe, draw = make_xl_pipe(dtype=torch.float64), torch.Generator().manual_seed(1)
    matrix, shift = (torch.randn(*size, generator=draw, dtype=torch.float64) for size in ((64, 64), (64,)))
    states = encode(pipe, ["a cat"])
    added = {"text_embeds": torch.ones(1, 32).double(), "time_ids": torch.ones(1, 6).double()}
    torch.testing.assert_close(
        hidden(folded(pipe, matrix, shift), states, added_cond_kwargs=added),
        hidden(pipe, states @ matrix.T + shift, added_cond_kwargs=added), rtol=1e-8, atol=1e-8,
    )  # fmt: skip


@torch.no_grad()
def test_the_rows_and_the_eraser_are_the_package_s_on_rows_read_one_by_one(double_pipe):
    texts, labels = SMALL.texts(CAT)
    assert texts == ["car", "bus", "sun", "lion", "dog", "cat", "kitty"] and labels == [-1] * 5 + [0, 0]
    rows, owner = rows_by_hand(double_pipe, texts, SMALL.templates, SMALL.pads)
    found, found_owner = sentence_rows(double_pipe, texts, SMALL.templates, SMALL.pads)
    torch.testing.assert_close(found, rows)
    assert torch.equal(found_owner, owner)
    eraser = LeaceEraser.fit(rows, (torch.tensor(labels)[owner] == 0).double())
    matrix, shift = SMALL.eraser(double_pipe, CAT)
    torch.testing.assert_close(rows @ matrix.T + shift, eraser(rows).double(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("concept", [CAT, joint([CAT, OWL])], ids=lambda c: c.name)
def test_nothing_linear_is_left_on_the_rows_it_was_fitted_to(double_pipe, concept):
    texts, labels = EXACT.texts(concept)
    rows, owner = sentence_rows(double_pipe, texts, EXACT.templates, EXACT.pads)
    matrix, shift = EXACT.eraser(double_pipe, concept)
    erased = rows @ matrix.T + shift
    for i in range(len(concept.singles)):
        is_in = torch.tensor(labels)[owner] == i
        gap = rows[is_in].mean(0) - rows[~is_in].mean(0)
        assert (erased[is_in].mean(0) - erased[~is_in].mean(0)).norm() < 1e-6 * gap.norm()
        assert probe(rows, is_in, rows, is_in) > 0.95
        assert probe(erased, is_in, erased, is_in, ridge=1e-3) < 0.65
    torch.testing.assert_close(erased.mean(0), rows.mean(0))  # mu stays
    assert torch.linalg.matrix_rank(torch.eye(32) - matrix, tol=1e-6) == len(concept.singles)


def test_the_probe_is_weighted_least_squares():
    draw = torch.Generator().manual_seed(0)
    rows, other = (torch.randn(40, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    labels, truth = rows[:, 0] + 0.7 * rows[:, 1] > 0.6, other[:, 0] > 0.4
    share = torch.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum()).sqrt()[:, None]
    left = torch.cat([rows, torch.ones(40, 1)], 1).double() * share
    fit = torch.linalg.lstsq(left, torch.where(labels, 1.0, -1.0).double()[:, None] * share).solution[:, 0]
    said = other @ fit[:5] + fit[5] > 0
    expected = (said[truth].double().mean() + (~said[~truth]).double().mean()) / 2
    assert probe(rows, labels, other, truth, ridge=1e-12) == pytest.approx(float(expected))


@pytest.mark.parametrize("fixture", ["tiny_pipe", "tiny_xl_pipe"])
def test_only_keys_values_and_output_biases_change_and_twice_alike(request, fixture):
    pipe = request.getfixturevalue(fixture)
    changed = changed_tensors(SMALL.erase(pipe, CAT), pipe)
    ends = ("attn2.to_k.weight", "attn2.to_v.weight", "attn2.to_out.0.bias")
    names = {f"unet.{name}" for name, _ in pipe.unet.named_parameters() if name.endswith(ends)}
    assert set(changed) == names and all(t.dtype == torch.float32 for t in changed.values())
    assert not changed_tensors(SMALL.erase(pipe, CAT), SMALL.erase(pipe, CAT))


def test_an_attention_in_which_the_fold_fails_is_refused(tiny_pipe):
    pipe = fork(tiny_pipe)
    next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2")).norm_k = torch.nn.LayerNorm(16)
    with pytest.raises(ValueError, match="normalise its keys"):
        SMALL.erase(pipe, CAT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": ()}, "templates must"),
        ({"templates": ("a cat",)}, r"templates must hold one '\{\}' each"),
        ({"pads": -1}, "pads must be an integer >= 0"),
        ({"svd_tol": 0}, "svd_tol must be a finite number > 0"),
        ({"phrases": "some"}, "phrases must be one of"),
        ({"shrinkage": "yes"}, "shrinkage must be"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        LEACE(**({"templates": ("{}",)} | changes))


def test_a_concept_with_nothing_beside_it_is_refused_before_weights_load():
    with pytest.raises(ValueError, match="others must hold a text that does not name 'cat'"):
        LEACE(templates=("{}",), others=("CAT",)).check(Concept(name="cat", phrases=("cat",)), {})
