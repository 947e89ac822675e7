"""The Inception network of the usual FID, and statistics of real images to compare with."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from erasebench import fields
from erasebench.devices import check_device, halving
from erasebench.judges.activations import folder_batches, image_files
from erasebench.judges.moments import Moments
from erasebench.judges.resizing import CONVENTIONS, resized
from erasebench.store.files import tensor_header

if TYPE_CHECKING:
    from PIL import Image

WIDTH = 2048


TRUNK = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
    "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool",
)  # fmt: skip


@lru_cache(maxsize=1)
def _network(weights: str | None, device: str) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError(
            "torch-fidelity is not installed; run pip install torch-fidelity for Inception features"
        ) from error
    import torch
    from safetensors.torch import load_file

    if weights is None:  # tensors only, checked against the hash in the file's name
        state = torch.hub.load_state_dict_from_url(
            URL_INCEPTION_V3, weights_only=True, check_hash=True, map_location="cpu"
        )
    else:
        state = load_file(weights)
    buffer = io.BytesIO()  # the constructor wants a file and reads it without restriction, so it gets one made here
    torch.save(state, buffer)
    buffer.seek(0)
    whole = FeatureExtractorInceptionV3("inception-v3-compat", [str(WIDTH)], buffer)
    trunk = torch.nn.Sequential(*(getattr(whole, layer) for layer in TRUNK), torch.nn.Flatten())
    return trunk.eval().to(device)


@dataclass(frozen=True, kw_only=True)
class Inception:
    """Pool features [n, 2048] of the Inception v3 of FID (TensorFlow's weights of 2015-12-05).

    The network is torch-fidelity's; pytorch-fid, clean-fid and torchmetrics run the same layers with the same weights
    and differ in how images are made 299 px wide (:func:`erasebench.judges.resizing.resized`). The weights are
    downloaded once unless a file is given.

    Args:
        convention: ``torchmetrics``, ``torch_fidelity`` (TensorFlow 1's, as the original), ``pytorch_fid`` or
            ``clean_fid``. They give different distances, so the choice is part of the name.
        weights: ``.safetensors`` file with the same tensors, or None to download.
        reference_file: statistics of real images written by :func:`write_reference` with the same convention, or None:
            then there is no distance to real images, only to the original model's.
        device: torch device; ``auto`` is a GPU if there is one.
        batch_size: images at a time.

    Raises:
        ValueError: an unknown convention; a file that is no ``.safetensors`` or does not exist; when checked, a
            reference of another convention.
    """

    needs: ClassVar[tuple[str, ...]] = ("torch_fidelity",)
    least_images: ClassVar[int] = WIDTH  # with fewer the covariance has no full rank, and FID speaks of N
    fetched: ClassVar[str] = "weights-inception-2015-12-05-6726825d.pth"  # name of the download in torch's cache
    fetch: ClassVar[str] = (
        "python -c 'import torch; from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as url; "
        "torch.hub.load_state_dict_from_url(url, weights_only=True, check_hash=True)'"
    )

    convention: str = "torchmetrics"
    weights: str | None = None
    reference_file: str | None = None
    device: str = "auto"
    batch_size: int = 32

    def __post_init__(self) -> None:
        fields.choice("features.convention", self.convention, CONVENTIONS)
        fields.integer("features.batch_size", self.batch_size, least=1)
        for name in ("weights", "reference_file"):
            if getattr(self, name) is not None:
                path = fields.path(f"features.{name}", getattr(self, name))
                if path.suffix != ".safetensors" or not path.is_file():
                    raise ValueError(
                        f"features.{name} must be an existing .safetensors file; got {getattr(self, name)!r}; check it"
                    )
                object.__setattr__(self, name, str(path))

    def check_files(self) -> None:
        """The weights are safetensors and the reference holds the statistics it should, judged by their headers."""
        check_device("features.device", self.device)
        if self.weights is not None:
            tensor_header(Path(self.weights))
        if self.reference_file is not None:
            held, said = tensor_header(Path(self.reference_file))
            needed = {"mean": (WIDTH,), "covariance": (WIDTH, WIDTH), "count": (1,)}
            if wrong := [name for name, shape in needed.items() if held.get(name) != shape]:
                raise ValueError(
                    f"features.reference_file {self.reference_file} must hold {wrong[0]} {list(needed[wrong[0]])}; got "
                    f"{list(held.get(wrong[0], ())) or 'none'}; write it with judges.inception.write_reference"
                )
            if said.get("network", self.name) != self.name:
                raise ValueError(
                    f"features.reference_file {self.reference_file} must be of {self.name}; got one of "
                    f"{said['network']}; choose that convention, or write the reference again"
                )

    @property
    def name(self) -> str:
        return f"inception-2015-12-05.{self.convention}"

    @property
    def reference_name(self) -> str:
        """Stem of the reference file, e.g. ``coco_val2014_30k``."""
        return Path(self.reference_file).stem if self.reference_file else "real"

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Activations [n, 2048] float32; images of any size, each resized by the network."""
        import torch

        device = check_device("features.device", self.device)
        network = _network(self.weights, device)
        rows = [np.zeros((0, WIDTH), dtype=np.float32)]

        def look(batch: Sequence[np.ndarray]) -> np.ndarray:
            with torch.inference_mode():
                found = network(resized(np.stack(batch), self.convention, device))
            return found.float().cpu().numpy()

        for same in _same_size(images, self.batch_size):
            rows += halving(look, same, self.batch_size, "images for Inception", device)
        return np.concatenate(rows)

    def reference(self) -> tuple[np.ndarray, np.ndarray, int] | None:
        """Mean [2048], covariance [2048, 2048] float64 and count from the reference file."""
        from safetensors.numpy import load_file

        if self.reference_file is None:
            return None
        found = load_file(self.reference_file)
        return found["mean"], found["covariance"], int(found["count"][0])


def _same_size(images: Sequence[Image.Image], most: int) -> Iterator[list[np.ndarray]]:
    """RGB arrays [h, w, 3] in order, in runs of equal size and at most ``most``."""
    batch: list[np.ndarray] = []
    for image in images:
        pixels = np.array(image.convert("RGB"))
        if batch and (len(batch) == most or batch[0].shape != pixels.shape):
            yield batch
            batch = []
        batch.append(pixels)
    if batch:
        yield batch


def write_reference(network: Inception, folder: str | Path, path: str | Path) -> int:
    """Measure the images (png, jpg, jpeg, webp) of a folder once and for all.

    Args:
        network: gives the features.
        folder: real images, e.g. those of COCO val2014 whose captions are drawn.
        path: ``.safetensors`` file to write: mean [2048], covariance [2048, 2048] float64, count [1]; its
            metadata names the network with its convention.

    Returns:
        The number of images.

    Raises:
        ValueError: the folder holds fewer than two images.
    """
    from safetensors.numpy import save_file

    files, found = image_files(folder), Moments(WIDTH)
    for batch in folder_batches(folder, network.batch_size):
        found.add(network.features([image for _, image in batch]))
    held = {"mean": found.mean, "covariance": found.covariance(), "count": np.array([found.count])}
    save_file(held, path, {"network": network.name})
    return len(files)
