"""Image classifiers: torchvision's of ImageNet, any of transformers in a folder, any as an ONNX file."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from erasebench import fields
from erasebench.devices import check_device, halving
from erasebench.store.files import locate, tensor_header

if TYPE_CHECKING:
    from PIL import Image


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of sum 1, float64."""
    odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _finite(logits: np.ndarray, name: str, k: int) -> np.ndarray:
    """Logits as they should be: a broken network gives no number."""
    if logits.ndim != 2 or logits.shape[1] != k or not np.isfinite(logits).all():
        raise ValueError(
            f"{name} must give {k} finite numbers an image; got shape {logits.shape}; check its weights and labels"
        )
    return softmax(logits)


def labels_in(file: str) -> tuple[str, ...]:
    """A JSON list of at least two different labels."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, list) or len(found) < 2 or len({str(x) for x in found}) < len(found):
        raise ValueError(f"network.labels_file {file} must be a JSON list of different labels; got none; write one")
    return tuple(map(str, found))


def normalised(image: Image.Image, side: int, mean: Sequence[float], std: Sequence[float], order: str) -> np.ndarray:
    """[3, side, side] float32: squashed by PIL's bilinear filter, scaled to 0..1, minus mean, over std."""
    from PIL import Image as pil

    small = image.convert("RGB").resize((side, side), pil.Resampling.BILINEAR)
    x = np.asarray(small, dtype=np.float32)[..., :: 1 if order == "rgb" else -1] / 255
    x = (x - np.array(mean, dtype=np.float32)) / np.array(std, dtype=np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


# --- torchvision ---


@lru_cache(maxsize=1)
def _torchvision(architecture: str, kind: str, version: str, weights: str | None, device: str) -> tuple[Any, Any]:
    import torch
    from safetensors.torch import load_file
    from torchvision import models

    facts = getattr(getattr(models, kind), version)
    if weights is None:  # tensors only, checked against the hash in the file's name
        try:
            state = torch.hub.load_state_dict_from_url(
                facts.url, weights_only=True, check_hash=True, map_location="cpu"
            )
        except OSError as error:
            file = facts.url.rpartition("/")[2]
            raise OSError(
                f"weights of {architecture} cannot be fetched; connect once, or fetch {facts.url} elsewhere, then "
                f"python -m erasebench.convert {file} {architecture}.safetensors and network.weights=FILE"
            ) from error
    else:
        state = load_file(weights)
    network = getattr(models, architecture)(weights=None)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False).to(device), facts.transforms()


