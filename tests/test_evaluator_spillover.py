"""Spillover against hand-counted outcomes and the harmonic means that EraseBench printed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from erasebench.report.intervals import exact_paired, wilson
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt, Verdict
from evaluators.spillover import Spillover, harmonic_interval, harmonic_mean

PRINTED = [  # method, efficacy, generality, sensitivity, harmonic mean: EraseBench, arXiv 2501.09833
    ("SD1.4 visual", 86.5, 90.2, 85.0, 15.97),
    ("ESD visual", 24.5, 50.5, 65.9, 61.70),
    ("UCE visual", 41.8, 68.3, 82.7, 49.32),
    ("Receler visual", 8.1, 20.0, 65.4, 77.58),
    ("MACE visual", 15.6, 37.7, 66.4, 69.83),
    ("AdvUnlearn visual", 8.7, 39.1, 64.3, 69.88),
    ("UCE binomial", 18.9, 31.4, 86.1, 77.88),
    ("Receler binomial", 10.3, 12.6, 57.5, 75.04),
]


@pytest.mark.parametrize(("method", "efficacy", "generality", "sensitivity", "printed"), PRINTED)
def test_harmonic_mean_equals_the_printed_rows(method, efficacy, generality, sensitivity, printed):
    assert harmonic_mean(efficacy, generality, sensitivity) == pytest.approx(printed, abs=0.011)


PERCENT = st.floats(0, 100)


@given(PERCENT, PERCENT, PERCENT)
def test_harmonic_mean_lies_between_its_terms_and_below_their_mean(efficacy, generality, sensitivity):
    terms = (100 - efficacy, 100 - generality, sensitivity)
    value = harmonic_mean(efficacy, generality, sensitivity)
    if min(terms) == 0:
        assert value == 0
    else:
        assert min(terms) - 1e-9 <= value <= sum(terms) / 3 + 1e-9


@pytest.mark.parametrize("wrong", [(-1, 0, 0), (0, 101, 0), (0, 0, math.nan)])
def test_harmonic_mean_takes_percentages(wrong):
    with pytest.raises(ValueError, match="percentages"):
        harmonic_mean(*wrong)


def test_the_harmonic_interval_narrows_and_has_a_width_at_the_ends():
    wide, narrow = (
        harmonic_interval([(10, 5, 20)] * 2 + [(90, 80, 95)]),
        harmonic_interval([(10, 8, 12)] * 2 + [(90, 88, 92)]),
    )
    assert wide[0] < narrow[0] < harmonic_mean(10, 10, 90) < narrow[1] < wide[1]
    low, high = harmonic_interval([(0, 0, 7.1), (0, 0, 7.1), (100, 92.9, 100)])
    assert low < 97 and high == 100
    assert harmonic_interval([(100, 90, 100), (100, 90, 100), (100, 90, 100)])[1] > 0  # two terms must rise at once
    assert all(map(math.isnan, harmonic_interval([(0, 0, 7), (0, math.nan, math.nan), (100, 93, 100)])))


@given(st.tuples(PERCENT, PERCENT, PERCENT))
def test_the_harmonic_interval_of_one_uncertain_rate_is_the_mean_at_its_ends(rates):
    certain = [(rate, rate, rate) for rate in rates]
    certain[0] = (rates[0], max(0.0, rates[0] - 5), min(100.0, rates[0] + 5))
    expected = [harmonic_mean(certain[0][i], rates[1], rates[2]) for i in (2, 1)]
    assert harmonic_interval(certain) == pytest.approx(tuple(expected), abs=1e-6)


def test_two_synonyms_are_too_few_for_an_interval(tmp_path):
    images = image_set(tmp_path / "few", {place: letters[:2] for place, letters in ORIGINAL.items()})
    prompts = tuple(p.with_(info={"word": p.id[-1]}) if p.group == "paraphrase" else p for p in images.prompts)
    doubled = prompts + tuple(p.with_(id=f"{p.id}-again") for p in prompts)
    few = ImageSet(key=images.key, folder=images.folder, prompts=doubled)
    hm = by_place(scored(few, few))["hm", "all", ""]
    assert hm.status == "ok" and hm.low is None and hm.high is None


class WhiteJudge:
    """Whatever is asked for is there exactly if the image is white."""

    name = "white"

    def __call__(self, images, concepts):
        return [Verdict(present=i.getpixel((0, 0))[0] > 127, score=1.0, label="?") for i in images]


class Words:
    """Unit vectors that turn by 0.1 a letter."""

    name = "words"

    def text_features(self, texts):
        return np.array([[math.cos(len(t) / 10), math.sin(len(t) / 10)] for t in texts], dtype=np.float32)


def scored(images, original, whole=True):
    """Whole-set scores without those by relation and without drops, or the others."""
    scores = Spillover(judge=WhiteJudge(), text=Words()).score(images, original)
    others = ("hm_by_relation", "drop.")
    return [s for s in scores if (s.prompt_id is None and not s.metric.startswith(others)) == whole]


def image_set(folder, outcomes):
    """``outcomes``: (group, relation) -> letters, one per prompt: y seen, n not seen, x could not be drawn."""
    rows = []
    for (group, relation), letters in outcomes.items():
        for i, letter in enumerate(letters):
            prompt = Prompt(
                id=f"{group}-{relation}-{i}",
                text=f"{group} {relation} {i}",
                seed=i,
                group=group,
                concept=f"c{i}",
                relation=relation,
            )
            image = None if letter == "x" else Image.new("RGB", (4, 4), "white" if letter == "y" else "black")
            rows.append((prompt, image, "nan" if letter == "x" else "ok"))
    write_shard(folder, 0, [(prompt.digest(), image, status) for prompt, image, status in rows])
    return ImageSet(key=folder.name, folder=folder, prompts=tuple(prompt for prompt, _, _ in rows))


ORIGINAL = {
    ("target", ""): "yyyyyyyyyy",
    ("paraphrase", ""): "yyyyyyyyny",
    ("neighbour", "visual"): "yyyyy",
    ("neighbour", "binomial"): "yyynn",
    ("unrelated", "unrelated"): "yyyy",
    ("coco", ""): "nnnn",
}
ERASED = {
    ("target", ""): "nnnnnnnnyx",
    ("paraphrase", ""): "nnnnnnnyyy",
    ("neighbour", "visual"): "yynnn",
    ("neighbour", "binomial"): "yyxyn",
    ("unrelated", "unrelated"): "yyny",
    ("coco", ""): "nynn",
}


def by_place(scores):
    return {(s.metric.removesuffix(".white"), s.group, s.relation): s for s in scores}


def test_rates_by_hand(tmp_path):
    original, erased = image_set(tmp_path / "o", ORIGINAL), image_set(tmp_path / "e", ERASED)
    scores = by_place(scored(erased, original))
    values = {place: score.value for place, score in scores.items() if score.status == "ok"}
    assert values == pytest.approx({
        ("efficacy", "target", ""): 100 / 9,
        ("generality", "paraphrase", ""): 30,
        ("sensitivity", "neighbour", ""): 100 * 5 / 9,
        ("sensitivity", "neighbour", "visual"): 40,
        ("sensitivity", "neighbour", "binomial"): 75,
        ("retention", "neighbour", ""): 100 * 4 / 7,  # eight were right, one of them could not be drawn again
        ("retention", "neighbour", "visual"): 40,
        ("retention", "neighbour", "binomial"): 100,
        ("retention", "unrelated", ""): 75,
        ("hm", "all", ""): harmonic_mean(100 / 9, 30, 500 / 9),
    })  # fmt: skip
    assert scores["retention", "coco", ""].status == "error"  # the original drew none of them rightly
    efficacy = scores["efficacy", "target", ""]
    assert (efficacy.low, efficacy.high) == pytest.approx(tuple(100 * v for v in wilson(1, 9)))
    assert {s.metric for s in scores.values() if not s.higher_is_better} == {"efficacy.white", "generality.white"}
    assert scores["hm", "all", ""].low < values["hm", "all", ""] < scores["hm", "all", ""].high


def test_the_original_keeps_all_it_can_draw(tmp_path):
    original = image_set(tmp_path / "o", ORIGINAL)
    scores = by_place(scored(original, original))
    assert {s.value for (name, *_), s in scores.items() if name == "retention" and s.status == "ok"} == {100}
    assert scores["hm", "all", ""].value == 0  # nothing is erased


def test_a_missing_group_has_no_harmonic_mean_and_a_failed_one_has_a_status(tmp_path):
    some = {place: letters for place, letters in ORIGINAL.items() if place[0] != "paraphrase"}
    images = image_set(tmp_path / "some", some)
    assert not {"hm", "generality"} & {name for name, *_ in by_place(scored(images, images))}
    lost = image_set(tmp_path / "lost", ORIGINAL | {("paraphrase", ""): "xxxx"})
    scores = by_place(scored(lost, lost))
    for place in (("hm", "all", ""), ("generality", "paraphrase", "")):
        assert scores[place].status == "error" and math.isnan(scores[place].value) and scores[place].low is None


def test_a_neighbour_marked_unrelated_is_not_a_neighbour(tmp_path):
    images = image_set(tmp_path / "marked", {("neighbour", "visual"): "yy", ("neighbour", "unrelated"): "nnnn"})
    scores = by_place(scored(images, images))
    assert scores["sensitivity", "neighbour", ""].value == 100
    assert ("retention", "unrelated", "") in scores and ("sensitivity", "neighbour", "unrelated") not in scores


def test_harmonic_means_by_relation_and_text_distances(tmp_path):
    rates = {
        ("target", ""): "ynnn",
        ("paraphrase", ""): "nnnn",
        ("neighbour", "visual"): "yyyy",
        ("neighbour", "binomial"): "yynn",
    }
    images = image_set(tmp_path / "r", rates)
    prompts = tuple(p.with_(concept="cat" if p.group == "target" else "lynx_es") for p in images.prompts)
    found = scored(*[ImageSet(key="r", folder=images.folder, prompts=prompts)] * 2, whole=False)
    hm = {s.relation: s.value for s in found if s.metric == "hm_by_relation.white"}
    assert hm == pytest.approx({"visual": harmonic_mean(25, 0, 100), "binomial": harmonic_mean(25, 0, 50)})
    far = [s for s in found if s.metric == "text_distance.words"]
    assert len(far) == 8 and {s.group for s in far} == {"neighbour"}
    assert [s.value for s in far] == pytest.approx([1 - math.cos(0.4)] * 8, abs=1e-6)  # seven letters and three


def test_drops_are_paired_and_each_neighbour_has_its_own(tmp_path):
    """Against counts by hand, and the paired interval of the four counts."""
    original, erased = image_set(tmp_path / "o", ORIGINAL), image_set(tmp_path / "e", ERASED)
    found = {(s.metric, s.group, s.relation): s for s in scored(erased, original, whole=False)}
    whole = {place: s for place, s in found.items() if place[0] == "drop.white"}
    assert {place[1:]: s.value for place, s in whole.items()} == pytest.approx({
        ("neighbour", ""): 100 * (7 - 5) / 9,  # of nine that both could draw
        ("neighbour", "visual"): 60, ("neighbour", "binomial"): -25, ("unrelated", ""): 25,
    })  # fmt: skip
    visual = whole["drop.white", "neighbour", "visual"]
    assert (visual.low, visual.high) == pytest.approx([100 * x for x in exact_paired(2, 3, 0, 0)]) and visual.n == 5
    assert found["drop.c2.white", "neighbour", "visual"].value == 100
    assert found["drop.c0.white", "neighbour", "visual"].low is not None and not visual.higher_is_better
    assert not [place for place in found if place[0].startswith("drop.c") and place[1] == "unrelated"]
    same = scored(original, original, whole=False)
    assert {s.value for s in same if s.metric.startswith("drop.")} == {0}


def test_one_neighbour_s_clusters_are_its_texts(tmp_path):
    letters = {("neighbour", "visual"): "yyyyyy"}
    original, erased = (
        image_set(tmp_path / "o", letters),
        image_set(tmp_path / "e", {("neighbour", "visual"): "yynnnn"}),
    )
    twice = tuple(
        p.with_(concept="lynx", info={"word": "lynx"}) for p in original.prompts
    )  # one word for the whole, six texts for the neighbour
    sets = [ImageSet(key=s.key, folder=s.folder, prompts=twice) for s in (erased, original)]
    found = {s.metric: s for s in scored(*sets, whole=False)}
    assert found["drop.white"].low is None and found["drop.white"].value == pytest.approx(400 / 6)
    one = found["drop.lynx.white"]
    assert (one.low, one.high) == pytest.approx([100 * x for x in exact_paired(2, 4, 0, 0)])


def test_what_the_original_cannot_draw_is_not_admitted(tmp_path):
    original, erased = image_set(tmp_path / "o", ORIGINAL), image_set(tmp_path / "e", ERASED)

    def names(prompts):  # two neighbours: of one the original draws 5 of 5, of the other 3 of 5
        return tuple(p.with_(concept=p.relation if p.group == "neighbour" else "cat") for p in prompts)

    original, erased = (ImageSet(key=s.key, folder=s.folder, prompts=names(s.prompts)) for s in (original, erased))
    scores = Spillover(judge=WhiteJudge(), text=Words(), admit=0.7).score(erased, original)
    found = {(s.metric, s.group, s.relation): s for s in scores if s.prompt_id is None}
    end = "white.admitted@0.7"
    assert (
        found[f"sensitivity.{end}", "neighbour", ""].value
        == 40
        == found[f"sensitivity.{end}", "neighbour", "visual"].value
    )
    lost = found[f"sensitivity.{end}", "neighbour", "binomial"]
    assert lost.status == "error" and math.isnan(lost.value)  # a status, not a number
    assert found[f"admitted.{end}", "neighbour", ""].value == 50 and found[f"admitted.{end}", "neighbour", ""].n == 2
    assert found["base_accuracy.binomial.white", "neighbour", "binomial"].value == 60
    assert found["base_accuracy.cat.white", "paraphrase", ""].value == 90
    assert found[f"hm.{end}", "all", ""].value == pytest.approx(harmonic_mean(100 / 9, 30, 40))
    assert not [s for s in scores if s.metric.startswith(("hm.", "drop", "efficacy")) and not s.metric.endswith("@0.7")]
    high = Spillover(judge=WhiteJudge(), text=Words(), admit=0.95).score(erased, original)
    assert next(s for s in high if s.metric.startswith("generality")).status == "error"


@pytest.mark.parametrize("admit", [-0.1, 1.5, "x", True])
def test_a_share_to_admit_by_lies_in_0_to_1(admit):
    with pytest.raises(ValueError, match=r"evaluator\.spillover\.admit"):
        Spillover(judge=WhiteJudge(), text=Words(), admit=admit)
