"""The store: every step's result lies under ``cache/<step>/<key>/``, its name is the hash of all it was made from.

A result is written beside its place and renamed into it; ``manifest.json`` is written last and lists every file, so
a folder without a matching manifest is not there. Image folders grow instead: they hold Parquet files named after
the prompts inside, so another run adds files and two writers at once write the same thing under the same name.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from erasebench.files import FULL, explained, fsync, replacing, work_path
from erasebench.files import check_writable as check_writable  # part of the store for its callers
from erasebench.types import Status

MANIFEST = "manifest.json"
SHARD_SIZE = 64  # images of a logical shard: what a killed run loses at most
HASHED_BYTES = 64 * 2**20  # larger files are checked by their length only
_SCHEMA = pa.schema([("digest", pa.string()), ("status", pa.string()), ("png", pa.binary())])

Row = tuple[str, "Image.Image | None", Status]


def key(*parts: Any) -> str:
    """Content hash of JSON values: the first 20 hex digits of sha256 of their canonical JSON.

    Args:
        parts: what the result depends on; dicts (any key order), sequences, str, int, float, bool, None.

    Raises:
        TypeError: a part JSON cannot express.
        ValueError: NaN or infinity, which JSON cannot express either.

    >>> key({"a": 1, "b": (2, 3)}) == key({"b": [2, 3], "a": 1}) != key({"a": 1, "b": [3, 2]})
    True
    """
    try:
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise TypeError(f"key parts must be JSON values; {error}; convert it to text or numbers first") from error
    except ValueError as error:
        raise ValueError(f"key parts must be finite JSON values; {error}; use None for a missing number") from error
    return hashlib.sha256(text.encode()).hexdigest()[:20]


# --- one step, one folder ---


def _describe(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > HASHED_BYTES:
        return {"bytes": size}
    return {"bytes": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return {p.relative_to(folder).as_posix(): _describe(p) for p in paths}


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of a finished step, or None if the folder is absent, half-written or damaged."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest if manifest["files"] == _files(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _publish(work: Path, folder: Path) -> None:
    """Rename ``work`` into place; a complete folder already there wins, a damaged one is replaced."""
    for _ in range(10):
        try:
            work.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if read_manifest(folder) is not None:
            return
        aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
        try:
            folder.rename(aside)
        except FileNotFoundError:  # another process replaced it at this moment
            continue
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    raise OSError(f"{folder} keeps changing; stop the other processes that write it and run again")


def step(
    root: str | Path, name: str, key: str, make: Callable[[Path], None], meta: Mapping[str, Any] | None = None
) -> Path:
    """The folder ``root/cache/name/key`` of a step's result, computed only if it is not there.

    Two processes at once are harmless: both compute, the first to finish wins, the other discards its copy.

    Args:
        root: results folder.
        name: step name, e.g. ``erase``.
        key: content hash of everything the result depends on, see :func:`key`.
        make: writes the result's files into the empty folder it is given.
        meta: JSON values stored in the manifest.

    Raises:
        OSError: the folder is not writable or the disk is full.
    """
    root, folder = Path(root), Path(root) / "cache" / name / key
    if read_manifest(folder) is not None:
        return folder
    work = work_path(folder)
    with explained(root):
        work.mkdir(parents=True)
    try:
        with explained(root, FULL):
            make(work)
            for path in work.rglob("*"):
                fsync(path)
            manifest = {"step": name, "key": key, "meta": dict(meta or {}), "files": _files(work)}
            (work / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
            fsync(work / MANIFEST)
            _publish(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


# --- images: one growing folder per model and generation settings ---


def image_folder(root: str | Path, key: str) -> Path:
    """Where the images of one model under one set of generation settings lie; it need not exist yet."""
    return Path(root) / "cache" / "images" / key


def shard_of(digest: str, count: int) -> int:
    """Logical shard of a prompt digest among ``count``: decided by the digest alone, not by workers or order.

    >>> shard_of("00000011aa", 16)
    1
    """
    return int(digest[:8], 16) % count


@lru_cache(maxsize=65536)
def _digests(path: str, mtime_ns: int, size: int) -> tuple[str, ...]:
    """Digests of one image file in row order; () for a file that cannot be read, which then counts as missing."""
    try:
        return tuple(pq.read_table(path, columns=["digest"], partitioning=None)["digest"].to_pylist())
    except (OSError, pa.ArrowException, KeyError):
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


def pending(folder: str | Path, digests: Sequence[str], size: int = SHARD_SIZE) -> list[tuple[int, list[str]]]:
    """The work left, as (logical shard, missing digests); commit each with :func:`write_shard`.

    The shards are cut from all digests (ceil(n / size) of them), not from the missing ones: a run that was killed
    cuts the same shards when it starts again, so it draws the same batches as one that was not.
    """
    count = max(1, -(-len(set(digests)) // size))
    shards: dict[int, list[str]] = {}
    for digest in missing(folder, digests):
        shards.setdefault(shard_of(digest, count), []).append(digest)
    return sorted(shards.items())


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
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = file.read_row_groups(list(rows)).to_pylist()
        return [(r["digest"], Image.open(io.BytesIO(r["png"])) if r["png"] else None, r["status"]) for r in found]
    except (OSError, pa.ArrowException) as error:
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