@dataclass(frozen=True, kw_only=True)
class Torchvision:
    """A classifier of ImageNet's 1,000 classes by torchvision, with torchvision's own resize for its weights.

    Args:
        weights: ``.safetensors`` with torchvision's names, or None to download.
        device: torch device; ``auto`` is a GPU if there is one.
        batch_size: images at a time.

    Raises:
        ValueError: a file of another kind.
    """

    architecture: ClassVar[str]
    kind: ClassVar[str]  # torchvision's enumeration of weights
    version: ClassVar[str]
    head: ClassVar[tuple[str, tuple[int, ...]]]
    fetched: ClassVar[str]  # name of the download

    weights: str | None = None
    device: str = "auto"
    batch_size: int = 32

    def __post_init__(self) -> None:
        fields.integer("network.batch_size", self.batch_size, least=1)
        if self.weights is not None:
            path = locate(fields.path("network.weights", self.weights))
            if path.suffix != ".safetensors" or not path.is_file():
                raise ValueError(
                    f"network.weights must be an existing .safetensors file; got {self.weights!r}; convert "
                    f"torchvision's: python -m erasebench.convert {self.fetched} {self.architecture}.safetensors"
                )
            object.__setattr__(self, "weights", str(path))

    def check_files(self) -> None:
        """The weights are this architecture's, judged by their header."""
        check_device("network.device", self.device)
        if self.weights is not None:
            held, (name, shape) = tensor_header(Path(self.weights))[0], self.head
            if held.get(name) != shape:
                raise ValueError(
                    f"network.weights {self.weights} must hold torchvision's {self.architecture}, {name} {list(shape)}"
                    f"; got {list(held.get(name, ())) or 'none'}; convert {self.fetched}"
                )

    @property
    def name(self) -> str:
        return f"{self.architecture}_{self.version.lower()}"

    @property
    def labels(self) -> tuple[str, ...]:
        models: Any = importlib.import_module("torchvision.models")
        return tuple(getattr(getattr(models, self.kind), self.version).meta["categories"])

    def probabilities(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, 1000] float64; images of any size."""
        import torch

        device = check_device("network.device", self.device)
        network, transform = _torchvision(self.architecture, self.kind, self.version, self.weights, device)

        def look(batch: Sequence[Image.Image]) -> np.ndarray:
            pixels = torch.stack([transform(image.convert("RGB")) for image in batch])
            with torch.inference_mode():
                return network(pixels.to(device)).float().cpu().numpy()

        found = list(halving(look, images, self.batch_size, f"images for {self.name}", device))
        return _finite(np.concatenate(found), self.name, len(self.labels))


class ResNet50V1(Torchvision):
    """torchvision's first ResNet-50 (He et al., arXiv 1512.03385); 76.1 % top-1 on ImageNet, as torchvision says."""

    architecture, kind, version = "resnet50", "ResNet50_Weights", "IMAGENET1K_V1"
    head = ("fc.weight", (1000, 2048))
    fetched = "resnet50-0676ba61.pth"
    fetch = (
        "curl -LO --create-dirs --output-dir ~/.cache/torch/hub/checkpoints "
        "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    )


class ResNet50V2(Torchvision):
    """torchvision's second ResNet-50, ``DEFAULT``, 80.9 %; "When Are Concepts Erased" (arXiv 2505.17013) uses it."""

    architecture, kind, version = "resnet50", "ResNet50_Weights", "IMAGENET1K_V2"
    head = ("fc.weight", (1000, 2048))
    fetched = "resnet50-11ad3fa6.pth"
    fetch = (
        "curl -LO --create-dirs --output-dir ~/.cache/torch/hub/checkpoints "
        "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    )


class ViTB16(Torchvision):
    """torchvision's ViT-B/16 (Dosovitskiy et al., arXiv 2010.11929), 81.1 %."""

    architecture, kind, version = "vit_b_16", "ViT_B_16_Weights", "IMAGENET1K_V1"
    head = ("heads.head.weight", (1000, 768))
    fetched = "vit_b_16-c867db91.pth"
    fetch = (
        "curl -LO --create-dirs --output-dir ~/.cache/torch/hub/checkpoints "
        "https://download.pytorch.org/models/vit_b_16-c867db91.pth"
    )


# --- transformers ---


@lru_cache(maxsize=1)
def _folder(path: str, revision: str | None, device: str) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    network = AutoModelForImageClassification.from_pretrained(
        path, revision=revision, use_safetensors=True, dtype="float32"
    )
    return network.eval().to(device), AutoImageProcessor.from_pretrained(path, revision=revision)


@lru_cache(maxsize=8)
def _folder_labels(path: str, revision: str | None) -> tuple[str, ...]:
    from transformers import AutoConfig

    named = AutoConfig.from_pretrained(path, revision=revision).id2label
    return tuple(str(named[i]) for i in range(len(named)))


@dataclass(frozen=True, kw_only=True)
class ClassifierFolder:
    """An image classifier of transformers from a folder or the hub: microsoft/resnet-50, a ViT over 129 artists, yours.

    Args:
        path: folder with ``config.json`` (its ``id2label`` are the labels), ``model.safetensors`` and
            ``preprocessor_config.json``, or a hub id.
        revision: commit hash, required for a hub id.
        device: torch device; ``auto`` is a GPU if there is one.
        batch_size: images at a time.

    Raises:
        ValueError: a hub id without a revision.
    """

    path: str
    revision: str | None = None
    device: str = "auto"
    batch_size: int = 32

    def __post_init__(self) -> None:
        fields.integer("network.batch_size", self.batch_size, least=1)
        path = fields.path("network.path", self.path)
        if path.is_dir():
            object.__setattr__(self, "path", str(path))
        elif self.revision is None:
            raise ValueError(f"network.path must be a folder, or a hub id with revision=COMMIT; got {self.path!r}")

    def check_files(self) -> None:
        """A folder holds configs and sound weights."""
        check_device("network.device", self.device)
        folder = Path(self.path)
        if not folder.is_dir():
            return
        for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
            if not (folder / file).is_file():
                raise FileNotFoundError(
                    f"network.path {folder} must be a folder of a classifier of transformers; it has no {file}; save "
                    "the model and its processor there"
                )
        tensor_header(folder / "model.safetensors")

    @property
    def name(self) -> str:
        """Last part of the path, and the first digits of the revision."""
        return Path(self.path).name + (f".{self.revision[:8]}" if self.revision else "")

    @property
    def labels(self) -> tuple[str, ...]:
        return _folder_labels(self.path, self.revision)

    def probabilities(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, k] float64, after the processor's own resizing."""
        import torch

        device = check_device("network.device", self.device)
        network, processor = _folder(self.path, self.revision, device)

        def look(batch: Sequence[Image.Image]) -> np.ndarray:
            pixels = processor([image.convert("RGB") for image in batch], return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                return network(pixel_values=pixels.to(device)).logits.float().cpu().numpy()

        found = list(halving(look, images, self.batch_size, f"images for {self.name}", device))
        return _finite(np.concatenate(found), self.name, len(self.labels))


# --- ONNX ---


@lru_cache(maxsize=2)
def _session(path: str) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception class of its own for each kind of broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"network.path must be an ONNX model; {path} is none: {reason}; export it again") from None


@dataclass(frozen=True, kw_only=True)
class OnnxClassifier:
    """An image classifier as an ONNX file: one input [n, 3, side, side] float32, first output logits [n, k].

    Args:
        path: ``.onnx`` file.
        labels_file: JSON list of the k labels in the order of the outputs.
        side: pixels; an image is resized to side x side by PIL's bilinear filter.
        mean, std: of each channel in 0..1, what pixels are normalised by.
        order: ``rgb`` or ``bgr``, as the network was trained.
        batch_size: images at a time.

    Raises:
        ValueError: a file of another kind, or labels that are no list of different texts.
        ImportError: onnxruntime is not installed.
    """

    needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    path: str
    labels_file: str
    side: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    order: str = "rgb"
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, ending in (("path", ".onnx"), ("labels_file", ".json")):
            path = locate(fields.path(f"network.{name}", getattr(self, name)))
            if path.suffix != ending or not path.is_file():
                raise ValueError(f"network.{name} must be an existing {ending} file; got {getattr(self, name)!r}")
            object.__setattr__(self, name, str(path))
        for name, least in (("side", 8), ("batch_size", 1)):
            fields.integer(f"network.{name}", getattr(self, name), least=least)
        for name in ("mean", "std"):
            found = fields.numbers(f"network.{name}", getattr(self, name))
            if len(found) != 3 or (name == "std" and min(found) <= 0):
                raise ValueError(f"network.{name} must be three numbers, one a channel; got {list(found)}")
            object.__setattr__(self, name, found)
        fields.choice("network.order", self.order, ("rgb", "bgr"))
        _ = self.labels

    def check_files(self) -> None:
        """Open the model."""
        _session(self.path)

    @property
    def name(self) -> str:
        return f"{Path(self.path).stem}.{self.order}"

    @property
    def labels(self) -> tuple[str, ...]:
        return labels_in(self.labels_file)

    def probabilities(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, k] float64."""
        session, name = _session(self.path), self.name
        found = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            pixels = np.stack([normalised(image, self.side, self.mean, self.std, self.order) for image in batch])
            found.append(session.run(None, {session.get_inputs()[0].name: pixels})[0])
        return _finite(np.concatenate(found), name, len(self.labels))
