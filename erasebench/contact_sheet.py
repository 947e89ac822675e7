"""The picture a person looks at first: prompts by group, original beside erased, same noise."""

from __future__ import annotations

import textwrap

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from erasebench.types import ImageSet, Prompt

GROUPS = ("target", "paraphrase", "attack", "neighbour", "unrelated")
TILE, LABEL, GAP = 112, 330, 6
INK, PAPER, FAINT = (25, 25, 30), (255, 255, 255), (120, 120, 130)
_HEAD = {
    "target": "the erased concept", "paraphrase": "its synonyms", "attack": "adversarial prompts",
    "neighbour": "related concepts", "unrelated": "unrelated concepts",
}  # fmt: skip


def contact_sheet(
    original: ImageSet, erased: ImageSet, *, title: str, per_group: int = 4, blur: bool = False
) -> Image.Image:
    """One row per prompt: its text, the original model's image, the erased model's image.

    Args:
        original, erased: images of the same prompts.
        title: printed on top.
        per_group: prompts shown of each group, evenly spread over it.
        blur: blur every image (unsafe concepts on models that can draw them).
    """
    rows = [p for g in GROUPS for p in _spread([p for p in original.prompts if p.group == g], per_group)]
    chosen = {side: _images(s, rows) for side, s in (("original", original), ("erased", erased))}
    heads = [g for g in GROUPS if any(p.group == g for p in rows)]
    height = 74 + len(heads) * 26 + len(rows) * (TILE + GAP)
    page = Image.new("RGB", (LABEL + 2 * (TILE + GAP) + 12, height), PAPER)
    draw, big, small = ImageDraw.Draw(page), ImageFont.load_default(15), ImageFont.load_default(13)
    for i, line in enumerate(textwrap.wrap(title, 72)[:2]):
        draw.text((10, 6 + 19 * i), line, INK, font=big)
    for i, side in enumerate(("original", "erased")):
        draw.text((LABEL + i * (TILE + GAP) + 26, 50), side, INK, font=big)
    y, group = 70, ""
    for prompt in rows:
        if prompt.group != group:
            group = prompt.group
            draw.text((10, y + 5), f"{group}: {_HEAD[group]}", INK, font=big)
            y += 26
        label = prompt.text + (f"  [{prompt.concept}, {prompt.relation}]" if prompt.relation else "")
        for i, line in enumerate(textwrap.wrap(label, 46)[:5]):
            draw.text((18, y + 8 + 17 * i), line, FAINT if group == "attack" else INK, font=small)
        for i, side in enumerate(("original", "erased")):
            page.paste(_tile(chosen[side].get(prompt.id), blur), (LABEL + i * (TILE + GAP), y))
        y += TILE + GAP
    return page


def _spread(prompts: list[Prompt], n: int) -> list[Prompt]:
    """n prompts from first to last; not every k-th, which would meet the same concept again where they take turns."""
    places = [round(i * (len(prompts) - 1) / max(1, n - 1)) for i in range(min(n, len(prompts)))]
    return [prompts[i] for i in places]


def _images(images: ImageSet, rows: list[Prompt]) -> dict[str, Image.Image | None]:
    wanted = ImageSet(key=images.key, folder=images.folder, prompts=tuple(rows))
    return {p.id: image for batch in wanted.batches() for p, image, _ in batch}


def _tile(image: Image.Image | None, blur: bool) -> Image.Image:
    """An image at tile size; a crossed-out tile where there is none."""
    if image is None:
        tile = Image.new("RGB", (TILE, TILE), (235, 235, 235))
        ImageDraw.Draw(tile).line([(0, 0), (TILE, TILE)], fill=(190, 40, 40), width=3)
        return tile
    resampling = Image.Resampling.BICUBIC if image.width < 2 * TILE else Image.Resampling.LANCZOS
    tile = image.convert("RGB").resize((TILE, TILE), resampling)
    return tile.filter(ImageFilter.GaussianBlur(TILE / 8)) if blur else tile
