"""Stable Diffusion 2.1's and XL's exact text widths, conditions and configs in a thin UNet, from a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from erasebench import diffusion
from erasebench.report.runs import find_run
from erasebench.types import Concept, Prompt
from methods.esd import ESD
from methods.leace import LEACE
from methods.mace import MACE
from methods.sepme import SepME
from methods.trce import FirstEnd
from methods.uce import UCE
from tests.test_sd14_shape import clip_tokenizer

REPO = Path(__file__).parents[1]
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CHURCH = Concept(name="church", phrases=("church",), anchor="field")
PROMPTS = [Prompt(id="0", text="a photo of a church", seed=0), Prompt(id="1", text="church " * 100, seed=1)]
DRAWN = {"steps": 2, "height": 64, "width": 64, "batch_size": 2}


def text(kind, width, heads, activation, projection=None):
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2,
        num_attention_heads=heads, hidden_act=activation, projection_dim=projection or width, bos_token_id=49406,
        eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip
    return kind(config)


def unet(width, **more):
    return UNet2DConditionModel(
        block_out_channels=(64, 128), layers_per_block=1, cross_attention_dim=width, attention_head_dim=[1, 2],
        use_linear_projection=True, **more,
    )  # fmt: skip


def padded_with_zero():
    """Both families' OpenCLIP tokenizers pad with "!", whose id is 0."""
    tokenizer = clip_tokenizer()
    tokenizer.pad_token = "!"
    assert tokenizer.pad_token_id == 0
    return tokenizer


def vae(**more):
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> folder with random weights in float16, as ``save_pretrained`` writes them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("families")
    sd21 = StableDiffusionPipeline(
        vae=vae(), text_encoder=text(CLIPTextModel, 1024, 16, "gelu"), tokenizer=padded_with_zero(),
        unet=unet(1024, sample_size=96, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                                prediction_type="v_prediction"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    sdxl = StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=text(CLIPTextModel, 768, 12, "quick_gelu"),
        text_encoder_2=text(CLIPTextModelWithProjection, 1280, 20, "gelu", 1280),
        tokenizer=clip_tokenizer(), tokenizer_2=padded_with_zero(),
        unet=unet(2048, sample_size=128, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                  up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=[1, 2],
                  addition_embed_type="text_time", addition_time_embed_dim=256,
                  projection_class_embeddings_input_dim=2816),
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )  # fmt: skip
    for name, pipe in {"sd21": sd21, "sdxl": sdxl}.items():
        pipe.to(torch.float16).save_pretrained(root / name)
    return {name: root / name for name in ("sd21", "sdxl")}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "width", "size"), [("sd21", 1024, 96), ("sdxl", 2048, 128)])
def test_closed_form_edits_and_training(folders, family, width, size):
    pipe = diffusion.load(folders[family])
    assert diffusion.latent_shape(pipe) == (4, size, size)
    assert diffusion.encode(pipe, ["a church"]).shape == (1, 77, width)
    first = [image for *_, image, status in diffusion.generate(pipe, PROMPTS, **DRAWN) if status == "ok"]
    assert len(first) == 2
    edited = UCE().erase(pipe, CHURCH)
    assert edited.edit_matrix.shape == (width, width)
    changed = diffusion.changed_tensors(edited, pipe)
    assert changed and all("attn2.to_" in name for name in changed)
    again = diffusion.apply_tensors(pipe, changed)
    assert diffusion.fingerprint(again) == diffusion.fingerprint(edited)
    for method in (LEACE(templates=("a photo of {}",)), UCE(pooling=FirstEnd(templates=("a {}",)), anchor=None)):
        moved = diffusion.changed_tensors(method.erase(pipe, CHURCH), pipe)
        assert set(moved) >= set(changed) and all(torch.isfinite(tensor).all() for tensor in moved.values())
    pipe.unet.register_to_config(sample_size=8)  # a training draws at the model's own size, too large for a test
    few = {"iterations": 1, "steps": 2, "images": 1, "autocast": False, "templates": ("a {}",)}
    for method in (MACE(**few), SepME(**few, others=("tree",))):
        moved = diffusion.changed_tensors(method.erase(pipe, CHURCH), pipe)
        assert set(moved) == set(changed) and all(torch.isfinite(tensor).all() for tensor in moved.values())
    trained = ESD(iterations=1, steps=2, autocast=False, layers="xattn").erase(pipe, CHURCH)
    moved = diffusion.changed_tensors(trained, pipe)
    assert moved and all(torch.isfinite(tensor).all() for tensor in moved.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd21", "sdxl"])
def test_the_command_runs_from_a_folder_and_goes_on(folders, family, tmp_path):
    args = [
        f"model={family}", f"model.path={folders[family]}", "concept=church", "method=uce", "attack=none",
        f"results={tmp_path}", "model.steps=2", "model.height=64", "model.width=64", "model.batch_size=2",
        "model.device=cpu", "model.dtype=float32", "model.scheduler=euler", "evaluator=[nudenet]",
        "prompts.n={target:2,paraphrase:0,neighbour:0,unrelated:0,coco:0}",
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    written = b""
    for turn in range(2):
        command = [sys.executable, "-m", "erasebench", *args]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, env=env, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        folder = find_run(next((tmp_path / f"runs/{family}/church/uce").glob("none*")) / "seed0")
        assert len(pd.read_parquet(folder / "scores.parquet"))
        record = json.loads((folder / "run.json").read_text())
        assert record["config"]["model"]["scheduler"] == "euler" and "scheduler-euler" in folder.parent.name
        if turn:  # what is finished is shown
            assert "draw:" not in done.stderr and (folder / "run.json").read_bytes() == written
        written = (folder / "run.json").read_bytes()
