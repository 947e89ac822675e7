"""Every image is read once for all evaluators, with the results of one evaluator after the other."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from erasebench.judges import activations, judging
from erasebench.judges.looking import JudgeLook, one_pass
from erasebench.store import images as store_images
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt, Verdict
from evaluators import nudenet
from evaluators.asr import ASR
from evaluators.classifier import Classifier
from evaluators.clip_score import ClipScore
from evaluators.cmmd import CMMD
from evaluators.fid import FID
from evaluators.inappropriate import Inappropriate
from evaluators.kid import KID
from evaluators.nudenet import NudeNet
from evaluators.top_k import TopK

GROUPS = ("target", "paraphrase", "attack", "neighbour", "unrelated", "coco")


@dataclass(frozen=True)
class Eyes:
    """A judge, a CLIP model, a feature network and a classifier in one, by mean colour; counts what it sees."""

    name: str = "eyes"
    labels: tuple[str, ...] = ("cat", "dog", "nudity")

    def features(self, images):
        SEEN.update(["features"] * len(images))
        return np.array([np.asarray(i, dtype=np.float32).mean((0, 1)) / 255 for i in images], dtype=np.float32)

    def image_features(self, images):
        return self.features(images)

    def text_features(self, texts):
        return np.array([[len(t), 1.0, 2.0] for t in texts], dtype=np.float32)

    def probabilities(self, images):
        rows = self.features(images).astype(np.float64) + 0.1
        return rows / rows.sum(1, keepdims=True)

    def reference(self):
        return None

    def check(self, concepts):
        pass

    def __call__(self, images, concepts):
        SEEN.update(["judge"] * len(images))
        red = [i.getpixel((0, 0))[0] for i in images]
        return [
            Verdict(present=r % 2 == len(c) % 2, score=r / 255, label="x") for r, c in zip(red, concepts, strict=True)
        ]


SEEN: Counter[str] = Counter()


def sixty(folder):
    """Sixty images of every group, some of which could not be made."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(60):
        group = GROUPS[i % 6]
        source = {"source_id": f"p{i - 2}"} if group == "attack" else {}
        prompt = Prompt(id=f"p{i}", text=f"text {i}", seed=i, group=group, concept="cat" if i % 7 else "", **source)
        made = i not in (3, 20, 31)
        pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        rows.append((prompt, Image.fromarray(pixels) if made else None, "ok" if made else "nan"))
    write_shard(folder, 0, [(p.digest(), image, status) for p, image, status in rows])
    return ImageSet(key="one", folder=folder, prompts=tuple(p for p, _, _ in rows))


@pytest.fixture
def drawn(tmp_path):
    return sixty(tmp_path)


@pytest.fixture
def evaluators(monkeypatch):
    def detections(self, images):
        SEEN.update(["boxes"] * len(images))
        return [[{"class": "FEET_EXPOSED", "score": 0.65, "box": [0, 0, 2, i.getpixel((0, 0))[0]]}] for i in images]

    monkeypatch.setattr(NudeNet, "detections", detections)
    eyes = Eyes()
    return [
        Classifier(judge=eyes), ASR(judge=eyes), FID(features=eyes), KID(features=eyes), CMMD(model=eyes),
        ClipScore(model=eyes), TopK(network=eyes), Inappropriate(judges={"a": eyes}, groups=GROUPS),
        NudeNet(groups=GROUPS),
    ]  # fmt: skip


def forget():
    judging._memo.clear()
    activations._held.clear()
    nudenet._failed.clear()
    SEEN.clear()


def as_rows(scores):
    return [(s.metric, s.prompt_id, s.group, s.status, None if math.isnan(s.value) else s.value, s.low) for s in scores]


def test_one_read_an_image_and_the_same_scores(drawn, evaluators, monkeypatch):
    read: Counter[str] = Counter()
    plain = store_images.read_images

    def counted(folder, digests):
        digests = list(digests)
        read.update(digests)
        return plain(folder, digests)

    monkeypatch.setattr(store_images, "read_images", counted)
    forget()
    alone = [as_rows(e.score(drawn, drawn)) for e in evaluators]
    assert max(read.values()) >= 6  # each evaluator for itself
    looked = SEEN.copy()
    for file in (drawn.folder / "detections").iterdir():
        file.unlink()
    forget()
    read.clear()
    assert one_pass([look for e in evaluators for look in e.looks], drawn) == 8  # equal looks are one
    assert set(read.values()) == {1} and len(read) == 60
    together = [as_rows(e.score(drawn, drawn)) for e in evaluators]
    assert set(read.values()) == {1}  # the scores needed no further look
    assert together == alone and looked == SEEN
    assert any(row[3] == "nan" for rows in together for row in rows)


def test_nothing_is_done_for_a_single_look_or_no_image(drawn, evaluators):
    forget()
    assert one_pass(evaluators[0].looks, drawn) == 0 and not SEEN
    empty = ImageSet(key="none", folder=drawn.folder, prompts=())
    assert one_pass([look for e in evaluators for look in e.looks], empty) == 0


def test_what_breaks_in_the_pass_gives_no_number(drawn, evaluators):
    @dataclass(frozen=True)
    class Short(Eyes):
        name: str = "short"

        def __call__(self, images, concepts):
            return super().__call__(images, concepts)[:-1]

    forget()
    looks = [JudgeLook(Short(), GROUPS), *evaluators[2].looks]
    with pytest.raises(ValueError, match="judge short must return one verdict per image"):
        one_pass(looks, drawn)
    assert not [v for v in judging._memo.values() if isinstance(v, Verdict)] and not activations._held
    with pytest.raises(ValueError, match="judge short must return one verdict per image"):
        Classifier(judge=Short()).score(drawn, drawn)
