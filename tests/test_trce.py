"""TRCE's first stage against a layer-by-layer closed form over rows that are read one sentence at a time."""

from __future__ import annotations

import pytest
import torch

from erasebench.diffusion import changed_tensors, cross_attention_projections, encode, last_token
from erasebench.types import Concept, joint
from methods.trce import FirstEnd
from methods.uce import UCE

CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog", preserve=("sun",))
OWL = Concept(name="owl", phrases=("owl",), anchor="bird")
TEMPLATES = ("{}", "a {} by a tree")
STAGE = UCE(pooling=FirstEnd(templates=TEMPLATES), anchor=None, phrases="all", preserve_scale=0.01, lamb=0.1)


def end_row(pipe, text):
    return encode(pipe, [text])[0, int(last_token(pipe, [text])) + 1]


@pytest.mark.parametrize("concept", [CAT, joint([CAT, OWL])], ids=lambda c: c.name)
def test_the_edit_is_ridge_regression_on_end_rows(make_pipe, concept):
    pipe = make_pipe(dtype=torch.float64)
    pairs = [(end_row(pipe, t.replace("{}", p)), end_row(pipe, t.replace("{}", part.anchor)))
             for part in concept.singles for p in part.phrases for t in TEMPLATES]  # fmt: skip
    kept = torch.cat([encode(pipe, [text])[0] for text in ("", "sun")])
    seen = torch.cat([torch.stack([c for c, _ in pairs]), 0.1 * kept, 0.1**0.5 * torch.eye(32)])
    before, erased = cross_attention_projections(pipe), STAGE.erase(pipe, concept)
    for name, layer in cross_attention_projections(erased).items():
        weight = before[name].weight
        wanted = torch.cat([torch.stack([a for _, a in pairs]), 0.1 * kept, 0.1**0.5 * torch.eye(32)]) @ weight.T
        torch.testing.assert_close(layer.weight.data, torch.linalg.lstsq(seen, wanted).solution.T, rtol=1e-6, atol=1e-8)
        assert (layer.weight - weight).abs().max() > 1e-4
    assert erased.edit_matrix.shape == (32, 32)


def test_the_end_row_has_read_the_sentence_and_sdxl_works(tiny_xl_pipe):
    (one, to), *_ = FirstEnd(templates=TEMPLATES).pairs(tiny_xl_pipe, [("cat", "dog"), ("owl", "bird")])
    assert one.shape == to.shape == (2, 64) and not torch.allclose(one, to)
    assert len(changed_tensors(STAGE.erase(tiny_xl_pipe, CAT), tiny_xl_pipe)) == 14


@pytest.mark.parametrize("templates", [(), ("a cat",), ("{} and {}",)])
def test_bad_templates_are_refused_at_once(templates):
    with pytest.raises(ValueError, match="templates must"):
        FirstEnd(templates=templates)
