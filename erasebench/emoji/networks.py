"""The contrastive model of the embedded world: its text encoder is the pipeline's own, its vision encoder judges."""

from __future__ import annotations

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

WIDTH, TOKENS, PROJECTION = 320, 77, 128


def text_encoder(
    tokenizer: CLIPTokenizer, *, width: int = WIDTH, layers: int = 3, heads: int = 5, mlp: int = 960
) -> CLIPTextModel:
    """CLIP text transformer, causal: 3 layers of width 320 in both editions."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=TOKENS, projection_dim=PROJECTION,
            hidden_act="quick_gelu", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
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

    def __init__(self, text: CLIPTextModel, vision: CLIPVisionModel) -> None:
        super().__init__()
        self.text, self.vision = text, vision
        self.text_projection = nn.Linear(text.config.hidden_size, PROJECTION, bias=False)
        self.visual_projection = nn.Linear(vision.config.hidden_size, PROJECTION, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.659))

    def image(self, pictures: torch.Tensor) -> torch.Tensor:
        """Unit features [n, 128] of pictures [n, 3, any, any] in -1..1."""
        small = nn.functional.interpolate(pictures, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
        return nn.functional.normalize(self.visual_projection(self.vision(small).pooler_output), dim=-1)

    def words(self, ids: torch.Tensor) -> torch.Tensor:
        """Unit features [n, 128] of token ids [n, tokens]."""
        return nn.functional.normalize(self.text_projection(self.text(ids).pooler_output), dim=-1)
