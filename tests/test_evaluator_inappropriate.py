"""Q16, the safety checker and I2P's numbers on tiny networks of the real classes, against derivations of their own."""

from __future__ import annotations

import logging
import math
import pickle

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.numpy import load_file, save_file

from erasebench import convert
from erasebench.judges.q16 import Q16Judge
from erasebench.judges.safety_checker import SafetyCheckerJudge
from erasebench.prompts.published import PublishedPrompts
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Concept, Prompt, Verdict
from evaluators.inappropriate import Inappropriate, expected_maximum


class Clip:
    """Features: mean colour against 1, as a unit vector."""

    name = "tiny"

    def image_features(self, images):
        rows = np.array([[*(np.asarray(i, dtype=np.float64).mean((0, 1)) / 255), 1.0] for i in images])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pictures(seed, n, size=24):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(n)]


def test_q16_is_the_softmax_of_two_cosines(tmp_path):
    prompts = np.random.default_rng(0).normal(size=(2, 1, 4)).astype(np.float16)  # unnormalised, as they are learned
    path = tmp_path / "q16.safetensors"
    save_file({"array": prompts}, path)
    images = [Image.new("RGB", (4, 4), c) for c in ("black", "red", "lime", "blue", "white", "#804020")]
    rows = prompts.reshape(2, 4).astype(np.float64)
    cosines = Clip().image_features(images).astype(np.float64) @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    for scale in (1.0, 100.0):
        want = np.exp(scale * cosines) / np.exp(scale * cosines).sum(1, keepdims=True)
        judge = Q16Judge(model=Clip(), weights=str(path), scale=scale)
        judge.check_files()
        verdicts = judge(images, ["nudity"] * 6)
        np.testing.assert_allclose([v.score for v in verdicts], want[:, 1], atol=1e-6)
        assert [v.present for v in verdicts] == [bool(i) for i in want.argmax(1)]
    assert {v.present for v in verdicts} == {True, False}
    strict = Q16Judge(model=Clip(), weights=str(path), threshold=0.9)
    assert strict.name == "q16.tiny.q16@0.9" and [v.present for v in strict(images, [""] * 6)] == list(
        want[:, 1] >= 0.9
    )
    save_file({"array": np.zeros((2, 7), np.float32) + 1}, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="must have the width of tiny, 4; got 7"):
        Q16Judge(model=Clip(), weights=str(tmp_path / "wide.safetensors"))(images, [""] * 6)
    save_file({"a": np.zeros((3, 4), np.float32)}, tmp_path / "three.safetensors")
    with pytest.raises(ValueError, match="one tensor of two rows"):
        Q16Judge(model=Clip(), weights=str(tmp_path / "three.safetensors")).check_files()
    with pytest.raises(FileNotFoundError, match=r"two learned prompts; got null; git clone .*erasebench.convert"):
        Q16Judge(model=Clip()).check_files()


def test_the_authors_file_of_prompts_becomes_safetensors_and_other_pickles_do_not(tmp_path):
    prompts = np.random.default_rng(0).normal(size=(2, 768)).astype(np.float16)
    for protocol in (2, 3, 4, 5):
        (tmp_path / "prompts.p").write_bytes(pickle.dumps(prompts, protocol=protocol))
        convert.convert(tmp_path / "prompts.p", tmp_path / "q16.safetensors")
        np.testing.assert_array_equal(load_file(tmp_path / "q16.safetensors")["array"], prompts)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    for content in (Evil(), np.array([Evil()], dtype=object), {"a": 1}):
        (tmp_path / "evil.p").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match="must hold tensors alone"):
            convert.convert(tmp_path / "evil.p", tmp_path / "out.safetensors")
    assert not (tmp_path / "made").exists() and not (tmp_path / "out.safetensors").exists()


@pytest.fixture(scope="module")
def checker(tmp_path_factory):
    """diffusers' class with a tiny tower, its thresholds amid the cosines that noise gives."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 24, "patch_size": 8, "projection_dim": 8}  # fmt: skip
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8)).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    pixels = processor(pictures(1, 40), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        for side in ("special_care_embeds", "concept_embeds"):
            torch.nn.init.normal_(getattr(model, side))
            seen = model.visual_projection(model.vision_model(pixels)[1])
            level = cosine_distance(seen, getattr(model, side)).quantile(0.97 if side[0] == "c" else 0.8, dim=0)
            getattr(model, f"{side}_weights").copy_(level)
    folder = tmp_path_factory.mktemp("pipeline")
    model.save_pretrained(folder / "safety_checker")
    processor.save_pretrained(folder / "feature_extractor")
    return folder, model, processor


def test_the_safety_checker_says_what_diffusers_says(checker, caplog):
    folder, model, processor = checker
    images = pictures(2, 60)
    judge = SafetyCheckerJudge(path=str(folder), device="cpu", batch_size=7)
    judge.check_files()
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    with caplog.at_level(logging.ERROR):
        _, flagged = model(images=np.ones((60, 4, 4, 3)), clip_input=pixels)
    verdicts = judge(images, ["nudity"] * 60)
    assert [v.present for v in verdicts] == [bool(x) for x in flagged] and 5 < sum(flagged) < 55
    assert [v.score > 0 for v in verdicts] == [v.present for v in verdicts]
    alone = [judge([image], [""])[0].score for image in images[:9]]
    np.testing.assert_allclose([v.score for v in verdicts[:9]], alone, atol=1.1e-3)  # rounded to 3 digits
    with pytest.raises(FileNotFoundError, match=r"pipeline's folder with safety_checker/config.json.*hf download"):
        SafetyCheckerJudge(path=str(folder / "safety_checker")).check_files()


class Says:
    """Present where the image's red channel is among the levels."""

    def __init__(self, name, *levels):
        self.name, self.levels = name, levels

    def check(self, concepts):
        assert set(concepts) == {"nudity"}

    def __call__(self, images, concepts):
        seen = [i.getpixel((0, 0))[0] in self.levels for i in images]
        return [Verdict(present=s, score=float(s), label="") for s in seen]


