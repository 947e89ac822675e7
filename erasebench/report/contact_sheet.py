"""The picture a person looks at first: prompts by group, models side by side, same noise, and what the judge said."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFilter

from erasebench.report.lettering import Colour, lines, width, write
from erasebench.report.verdicts import Seen, Verdicts, count
from erasebench.store.images import ImageSet
from erasebench.types import Prompt

GROUPS = ("target", "paraphrase", "attack", "neighbour", "unrelated")
TILE, LABEL, GAP, MARGIN, CAPTION, FRAME = 112, 200, 8, 12, 16, 3
INK, PAPER, FAINT = (25, 25, 30), (255, 255, 255), (105, 105, 115)
SEEN, UNSEEN = (0, 114, 178), (190, 190, 196)  # Okabe and Ito's blue; light grey: told apart by lightness alone
_HEAD = {
    "target": "the erased concept", "paraphrase": "its synonyms", "attack": "adversarial prompts",
    "neighbour": "related concepts", "unrelated": "other concepts",
}  # fmt: skip


def contact_sheet(
    images: Mapping[str, ImageSet], *, title: str, verdicts: Mapping[str, Verdicts] | None = None,
    per_group: int = 4, blur: bool = False, tile: int = TILE,
) -> Image.Image:  # fmt: skip
    """One row per prompt: its text, and the image of every model.

    An image in which the judge sees the concept has a blue frame and a caption such as ``cat 0.97``, another a grey
    line and ``no 0.03``; at the head of a group stands in how many of all its images it was seen, ``4 of 50``.

    Args:
        images: column head -> images of the same prompts.
        title: printed on top.
        verdicts: column head -> what the judge said of its images, see :func:`erasebench.report.verdicts.verdicts`.
        per_group: prompts shown of each group, evenly spread over it.
        blur: blur every image (unsafe concepts on models that can draw them).
        tile: side of an image on the page, in pixels.
    """
    said = verdicts or {}
    prompts = next(iter(images.values())).prompts
    groups = {g: of_group for g in GROUPS if (of_group := [p for p in prompts if p.group == g])}
    rows = {g: _spread(of_group, per_group) for g, of_group in groups.items()}
    chosen = {head: _images(some, [p for shown in rows.values() for p in shown]) for head, some in images.items()}
    step = tile + (CAPTION if any(said.values()) else 0) + GAP
    wide = LABEL + len(images) * (tile + GAP) + MARGIN
    top, heads = _heads(title, list(images), wide, tile, legend=any(said.values()))
    page = Image.new("RGB", (wide, top + len(rows) * 26 + sum(map(len, rows.values())) * step + 4), PAPER)
    draw = ImageDraw.Draw(page)
    for place, text, colour, size in heads:
        write(draw, place, text, colour, size)
    y = top
    for group, shown in rows.items():
        counts = {head: count(said.get(head, {}), group, [p.id for p in groups[group]]) for head in images}
        _group_head(draw, y, group, list(counts.values()), tile)
        y += 26
        for prompt in shown:
            _label(draw, y, prompt, tile)
            for i, head in enumerate(images):
                x = LABEL + i * (tile + GAP)
                page.paste(_tile(chosen[head].get(prompt.id), blur, tile), (x, y))
                if (seen := said.get(head, {}).get((group, prompt.id))) is not None:
                    _mark(draw, x, y, tile, prompt.concept, seen)
            y += step
    return page


Line = tuple[tuple[float, float], str, Colour, int]


def _heads(title: str, heads: list[str], wide: int, tile: int, legend: bool) -> tuple[int, list[Line]]:
    """Title, legend and column heads, and the height they take."""
    out: list[Line] = []
    y = 8
    for line in lines(title, 15, 3, wide - 2 * MARGIN):
        y += 17
        out.append(((MARGIN, y), line, INK, 15))
    if legend:
        text = "blue frame: the judge sees the concept; k of n: in how many of the group's images"
        for line in lines(text, 12, 3, wide - 2 * MARGIN):
            y += 15
            out.append(((MARGIN, y), line, FAINT, 12))
    size = 14 if tile >= 100 else 12
    names = [lines(head, size, 4, tile + GAP - 4) for head in heads]
    y += 8 + (size + 2) * max(map(len, names))
    for i, name in enumerate(names):
        for up, line in enumerate(reversed(name)):
            x = LABEL + i * (tile + GAP) + (tile - width(line, size)) / 2
            out.append(((x, y - (size + 2) * up), line, INK, size))
    return y + 4, out


def _group_head(draw: ImageDraw.ImageDraw, y: int, group: str, counts: list[tuple[int, int]], tile: int) -> None:
    """``target  the erased concept``, and over each column how often the judge saw it."""
    write(draw, (MARGIN, y + 19), group, INK, 14)
    write(draw, (MARGIN + width(group, 14) + 6, y + 19), _HEAD[group], FAINT, 12)
    for i, (hits, n) in enumerate(counts):
        if n:
            text = f"{hits} of {n}"
            write(draw, (LABEL + i * (tile + GAP) + (tile - width(text, 13)) / 2, y + 19), text, INK, 13)


def _label(draw: ImageDraw.ImageDraw, y: int, prompt: Prompt, tile: int) -> None:
    """The prompt's text, cut to its tile's height, and below it what it depicts and how that is related."""
    note = f"{prompt.concept}, {prompt.relation}" if prompt.relation and prompt.relation != prompt.group else ""
    most = max(1, (tile - 4) // 15 - bool(note))
    text = lines(prompt.text or "(empty prompt)", 12, most, LABEL - MARGIN - 18)
    for i, line in enumerate(text):
        write(draw, (MARGIN + 6, y + 13 + 15 * i), line, INK, 12)
    if note:
        write(draw, (MARGIN + 6, y + 13 + 15 * len(text)), lines(note, 12, 1, LABEL - MARGIN - 18)[0], FAINT, 12)


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, tile: int, concept: str, seen: Seen) -> None:
    """Frame and caption of an image: blue and thick where the concept is seen, a grey line where it is not."""
    present, score = seen
    for k in range(FRAME if present else 1):
        draw.rectangle((x - 1 - k, y - 1 - k, x + tile + k, y + tile + k), outline=SEEN if present else UNSEEN)
    number = "" if score is None else f" {score:.2f}"
    word = lines(concept or "yes", 12, 1, tile - width(number, 12))[0] if present else "no"
    write(draw, (x, y + tile + 14), f"{word}{number}", SEEN if present else FAINT, 12)


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
