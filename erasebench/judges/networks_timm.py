"""A classifier of timm with weights from a file: UnlearnCanvas's of styles and of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erasebench import fields
from erasebench.devices import check_device, halving
from erasebench.judges.networks import _finite, labels_in, normalised
from erasebench.store.files import locate, tensor_header

if TYPE_CHECKING:
    from PIL import Image


@lru_cache(maxsize=2)  # UnlearnCanvas asks two
def _timm(model: str, weights: str, classes: int, device: str) -> Any:
    import timm
    from safetensors.torch import load_file

    network = timm.create_model(model, pretrained=False, num_classes=classes)
    try:
        network.load_state_dict(load_file(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"network.weights {weights} must be of {model} with {classes} classes: {reason}; check model and labels"
        ) from None
    return network.eval().requires_grad_(False).to(device)


@dataclass(frozen=True, kw_only=True)
class TimmClassifier:
    """An image classifier of timm; the defaults are how UnlearnCanvas (arXiv 2402.11846) runs its two.

    Images are squashed to ``side`` x ``side`` by PIL's bilinear filter and scaled to -1..1, as in its program. Its
    checkpoints are pickles with the tensors under ``model_state_dict``: ``python -m erasebench.convert style50_cls.pth
    style.safetensors`` keeps these.

    Args:
        weights: ``.safetensors`` with timm's names, the head among them.
        labels_file: JSON list of the labels in the order of the outputs.
        model: of timm's; UnlearnCanvas's is ``vit_large_patch16_224.augreg_in21k``.
        side: pixels.
        mean, std: of each channel in 0..1.
        device: torch device; ``auto`` is a GPU if there is one.
        batch_size: images at a time.

    Raises:
        ValueError: a file of another kind, or labels that are no list of different texts; when first used, weights of
            another model.
    """

    weights: str
    labels_file: str
    model: str = "vit_large_patch16_224.augreg_in21k"
    side: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    device: str = "auto"
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, ending in (("weights", ".safetensors"), ("labels_file", ".json")):
            path = locate(fields.path(f"network.{name}", getattr(self, name)))
            if path.suffix != ending or not path.is_file():
                raise ValueError(f"network.{name} must be an existing {ending} file; got {getattr(self, name)!r}")
            object.__setattr__(self, name, str(path))
        fields.text("network.model", self.model, empty=False)
        for name, least in (("side", 8), ("batch_size", 1)):
            fields.integer(f"network.{name}", getattr(self, name), least=least)
        for name in ("mean", "std"):
            object.__setattr__(self, name, fields.numbers(f"network.{name}", getattr(self, name)))
        _ = self.labels

    def check_files(self) -> None:
        """The weights are sound, and timm has the model."""
        import timm

        check_device("network.device", self.device)
        tensor_header(Path(self.weights))
        if not timm.is_model(self.model):
            raise ValueError(
                f"network.model must be one of timm.list_models(); got {self.model!r}; correct its spelling"
            )

    @property
    def name(self) -> str:
        return f"{self.model.partition('.')[0]}.{Path(self.weights).stem}"

    @property
    def labels(self) -> tuple[str, ...]:
        return labels_in(self.labels_file)

    def probabilities(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, k] float64."""
        import torch

        device = check_device("network.device", self.device)
        network = _timm(self.model, self.weights, len(self.labels), device)

        def look(batch: Sequence[Image.Image]) -> np.ndarray:
            pixels = np.stack([normalised(image, self.side, self.mean, self.std, "rgb") for image in batch])
            with torch.inference_mode():
                return network(torch.from_numpy(pixels).to(device)).float().cpu().numpy()

        found = list(halving(look, images, self.batch_size, f"images for {self.name}", device))
        return _finite(np.concatenate(found), self.name, len(self.labels))
