"""Which rows of which texts are pooled, counted by hand on the byte-level tokenizer: one token per letter."""

from __future__ import annotations

import pytest
import torch

from erasebench.diffusion import encode
from erasebench.types import Concept
from methods.template_rows import TemplateRows
from methods.text_rows import EditTexts

CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog", preserve=("fox", "Cat", " KITTY "))


@pytest.fixture(scope="module")
def tiny_pipe(make_pipe):
    """In float64, where encoding fewer rows gives the same numbers to the last digits."""
    return make_pipe(dtype=torch.float64)


def states(pipe, text):
    return encode(pipe, [text])[0].double()


def pooled(pipe, pairs, kept=(), **fields):
    return EditTexts(**fields).rows(pipe, pairs, list(kept))


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_last_and_pads_start_at_the_last_token_of_each_and_end_together(tiny_pipe):
    [(c, a)], _ = pooled(tiny_pipe, [("cat", "a")])
    same(c, states(tiny_pipe, "cat")[3:77])  # start, c, a, t: the last token is row 3
    same(a, states(tiny_pipe, "a")[1:75])


def test_the_empty_anchor_maps_the_last_subject_token_to_the_start_token(tiny_pipe):
    [(c, a)], _ = pooled(tiny_pipe, [("cat", " ")])
    same(c, states(tiny_pipe, "cat")[3:77])
    same(a, states(tiny_pipe, "")[0:74])


def test_last_is_one_vector_and_that_of_the_empty_text_is_the_start_token(tiny_pipe):
    [(c, a)], gram = pooled(tiny_pipe, [("cat", "")], kept=["", "fox"], pooling="last")
    same(c, states(tiny_pipe, "cat")[3:4])
    same(a, states(tiny_pipe, "anything")[0:1])
    kept = torch.stack([states(tiny_pipe, "")[0], states(tiny_pipe, "fox")[3]])
    same(gram, kept.T @ kept)


def test_all_takes_every_row_one_to_one(tiny_pipe):
    [(c, a)], gram = pooled(tiny_pipe, [("cat", "a")], kept=["fox"], pooling="all")
    same(c, states(tiny_pipe, "cat"))
    same(a, states(tiny_pipe, "a"))
    same(gram, states(tiny_pipe, "fox").T @ states(tiny_pipe, "fox"))


def test_templates_run_from_the_subject_to_some_padding_and_are_means(tiny_pipe):
    templates = ("a {} on red", "{}")
    rows = TemplateRows(templates=templates, pads=2)
    (one, two), gram = pooled(tiny_pipe, [("cat", "ox")], kept=["fox"], pooling=rows)
    # "a cat on red": start + 9 letters, the t is row 4, the end of text row 10, two paddings after it
    first = (states(tiny_pipe, "a cat on red")[4:13], states(tiny_pipe, "a ox on red")[3:12])
    second = (states(tiny_pipe, "cat")[3:7], states(tiny_pipe, "ox")[2:6])
    root = (9 + 4) ** 0.5
    for got, expected in zip((one, two), (first, second), strict=True):
        same(got[0] * root, expected[0])
        same(got[1] * root, expected[1])
    kept = states(tiny_pipe, "fox")[:7]
    same(gram, kept.T @ kept / 7)


def test_the_empty_anchor_in_a_template_starts_at_the_word_before_it(tiny_pipe):
    [(_, a)], _ = pooled(tiny_pipe, [("cat", "")], pooling=TemplateRows(templates=["a {} on red"], pads=0))
    same(a * len(a) ** 0.5, states(tiny_pipe, "a  on red")[1:8])


def test_templates_longer_than_the_encoder_are_cut(tiny_pipe):
    long = "{} " + "x" * 90
    [(c, a)], _ = pooled(tiny_pipe, [("cat", "a")], pooling=TemplateRows(templates=[long]))
    assert len(c) == len(a) == 77 - 3


def test_a_template_that_glues_letters_to_the_concept_is_refused(tiny_pipe):
    with pytest.raises(ValueError, match="apart by spaces; got 'two cats'"):
        pooled(tiny_pipe, [("cat", "dog")], pooling=TemplateRows(templates=["two {}s"]))


def test_preserved_rows_do_not_depend_on_the_batch(tiny_pipe):
    texts = [f"number {i}" for i in range(70)] + ["", " "]
    _, gram = pooled(tiny_pipe, [("cat", "dog")], kept=texts)
    rows = torch.cat([states(tiny_pipe, text) for text in texts])
    torch.testing.assert_close(gram, rows.T @ rows, rtol=1e-5, atol=1e-3)


def test_pairs_take_the_recipes_anchor_or_the_concepts_own():
    assert EditTexts().pairs(CAT) == [("cat", "")]
    assert EditTexts(anchor=None, phrases="all").pairs(CAT) == [("cat", "dog"), ("kitty", "dog")]
    with pytest.raises(ValueError, match=r"anchor must differ from the concept 'cat'; got ' Cat '"):
        EditTexts(anchor=" Cat ").pairs(CAT)


def test_preserved_texts_never_name_the_concept():
    assert EditTexts().kept(CAT) == ["", "fox"]
    assert EditTexts(concept_preserve=False, preserve=["kitty", "sun"]).kept(CAT) == ["sun"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "mean"}, "pooling must be one of last\\+pad, last, all; got 'mean'"),
        ({"phrases": "some"}, "phrases must be one of name, all"),
        ({"pooling": "templates"}, "pooling must be one of last\\+pad, last, all; got 'templates'"),
        ({"pooling": {"templates": ["{}"]}}, "pooling must be one of"),
        ({"concept_preserve": "no"}, "concept_preserve must be true or false"),
        ({"preserve": "fox"}, "preserve must be a list of texts; got 'fox'"),
    ],
)
def test_bad_fields_are_refused_before_anything_is_loaded(fields, message):
    with pytest.raises(ValueError, match=message):
        EditTexts(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"templates": []}, r"templates must hold at least 1 text; got \[\]; add '\{\}' for the bare text"),
        ({"templates": ["no slot"]}, "templates must hold one '{}' each"),
        ({"preserve_templates": ["{} and {}"]}, "preserve_templates must hold one '{}' each"),
        ({"templates": "a {}"}, "templates must be a list of texts"),
        ({"pads": -1}, "pads must be an integer >= 0"),
    ],
)
def test_bad_template_rows_are_refused_before_anything_is_loaded(fields, message):
    with pytest.raises(ValueError, match=message):
        TemplateRows(**{"templates": ["{}"], **fields})


def test_lists_become_tuples():
    assert EditTexts(preserve=["a"]).preserve == ("a",)
    assert TemplateRows(templates=["{}"]).templates == ("{}",)


def test_a_stranger_s_rows_take_the_place_of_a_pooling(tiny_pipe):
    class FirstTwo:
        def pairs(self, pipe, pairs):
            return [(states(pipe, c)[:2], states(pipe, a)[:2]) for c, a in pairs]

        def gram(self, pipe, texts):
            return sum(states(pipe, text)[:2].T @ states(pipe, text)[:2] for text in texts)

    [(c, a)], gram = pooled(tiny_pipe, [("cat", "dog")], kept=["fox"], pooling=FirstTwo())
    same(c, states(tiny_pipe, "cat")[:2])
    same(gram, states(tiny_pipe, "fox")[:2].T @ states(tiny_pipe, "fox")[:2])
    assert a.shape == (2, 32)
