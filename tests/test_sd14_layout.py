"""Training methods on a thin UNet with Stable Diffusion 1.4's blocks, tensor names, text width and scheduler."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from erasebench import diffusion
from erasebench.diffusion.adapters import attached
from methods.fine_tuning import layer_names
from tests.test_every_method import CAT, CHANGES, made
from tests.test_sd14_shape import clip_tokenizer
from tests.test_sd_families import SCHEDULE, text, vae

BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768, "attention_head_dim": 8,
}  # fmt: skip
TRAININGS = [
    "advanchor", "advunlearn", "age_object", "all_but_one", "ca", "crce", "degeneration_tuning", "doco_object", "duge",
    "fmn", "kpop", "modular_lora_after", "salun_object",
]  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    new = StableDiffusionPipeline(
        vae=vae(), text_encoder=text(CLIPTextModel, 768, 12, "quick_gelu"), tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(sample_size=8, block_out_channels=(32, 64, 96, 96), **BLOCKS),
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for part in (new.vae, new.text_encoder, new.unet):
        part.eval().requires_grad_(False)
    new.set_progress_bar_config(disable=True)
    return new


@pytest.mark.slow
def test_the_thin_unet_has_the_names_of_the_real_one(pipe):
    with torch.device("meta"):
        real = UNet2DConditionModel(sample_size=64, block_out_channels=(320, 640, 1280, 1280), **BLOCKS)
    assert sum(p.numel() for p in real.parameters()) == 859_520_964
    assert [name for name, _ in real.named_parameters()] == [name for name, _ in pipe.unet.named_parameters()]
    assert len(layer_names(pipe.unet, "xattn_strict")) == 32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saeuron_object", "saeuron_style"])
def test_an_autoencoder_hangs_beside_the_block_of_the_published_recipe(pipe, name):
    erased = made(name).erase(pipe, CAT)
    (one,) = attached(erased)
    block = {"saeuron_object": "up_blocks.1.attentions.1", "saeuron_style": "up_blocks.1.attentions.2"}[name]
    assert one.tensors[f"{block}.decoder"].shape == (16 * 96, 96)
    assert one.tensors[f"{block}.times"].shape == (6,)  # PNDM asks once more than its 5 steps
    assert all(torch.isfinite(t).all() for t in one.tensors.values())
    assert not diffusion.changed_tensors(erased, pipe)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_an_update_is_finite_and_moves_what_the_paper_trains(pipe, name):
    pattern = CHANGES[max((key for key in CHANGES if name.startswith(key)), key=len)]
    changed = diffusion.changed_tensors(made(name).erase(pipe, CAT), pipe)
    assert changed and all(re.search(pattern, tensor) for tensor in changed)
    assert all(torch.isfinite(tensor).all() for tensor in changed.values())
