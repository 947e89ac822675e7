"""How large what is read may be: files people hand over or share, which a few bytes can make a machine's end.

The limits are far beyond what a benchmark needs; a line says which was met.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

MOST_ROWS = 50_000_000  # of a table
MOST_CELLS = 8 * 2**30  # bytes of a table once it is unpacked
MOST_TEXT = 2 * 2**30  # bytes of a CSV
MOST_JSON = 256 * 2**20  # bytes of a JSON file
MOST_PIXELS = 8192 * 8192  # of a picture


def check_size(path: Path, most: int) -> Path:
    """The path of a file that is at most so large.

    Raises:
        ValueError: it is larger.
    """
    if (size := path.stat().st_size) > most:
        raise ValueError(
            f"{path} must be at most {most / 2**20:.0f} MB; got {size / 2**20:.0f} MB; it is no file of this kind"
        )
    return path


def read_text(path: Path) -> str:
    """The text of a JSON file of at most :data:`MOST_JSON` bytes."""
    return check_size(path, MOST_JSON).read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file of at most :data:`MOST_JSON` bytes.

    Raises:
        ValueError: it is larger, nested too deeply, or no JSON.
        OSError: it cannot be read.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path} must be JSON of ordinary depth; it is nested too deeply; write it again") from None


def open_parquet(path: Path, words: Sequence[str] = ()) -> pq.ParquetFile:
    """A Parquet file whose tables are of a size that can be read, by what its footer says; checksums are verified.

    Args:
        path: the file.
        words: columns of texts that are few and come often: they stay codes into a dictionary.

    Raises:
        ValueError: more rows, or more bytes once unpacked.
        OSError, pyarrow.ArrowException: it is no Parquet.
    """
    data = pq.read_metadata(path)
    there = [name for name in words if name in data.schema.names]
    file = pq.ParquetFile(path, metadata=data, page_checksum_verification=True, read_dictionary=there)
    unpacked = sum(data.row_group(i).total_byte_size for i in range(data.num_row_groups))
    if data.num_rows > MOST_ROWS or unpacked > MOST_CELLS:
        file.close()
        raise ValueError(
            f"{path} must hold at most {MOST_ROWS} rows and {MOST_CELLS >> 30} GB; its footer says {data.num_rows} "
            f"rows and {unpacked / 2**30:.1f} GB; split it"
        )
    return file


def read_parquet(path: Path, words: Sequence[str] = ()) -> pa.Table:
    """The whole table of :func:`open_parquet`."""
    with open_parquet(path, words) as file:
        return file.read()


def open_image(source: Path | bytes) -> Image.Image:
    """A picture, not yet decoded, of at most :data:`MOST_PIXELS`.

    Raises:
        ValueError: more pixels.
        OSError: no picture.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Image.DecompressionBombError as error:
        raise ValueError(f"a picture must have at most {MOST_PIXELS} pixels; {error}; make it smaller") from None
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"a picture must have at most {MOST_PIXELS} pixels; got {image.width}x{image.height}; make it smaller"
        )
    return image
