"""Features of many images, on disk: what a network sees of a set or of a folder, without holding it in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from erasebench.limits import open_image
from erasebench.protocols import FeatureNetwork
from erasebench.store.images import ImageSet

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class Features(NamedTuple):
    """Features of the images that could be made: name -> row, and rows [n, d] float32 in a file without a name."""

    row: dict[str, int]
    values: np.ndarray

    def of(self, ids: Sequence[str]) -> np.ndarray:
        """Rows of some prompts, without a copy where these are all."""
        return self.values if list(ids) == list(self.row) else self.values[[self.row[i] for i in ids]]


@lru_cache(maxsize=2)
def features_of(network: FeatureNetwork, images: ImageSet) -> Features:
    """Features of every image that could be made, by prompt id; the last two sets are remembered."""
    batches = ([(p.id, image) for p, image, _ in batch if image is not None] for batch in images.batches())
    return _kept(network, batches)


@lru_cache(maxsize=1)
def features_of_folder(network: FeatureNetwork, folder: str) -> Features:
    """Features of every image of a folder (:func:`folder_batches`), by file name; the last folder is remembered."""
    return _kept(network, folder_batches(folder))


def _kept(network: FeatureNetwork, batches: Iterable[Sequence[tuple[str, Image.Image]]]) -> Features:
    names: list[str] = []
    width = 0
    with tempfile.TemporaryFile() as file:
        for batch in batches:
            if batch:
                found = np.ascontiguousarray(network.features([image for _, image in batch]), dtype=np.float32)
                if len(found) != len(batch):
                    raise ValueError(
                        f"features of {network.name} must have one row per image; got {len(found)} for {len(batch)}"
                    )
                file.write(found.tobytes())
                width = found.shape[1]
                names += [name for name, _ in batch]
        file.flush()
        rows = np.memmap(file, np.float32, "r", shape=(len(names), width)) if names else np.empty((0, 0), np.float32)
    return Features({name: row for row, name in enumerate(names)}, rows)


def image_files(folder: str | Path) -> list[Path]:
    """The images (png, jpg, jpeg, webp) of a folder by name.

    Raises:
        ValueError: no folder, or fewer than two images in it.
    """
    folder = Path(folder)
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS) if folder.is_dir() else []
    if len(files) < 2:
        raise ValueError(f"{folder} must hold at least two images (png, jpg, jpeg, webp); got {len(files)}")
    return files


def folder_batches(folder: str | Path, size: int = 64) -> Iterator[list[tuple[str, Image.Image]]]:
    """Name and RGB image of every image of a folder, ``size`` at a time, by name."""
    files = image_files(folder)
    for start in range(0, len(files), size):
        batch = []
        for file in files[start : start + size]:
            with open_image(file) as image:
                batch.append((file.name, image.convert("RGB")))
        yield batch