def image_set(folder, rows):
    write_shard(folder, 0, [(p.digest(), image, "ok" if image else "nan") for p, image in rows])
    return ImageSet(key=str(folder), folder=folder, prompts=tuple(p for p, _ in rows))


def test_rates_categories_and_maxima_by_hand(tmp_path):
    rows = []
    kinds = {"t0": "violence, self-harm", "t1": "violence", "t2": "sexual"}
    for text, levels in {"t0": (1, 0, 0, 2), "t1": (0, 0), "t2": (2, None)}.items():
        for i, level in enumerate(levels):
            prompt = Prompt(id=f"{text}-{i}", text=text, seed=i, concept="unsafe", info={"category": kinds[text]})
            rows.append((prompt, None if level is None else Image.new("RGB", (4, 4), (level, 0, 0))))
    images = image_set(tmp_path / "x", rows)
    evaluator = Inappropriate(judges={"a": Says("A", 1), "b": Says("B", 2)}, draw=2)
    evaluator.check()
    scores = evaluator.score(images, images)
    of = {(s.metric, s.prompt_id): s for s in scores}

    def values(metric):
        return [of[metric, p.id].value for p in images.prompts if (metric, p.id) in of]

    np.testing.assert_array_equal(values("inappropriate.A"), [1, 0, 0, 0, 0, 0, 0, math.nan])
    np.testing.assert_array_equal(values("inappropriate.B"), [0, 0, 0, 1, 0, 0, 1, math.nan])
    np.testing.assert_array_equal(values("inappropriate.any_of.a+b"), [1, 0, 0, 1, 0, 0, 1, math.nan])
    np.testing.assert_array_equal(values("inappropriate_in.violence.any_of.a+b"), [1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(values("inappropriate_in.self_harm.any_of.a+b"), [1, 0, 0, 1])
    assert of["inappropriate.A", "t2-1"].status == "nan" and not of["inappropriate.A", "t0-0"].higher_is_better
    # rates 1/2, 0, 1 of three prompts; two of them drawn: maxima 1/2, 1, 1
    assert of["expected_max.2.any_of.a+b", None].value == pytest.approx(100 * 2.5 / 3)
    assert of["expected_max_std.2.any_of.a+b", None].value == pytest.approx(100 * np.std([0.5, 1, 1]))
    assert of["expected_max.2.any_of.a+b", None].n == 3
    for metric in ("inappropriate.any_of.a+b", "inappropriate.B", "expected_max.2.any_of.a+b"):
        assert any(h.fits(metric, "target") for h in evaluator.headlines), metric
    lost = image_set(tmp_path / "y", [(p, None) for p, _ in rows])
    assert {s.status for s in evaluator.score(lost, images) if s.prompt_id is None} == {"error"}
    with pytest.raises(ValueError, match="judges must hold at least one setting"):
        Inappropriate(judges={})


def test_the_expected_maximum_is_what_the_paper_s_bootstrap_tends_to():
    generator = np.random.default_rng(0)
    rates = generator.integers(0, 11, size=120) / 10 * (generator.random(120) < 0.3)
    drawn = [generator.choice(rates, 25, replace=False).max() for _ in range(20_000)]
    mean, deviation = expected_maximum(list(rates), 25)
    assert mean == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / math.sqrt(len(drawn)))
    assert deviation == pytest.approx(np.std(drawn), rel=0.05)


def test_a_published_set_tells_its_categories(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text('prompt,evaluation_seed,categories\nfirst,1,"hate, violence"\nsecond,2,hate\n')
    made = {"name": "mine", "path": str(path), "source": "the moon"}
    prompts = PublishedPrompts(**made, category="categories").prompts(Concept(name="cat", phrases=("cat",)))
    assert [(p.text, p.concept, p.info["category"]) for p in prompts] == [
        ("first", "cat", "hate, violence"), ("second", "cat", "hate")
    ]  # fmt: skip
    with pytest.raises(ValueError, match="has no column 'kind'"):
        PublishedPrompts(**made, category="kind").prompts(Concept(name="cat", phrases=("cat",)))


def test_judges_below_an_evaluator_are_checked_by_their_own_types_and_name_no_cell():
    from erasebench import naming, settings
    from erasebench.command.composing import as_job, composed, session
    from erasebench.command.typed import Typed

    overrides = ("evaluator=[inappropriate]", "clip@evaluator.inappropriate.judges.q16.model=emoji")
    with session(), as_job(composed(Typed(overrides), overrides)) as cfg:
        node = OmegaConf.to_container(cfg, resolve=True)
        names, _ = naming.names(cfg, node)
    assert names["method"] == "rece" and not names["settings"]
    settings.check(node["evaluator"]["inappropriate"], "evaluator.inappropriate")
    node["evaluator"]["inappropriate"]["judges"]["q16"]["threshold"] = "much"
    with pytest.raises(ValueError, match=r"evaluator.inappropriate.judges.q16.threshold must be a finite number"):
        settings.check(node["evaluator"]["inappropriate"], "evaluator.inappropriate")
