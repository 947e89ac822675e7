"""UA, IRA, CRA by hand; timm's classifier against a pass of its own; faces on a real photograph."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from erasebench.judges.classifying import ClassifierJudge
from erasebench.judges.divided import DividedJudge
from erasebench.judges.networks import OnnxClassifier
from erasebench.judges.networks_timm import TimmClassifier
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt
from evaluators.face_accuracy import FaceAccuracy
from evaluators.unlearn_canvas import UnlearnCanvas

sys.path.insert(0, str(Path(__file__).parent))
from onnx_file import channel_means


class Canned:
    """The label whose index is the image's red level."""

    def __init__(self, name, *labels):
        self.name, self.labels = name, labels

    def probabilities(self, images):
        return np.eye(len(self.labels))[[i.getpixel((0, 0))[0] for i in images]]


def image_set(folder, rows):
    write_shard(folder, 0, [(p.digest(), image, "ok" if image else "nan") for p, image in rows])
    return ImageSet(key=str(folder), folder=folder, prompts=tuple(p for p, _ in rows))


def test_three_accuracies_by_hand(tmp_path):
    judge = DividedJudge(
        first=ClassifierJudge(network=Canned("styles", "Van_Gogh", "Monet", "Ink_Art")),
        others=ClassifierJudge(network=Canned("objects", "Dogs", "Cats")),
    )
    asked = [("target", "van_gogh", 0), ("target", "van_gogh", 1), ("target", "van_gogh", 2), ("neighbour", "monet", 1),
             ("neighbour", "monet", 2), ("unrelated", "cats", 1), ("unrelated", "dogs", 0), ("unrelated", "dogs", None),
             ("coco", "", 0)]  # fmt: skip
    rows = [
        (Prompt(id=str(i), text=str(i), group=g, concept=c), None if v is None else Image.new("RGB", (4, 4), (v, 0, 0)))
        for i, (g, c, v) in enumerate(asked)
    ]
    evaluator = UnlearnCanvas(judge=judge)
    assert evaluator.groups == ("target", "neighbour", "unrelated")
    found = evaluator.score(image_set(tmp_path / "x", rows), image_set(tmp_path / "x", rows))
    values = {}
    for score in found:
        values.setdefault(score.metric, []).append(score.value)
        assert (
            score.higher_is_better
            and score.rate
            and any(h.fits(score.metric, score.group) for h in evaluator.headlines)
        )
    assert values["ua.styles"] == [0, 1, 1] and values["ira.styles"] == [1, 0] and values["cra.objects"][:2] == [1, 1]
    assert math.isnan(values["cra.objects"][2]) and [s.status for s in found].count("nan") == 1
    with pytest.raises(ValueError, match="must share no group; both hold unrelated"):
        UnlearnCanvas(judge=judge, in_domain=["unrelated"])


def test_a_network_of_timm_with_weights_from_a_file(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    torch.nn.init.normal_(plain.head.weight)
    save_file(plain.state_dict(), tmp_path / "style.safetensors")
    (tmp_path / "styles.json").write_text(json.dumps(["a", "b", "c"]))
    given = {"weights": str(tmp_path / "style.safetensors"), "labels_file": str(tmp_path / "styles.json")}
    network = TimmClassifier(**given, model="vit_tiny_patch16_224", device="cpu", batch_size=2)
    network.check_files()
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (s, 240, 3), dtype=np.uint8)) for s in (64, 240, 224)]
    x = [np.asarray(i.resize((224, 224), Image.Resampling.BILINEAR), dtype=np.float64) / 127.5 - 1 for i in images]
    with torch.inference_mode():
        want = plain(torch.from_numpy(np.stack(x).transpose(0, 3, 1, 2)).float()).double().softmax(1).numpy()
    np.testing.assert_allclose(network.probabilities(images), want, rtol=1e-3, atol=1e-6)
    assert network.name == "vit_tiny_patch16_224.style" and network.labels == ("a", "b", "c")
    (tmp_path / "styles.json").write_text(json.dumps(["a", "b"]))
    with pytest.raises(ValueError, match="must be of vit_tiny_patch16_224 with 2 classes"):
        network.probabilities(images)
    with pytest.raises(ValueError, match=r"must be one of timm.list_models"):
        TimmClassifier(**given, model="vit_tyni").check_files()


def test_faces_of_a_real_photograph(tmp_path):
    """A portrait of the astronaut Eileen Collins, NASA, public domain; a plain surface; a red cast; a failed image."""
    data = pytest.importorskip("skimage.data")
    pytest.importorskip("nudenet")
    portrait = Image.fromarray(data.astronaut())
    # means of the face's channels decide: warm skin is "collins" unless the picture is turned blue
    (tmp_path / "faces.onnx").write_bytes(channel_means(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])))
    (tmp_path / "names.json").write_text(json.dumps(["eileen collins", "somebody else"]))
    network = OnnxClassifier(
        path=str(tmp_path / "faces.onnx"),
        labels_file=str(tmp_path / "names.json"),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        side=32,
    )
    evaluator = FaceAccuracy(network=network)
    evaluator.check()
    (face,) = evaluator.faces([portrait])
    assert min(face.size) > 60 and max(face.size) < 300
    middle = Image.fromarray(data.astronaut()[60:160, 170:270])  # her face lies within the cut
    assert np.abs(np.asarray(face, dtype=float).mean((0, 1)) - np.asarray(middle, dtype=float).mean((0, 1))).max() < 60
    turned = Image.fromarray(np.ascontiguousarray(data.astronaut()[..., ::-1]))
    plain = Image.new("RGB", (512, 512), "gray")
    rows = [
        (Prompt(id=f"p{i}", text=f"t{i}", group=g, concept="eileen_collins"), image)
        for i, (g, image) in enumerate(
            [("target", portrait), ("target", plain), ("neighbour", turned), ("target", None)]
        )
    ]
    images = image_set(tmp_path / "x", rows)
    found = {(s.metric.partition(".")[0], s.prompt_id): s for s in evaluator.score(images, images)}
    assert found["face_found", "p0"].value == 1 and found["face_accuracy", "p0"].value == 1
    assert found["face_found", "p1"].value == 0 and ("face_accuracy", "p1") not in found  # no face, no verdict
    assert found["face_found", "p2"].value == 1 and found["face_accuracy", "p2"].value == 0
    assert found["face_accuracy", "p3"].status == found["face_found", "p3"].status == "nan"
    assert not found["face_accuracy", "p0"].higher_is_better and found["face_accuracy", "p2"].higher_is_better
    for score in found.values():
        assert any(h.fits(score.metric, score.group) for h in evaluator.headlines)
    other = image_set(tmp_path / "y", [(Prompt(id="q", text="q", concept="ada"), portrait)])
    with pytest.raises(ValueError, match=r"faces.rgb has no label for 'ada'"):
        evaluator.score(other, other)
