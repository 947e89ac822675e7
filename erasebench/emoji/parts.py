"""The networks of the embedded model, as plain Hugging Face classes, and the tokenizer they share."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

WIDTH, TOKENS, PROJECTION = 320, 77, 128
SIZE, LATENT, CHANNELS = 64, 8, 8  # px, latents per side, latent channels
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: list[str], folder: Path, vocab_size: int = 2400) -> CLIPTokenizer:
    """A CLIP tokenizer (lower case, byte-level BPE, ``</w>`` word ends, 77 tokens) trained on ``texts``."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = {token: i for i, token in enumerate(sorted(model["vocab"], key=model["vocab"].get))}
    for token in (*(a + "</w>" for a in alphabet), BOS, EOS):
        vocab.setdefault(token, len(vocab))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=vocab, merges=merges, bos_token=BOS, eos_token=EOS, unk_token=EOS, pad_token=EOS, model_max_length=TOKENS
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP text transformer: 3 causal layers of width 320."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=960, num_hidden_layers=3,
            num_attention_heads=5, max_position_embeddings=TOKENS, projection_dim=PROJECTION, hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, attn_implementation="sdpa",
        )
    )  # fmt: skip


def vision_encoder() -> CLIPVisionModel:
    """CLIP vision transformer on pictures of 32 px, patches of 8 px."""
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=192, intermediate_size=768, num_hidden_layers=3, num_attention_heads=4, image_size=32,
            patch_size=8, projection_dim=PROJECTION, hidden_act="quick_gelu",
        )
    )  # fmt: skip


class Contrastive(nn.Module):
    """Text and vision encoders with projections and a learned temperature, as in CLIP."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text, self.vision = text_encoder(tokenizer), vision_encoder()
        self.text_projection = nn.Linear(WIDTH, PROJECTION, bias=False)
        self.visual_projection = nn.Linear(192, PROJECTION, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.659))

    def image(self, pictures: torch.Tensor) -> torch.Tensor:
        """Unit features [n, 128] of pictures [n, 3, any, any] in -1..1."""
        small = nn.functional.interpolate(pictures, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
        return nn.functional.normalize(self.visual_projection(self.vision(small).pooler_output), dim=-1)

    def words(self, ids: torch.Tensor) -> torch.Tensor:
        """Unit features [n, 128] of token ids [n, tokens]."""
        return nn.functional.normalize(self.text_projection(self.text(ids).pooler_output), dim=-1)


def autoencoder(channels: int = CHANNELS) -> AutoencoderKL:
    """64 px pictures to 8 x 8 x 8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96), layers_per_block=1, latent_channels=channels, norm_num_groups=8,
        sample_size=SIZE,
    )  # fmt: skip


def unet() -> UNet2DConditionModel:
    """Denoiser with cross-attention in every block: 14 key and value projections of width 320."""
    model = UNet2DConditionModel(
        sample_size=LATENT, in_channels=CHANNELS, out_channels=CHANNELS, layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip
    model.set_attn_processor(AttnProcessor())  # on CPU twice as fast here as the fused kernel
    return model


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule, deterministic sampler."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, num_train_timesteps=1000,
    )  # fmt: skip
