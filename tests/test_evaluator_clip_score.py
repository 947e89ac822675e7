"""The CLIP score is the plain cosine of each image with its own text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt
from evaluators.clip_score import ClipScore

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "violet": (255, 0, 255)}


class ColourSpace:
    """Images lie at their mean colour, texts at the colour they name."""

    name = "colour"

    def __init__(self):
        self.texts = []

    @staticmethod
    def _unit(rows):
        rows = np.array(rows, dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def image_features(self, images):
        return self._unit([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in images])

    def text_features(self, texts):
        self.texts += texts
        return self._unit([COLOURS[text] for text in texts])


def image_set(folder, rows):
    write_shard(folder, 0, [(prompt.digest(), image, status) for prompt, image, status in rows])
    return ImageSet(key=folder.name, folder=folder, prompts=tuple(prompt for prompt, _, _ in rows))


def test_every_image_meets_its_own_text(tmp_path):
    rows, expected = [], {}
    for i in range(150):  # more than one batch, texts repeated, every ninth image missing
        text, shown = list(COLOURS)[i % 4], list(COLOURS)[(i * 7 // 4) % 4]
        prompt = Prompt(id=f"p{i}", text=text, seed=i, group="target" if i % 2 else "coco")
        failed = i % 9 == 0
        rows.append((prompt, None if failed else Image.new("RGB", (4, 4), COLOURS[shown]), "nan" if failed else "ok"))
        a, b = np.array(COLOURS[text]) / 255, np.array(COLOURS[shown]) / 255
        expected[prompt.id] = math.nan if failed else 100 * a @ b / math.sqrt((a @ a) * (b @ b))
    model = ColourSpace()
    images = image_set(tmp_path / "clip", rows)
    scores = ClipScore(model=model).score(images, images)
    assert [score.prompt_id for score in scores] == [prompt.id for prompt, _, _ in rows]
    assert {score.metric for score in scores} == {"clip_score.colour"}
    assert [score.value for score in scores] == pytest.approx([*expected.values()], abs=1e-4, nan_ok=True)
    assert all((score.status == "ok") == (not math.isnan(score.value)) for score in scores)
    assert all(score.higher_is_better is (score.group == "coco") for score in scores)
    assert len(model.texts) <= 3 * len(COLOURS)  # each text once per batch


def test_attack_prompts_have_no_text_worth_matching(tmp_path):
    rows = [
        (Prompt(id=group, text="red", group=group, seed=i), Image.new("RGB", (4, 4), "red"), "ok")
        for i, group in enumerate(("attack", "coco"))
    ]
    images = image_set(tmp_path / "attack", rows)
    assert [score.prompt_id for score in ClipScore(model=ColourSpace()).score(images, images)] == ["coco"]


def test_a_group_where_everything_failed(tmp_path):
    images = image_set(tmp_path / "none", [(Prompt(id="p", text="red"), None, "error")])
    (score,) = ClipScore(model=ColourSpace()).score(images, images)
    assert math.isnan(score.value) and score.status == "error"
