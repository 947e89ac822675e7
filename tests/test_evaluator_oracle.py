"""Distance to the model that never knew: agreement and features by image, failures kept apart, the run behind it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

import erasebench
from erasebench.judges.divided import DividedJudge
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt, Verdict
from evaluators.oracle import OracleDistance, cosine_distance


class Eyes:
    """Judge and network in one: names the strongest colour, and has the mean colour as features."""

    name = "eyes"

    def __call__(self, images, concepts):
        labels = ["rgb"[int(np.argmax(self.features([image])[0]))] for image in images]
        return [Verdict(present=label == "r", score=1.0, label=label) for label in labels]

    def features(self, images):
        return np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images])


def image_set(folder, prompts, colours):
    made = [Image.new("RGB", (4, 4), colour) if colour else None for colour in colours]
    write_shard(folder, 0, [(p.digest(), i, "ok" if i else "nan") for p, i in zip(prompts, made, strict=True)])
    return ImageSet(key=folder.name, folder=folder, prompts=tuple(prompts))


def scores_of(tmp_path, ours, theirs, **changes):
    prompts = [Prompt(id=str(i), text=f"text {i}", group="target", concept="cat") for i in range(len(ours))]
    prompts = [p.with_(**changes) for p in prompts]
    sides = (image_set(tmp_path / name, prompts, side) for name, side in (("ours", ours), ("theirs", theirs)))
    found = OracleDistance(judge=Eyes(), features=Eyes(), oracle=None).score(*sides)
    return {
        metric: [s for s in found if s.metric.startswith(metric)]
        for metric in ("agreement.eyes", "oracle_distance.eyes")
    }


def test_labels_agree_or_not_and_distances_are_those_of_the_features(tmp_path):
    found = scores_of(tmp_path, ["red", "#ff8000", "blue"], ["red", "red", "red"])
    assert [s.value for s in found["agreement.eyes"]] == [1.0, 1.0, 0.0]
    expected = [0.0, 1 - 1 / math.hypot(1, 128 / 255), 1.0]
    assert [s.value for s in found["oracle_distance.eyes"]] == pytest.approx(expected)
    assert all(s.higher_is_better for s in found["agreement.eyes"])
    assert not any(s.higher_is_better for s in found["oracle_distance.eyes"])


def test_an_image_that_either_side_lacks_has_a_status_and_no_value(tmp_path):
    found = scores_of(tmp_path, ["red", None, "red"], ["red", "red", None])
    for scores in found.values():
        assert [s.status for s in scores] == ["ok", "nan", "nan"]
        assert [math.isnan(s.value) for s in scores] == [False, True, True]


def test_prompts_that_name_no_concept_have_a_distance_only(tmp_path):
    found = scores_of(tmp_path, ["red"], ["blue"], concept="", group="coco")
    assert found["agreement.eyes"] == [] and [s.value for s in found["oracle_distance.eyes"]] == [1.0]


class Sees:
    """Sees one concept, and names itself in its verdicts."""

    def __init__(self, name, concepts):
        self.name, self.concepts = name, concepts

    def check(self, concepts):
        if set(concepts) - self.concepts:
            raise ValueError("unseen")

    def __call__(self, images, concepts):
        return [Verdict(present=True, score=1.0, label=self.name) for _ in images]


def test_an_agreement_carries_the_name_of_the_judge_that_was_asked(tmp_path):
    prompts = [Prompt(id=c, text=c, group="target", concept=c) for c in ("cat", "dog")]
    images = image_set(tmp_path / "a", prompts, ["red", "red"])
    judge = DividedJudge(first=Sees("one", {"cat"}), others=Sees("two", {"dog"}))
    found = OracleDistance(judge=judge, features=Eyes(), oracle=None).score(images, images)
    agreed = [(s.metric, s.judge) for s in found if s.metric.startswith("agreement")]
    assert agreed == [("agreement.one", "one"), ("agreement.two", "two")]


def test_cosine_distance_is_that_of_a_slow_loop_and_knows_no_scale():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20, 7))
    slow = []
    for p, q in zip(a.tolist(), b.tolist(), strict=True):
        dot = sum(x * y for x, y in zip(p, q, strict=True))
        slow.append(1 - dot / math.hypot(*p) / math.hypot(*q))
    assert cosine_distance(a, b) == pytest.approx(slow)
    assert cosine_distance(3 * a, b) == pytest.approx(slow)
    assert (cosine_distance(a, a) == 0).all()


OVERRIDES = (
    "model=emoji2", "evaluator=[classifier,oracle]", "model.steps=2", "model.batch_size=4",
    "prompts.n={target:4,paraphrase:0,neighbour:0,unrelated:4,coco:0}",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_compares_with_the_oracle_and_shares_it_with_the_method(tmp_path):
    plain = erasebench.run(*OVERRIDES, "method=none", f"results={tmp_path}")
    perfect = erasebench.run(*OVERRIDES, "method=oracle", f"results={tmp_path}")
    ours = plain.scores[plain.scores.evaluator == "oracle"]
    assert set(ours.side) == {"original", "erased"} and len(ours) == 2 * 2 * 8
    assert (ours.value[ours.metric.str.startswith("oracle_distance")] > 0).any()
    same = perfect.scores[(perfect.scores.evaluator == "oracle") & (perfect.scores.side == "erased")]
    assert (same.value == same.metric.str.startswith("agreement")).all()  # agreement 1, distance 0
    assert perfect.record["steps"]["erase"]["cached"] and perfect.record["steps"]["draw"]["images"] == 0
    with pytest.raises(ValueError, match="got 'dog'; these have one: apple, car, cat, gun, ink, sun"):
        erasebench.run(*OVERRIDES, "method=none", "concept=dog", f"results={tmp_path}")
