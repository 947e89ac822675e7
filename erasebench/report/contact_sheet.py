"""The picture a person looks at first: prompts by group, models side by side, same noise."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from erasebench.store.images import ImageSet
from erasebench.types import Prompt

GROUPS = ("target", "paraphrase", "attack", "neighbour", "unrelated")
TILE, LABEL, GAP = 112, 330, 6
INK, PAPER, FAINT = (25, 25, 30), (255, 255, 255), (120, 120, 130)
_HEAD = {
    "target": "the erased concept", "paraphrase": "its synonyms", "attack": "adversarial prompts",
    "neighbour": "related concepts", "unrelated": "unrelated concepts",
}  # fmt: skip


def contact_sheet(
    images: Mapping[str, ImageSet], *, title: str, per_group: int = 4, blur: bool = False, tile: int = TILE
) -> Image.Image:
    """One row per prompt: its text, and the image of every model.

    Args:
        images: column head -> images of the same prompts.
        title: printed on top.
        per_group: prompts shown of each group, evenly spread over it.
        blur: blur every image (unsafe concepts on models that can draw them).
        tile: side of an image on the page, in pixels.
    """
    prompts = next(iter(images.values())).prompts
    rows = [p for g in GROUPS for p in _spread([p for p in prompts if p.group == g], per_group)]
    chosen = {head: _images(some, rows) for head, some in images.items()}
    heads = [g for g in GROUPS if any(p.group == g for p in rows)]
    width = LABEL + len(images) * (tile + GAP) + 12
    page = Image.new("RGB", (width, 74 + len(heads) * 26 + len(rows) * (tile + GAP)), PAPER)
    draw, big, small = ImageDraw.Draw(page), ImageFont.load_default(15), ImageFont.load_default(13)
    for i, line in enumerate(textwrap.wrap(title, width // 8)[:2]):
        draw.text((10, 6 + 19 * i), line, INK, font=big)
    for i, head in enumerate(images):
        _head(draw, head.replace("_", " "), LABEL + i * (tile + GAP) + tile // 2, tile)
    y, group = 70, ""
    for prompt in rows:
        if prompt.group != group:
            group = prompt.group
            draw.text((10, y + 5), f"{group}: {_HEAD[group]}", INK, font=big)
            y += 26
        label = prompt.text + (f"  [{prompt.concept}, {prompt.relation}]" if prompt.relation else "")
        for i, line in enumerate(textwrap.wrap(label, 46)[: max(1, (tile - 8) // 17)]):
            draw.text((18, y + 8 + 17 * i), line, FAINT if group == "attack" else INK, font=small)
        for i, head in enumerate(images):
            page.paste(_tile(chosen[head].get(prompt.id), blur, tile), (LABEL + i * (tile + GAP), y))
        y += tile + GAP
    return page


def _head(draw: ImageDraw.ImageDraw, text: str, middle: int, width: int) -> None:
    """A column's head, on two lines where one is too wide."""
    font = ImageFont.load_default(15 if width >= 100 else 12)
    lines = [text] if draw.textlength(text, font=font) <= width else textwrap.wrap(text, max(6, len(text) * 2 // 3))[:2]
    for i, line in enumerate(reversed(lines)):
        draw.text((middle, 66 - 15 * i), line, INK, font=font, anchor="ms")


def _spread(prompts: list[Prompt], n: int) -> list[Prompt]:
    """n prompts from first to last; not every k-th, which would meet the same concept again where they take turns."""
    places = [round(i * (len(prompts) - 1) / max(1, n - 1)) for i in range(min(n, len(prompts)))]
    return [prompts[i] for i in places]


def _images(images: ImageSet, rows: list[Prompt]) -> dict[str, Image.Image | None]:
    wanted = ImageSet(key=images.key, folder=images.folder, prompts=tuple(rows))
    return {p.id: image for batch in wanted.batches() for p, image, _ in batch}


def _tile(image: Image.Image | None, blur: bool, size: int) -> Image.Image:
    """An image at its size on the page; a crossed-out tile where there is none."""
    if image is None:
        tile = Image.new("RGB", (size, size), (235, 235, 235))
        ImageDraw.Draw(tile).line([(0, 0), (size, size)], fill=(190, 40, 40), width=3)
        return tile
    resampling = Image.Resampling.BICUBIC if image.width < 2 * size else Image.Resampling.LANCZOS
    tile = image.convert("RGB").resize((size, size), resampling)
    return tile.filter(ImageFilter.GaussianBlur(size / 8)) if blur else tile
