"""Image classifiers with random weights of the real shape against derivations of their own; top-k, ESR and PSR."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from erasebench.judges import networks
from erasebench.judges.classifying import ClassifierJudge, ranks
from erasebench.judges.networks import ClassifierFolder, OnnxClassifier, ResNet50V1, ResNet50V2, ViTB16
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt
from evaluators.top_k import TopK

sys.path.insert(0, str(Path(__file__).parent))
from onnx_file import channel_means

OBJECTS = {"cassette_player": 482, "church": 497, "english_springer": 217, "french_horn": 566, "garbage_truck": 569,
           "gas_pump": 571, "golf_ball": 574, "parachute": 701, "tench": 0, "chain_saw": 491}  # fmt: skip


def pictures(seed, *sizes):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def by_hand(image, side, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    """The shorter side to ``side`` by PIL's bilinear, 224 x 224 from the middle, normalised."""
    w, h = image.size
    size = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
    small = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((small.width - 224) / 2), round((small.height - 224) / 2)
    x = np.asarray(small.crop((left, top, left + 224, top + 224)), dtype=np.float64) / 255
    return torch.from_numpy(((x - mean) / std).transpose(2, 0, 1)).float()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "side"), [(ResNet50V1, 256), (ResNet50V2, 232), (ViTB16, 256)])
def test_torchvision_s_networks_with_weights_from_a_file(kind, side, tmp_path):
    torch.manual_seed(0)
    plain = getattr(torchvision.models, kind.architecture)(weights=None).eval()
    for head in [m for m in plain.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000]:
        torch.nn.init.normal_(head.weight, std=0.1 if kind is ViTB16 else 1e-3)  # torchvision begins ViT's with zeros
    path = tmp_path / "random.safetensors"
    save_file(plain.state_dict(), path)
    images = pictures(0, (300, 260), (64, 80), (224, 224))
    network = kind(weights=str(path), batch_size=2)
    network.check_files()
    with torch.inference_mode():
        want = plain(torch.stack([by_hand(image, side) for image in images])).double().log_softmax(1).numpy()
    found = np.log(network.probabilities(images))
    apart = np.abs(want - want[0]).max()  # how far two images are from one another
    assert found.shape == (3, 1000) and apart > 1e-3
    np.testing.assert_allclose(found, want, atol=0.05 * apart)
    np.testing.assert_allclose(np.log(network.probabilities(images[1:2])), found[1:2], atol=0.01 * apart)
    with pytest.raises(ValueError, match=r"must hold torchvision's (vit_b_16|resnet50)"):
        (ResNet50V1 if kind is ViTB16 else ViTB16)(weights=str(path)).check_files()


def test_labels_names_and_downloads_are_torchvision_s():
    for kind in (ResNet50V1, ResNet50V2, ViTB16):
        facts = getattr(getattr(torchvision.models, kind.kind), kind.version)
        assert facts.url.endswith(kind.fetched) and facts.url in kind.fetch
        judge = ClassifierJudge(network=kind())
        judge.check(OBJECTS)
        labels = kind().labels
        assert len(labels) == 1000
        for concept, index in OBJECTS.items():
            assert (
                labels.index(concept.replace("_", " ").replace("english", "English").replace("french", "French"))
                == index
            )
    assert (ResNet50V1().name, ResNet50V2().name, ViTB16().name) == (
        "resnet50_imagenet1k_v1", "resnet50_imagenet1k_v2", "vit_b_16_imagenet1k_v1"
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"concept 'churhc' must be among the 1000 labels.*did you mean church\?"):
        ClassifierJudge(network=ResNet50V1()).check(["churhc"])


def test_weights_that_cannot_be_fetched_or_read_say_what_to_do(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    networks._torchvision.cache_clear()
    with pytest.raises(
        OSError, match=r"fetch https.*resnet50-0676ba61.pth elsewhere, then python -m erasebench.convert"
    ):
        ResNet50V1(device="cpu").probabilities(pictures(0, (8, 8)))
    with pytest.raises(ValueError, match=r"existing .safetensors file.*convert resnet50-11ad3fa6.pth"):
        ResNet50V2(weights="resnet50.pth")
    with pytest.raises(ValueError, match="folder, or a hub id with revision"):
        ClassifierFolder(path="microsoft/resnet-50")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"it has no preprocessor_config.json"):
        ClassifierFolder(path=str(tmp_path)).check_files()


