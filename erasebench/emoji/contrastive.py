"""The embedded world's CLIP: unit features of images and texts from the shipped contrastive model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from erasebench.emoji.classifier import WEIGHTS, EmojiJudge, in_batches, to_pictures
from erasebench.store.files import locate


@dataclass(frozen=True)
class EmojiCLIP:
    """Image and text features in one space; always the un-erased text encoder.

    >>> clip = load_contrastive()
    >>> clip.text_features(["a cat", "a kitty", "a bus"]).shape
    (3, 128)
    """

    model: Any
    tokenizer: Any

    @property
    def name(self) -> str:
        return "emoji_contrastive"

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Unit features float32 [n, 128]."""
        return in_batches(self.model.image, to_pictures(images)).numpy()

    def check(self, labels: Sequence[str]) -> None:
        """A ValueError for a label that is no concept of the embedded world, whose words are all this model knows."""
        EmojiJudge().check(labels)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Unit features float32 [n, 128]; over-long texts are cut at 77 tokens."""
        ids = self.tokenizer(list(texts), padding=True, truncation=True, max_length=77, return_tensors="pt").input_ids
        return self.model.words(ids).numpy()


@cache
def load_contrastive(weights: str | Path = WEIGHTS) -> EmojiCLIP:
    """The contrastive model of an embedded model's folder, float32, in evaluation mode.

    Shapes are those of the folder's ``text_encoder/config.json`` and ``contrastive/config.json``.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

    from erasebench.emoji import networks

    folder = locate(weights)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    vision_config = CLIPVisionConfig.from_pretrained(folder / "contrastive")
    model = networks.Contrastive(CLIPTextModel(text_config), CLIPVisionModel(vision_config))
    tensors = load_file(folder / "contrastive" / "model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    tensors |= {f"text.{k.removeprefix('text_model.')}": v for k, v in text.items()}
    expected = set(model.state_dict())
    if set(tensors) != expected:  # transformers has renamed the prefix before
        tensors = {k if k in expected else k.replace("text.", "text.text_model.", 1): v for k, v in tensors.items()}
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return EmojiCLIP(model.eval().requires_grad_(False), tokenizer)
