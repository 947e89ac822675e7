"""Images of a model, in a folder that grows: Parquet shards named after the prompts inside, read lazily.

Another run adds files, and two writers at once write the same thing under the same name.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from erasebench.limits import open_image, open_parquet
from erasebench.store.cache import key, plain_key
from erasebench.store.files import replacing
from erasebench.types import Pipeline, Prompt, Status

SHARD_SIZE = 64  # images of a logical shard: what a killed run loses at most


_SCHEMA = pa.schema([("digest", pa.string()), ("status", pa.string()), ("png", pa.binary())])


Row = tuple[str, "Image.Image | None", Status]


def image_folder(root: str | Path, key: str) -> Path:
    """Where the images of one model under one set of generation settings lie; it need not exist yet."""
    return Path(root) / "cache" / "images" / plain_key(key)


@lru_cache(maxsize=65536)
def _digests(path: str, mtime_ns: int, size: int) -> tuple[str, ...]:
    """Digests of one image file in row order; () for a file that cannot be read, which then counts as missing."""
    try:
        with open_parquet(Path(path)) as file:
            return tuple(file.read(columns=["digest"])["digest"].to_pylist())
    except (OSError, ValueError, pa.ArrowException, KeyError):
        return ()


def _index(folder: Path) -> dict[str, tuple[Path, int]]:
    """digest -> (file, row); where two files hold a digest, the first file by name is used."""
    index: dict[str, tuple[Path, int]] = {}
    for path in sorted(folder.glob("shard-*.parquet")):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        for row, digest in enumerate(_digests(str(path), stat.st_mtime_ns, stat.st_size)):
            index.setdefault(digest, (path, row))
    return index


def missing(folder: str | Path, digests: Iterable[str]) -> list[str]:
    """Digests without a committed image, each once, in the order given."""
    index = _index(Path(folder))
    return [d for d in dict.fromkeys(digests) if d not in index]


def _png(digest: str, image: Image.Image | None, status: str) -> bytes | None:
    if status not in get_args(Status):
        raise ValueError(f"status must be one of {', '.join(get_args(Status))}; got {status!r} for {digest}")
    if (image is not None) != (status == "ok"):
        raise ValueError(f"an image must be there exactly if its status is ok; got {status!r} for {digest}")
    if image is None:
        return None
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def write_shard(folder: str | Path, shard: int, rows: Iterable[Row]) -> Path:
    """Commit images: one Parquet file, lossless PNG, named after its digests, put in place in one move.

    Args:
        folder: see :func:`image_folder`.
        shard: logical shard the rows belong to.
        rows: (digest, PIL RGB image or None, status); an image exactly if the status is ok.

    Raises:
        ValueError: no rows, or an image that contradicts its status.
        OSError: the folder is not writable or the disk is full.
    """
    folder, rows = Path(folder), sorted(rows, key=lambda row: row[0])
    if not rows:
        raise ValueError(f"shard {shard} of {folder.name} needs at least one image; got none; skip it instead")
    columns = [[r[0] for r in rows], [r[2] for r in rows], [_png(*r) for r in rows]]
    path = folder / f"shard-{shard:03d}-{key(columns[0])}.parquet"
    with replacing(path) as work:  # one row per row group: an image is read without its neighbours
        pq.write_table(
            pa.table(columns, schema=_SCHEMA),
            work,
            row_group_size=1,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
    return path


def _read_rows(path: Path, rows: Sequence[int]) -> list[tuple[str, Image.Image | None, Status]]:
    try:
        with open_parquet(path) as file:
            found = file.read_row_groups(list(rows)).to_pylist()
        return [(r["digest"], open_image(r["png"]) if r["png"] else None, r["status"]) for r in found]
    except (OSError, ValueError, pa.ArrowException) as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path} was damaged and has been removed; run the same command again to redraw it") from error


def read_images(folder: str | Path, digests: Iterable[str]) -> dict[str, tuple[Image.Image | None, Status]]:
    """Committed images by digest: (RGB image, "ok"), or (None, why there is none).

    Raises:
        KeyError: a digest that was never committed.
        OSError: a file whose checksum is wrong; it is removed, so that the next run draws it again.
    """
    folder, wanted = Path(folder), list(dict.fromkeys(digests))
    index = _index(folder)
    absent = [d for d in wanted if d not in index]
    if absent:
        raise KeyError(f"{folder} holds no image of {absent[0]} ({len(absent)} missing); draw it first")
    files: dict[Path, list[int]] = {}
    for digest in wanted:
        path, row = index[digest]
        files.setdefault(path, []).append(row)
    return {
        digest: (image, status)
        for path, rows in files.items()
        for digest, image, status in _read_rows(path, sorted(rows))
    }


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Committed images of one model for some prompts, read lazily from Parquet shards.

    Args:
        key: content hash of everything the images depend on; equal keys mean equal images.
        folder: where the shards lie (columns digest, status, png).
        prompts: the prompts drawn, in order.
        model: what drew them, for evaluators that ask it more; None where images are all there is.
        how: the settings it draws with: steps, guidance_scale, height, width, batch_size.
    """

    key: str
    folder: Path
    prompts: tuple[Prompt, ...]
    model: Pipeline | None = field(default=None, compare=False, repr=False)
    how: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def only(self, groups: Sequence[str]) -> ImageSet:
        """The same images, restricted to some prompt groups."""
        return replace(self, prompts=tuple(p for p in self.prompts if p.group in groups))

    def batches(self, size: int = 64) -> Iterator[list[tuple[Prompt, Image.Image | None, Status]]]:
        """Prompts with their image (None unless status is ok) in order, ``size`` at a time."""

        for start in range(0, len(self.prompts), size):
            chunk = self.prompts[start : start + size]
            found = read_images(self.folder, [p.digest() for p in chunk])
            yield [(p, *found[p.digest()]) for p in chunk]
