"""Text on a picture: measured and cut in pixels, with another font where the first has no glyph."""

from __future__ import annotations

import logging
import re
import unicodedata
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont
Colour = tuple[int, int, int]


@lru_cache(maxsize=64)
def _font(size: int, spare: bool) -> Font:
    """Pillow's own font; ``spare``: matplotlib's DejaVu Sans, which has Greek, Cyrillic, arrows and many symbols."""
    if not spare:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow is built with FreeType wherever wheels come from
        return font
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it complains of homes it cannot write to, and goes on
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


@lru_cache(maxsize=4096)
def _drawable(char: str, spare: bool) -> bool:
    """Whether a font has a glyph for a character, which is then not its box for missing ones."""
    font = _font(16, spare)
    return char.isspace() or bytes(font.getmask(char)) != bytes(font.getmask("\U0010ffff"))


def readable(text: str) -> str:
    """The text with a name in place of every character that no font here can draw, and without invisible ones.

    >>> readable("a cat \U0001f680 on \u706b")
    'a cat :rocket: on U+706B'
    """
    out = []
    for char in " ".join(text.split()):
        if char.isascii() and char.isprintable():
            out.append(char)
        elif unicodedata.category(char) == "Cf" or unicodedata.name(char, "").startswith("VARIATION SELECTOR"):
            continue  # joiners and the like
        elif char.isprintable() and (_drawable(char, False) or _drawable(char, True)):
            out.append(char)
        elif unicodedata.category(char) in ("So", "Sk", "Sm") and (name := unicodedata.name(char, "")):
            out.append(f":{name.lower()}:")
        else:
            out.append(f"U+{ord(char):04X}")
    return "".join(out)


def _runs(text: str, size: int) -> list[tuple[str, Font]]:
    parts = groupby(readable(text), key=lambda char: _drawable(char, False))
    return [("".join(chars), _font(size, not plain)) for plain, chars in parts]


def width(text: str, size: int) -> float:
    """How wide a text is, in pixels."""
    return sum(font.getlength(run) for run, font in _runs(text, size))


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: Colour, size: int) -> None:
    """Write one line; ``place`` is the left end of its baseline."""
    x, y = place
    for run, font in _runs(text, size):
        draw.text((x, y), run, colour, font=font, anchor="ls")
        x += font.getlength(run)


def lines(text: str, size: int, most: int, wide: float) -> list[str]:
    """At most ``most`` lines of at most ``wide`` pixels; what does not fit is cut, and an ellipsis says so.

    A line breaks at spaces, else after the marks in names (``esd_selfattn``, ``uce[lamb=5]``), else anywhere.

    >>> lines("a drawing of a cat", 12, 1, 70)
    ['a drawing…']
    """
    out, line = [], ""
    for part in _parts(readable(text), size, wide):
        if line and width((line + part).rstrip(), size) > wide:
            out.append(line.rstrip())
            line = ""
        line += part if line else part.lstrip()
    out.append(line.rstrip())
    if len(out) <= most:
        return out
    last = out[most - 1]
    while last and width(f"{last}…", size) > wide:
        last = last[:-1].rstrip()
    return [*out[: most - 1], f"{last}…"]


def _parts(text: str, size: int, wide: float) -> list[str]:
    """Pieces between which a line may break, none wider than a line."""
    parts = re.findall(r"\S+\s*", text)
    for cut in (r"[^_\-\[\],+]*[_\-\[\],+]*\s*", r"[^=.]*[=.]*\s*", r"."):
        parts = [
            piece
            for part in parts
            for piece in ([part] if width(part.rstrip(), size) <= wide else re.findall(cut, part))
            if piece
        ]
    return parts
