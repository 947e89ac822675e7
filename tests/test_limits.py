"""Files of a few bytes that unpack to a machine's end, counts that are slips of the pen: one line each, at once."""

from __future__ import annotations

import io
import json
import struct
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from erasebench import limits
from erasebench.limits import check_size, open_image, open_parquet, read_json
from erasebench.prompts.files import read_rows
from erasebench.prompts.templates import TemplatePrompts
from erasebench.store import images


def bomb(side: int) -> bytes:
    """A PNG that says it has ``side`` squared pixels, in less than a kilobyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [8193, 20_000, 65_535])
def test_a_picture_is_no_bomb(side):
    with pytest.raises(ValueError, match="a picture must have at most 67108864 pixels"):
        open_image(bomb(side))
    assert open_image(bomb(512)).size == (512, 512)


def test_a_bomb_among_stored_images_is_a_damaged_shard(tmp_path):
    images.write_shard(tmp_path, 0, [("a" * 16, Image.new("RGB", (8, 8)), "ok")])
    (path,) = tmp_path.glob("shard-*")
    pq.write_table(pa.table({"digest": ["a" * 16], "status": ["ok"], "png": [bomb(60_000)]}), path)
    with pytest.raises(OSError, match="was damaged and has been removed"):
        images.read_images(tmp_path, ["a" * 16])
    assert not path.exists()


def test_a_table_of_many_rows_in_few_bytes_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * 100_000}), path)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(limits, "MOST_ROWS", 99_999)
    with pytest.raises(ValueError, match=r"must hold at most 99999 rows .* split it"):
        open_parquet(path)
    with pytest.raises(ValueError, match="must hold at most 99999 rows"):
        read_rows(path, {})


def test_json_of_any_size_and_depth_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"nested too deeply|Expecting"):
        read_json(path)
    monkeypatch.setattr(limits, "MOST_JSON", 1000)
    path.write_text(json.dumps("x" * 2000))
    with pytest.raises(ValueError, match="at most 0 MB"):
        read_json(path)
    with pytest.raises(ValueError, match="no file of this kind"):
        check_size(path, 10)


@pytest.mark.parametrize(
    "template", ["{object:>1000000}", "{object!r}", "{object.__class__}", "{0}", "{", "}", "{object[0]}", "{}"]
)
def test_a_template_has_plain_slots(template):
    with pytest.raises(ValueError, match="slot"):
        TemplatePrompts(templates=["a " + template], objects=["dog"])


def test_a_number_of_prompts_is_no_phone_number():
    for n in (300_000_000, {"target": 300_000_000}):
        with pytest.raises(ValueError, match=r"prompts\.n.* must be an integer >= 0 and <= 1000000; got 300000000"):
            TemplatePrompts(templates=["a {object}"], objects=["dog"], n=n)


def test_a_cut_picture_is_no_picture():
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    with pytest.raises(OSError):
        open_image(buffer.getvalue()[:20])
