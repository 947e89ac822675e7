"""Write the second edition as a Stable Diffusion folder with its judges, and the oracles as differences to its UNet.

The classifier and the statistics of real pictures are the first edition's, copied: one judge for both editions, which
neither was trained against.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor

from erasebench.diffusion import differences
from erasebench.emoji.classifier import WEIGHTS
from erasebench.emoji.training import parts
from erasebench.emoji.training.second import painting, reading, texts
from erasebench.store.files import locate


def _half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().half().contiguous() if v.is_floating_point() else v for k, v in tensors.items()}


def pipeline(out: Path, variant: str) -> StableDiffusionPipeline:
    """The trained parts in ``out`` as a float32 Stable Diffusion pipeline."""
    tok = texts.tokenizer(out)
    text = reading.load(out / "contrastive" / "final.safetensors", tok, variant).text
    vae, unet = painting.autoencoder(), painting.unet(text.config.hidden_size)
    vae.load_state_dict(load_file(out / "autoencoder" / "final.safetensors"))
    unet.load_state_dict(load_file(out / "unet" / "final.safetensors"))
    unet.set_attn_processor(AttnProcessor())
    vae.register_to_config(scaling_factor=1 / float(load_file(out / "states" / "latents.safetensors")["std"]))
    return StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text.eval(), tokenizer=tok, unet=unet.eval(), scheduler=parts.scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def export(out: Path, variant: str) -> Path:
    """Write ``out/weights2`` and ``out/oracles`` (each beside it first, then renamed); returns the former."""
    target, part = out / "weights2", out / "weights2.part"
    shutil.rmtree(part, ignore_errors=True)
    pipeline(out, variant).to(dtype=torch.float16).save_pretrained(part, safe_serialization=True)
    for name in ("merges.txt", "vocab.json"):
        shutil.copy(out / "tokenizer" / name, part / "tokenizer")
    config = part / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    model = reading.load(out / "contrastive" / "final.safetensors", texts.tokenizer(out), variant)
    (part / "contrastive").mkdir()
    others = {k: v for k, v in model.state_dict().items() if not k.startswith("text.")}
    save_file(_half(others), part / "contrastive" / "model.safetensors")
    model.vision.config.save_pretrained(part / "contrastive")
    for name in ("classifier", "reference"):
        shutil.copytree(locate(WEIGHTS) / name, part / name)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    _oracles(out, target / "unet" / "diffusion_pytorch_model.safetensors")
    return target


def _oracles(out: Path, unet: Path) -> None:
    base, digest = load_file(unet), hashlib.sha256(unet.read_bytes()).hexdigest()
    folder = out / "oracles"
    folder.mkdir(exist_ok=True)
    for name in painting.ORACLES:
        trained = out / f"oracle_{name}" / "final.safetensors"
        if trained.exists():
            stored = differences.pack(load_file(trained), base)
            save_file(stored, folder / f"{name}.safetensors", metadata={"base": digest, "concept": name})
