"""Write the trained parts as a Stable Diffusion folder plus the judges, fp16 safetensors, ready to ship."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from erasebench.emoji import networks
from erasebench.emoji.classifier import EmojiClassifier
from erasebench.emoji.training import artwork, parts, world

REFERENCE = 4096  # real pictures behind the shipped feature statistics


def _half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().half().contiguous() if v.is_floating_point() else v for k, v in tensors.items()}


def _real_pictures(art: artwork.Artwork, n: int) -> Tensor:
    """Fresh jittered pictures of the world [n, 3, 64, 64]: uniform over concepts, styles and backgrounds."""
    g = torch.Generator().manual_seed(2024)
    concept = torch.randint(len(world.things()), (n,), generator=g)
    style = torch.randint(len(world.STYLES), (n,), generator=g)
    places = artwork.colours()[torch.randint(len(world.BACKGROUNDS), (n,), generator=g)]
    return artwork.compose(art.world[concept, style], places, g)


@torch.inference_mode()
def _reference(model: EmojiClassifier, pictures: Tensor) -> dict[str, Tensor]:
    rounded = ((pictures + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    features = torch.cat([model(batch)[0] for batch in rounded.split(256)]).double()
    return {"mean": features.mean(0), "covariance": torch.cov(features.T), "count": torch.tensor(len(features))}


def _first(*paths: Path) -> Path:
    return next(p for p in paths if p.exists())


def pipeline(out: Path, unet_file: str = "final.safetensors") -> StableDiffusionPipeline:
    """The trained parts in ``out`` as a float32 Stable Diffusion pipeline."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    text, vae, unet = networks.text_encoder(tokenizer), parts.autoencoder(), parts.unet()
    both = load_file(out / "contrastive" / "final.safetensors")
    text.load_state_dict({k.removeprefix("text."): v for k, v in both.items() if k.startswith("text.")})
    vae.load_state_dict(load_file(_first(out / "decoder" / "final.safetensors", out / "refine" / "final.safetensors")))
    weights = load_file(out / "unet" / unet_file)
    unet.load_state_dict({k.removeprefix("ema."): v for k, v in weights.items() if k.startswith("ema.")} or weights)
    unet.set_default_attn_processor()
    std = float(load_file(out / "states" / "latents.safetensors")["std"])
    vae.register_to_config(scaling_factor=1 / std)
    return StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text.eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=parts.scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def export(out: Path, data: Path, seconds: dict[str, int], unet_file: str = "final.safetensors") -> Path:
    """Write ``out/weights`` (beside it first, then renamed) and return it."""
    target, part = out / "weights", out / "weights.part"
    shutil.rmtree(part, ignore_errors=True)
    pipeline(out, unet_file).to(dtype=torch.float16).save_pretrained(part, safe_serialization=True)
    shutil.copy(out / "tokenizer" / "merges.txt", part / "tokenizer")
    shutil.copy(out / "tokenizer" / "vocab.json", part / "tokenizer")
    config = part / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    both = load_file(out / "contrastive" / "final.safetensors")
    (part / "contrastive").mkdir()
    save_file(
        _half({k: v for k, v in both.items() if not k.startswith("text.")}), part / "contrastive" / "model.safetensors"
    )
    networks.vision_encoder().config.save_pretrained(part / "contrastive")
    labels = {"concept": [*world.things(), "other"], "style": list(world.STYLES), "background": list(world.BACKGROUNDS)}
    judge = EmojiClassifier(labels)
    judge.load_state_dict(load_file(out / "classifier" / "final.safetensors"))
    (part / "classifier").mkdir()
    save_file(_half(judge.state_dict()), part / "classifier" / "model.safetensors")
    (part / "classifier" / "config.json").write_text(
        json.dumps({"labels": labels, "training_seconds": seconds}, indent=1) + "\n"
    )
    (part / "reference").mkdir()
    save_file(
        _reference(judge.eval(), _real_pictures(artwork.load(data), REFERENCE)),
        part / "reference" / "features.safetensors",
    )
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    return target
