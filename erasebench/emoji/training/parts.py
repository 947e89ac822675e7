"""The networks of the embedded model, as plain Hugging Face classes, and the tokenizer they share."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTokenizer

from erasebench.emoji.networks import TOKENS, WIDTH

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


def autoencoder(channels: int = CHANNELS, widths: tuple[int, ...] = (16, 32, 64, 96)) -> AutoencoderKL:
    """64 px pictures to 8 x 8 latents of some channels, 8 in the first edition."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths, layers_per_block=1, latent_channels=channels, norm_num_groups=8,
        sample_size=SIZE,
    )  # fmt: skip


def unet(channels: int = CHANNELS, width: int = WIDTH) -> UNet2DConditionModel:
    """Denoiser with cross-attention in every block: 14 key and value projections of text states ``width`` wide."""
    model = UNet2DConditionModel(
        sample_size=LATENT, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=width, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip
    model.set_attn_processor(AttnProcessor())  # on CPU twice as fast here as the fused kernel
    return model


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule, deterministic sampler."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, num_train_timesteps=1000,
    )  # fmt: skip
