"""CLIP-like models behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from erasebench import fields
from erasebench.devices import check_device, halving
from erasebench.store.files import tensor_header

if TYPE_CHECKING:
    import torch
    from PIL import Image


class ImageText(Protocol):
    """A model that puts images and texts into one space; hashable, ``name`` carries architecture and weights."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str: ...

    def image_features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, p] float32, rows of length 1."""
        ...

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """[n, p] float32, rows of length 1; a text that is too long is cut."""
        ...


@dataclass(frozen=True)
class ImageSide:
    """The image half of a CLIP-like model as a feature network."""

    model: ImageText

    @property
    def name(self) -> str:
        return self.model.name

    def check_files(self) -> None:
        if hasattr(self.model, "check_files"):
            self.model.check_files()

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, p] float32, rows of length 1."""
        return self.model.image_features(images)


def _unit(features: Callable[[Any], torch.Tensor], items: Sequence[Any], size: int, what: str) -> np.ndarray:
    """Features [n, p] of items in batches of at most ``size``, float32 rows of length 1."""
    import torch

    chunks = [chunk.float().cpu() for chunk in halving(features, items, size, what)]
    return torch.nn.functional.normalize(torch.cat(chunks), dim=-1).numpy()


def _home(name: str, value: str) -> str:
    """A path with ``~`` expanded; a hub id or a tag as it is."""
    return str(fields.path(name, value)) if fields.text(name, value, empty=False).startswith("~") else value


def _place(network: Any) -> Any:
    """The device a network's weights are on."""
    return next(network.parameters()).device


# --- open_clip ---


@lru_cache(maxsize=2)
def _open_clip(model: str, pretrained: str, quick_gelu: bool | None, device: str) -> tuple[Any, Any, Any]:
    import open_clip

    if model not in open_clip.list_models():
        raise ValueError(f"model must be one of open_clip.list_models(); got {model!r}, e.g. ViT-L-14 or ViT-B-32")
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag and not Path(pretrained).is_file():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise ValueError(f"pretrained must be a tag of {model} ({known}) or a file; got {pretrained!r}")
    try:
        file = open_clip.download_pretrained(tag) if tag else pretrained
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"weights of {model} {pretrained} cannot be fetched; connect once or give a .safetensors file"
        ) from error
    if not file.endswith(".safetensors"):
        raise ValueError(
            f"weights of {model} must be .safetensors, pickle is refused; got {Path(file).name}; convert it"
        )
    if quick_gelu is None:
        quick_gelu = bool(tag.get("quick_gelu")) or "quickgelu" in model
    network, _, preprocess = open_clip.create_model_and_transforms(
        model, pretrained=pretrained, force_quick_gelu=quick_gelu, device=device
    )
    return network.eval(), preprocess, open_clip.get_tokenizer(model)


@dataclass(frozen=True, kw_only=True)
class OpenClip:
    """A model of open_clip by its name and weights, loaded when first used and shared by equal instances.

    The activation follows the weights: OpenAI's were trained with QuickGELU, which open_clip otherwise only warns about
    (without it the same weights give other scores).

    Args:
        model: architecture, one of ``open_clip.list_models()``.
        pretrained: tag of its weights, or a ``.safetensors`` file.
        quick_gelu: activation; None is what a tag or the architecture's name (``ViT-L-14-quickgelu``) says. A file does
            not say with which its weights were trained, so it must be given with one: true for OpenAI's.
        device: torch device; ``auto`` is a GPU if there is one.
        batch_size: images or texts at a time.

    Raises:
        ValueError: weights in a pickle format, or from a file without their activation; when first used, an unknown
            model or tag.
        OSError: when first used, weights that cannot be fetched.

    >>> OpenClip(model="ViT-B-32").name
    'ViT-B-32.openai'
    """

    model: str = "ViT-L-14"
    pretrained: str = "openai"
    quick_gelu: bool | None = None
    device: str = "auto"
    batch_size: int = 32

    def __post_init__(self) -> None:
        fields.text("clip.model", self.model, empty=False)
        fields.integer("clip.batch_size", self.batch_size, least=1)
        object.__setattr__(self, "pretrained", _home("clip.pretrained", self.pretrained))
        if Path(self.pretrained).suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
            raise ValueError(
                f"clip.pretrained must be a tag or a .safetensors file, pickle is refused; got {self.pretrained!r}; "
                f"convert it: python -m erasebench.convert {self.pretrained} OUT.safetensors"
            )
        if self.quick_gelu is not None:
            fields.flag("clip.quick_gelu", self.quick_gelu)
        elif Path(self.pretrained).suffix == ".safetensors" and "quickgelu" not in self.model:
            raise ValueError(
                f"clip.quick_gelu must be true or false for weights from a file; got null for {self.pretrained}; true "
                "if they are OpenAI's (the wrong one changes every score), false for most others"
            )

    def check_files(self) -> None:
        """A file of weights is there and is safetensors; a tag is looked up when it is first used."""
        check_device("clip.device", self.device)
        if Path(self.pretrained).suffix == ".safetensors":
            tensor_header(Path(self.pretrained))

    @property
    def name(self) -> str:
        return f"{self.model}.{Path(self.pretrained).name.removesuffix('.safetensors')}"

    def _load(self) -> tuple[Any, Any, Any]:
        return _open_clip(self.model, self.pretrained, self.quick_gelu, check_device("clip.device", self.device))

    def image_features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, p] float32, rows of length 1, after the model's own resizing and normalisation."""
        import torch

        network, preprocess, _ = self._load()
        with torch.inference_mode():

            def features(batch: Sequence[Image.Image]) -> torch.Tensor:
                pixels = torch.stack([preprocess(image.convert("RGB")) for image in batch])
                return network.encode_image(pixels.to(_place(network)))

            return _unit(features, images, self.batch_size, "images for CLIP")

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """[n, p] float32, rows of length 1; texts are cut to the context length, the end token kept."""
        import torch

        network, _, tokenise = self._load()
        with torch.inference_mode():

            def features(batch: Sequence[str]) -> torch.Tensor:
                return network.encode_text(tokenise(list(batch)).to(_place(network)))

            return _unit(features, texts, self.batch_size, "texts for CLIP")


