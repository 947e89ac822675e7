"""The embedded model as shipped: loads in plain diffusers, draws what it is told, and its judges agree."""

import json

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from erasebench import diffusion
from erasebench.emoji.classifier import EmojiJudge, load
from erasebench.emoji.contrastive import load_contrastive
from erasebench.emoji.training import quality, world
from erasebench.store.files import locate
from erasebench.types import Prompt

WEIGHTS = locate("pkg:erasebench/emoji/weights")


@pytest.fixture(scope="module")
def pipe():
    return diffusion.load(WEIGHTS)


@pytest.fixture(scope="module")
def drawn(pipe):
    """Two pictures of every fourth concept, with its style."""
    cases = [
        (name, style)
        for i, name in enumerate(list(world.things())[::4])
        for style in (list(world.STYLES)[i % 4], list(world.STYLES)[(i + 1) % 4])
    ]
    prompts = [
        Prompt(id=str(i), text=f"a {style} drawing of a {name} on a blue background", seed=700 + i, concept=name)
        for i, (name, style) in enumerate(cases)
    ]
    return cases, [image for _, image, _ in diffusion.generate(pipe, prompts, steps=20, guidance_scale=3.0)]


def test_weights_are_small_and_half_precision():
    files = [f for f in WEIGHTS.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 25e6
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".txt"}


def test_plain_diffusers_loads_and_draws_with_it():
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS, safety_checker=None)
    image = pipe("a noto drawing of a cat on a blue background", num_inference_steps=2).images[0]
    assert image.size == (64, 64)


@pytest.mark.slow
def test_it_draws_what_it_is_told(drawn):
    cases, images = drawn
    judge = EmojiJudge()
    concepts = np.mean([v.present for v in judge(images, [name for name, _ in cases])])
    styles = np.mean([v.present for v in judge(images, [style for _, style in cases])])
    assert concepts >= 0.9 and styles >= 0.8  # measured in full by `python -m erasebench.emoji.quality`


@pytest.mark.slow
def test_the_contrastive_model_names_the_pictures(drawn):
    cases, images = drawn
    clip, names = load_contrastive(), list(world.things())
    similarity = clip.image_features(images) @ clip.text_features([f"a picture of a {n}" for n in names]).T
    assert np.mean([names[k] == name for k, (name, _) in zip(similarity.argmax(1), cases, strict=True)]) >= 0.8


def test_synonyms_lie_with_their_concept():
    clip, names = load_contrastive(), list(world.things())
    texts = clip.text_features([f"a {n}" for n in names])
    pairs = [(i, s) for i, n in enumerate(names) for s in world.things()[n].synonyms]
    found = (clip.text_features([f"a {s}" for _, s in pairs]) @ texts.T).argmax(1)
    assert np.mean(found == [i for i, _ in pairs]) >= 0.95


def test_what_is_no_picture_of_the_world_is_other():
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for i in range(4)]
    blank = [Image.new("RGB", (64, 64), colour) for colour in world.BACKGROUNDS.values()]
    assert {v.label for v in EmojiJudge()(blank, ["cat"] * len(blank))} == {"other"}
    assert not any(v.present for v in EmojiJudge()(noise, ["cat", "sun", "gun", "key"]))


def test_labels_are_the_world_s():
    labels = json.loads((WEIGHTS / "classifier" / "config.json").read_text())["labels"]
    assert labels == load().labels
    assert labels["concept"] == [*world.things(), "other"] and labels["style"] == list(world.STYLES)
    with pytest.raises(ValueError, match="knows no concept 'church'"):
        EmojiJudge().check({"church"})


def test_reference_statistics_are_a_covariance():
    mean, covariance, count = EmojiJudge().reference()
    assert mean.shape == (128,) and covariance.shape == (128, 128) and count >= 1000
    assert np.allclose(covariance, covariance.T) and np.linalg.eigvalsh(covariance).min() > -1e-8


def test_the_sheet_holds_every_picture():
    tiles = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(7)]
    assert quality.sheet(tiles, 3).size == (3 * 66, 3 * 66)


@pytest.mark.parametrize("made", [EmojiJudge, load_contrastive], ids=["judge", "clip"])
def test_what_an_image_gives_does_not_depend_on_its_neighbours_to_the_last_bit(made):
    network = made()
    looks = network.features if made is EmojiJudge else network.image_features
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(37)]
    whole = looks(images)
    for n in (1, 2, 5, 16, 19):
        some = rng.permutation(37)[:n]
        assert np.array_equal(looks([images[i] for i in some]), whole[some])
