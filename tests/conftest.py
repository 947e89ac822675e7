"""Fixtures: tiny random-weight Stable Diffusion pipelines, built in code in about a second, with nothing downloaded.

They have the real classes and layout of Stable Diffusion (64 px images, 8x8 latents, 77 tokens) at a width small
enough for float64 parity tests. Their pictures mean nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hydra.core.hydra_config import HydraConfig
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def pytest_collection_modifyitems(items):
    """The longest tests first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: "test_sd14_shape" not in item.nodeid)


@pytest.fixture(autouse=True)
def no_job_of_another_test():
    """What Hydra holds as its current job, and the logging it sets up for it, belong to one test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    HydraConfig.instance().cfg = None
    root.handlers[:] = handlers
    root.setLevel(level)


def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with no merges: one token per byte, the last byte of a word marked ``</w>``."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    """Two layers, two heads, CLIP's own activation; ``eos_token_id`` is where the pooled output is read."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


def tiny_unet(width: int, **extra: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=8,
        **extra,
    )


def tiny_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.4's noise schedule, sampled deterministically."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def make_tiny_pipe(seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 32) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x pipeline with weights drawn from ``seed`` (14 cross-attention K/V matrices)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = byte_tokenizer()
        pipe = StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=CLIPTextModel(text_config(tokenizer, width)),
            tokenizer=tokenizer,
            unet=tiny_unet(width),
            scheduler=tiny_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return frozen(pipe, dtype)


def make_tiny_xl_pipe(seed: int = 0, dtype: torch.dtype = torch.float32, width: int = 32) -> StableDiffusionXLPipeline:
    """An SDXL pipeline: two text encoders whose states (``width`` each) are concatenated to ``2 * width``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = byte_tokenizer()
        unet = tiny_unet(
            2 * width,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=width + 6 * 8,
        )
        pipe = StableDiffusionXLPipeline(
            vae=tiny_vae(),
            text_encoder=CLIPTextModel(text_config(tokenizer, width)),
            text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, width)),
            tokenizer=tokenizer,
            tokenizer_2=byte_tokenizer(),
            unet=unet,
            scheduler=tiny_scheduler(),
            add_watermarker=False,
        )
    return frozen(pipe, dtype)


def frozen(pipe, dtype: torch.dtype):
    """The pipeline in ``dtype``, in eval mode, without gradients and without a progress bar."""
    if dtype != torch.float32:
        pipe.to(dtype)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def make_pipe() -> Callable[..., StableDiffusionPipeline]:
    """``make_tiny_pipe(seed=0, dtype=torch.float32, width=32)`` for tests that need their own pipeline."""
    return make_tiny_pipe


@pytest.fixture(scope="session")
def make_xl_pipe() -> Callable[..., StableDiffusionXLPipeline]:
    """``make_tiny_xl_pipe(seed=0, dtype=torch.float32, width=32)``."""
    return make_tiny_xl_pipe


@pytest.fixture(scope="session")
def tiny_pipe() -> StableDiffusionPipeline:
    """One tiny pipeline shared by the session: never edit it in place, fork it."""
    return make_tiny_pipe()


@pytest.fixture(scope="session")
def tiny_xl_pipe() -> StableDiffusionXLPipeline:
    """One tiny SDXL pipeline shared by the session: never edit it in place, fork it."""
    return make_tiny_xl_pipe()
