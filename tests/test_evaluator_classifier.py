"""The classifier's rows: one presence and one probability per image, failures kept apart."""

from __future__ import annotations

import math

from PIL import Image

from erasebench.store.images import ImageSet, write_shard
from erasebench.types import ERASED_GROUPS, Prompt, Verdict
from evaluators.classifier import Classifier

GROUPS = ("target", "paraphrase", "attack", "neighbour", "unrelated", "coco")


class RedJudge:
    """Sees a cat in red images, a dog in the others, with the red level as probability of a cat."""

    name = "red"

    def __call__(self, images, concepts):
        verdicts = []
        for image, concept in zip(images, concepts, strict=True):
            cat = image.getpixel((0, 0))[0] / 255
            label = "cat" if cat > 0.5 else "dog"
            probability = cat if concept == "cat" else 1 - cat
            verdicts.append(Verdict(present=label == concept, score=probability, label=label))
        return verdicts


def image_set(folder, rows):
    write_shard(folder, 0, [(prompt.digest(), image, status) for prompt, image, status in rows])
    return ImageSet(key=folder.name, folder=folder, prompts=tuple(prompt for prompt, _, _ in rows))


def rows_of_every_group():
    """Three prompts per group: a red picture, a black one, and one that could not be made."""
    rows = []
    for group in GROUPS:
        for i, image in enumerate((Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4)), None)):
            relation = "visual" if group == "neighbour" else ""
            prompt = Prompt(id=f"{group}-{i}", text=f"{group} {i}", group=group, concept="cat", relation=relation)
            rows.append((prompt, image, "ok" if image else "constant"))
    return rows


def test_one_presence_and_one_probability_per_image(tmp_path):
    images = image_set(tmp_path / "classifier", rows_of_every_group())
    scores = Classifier(judge=RedJudge()).score(images, images)
    assert len(scores) == 2 * 3 * len(GROUPS)
    for score in scores:
        erased = score.group in ERASED_GROUPS
        presence = "concept_present.red.top1" if erased else "accuracy.red.top1"
        assert score.metric in (presence, "probability.red")
        assert score.higher_is_better is not erased
        assert score.relation == ("visual" if score.group == "neighbour" else "")
        expected = {"0": 1.0, "1": 0.0, "2": math.nan}[score.prompt_id[-1]]
        assert score.value == expected or (math.isnan(expected) and math.isnan(score.value))
        assert score.status == ("constant" if score.prompt_id.endswith("2") else "ok")


def test_prompts_without_a_concept_and_other_groups_are_left_out(tmp_path):
    rows = rows_of_every_group()
    rows.append((Prompt(id="scene", text="a street", group="coco"), Image.new("RGB", (4, 4)), "ok"))
    images = image_set(tmp_path / "some", rows)
    scores = Classifier(judge=RedJudge(), groups=["coco"]).score(images, images)
    assert {score.prompt_id for score in scores} == {"coco-0", "coco-1", "coco-2"}
    assert Classifier(judge=RedJudge(), groups=["coco"]).groups == ("coco",)
