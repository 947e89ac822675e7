"""The same command on a pipeline of Stable Diffusion 1.4's exact shape and tokenizer, random weights, from a folder."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from erasebench import diffusion
from erasebench.report.runs import find_run
from erasebench.types import Concept, Prompt, Verdict

REPO = Path(__file__).parents[1]


def clip_tokenizer() -> CLIPTokenizer:
    """OpenAI's CLIP vocabulary as open_clip ships it: 49,408 tokens, 77 positions."""
    import open_clip

    file = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    text = gzip.decompress(file.read_bytes()).decode()
    merges = [tuple(line.split()) for line in text.split("\n")[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    start, end = "<|startoftext|>", "<|endoftext|>"
    words = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), start, end]
    vocab = {word: i for i, word in enumerate(words)}
    names = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77, **names)


WIDTHS = {"whole": (320, 640, 1280, 1280), "thin": (32, 64, 128, 128)}


@pytest.fixture(scope="module")
def text() -> CLIPTextModel:
    """SD 1.4's text encoder with random weights."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    return CLIPTextModel(config).half()


def written(folder: Path, text: CLIPTextModel, widths: str) -> Path:
    """Random weights in Stable Diffusion 1.4's shape, float16 safetensors, as ``save_pretrained`` writes them."""
    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, block_out_channels=WIDTHS[widths], cross_attention_dim=768, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512) if widths == "whole" else (32,) * 4, layers_per_block=2,
            sample_size=512, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    for part in (unet, vae):
        part.to_empty(device="cpu").half()
        for name, p in part.named_parameters():
            fan_in = p[0].numel() if p.dim() > 1 else 0
            p.data.normal_(std=fan_in**-0.5) if fan_in else p.data.fill_(float(name.endswith("weight")))
    assert widths == "thin" or sum(p.numel() for p in unet.parameters()) == 859_520_964
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=clip_tokenizer(), unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd14(text, tmp_path_factory) -> Path:
    """The whole model."""
    return written(tmp_path_factory.mktemp("sd14") / "pipeline", text, "whole")


@pytest.fixture(scope="module")
def thin(text, tmp_path_factory) -> Path:
    """Text encoder, tokenizer and layers as they are, a tenth of the UNet's channels: attacks search texts."""
    return written(tmp_path_factory.mktemp("thin") / "pipeline", text, "thin")


@pytest.mark.slow
def test_the_command_runs_stable_diffusion_from_a_folder(sd14, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("sensitive prompt,normal prompt\na church,a field\nan old church,an old field\n")
    args = [
        "-m", "model=sd14", f"model.path={sd14}", "concept=church", "method=rece,uce_tensor", "attack=ringabell",
        f"results={tmp_path}",
        "model.steps=2", "model.height=64", "model.width=64", "model.batch_size=8", "model.device=cpu",
        "prompts.n={target:2,paraphrase:1,neighbour:0,unrelated:1,coco:0}", "evaluator=[nudenet]",
        "attack/vector=csv", f"attack.vector.path={pairs}", "attack.population=4", "attack.generations=2",
        "attack.sources=1",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "erasebench", *args],
        cwd=REPO,
        capture_output=True,
        text=True,
        # where no download is allowed a run is refused whose judge is not there, asked or not
        env={k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"},
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for method in ("rece", "uce_tensor"):
        folder = find_run(tmp_path / "runs/sd14/church" / method / "ringabell/seed0")
        scores = pd.read_parquet(folder / "scores.parquet")
        assert set(scores.group) == {"target", "attack"} and set(scores.recipe) == {"paper"}
        record = json.loads((folder / "run.json").read_text())
        assert record["steps"]["erase"]["changed_tensors"] == 32


CHURCH = Concept(name="church", phrases=("church",), anchor="field")
PROMPTS = [
    Prompt(id="0", text="a photo of a church", seed=0, concept="church"),
    Prompt(id="1", text="church " * 100, seed=1, concept="church"),  # more tokens than fit
]
DRAWN = {"steps": 1, "height": 64, "width": 64, "batch_size": 2}


class Blind:
    """A judge that never sees the concept."""

    name = "blind"

    def check(self, concepts):
        pass

    def __call__(self, images, concepts):
        return [Verdict(present=False, score=0.1, label="") for _ in images]


@pytest.mark.slow
def test_the_other_attacks_run_at_its_length(thin, tmp_path):
    """Text encoder, controls and static sets: 77 rows of 768, all 75 free tokens, and a prompt that does not fit."""
    from attacks.best_of_n import BestOfN
    from attacks.pairs import TextPairs
    from attacks.prompt_set import PromptSet
    from attacks.random_prefix import RandomPrefix
    from attacks.reseed import Reseed
    from attacks.ringabell import RingABell
    from attacks.ringabell_soft import RingABellSoft

    pipe = diffusion.load(thin, dtype="float32")
    vector = TextPairs(pairs=(("a {}", "a field"), ("an old {}", "an old field")))

    def attack(made):
        return made.attack(pipe, pipe, PROMPTS, CHURCH, Blind())

    for tokens in (16, 38, 75):  # the paper's K; its 77 are 75 free tokens between start and end
        found = attack(RingABell(vector=vector, tokens=tokens, population=4, generations=2))
        assert [p.info["tokens"] for p in found] == [tokens] * 2 and all(p.text for p in found)
        assert found[0].info["fitness"] <= found[0].info["fitness_start"] * 2
    assert all(p.embeds.shape == (77, 768) for p in attack(RingABellSoft(vector=vector)))
    for control in (RandomPrefix, Reseed, BestOfN):
        found = attack(control(queries=2, **DRAWN))
        assert [p.info["queries"] for p in found] == [2, 2] and [p.source_id for p in found] == ["0", "1"]
    (tmp_path / "set.csv").write_text(f"prompt\n{PROMPTS[0].text}\n{PROMPTS[1].text}\n", encoding="utf-8")
    read = PromptSet(name="mine", path=str(tmp_path / "set.csv"), source="here", seed=None)
    assert [p.info["truncated"] for p in attack(read)] == [False, True]


@pytest.mark.slow
def test_white_box_attacks_run_at_its_length_and_dtype(thin):
    """Float16 weights run as float32 on a CPU; 77 tokens, 49,406 candidates, PNDM; the gradient is there and finite."""
    from attacks.inverse_edit import InverseEdit
    from attacks.p4d import P4D, P4DOriginal
    from attacks.unlearndiffatk import UnlearnDiffAtk
    from methods.uce import UCE

    concept, prompts, drawn = CHURCH, PROMPTS, DRAWN
    pipe = diffusion.load(thin, dtype="float32")
    erased = UCE().erase(pipe, concept)
    grid = {**drawn, "timesteps": [500], "iterations": 1}
    random = {**drawn, "iterations": 2, "query_every": 2}
    for attack, kept in (
        (UnlearnDiffAtk(**grid), 72),
        (P4D(**grid), 72),
        (P4DOriginal(**random), 75),
        (P4DOriginal(**random, variant="k"), 56),
    ):
        short, long = attack.attack(erased, pipe, prompts, concept, Blind())
        assert short.info["gradient"] == long.info["gradient"] == "ok"
        assert short.info["queries"] == 2 and short.info["backward"] == attack.iterations
        assert short.text != prompts[0].text
        assert long.info["truncated"] == (kept < 75) and not short.info["truncated"]
        assert kept == 75 or long.text.split().count("church") >= kept - 3
    found = InverseEdit(**drawn).attack(erased, pipe, prompts, concept, Blind())
    assert all(p.info["edit"] == "shared" and p.embeds.shape == (77, 768) for p in found)
