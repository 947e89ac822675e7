"""Pictures as the latents that a UNet is trained on. Import from ``erasebench.diffusion``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from erasebench.diffusion.sampling import _decoder
from erasebench.types import Pipeline

AT_ONCE = 8  # pictures encoded at once


@torch.inference_mode()
def picture_latents(pipe: Pipeline, images: Sequence[Image.Image]) -> torch.Tensor:
    """The means of the autoencoder's posteriors, scaled as the UNet wants them: what the sampler would have ended in.

    Args:
        pipe: with an encoder in its VAE.
        images: RGB, all of one size.

    Returns:
        float32 [n, channels, height / factor, width / factor], on the CPU.
    """
    vae, found = _decoder(pipe), []
    for start in range(0, len(images), AT_ONCE):
        levels = np.stack([np.asarray(image.convert("RGB")) for image in images[start : start + AT_ONCE]])
        x = torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 127.5 - 1
        found.append(vae.encode(x.to(vae.device, vae.dtype)).latent_dist.mean.float().cpu())
    z = torch.cat(found)
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is not None and std is not None:
        z = (z - z.new_tensor(mean).view(1, -1, 1, 1)) / z.new_tensor(std).view(1, -1, 1, 1)
    return (z - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor
