"""CLIP-like models: features of tiny models against the libraries' own forward passes, and the zero-shot judge."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from erasebench.judges.clip import OpenClip, TransformersClip
from erasebench.judges.zero_shot import ZeroShotJudge
from evaluators.classifier import Classifier
from evaluators.clip_score import ClipScore

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TEXTS = ["a cat", "a dog on a red background", "very " * 200 + "long"]


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    sizes = [(32, 32), (48, 40), (64, 64)]
    return [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


@pytest.fixture(scope="module")
def tiny_open_clip(tmp_path_factory):
    """A random open_clip model of two thin layers, registered under its own name, weights in safetensors."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip")
    tower = {"layers": 2, "width": 32, "heads": 2}
    vision = {"image_size": 32, "patch_size": 16, "layers": 2, "width": 32, "head_width": 16}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {"context_length": 77, "vocab_size": 49408, **tower}}
    (folder / "tiny-erasebench.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    network = open_clip.create_model("tiny-erasebench")
    weights = folder / "tiny_weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)
    return network.eval(), str(weights)


def test_open_clip_features_are_those_of_the_library(tiny_open_clip, pictures):
    import open_clip

    network, weights = tiny_open_clip
    ours = OpenClip(model="tiny-erasebench", pretrained=weights, quick_gelu=False, batch_size=2)
    assert ours.name == "tiny-erasebench.tiny_weights"
    _, _, preprocess = open_clip.create_model_and_transforms("tiny-erasebench")
    with torch.no_grad():
        expected = network.encode_image(torch.stack([preprocess(p) for p in pictures]), normalize=True).numpy()
        said = network.encode_text(open_clip.get_tokenizer("tiny-erasebench")(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(ours.image_features(pictures), expected, atol=1e-6)
    np.testing.assert_allclose(ours.text_features(TEXTS), said, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ours.text_features(TEXTS), axis=1), 1, atol=1e-6)
    quick = OpenClip(model="tiny-erasebench", pretrained=weights, quick_gelu=True)
    assert np.abs(quick.image_features(pictures) - expected).max() > 1e-4  # the activation matters


def test_weights_from_a_file_need_their_activation(tiny_open_clip):
    _, weights = tiny_open_clip
    with pytest.raises(ValueError, match=r"clip\.quick_gelu must be true or false for weights from a file"):
        OpenClip(model="ViT-L-14", pretrained=weights)
    assert OpenClip(model="ViT-L-14-quickgelu", pretrained=weights).quick_gelu is None  # its name says so


def test_openai_weights_use_their_own_activation(monkeypatch, tmp_path):
    """open_clip only warns when ViT-L-14 meets OpenAI's weights without QuickGELU; the tag decides here."""
    import open_clip

    asked = {}
    weights = tmp_path / "w.safetensors"
    weights.touch()
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(weights))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda model: None)

    def create(model, pretrained, force_quick_gelu, device):
        asked[model, pretrained] = force_quick_gelu
        return torch.nn.Identity(), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    for model, tag in (("ViT-L-14", "openai"), ("ViT-B-32", "openai"), ("ViT-B-32", "laion2b_s34b_b79k")):
        OpenClip(model=model, pretrained=tag)._load()
    assert asked == {
        ("ViT-L-14", "openai"): True, ("ViT-B-32", "openai"): True, ("ViT-B-32", "laion2b_s34b_b79k"): False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tiny_transformers_clip(tmp_path_factory, tiny_pipe):
    """A random CLIPModel with the tiny pipeline's tokenizer, saved as a folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("transformers") / "tiny-clip"
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = tiny_pipe.tokenizer
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**shape, "vocab_size": len(tokenizer), "max_position_embeddings": 77, **ends}
    vision = {**shape, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    network.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return network, folder


def test_transformers_features_are_those_of_the_full_model(tiny_transformers_clip, pictures):
    """``get_image_features`` returns an object since transformers 5; the full forward pass is the reference."""
    from transformers import CLIPImageProcessor, CLIPTokenizer

    network, folder = tiny_transformers_clip
    ours = TransformersClip(path=str(folder), batch_size=2)
    assert ours.name == "tiny-clip"
    pixels = CLIPImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
    words = CLIPTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        full = network(**pixels, **words)
    np.testing.assert_allclose(ours.image_features(pictures), full.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.text_features(TEXTS), full.text_embeds.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OpenClip(pretrained="weights/model.pt"), "pickle is refused"),
        (lambda: OpenClip(model="ViT-Z-9").text_features(["a"]), "model must be one of open_clip.list_models"),
        (lambda: OpenClip(pretrained="opnai").text_features(["a"]), "pretrained must be a tag of ViT-L-14 .*openai"),
        (lambda: TransformersClip(path="openai/clip-vit-base-patch32"), "hub id with revision=COMMIT"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_folder_or_file_that_is_no_clip_is_refused_before_it_is_used(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no config.json; found nothing"):
        ClipScore(model=TransformersClip(path=str(tmp_path / "empty"))).check()
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "empty" / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match="must hold safetensors; found none"):
        TransformersClip(path=str(tmp_path / "empty")).check_files()
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"no")
    judge = ZeroShotJudge(model=TransformersClip(path=str(tmp_path / "empty")), labels=("cat", "dog"))
    with pytest.raises(ValueError, match="must be whole safetensors"):
        Classifier(judge=judge).check()
    with pytest.raises(FileNotFoundError, match=r"absent.safetensors must be a file; found none"):
        OpenClip(pretrained=str(tmp_path / "absent.safetensors"), quick_gelu=True).check_files()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "cat"}, r"judge.labels must be a list of texts; got 'cat'; write judge.labels=\[cat\]"),
        ({"scale": "100"}, "got '100', which is a text; write judge.scale=100"),
    ],
)
def test_settings_of_the_zero_shot_judge_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotJudge(**{"model": None, "labels": ("cat", "dog"), **changes})


class ColourSpace:
    """Images lie at their mean colour, texts at the colour named by their last word."""

    name = "colour"

    def image_features(self, images):
        rows = np.array([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in images])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def text_features(self, texts):
        return np.array([COLOURS[text.split()[-1]] for text in texts], dtype=np.float32) / 255


def test_the_zero_shot_judge_sees_the_nearest_label():
    judge = ZeroShotJudge(model=ColourSpace(), labels=["red", "green", "blue"], template="a picture of {}", scale=10)
    images = [Image.new("RGB", (4, 4), colour) for colour in ((200, 0, 0), (90, 100, 0), (200, 0, 0))]
    verdicts = judge(images, ["red", "red", "blue"])
    assert [verdict.present for verdict in verdicts] == [True, False, False]
    assert [verdict.label for verdict in verdicts] == ["red", "green", "red"]
    odds = np.exp(10 * np.array([90, 100, 0]) / np.hypot(90, 100))
    assert verdicts[1].score == pytest.approx(odds[0] / odds.sum(), rel=1e-5)
    assert sum(judge(images[:1], [label])[0].score for label in judge.labels) == pytest.approx(1)
    assert judge([], []) == []


def test_the_judges_name_changes_with_its_label_set():
    def name(**changes):
        return ZeroShotJudge(**({"model": ColourSpace(), "labels": ("red", "green")} | changes)).name

    names = [name(), name(labels=("red", "blue")), name(labels=("red", "green", "blue")), name(template="{} thing")]
    assert len(set(names)) == 4 and name() == names[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": ["red"]}, "at least two"),
        ({"labels": ["red", "red"]}, "each once"),
        ({"labels": ["red", "blue"], "template": "a photo"}, "template must contain {} once"),
    ],
)
def test_a_judge_without_a_choice_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotJudge(model=ColourSpace(), **wrong)


def test_a_concept_outside_the_labels_is_an_error():
    judge = ZeroShotJudge(model=ColourSpace(), labels=("red", "green"))
    with pytest.raises(ValueError, match="'blue' must be among the judge's labels"):
        judge([Image.new("RGB", (4, 4), "red")], ["blue"])