@pytest.fixture(scope="module")
def artists(tmp_path_factory):
    """A tiny ViT of transformers over three artists, saved as a folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    names = ["claude-monet", "vincent-van-gogh", "pablo-picasso"]
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16,
        id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("artists")
    model = ViTForImageClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=3)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder, model


def test_a_folder_of_transformers_over_artists(artists, tmp_path):
    folder, model = artists
    network = ClassifierFolder(path=str(folder), device="cpu", batch_size=2)
    network.check_files()
    assert network.labels == ("claude-monet", "vincent-van-gogh", "pablo-picasso")
    images = pictures(1, *[(32, 32)] * 6)
    with torch.inference_mode():
        x = torch.stack([torch.from_numpy(np.asarray(i).copy()).permute(2, 0, 1) / 127.5 - 1 for i in images])
        want = model(pixel_values=x).logits.double().softmax(1).numpy()
    found = network.probabilities(images)
    np.testing.assert_allclose(found, want, rtol=1e-3)
    judge = ClassifierJudge(network=network, names={"van_gogh": "Vincent van Gogh"})
    assert {judge}  # hashable: verdicts are remembered by judge
    verdicts = judge(images, ["van_gogh"] * 6)
    assert [v.label for v in verdicts] == [network.labels[i] for i in want.argmax(1)]
    assert [v.present for v in verdicts] == [bool(i == 1) for i in want.argmax(1)]
    np.testing.assert_allclose([v.score for v in verdicts], want[:, 1], rtol=1e-3)
    with pytest.raises(ValueError, match="concept 'van_gogh' must be among the 3 labels"):
        ClassifierJudge(network=network).check(["van_gogh"])


def test_an_onnx_file_with_known_outputs(tmp_path):
    pytest.importorskip("onnxruntime")
    matrix = np.array([[3.0, 0.0, -1.0], [0.0, 2.0, 1.0], [1.0, -1.0, 4.0]])
    (tmp_path / "faces.onnx").write_bytes(channel_means(matrix))
    (tmp_path / "names.json").write_text(json.dumps(["ada", "bob", "cyd"]))
    given = {
        "path": str(tmp_path / "faces.onnx"),
        "labels_file": str(tmp_path / "names.json"),
        "side": 16,
        "batch_size": 2,
    }
    images = pictures(2, (16, 16), (16, 16), (16, 16))
    for order in ("rgb", "bgr"):
        network = OnnxClassifier(**given, order=order)
        network.check_files()
        means = (
            np.stack([np.asarray(i, dtype=np.float64).mean((0, 1))[:: 1 if order == "rgb" else -1] for i in images])
            / 255
        )
        logits = (means - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225] @ matrix
        want = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(network.probabilities(images), want, rtol=1e-4)
    (tmp_path / "names.json").write_text(json.dumps(["ada", "bob"]))
    with pytest.raises(ValueError, match=r"faces.bgr must give 2 finite numbers an image; got shape \(3, 3\)"):
        network.probabilities(images)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"must be an ONNX model; .*broken.onnx is none"):
        OnnxClassifier(**given | {"path": str(tmp_path / "broken.onnx")}).check_files()
    (tmp_path / "names.json").write_text('["ada", "ada"]')
    with pytest.raises(ValueError, match="JSON list of different labels"):
        OnnxClassifier(**given)


class Canned:
    """Probabilities by the level of an image's red."""

    name = "canned"
    labels = ("cat", "dog", "crane", "crane", "sun")

    def probabilities(self, images):
        rows = {0: [0.5, 0.2, 0.1, 0.15, 0.05], 1: [0.1, 0.2, 0.05, 0.4, 0.25]}
        return np.array([rows[i.getpixel((0, 0))[0]] for i in images])


def image_set(folder, rows):
    write_shard(folder, 0, [(p.digest(), image, "ok" if image else "nan") for p, image in rows])
    return ImageSet(key=folder.name, folder=folder, prompts=tuple(p for p, _ in rows))


def test_top_k_esr_and_psr_by_hand(tmp_path, caplog):
    first, second = Image.new("RGB", (4, 4), (0, 0, 0)), Image.new("RGB", (4, 4), (1, 0, 0))
    asked = [("a", "target", "cat", first), ("b", "target", "cat", second), ("c", "neighbour", "crane", first),
             ("d", "unrelated", "sun", second), ("e", "target", "cat", None), ("f", "coco", "", first),
             ("g", "unrelated", "violin", first)]  # fmt: skip
    rows = [(Prompt(id=i, text=i, group=g, concept=c), image) for i, g, c, image in asked]
    images = image_set(tmp_path / "x", rows)
    evaluator = TopK(network=Canned(), ks=[1, 2, 3])
    found = {(s.prompt_id, s.metric): s for s in evaluator.score(images, images)}
    assert {i for i, _ in found} == {"a", "b", "c", "d", "e"} and "no label for violin: left out" in caplog.text
    value = {key: s.value for key, s in found.items()}
    assert [value["a", f"top_k.canned.top{k}"] for k in (1, 2, 3)] == [1, 1, 1]
    assert [value["a", f"esr.canned.top{k}"] for k in (1, 2, 3)] == [0, 0, 0]
    assert [value["b", f"top_k.canned.top{k}"] for k in (1, 2, 3)] == [0, 0, 0]  # three labels are ahead of the cat
    assert [value["b", f"esr.canned.top{k}"] for k in (1, 2, 3)] == [1, 1, 1]
    assert [value["c", f"psr.canned.top{k}"] for k in (1, 2, 3)] == [0, 0, 1]  # the better of two labels called crane
    assert value["c", "probability.canned"] == pytest.approx(0.25)
    assert [value["d", f"psr.canned.top{k}"] for k in (1, 2, 3)] == [0, 1, 1]
    assert all(math.isnan(s.value) and s.status == "nan" for (i, _), s in found.items() if i == "e")
    assert not found["a", "top_k.canned.top1"].higher_is_better and found["a", "esr.canned.top1"].higher_is_better
    assert found["c", "psr.canned.top1"].higher_is_better and found["c", "top_k.canned.top1"].higher_is_better
    for score in found.values():
        if score.metric.endswith("top1"):
            assert any(h.fits(score.metric, score.group) for h in evaluator.headlines)
    with pytest.raises(ValueError, match="must know a concept of this run; canned has no label for violin"):
        evaluator.score(image_set(tmp_path / "y", rows[6:]), images)


def test_ranks_count_what_is_ahead():
    generator = np.random.default_rng(0)
    p = generator.random((50, 9))
    order = np.argsort(-p, axis=1)
    assert ranks(p, [4]).tolist() == [list(row).index(4) for row in order]