# --- transformers ---


@lru_cache(maxsize=2)
def _transformers_clip(path: str, revision: str | None, device: str) -> tuple[Any, Any, Any]:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    network = CLIPModel.from_pretrained(path, revision=revision, use_safetensors=True, dtype="float32")
    processor = CLIPImageProcessor.from_pretrained(path, revision=revision)
    return network.eval().to(device), processor, CLIPTokenizer.from_pretrained(path, revision=revision)


def _projected(output: Any) -> torch.Tensor:
    """Projected features: a tensor up to transformers 4, an object with ``pooler_output`` since 5."""
    pooled: torch.Tensor = getattr(output, "pooler_output", output)
    return pooled


@dataclass(frozen=True, kw_only=True)
class TransformersClip:
    """A CLIPModel of transformers from a folder, or from the hub at a pinned revision.

    Args:
        path: folder with config, ``model.safetensors``, tokenizer and preprocessor, or a hub id.
        revision: commit hash, required for a hub id.
        device: torch device; ``auto`` is a GPU if there is one.
        batch_size: images or texts at a time.

    Raises:
        ValueError: a hub id without a revision.
    """

    path: str
    revision: str | None = None
    device: str = "auto"
    batch_size: int = 32

    def __post_init__(self) -> None:
        fields.integer("clip.batch_size", self.batch_size, least=1)
        object.__setattr__(self, "path", _home("clip.path", self.path))
        if not Path(self.path).is_dir() and self.revision is None:
            raise ValueError(f"clip.path must be a folder, or a hub id with revision=COMMIT; got {self.path!r}")

    def check_files(self) -> None:
        """A folder holds configs and sound weights; a hub id is looked up when it is first used."""
        check_device("clip.device", self.device)
        folder = Path(self.path)
        if not folder.is_dir():
            return
        if missing := [n for n in ("config.json", "preprocessor_config.json") if not (folder / n).is_file()]:
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
            raise FileNotFoundError(
                f"clip.path {folder} must be a folder of a CLIPModel; it has no {missing[0]}; found {found}; save the "
                "model and its processor there"
            )
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"clip.path {folder} must hold safetensors; found none; save the model again")
        for file in files:
            tensor_header(file)

    @property
    def name(self) -> str:
        """Last part of the path, and the first digits of the revision."""
        return Path(self.path).name + (f".{self.revision[:8]}" if self.revision else "")

    def _load(self) -> tuple[Any, Any, Any]:
        return _transformers_clip(self.path, self.revision, check_device("clip.device", self.device))

    def image_features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, p] float32, rows of length 1."""
        import torch

        network, processor, _ = self._load()
        with torch.inference_mode():

            def features(batch: Sequence[Image.Image]) -> torch.Tensor:
                pixels = processor([image.convert("RGB") for image in batch], return_tensors="pt")
                return _projected(network.get_image_features(**pixels.to(_place(network))))

            return _unit(features, images, self.batch_size, "images for CLIP")

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """[n, p] float32, rows of length 1; texts are cut to the context length, the end token kept."""
        import torch

        network, _, tokenise = self._load()
        length = network.config.text_config.max_position_embeddings
        with torch.inference_mode():

            def features(batch: Sequence[str]) -> torch.Tensor:
                tokens = tokenise(list(batch), padding=True, truncation=True, max_length=length, return_tensors="pt")
                return _projected(network.get_text_features(**tokens.to(_place(network))))

            return _unit(features, texts, self.batch_size, "texts for CLIP")
