"""Features of many images, on disk: what a network sees of a set or of a folder, without holding it in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from erasebench.limits import open_image
from erasebench.protocols import FeatureNetwork, Watcher
from erasebench.store.images import ImageSet
from erasebench.types import Status

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class Features(NamedTuple):
    """Features of the images that could be made: name -> row, and rows [n, d] float32 in a file without a name."""

    row: dict[str, int]
    values: np.ndarray
    status: dict[str, Status] = {}  # noqa: RUF012  of the images that could not be made

    def of(self, ids: Sequence[str]) -> np.ndarray:
        """Rows of some prompts, without a copy where these are all."""
        return self.values if list(ids) == list(self.row) else self.values[[self.row[i] for i in ids]]


HELD = 6  # image sets whose features are remembered
_held: dict[tuple[FeatureNetwork, ImageSet], Features] = {}


def features_of(network: FeatureNetwork, images: ImageSet) -> Features:
    """Features of every image that could be made, by prompt id; the last sets are remembered."""
    if (network, images) not in _held:
        watcher = watching(network, images)
        next(watcher)
        for batch in images.batches():
            watcher.send(batch)
        next(watcher, None)  # sends None, which ends it
    return _held[network, images]


def watching(network: FeatureNetwork, images: ImageSet) -> Watcher:
    """Keep features of the images of a set, which it is sent in batches; None ends it and has them remembered."""
    status: dict[str, Status] = {}
    with _Kept(network) as kept:
        while (batch := (yield)) is not None:
            kept.add([(prompt.id, image) for prompt, image, _ in batch if image is not None])
            status |= {prompt.id: why for prompt, image, why in batch if image is None}
        found = kept.features()._replace(status=status)
    while len(_held) >= HELD:
        del _held[next(iter(_held))]
    _held[network, images] = found


@lru_cache(maxsize=1)
def features_of_folder(network: FeatureNetwork, folder: str) -> Features:
    """Features of every image of a folder (:func:`folder_batches`), by file name; the last folder is remembered."""
    with _Kept(network) as kept:
        for batch in folder_batches(folder):
            kept.add(batch)
        return kept.features()


class _Kept:
    """Features on their way into a file without a name."""

    def __init__(self, network: FeatureNetwork) -> None:
        self._network, self._names, self._width = network, list[str](), 0

    def __enter__(self) -> _Kept:
        self._file = tempfile.TemporaryFile()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, batch: Sequence[tuple[str, Image.Image]]) -> None:
        """Names and images."""
        if not batch:
            return
        found = np.ascontiguousarray(self._network.features([image for _, image in batch]), dtype=np.float32)
        if len(found) != len(batch):
            raise ValueError(
                f"features of {self._network.name} must have one row per image; got {len(found)} for {len(batch)}"
            )
        if found.ndim != 2 or not np.isfinite(found).all():
            raise ValueError(f"features of {self._network.name} must be finite rows; got others; check its weights")
        self._file.write(found.tobytes())
        self._width = found.shape[1]
        self._names += [name for name, _ in batch]

    def features(self) -> Features:
        """All of them."""
        self._file.flush()
        shape = (len(self._names), self._width)
        rows = np.memmap(self._file, np.float32, "r", shape=shape) if self._names else np.empty((0, 0), np.float32)
        return Features({name: row for row, name in enumerate(self._names)}, rows)


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
