"""How images reach Inception's 299 x 299: every convention that FIDs are published with, under its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 299
CONVENTIONS = ("torchmetrics", "torch_fidelity", "pytorch_fid", "clean_fid")


def resized(pixels: np.ndarray, convention: str, device: Any = "cpu") -> Tensor:
    """Images in Inception's size and range, as a package does it.

    - ``torchmetrics`` 1.9: bilinear with antialiasing, then (x - 128) / 128; the default of torchmetrics' FID.
    - ``torch_fidelity``: the bilinear of TensorFlow 1 (corners aligned to the top left), then (x - 128) / 128: what the
      original FID did (arXiv 1706.08500), torchmetrics with ``antialias=False`` and clean-fid's ``legacy_tensorflow``.
    - ``pytorch_fid``: bilinear between pixel centres without antialiasing, then 2 x / 255 - 1; clean-fid's
      ``legacy_pytorch``.
    - ``clean_fid``: PIL's bicubic, which antialiases, of each channel in float, cut to 0..255, then (x - 128) / 128;
      the mode ``clean`` (Parmar et al., arXiv 2104.11222).

    Args:
        pixels: [n, h, w, 3] uint8.
        convention: one of :data:`CONVENTIONS`.
        device: where the result is; PIL resizes on the CPU.

    Returns:
        [n, 3, 299, 299] float32, about -1..1.

    Raises:
        ValueError: an unknown convention.

    >>> white = np.full((1, 40, 30, 3), 255, dtype=np.uint8)
    >>> {name: float(resized(white, name).max()) for name in ("torchmetrics", "pytorch_fid", "clean_fid")}
    {'torchmetrics': 0.9921875, 'pytorch_fid': 1.0, 'clean_fid': 0.9921875}
    """
    import torch

    if convention == "clean_fid":
        rows = np.stack([[_bicubic(image[:, :, c]) for c in range(3)] for image in pixels])
        return (torch.from_numpy(rows).to(device) - 128) / 128
    x = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float()
    if convention == "pytorch_fid":
        return 2 * _bilinear(x / 255, False) - 1
    if convention == "torchmetrics":
        return (_bilinear(x, True) - 128) / 128
    if convention == "torch_fidelity":
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as tf1

        found: Tensor = tf1(x, size=(SIZE, SIZE), align_corners=False)
        return (found - 128) / 128
    raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}; got {convention!r}; correct its spelling")


def _bilinear(x: Tensor, antialias: bool) -> Tensor:
    from torch.nn.functional import interpolate

    found: Tensor = interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=antialias)
    return found


def _bicubic(channel: np.ndarray) -> np.ndarray:
    """[299, 299] float32 in 0..255 of one channel [h, w]."""
    from PIL import Image

    small = Image.fromarray(channel.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(small).clip(0, 255)
