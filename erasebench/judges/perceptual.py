"""LPIPS's formula, and the AlexNet it is measured with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erasebench.store.files import tensor_header

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
CONVOLUTIONS = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in -1..1


def layer_distances(ours: Sequence[Tensor], theirs: Sequence[Tensor], heads: Sequence[Tensor] | None = None) -> Tensor:
    """Distance of each pair of images by the activations of a network's layers (Zhang et al., arXiv 1801.03924, eq. 1).

    ``d = sum_l mean_hw sum_c w_lc (a_lchw / |a_lhw| - b_lchw / |b_lhw|)^2``, with 1e-8 under the root of the norm.

    Args:
        ours, theirs: one tensor [n, c, h, w] for each layer.
        heads: w, one [c] a layer, LPIPS's learned ones; None is 1 for all, the paper's uncalibrated distance.

    Returns:
        [n], >= 0.

    >>> import torch
    >>> a, b = torch.tensor([[[[3.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[5.0]]]])
    >>> layer_distances([a], [b]).tolist(), layer_distances([a], [7 * a]).tolist()  # directions count, not lengths
    ([2.0], [0.0])
    """
    total: Any = 0
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        a, b = (x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt() for x in (a, b))
        difference = (a - b).square()
        if heads is not None:
            difference = difference * heads[i][None, :, None, None]
        total = total + difference.sum(1).mean((1, 2))
    return total


def check_alexnet(path: str) -> None:
    """A file of weights holds AlexNet's five convolutions, judged by its header."""
    held = tensor_header(Path(path))[0]
    for place, shape in CONVOLUTIONS.items():
        if held.get(name := f"features.{place}.weight") != shape:
            raise ValueError(
                f"evaluator.lpips.weights {path} must hold torchvision's AlexNet, {name} {list(shape)}; got "
                f"{list(held.get(name, ())) or 'none'}; convert {URL}: python -m erasebench.convert "
                f"{URL.rpartition('/')[2]} alexnet.safetensors"
            )


@lru_cache(maxsize=1)
def alexnet(weights: str | None, device: str) -> tuple[Any, list[Tensor]]:
    """The five convolutions and LPIPS's heads [c] of version 0.1, which come with torchmetrics."""
    import torch
    from safetensors.torch import load_file
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models import alexnet as build

    if weights is None:
        try:  # tensors only, checked against the hash in the file's name
            state = torch.hub.load_state_dict_from_url(URL, weights_only=True, check_hash=True, map_location="cpu")
        except OSError as error:
            name = URL.rpartition("/")[2]
            raise OSError(
                f"weights of AlexNet cannot be fetched; connect once, or fetch {URL} elsewhere, then python -m "
                f"erasebench.convert {name} alexnet.safetensors and evaluator.lpips.weights=alexnet.safetensors"
            ) from error
    else:
        state = load_file(weights)
    network = build(weights=None).features
    kept = {k.removeprefix("features."): v.float() for k, v in state.items() if k.startswith("features.")}
    network.load_state_dict(kept)
    linear = _LPIPS(pretrained=True, net="alex", pnet_rand=True).lins  # read by torchmetrics from its own package
    heads = [lin.model[-1].weight.detach().flatten().to(device) for lin in linear]
    return network.eval().requires_grad_(False).to(device), heads


def activations(network: Any, pictures: Tensor) -> list[Tensor]:
    """After each ReLU, of pictures [n, 3, h, w] in -1..1; at least 64 x 64."""
    import torch

    shift, scale = (torch.tensor(x, device=pictures.device)[None, :, None, None] for x in (SHIFT, SCALE))
    found, x = [], (pictures - shift) / scale
    for layer in network[:12]:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            found.append(x.clone())
    return found


def to_tensor(image: Image.Image, size: int | None) -> Tensor:
    """[3, h, w] in -1..1; resized to size x size, unless it is that already, by PIL's bilinear filter."""
    import torch
    from PIL import Image as pil

    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), pil.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
