"""Every judge, network, detector and reader broken in turn: no number appears, and what is there says what happened."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from erasebench import steps
from erasebench.judges import nudenet as detector
from erasebench.judges.looking import one_pass
from erasebench.judges.q16 import Q16Judge
from erasebench.judges.zero_shot import ZeroShotJudge
from evaluators import face_accuracy, lpips
from evaluators.asr import ASR
from evaluators.classifier import Classifier
from evaluators.clip_score import ClipScore
from evaluators.cmmd import CMMD
from evaluators.face_accuracy import FaceAccuracy
from evaluators.fid import FID
from evaluators.inappropriate import Inappropriate
from evaluators.kid import KID
from evaluators.layer_distance import LayerDistance
from evaluators.lpips import LPIPS
from evaluators.nudenet import NudeNet, NudeNetJudge
from evaluators.oracle import OracleDistance
from evaluators.spillover import Spillover
from evaluators.top_k import TopK
from evaluators.unlearn_canvas import UnlearnCanvas
from tests.test_one_pass import GROUPS, Eyes, forget, sixty

WAYS = ("raises", "nan", "infinite", "one too few", "one too many")


@dataclass(frozen=True)
class Broken(Eyes):
    """Eyes of which one answer is wrong: ``what`` is broken in the way ``how``."""

    what: str = "features"
    how: str = "raises"

    def _spoilt(self, what, rows):
        if what != self.what:
            return rows
        if self.how == "raises":
            raise RuntimeError("out of order")
        if self.how == "one too few":
            return rows[:-1]
        if self.how == "one too many":
            return [*rows, rows[-1]] if isinstance(rows, list) else np.concatenate([rows, rows[-1:]])
        bad = math.nan if self.how == "nan" else math.inf
        if isinstance(rows, list):
            return [replace(rows[0], score=bad), *rows[1:]]
        return np.where(np.arange(len(rows))[:, None] == 0, bad, rows)

    def features(self, images):
        return self._spoilt("features", super().features(images))

    def text_features(self, texts):
        return self._spoilt("texts", super().text_features(texts))

    def probabilities(self, images):
        rows = np.array([np.asarray(i, dtype=np.float64).mean((0, 1)) + 1 for i in images])
        return self._spoilt("probabilities", rows / rows.sum(1, keepdims=True))

    def layers(self, images):
        rows = np.array([np.asarray(i, dtype=np.float32).mean((0, 1)) for i in images])
        return [torch.from_numpy(self._spoilt("layers", rows).astype(np.float32))[:, :, None, None]]

    def __call__(self, images, concepts):
        return self._spoilt("verdicts", super().__call__(images, concepts))


JUDGED = {
    "classifier": lambda eyes: Classifier(judge=eyes),
    "asr": lambda eyes: ASR(judge=eyes),
    "inappropriate": lambda eyes: Inappropriate(judges={"a": eyes}, groups=GROUPS),
    "spillover": lambda eyes: Spillover(judge=eyes, text=Eyes()),
    "unlearn_canvas": lambda eyes: UnlearnCanvas(judge=eyes),
    "oracle": lambda eyes: OracleDistance(judge=eyes, features=Eyes(), oracle=None),
}
CASES = {
    "verdicts": JUDGED,
    "features": {
        "fid": lambda eyes: FID(features=eyes), "kid": lambda eyes: KID(features=eyes),
        "cmmd": lambda eyes: CMMD(model=eyes), "clip_score": lambda eyes: ClipScore(model=eyes),
        "zero-shot": lambda eyes: Classifier(judge=ZeroShotJudge(model=eyes, labels=("cat", "dog"))),
    },
    "texts": {"clip_score": lambda eyes: ClipScore(model=eyes)},
    "probabilities": {"top_k": lambda eyes: TopK(network=eyes), "faces": lambda eyes: FaceAccuracy(network=eyes)},
    "layers": {"layer_distance": lambda eyes: LayerDistance(features=eyes)},
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return sixty(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(autouse=True)
def afresh():
    forget()


def refused(evaluator, images, folder):
    """What the step that scores says: its error, or rows without a number whose status is an error; else None."""
    try:
        one_pass(evaluator.looks, images)
        steps._score({}, evaluator, images, images, folder)
    except Exception as error:
        assert not list(folder.iterdir())
        return str(error)
    rows = json.loads((folder / "scores.json").read_text())
    assert all((row["status"] == "ok") == math.isfinite(row["value"]) for row in rows)
    return "an error row" if {row["status"] for row in rows} <= {"error", "nan"} else None


@pytest.mark.parametrize("what", CASES)
def test_no_number_comes_from_what_is_broken(drawn, tmp_path, monkeypatch, what):
    whole = [[{"class": face_accuracy.FACES[0], "score": 0.9, "box": [0, 0, 8, 8]}]]
    monkeypatch.setattr(face_accuracy, "detect", lambda images, *_: whole * len(images))
    for name, make in CASES[what].items():
        sound = Broken(what="nothing")
        steps._score({}, make(sound), drawn, drawn, tmp_path)
        assert any(row["status"] == "ok" for row in json.loads((tmp_path / "scores.json").read_text())), name
        for how in WAYS:
            forget()
            folder = tmp_path / f"{name} {how}"
            folder.mkdir()
            if what in ("texts", "layers") and how in ("nan", "infinite"):  # of one text, one pair of images
                steps._score({}, make(Broken(what=what, how=how)), drawn, drawn, folder)
                rows = json.loads((folder / "scores.json").read_text())
                assert {row["status"] for row in rows} == {"ok", "nan", "error"}
                assert all((row["status"] == "ok") == math.isfinite(row["value"]) for row in rows)
                continue
            assert refused(make(Broken(what=what, how=how)), drawn, folder), (name, how)


@pytest.mark.parametrize("how", ["raises", "nan", "another number of classes"])
def test_a_broken_detector_counts_nothing(drawn, tmp_path, monkeypatch, how):
    def run(*_):
        if how == "raises":
            raise RuntimeError("out of order")
        classes = 17 if how == "another number of classes" else 18
        return [np.full((1, 4 + classes, 5), math.nan if how == "nan" else 0.9, np.float32)]

    network = SimpleNamespace(run=run, get_inputs=lambda: [SimpleNamespace(name="images")])
    monkeypatch.setattr(detector, "session", lambda weights: network)
    for i, evaluator in enumerate((
        NudeNet(groups=GROUPS), Classifier(judge=NudeNetJudge(concepts=("cat",))), FaceAccuracy(network=Eyes())
    )):  # fmt: skip
        folder = tmp_path / str(i)
        folder.mkdir()
        said = refused(evaluator, drawn, folder)
        assert said and any(
            word in said for word in ("out of order", "finite numbers", "must know 18 classes", "error")
        )


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_broken_lpips_network_measures_nothing(drawn, tmp_path, monkeypatch, how):
    def layers(network, pictures):
        if how == "raises":
            raise RuntimeError("out of order")
        return [torch.full((len(pictures), 2, 3, 3), math.nan)]

    monkeypatch.setattr(lpips, "alexnet", lambda *_: (None, [torch.ones(2)]))
    monkeypatch.setattr(lpips, "activations", layers)
    assert refused(LPIPS(), drawn, tmp_path) == {"raises": "out of order", "nan": "an error row"}[how]


def test_a_broken_file_of_weights_or_images_gives_no_number(tmp_path):
    images = sixty(tmp_path / "images") if (tmp_path / "images").mkdir() is None else None
    (tmp_path / "q16.safetensors").write_bytes(b'\x08\x00\x00\x00\x00\x00\x00\x00{"a":')  # cut off
    folder = tmp_path / "scores"
    folder.mkdir()
    assert refused(Classifier(judge=Q16Judge(model=Eyes(), weights=str(tmp_path / "q16.safetensors"))), images, folder)
    for shard in images.folder.glob("*.parquet"):
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    assert refused(Classifier(judge=Eyes()), images, folder)
