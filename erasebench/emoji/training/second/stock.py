"""Everything training draws from, on one device: sprites, captions, and which picture a caption may be of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from erasebench.emoji import networks
from erasebench.emoji.training import artwork
from erasebench.emoji.training.second import texts
from erasebench.emoji.training.second.texts import PLACES, STYLES, THINGS


@dataclass(frozen=True)
class Batch:
    """Captions and pictures that belong together; all [n], long."""

    caption: Tensor
    picture: Tensor
    style: Tensor
    place: Tensor


@dataclass(frozen=True)
class Stock:
    """Tables on one device.

    Args:
        sprites: premultiplied RGBA uint8 [pictures, 4 styles, 4, 72, 72]: concepts, other emoji, a blank.
        colours: [8, 3] in 0..255.
        captions, glosses: token ids int16 [n, 48]; row 0 of the captions is the empty text.
        code, style, place: of each caption; -1 leaves style or place free.
        members, counts: pictures of each code, padded [codes, most] and their number.
        choices: captions that are drawn from. With ``styles``, what a training may know.
        styles: styles a free caption is drawn in.
        names, labels: token ids of zero-shot texts [frames, 83, 48] and [frames, 4, 48].
    """

    sprites: Tensor
    colours: Tensor
    captions: Tensor
    glosses: Tensor
    code: Tensor
    style: Tensor
    place: Tensor
    members: Tensor
    counts: Tensor
    choices: Tensor
    styles: Tensor
    names: Tensor
    labels: Tensor
    end: int

    @property
    def device(self) -> torch.device:
        return self.sprites.device

    def sample(self, g: torch.Generator, n: int) -> Batch:
        """n captions, and for each a picture, style and place that it may be of."""
        at = {"generator": g, "device": self.device}
        caption = self.choices[torch.randint(len(self.choices), (n,), **at)]
        code, u = self.code[caption], torch.rand(3, n, **at)
        picture = self.members[code, (u[0] * self.counts[code]).long()]
        free = self.styles[(u[1] * len(self.styles)).long()]
        style = torch.where(self.style[caption] < 0, free, self.style[caption])
        place = torch.where(self.place[caption] < 0, (u[2] * len(PLACES)).long(), self.place[caption])
        return Batch(caption, picture, style, place)

    def pictures(self, b: Batch, g: torch.Generator) -> Tensor:
        """Jittered pictures [n, 3, 64, 64] in -1..1."""
        return artwork.compose(self.sprites[b.picture, b.style], self.colours[b.place], g)

    def matches(self, b: Batch) -> Tensor:
        """float32 [pictures, captions]: 1 where all that the caption says is true of the picture."""
        held = torch.zeros(len(self.members), len(self.sprites), device=self.device)
        held.scatter_(1, self.members, 1.0)  # the padding repeats a member
        m = held[self.code[b.caption]][:, b.picture].T
        for said, true in ((self.style, b.style), (self.place, b.place)):
            want = said[b.caption]
            m = m * ((want[None] < 0) | (want[None] == true[:, None]))
        return m

    def widen(self, ids: Tensor, length: int = networks.TOKENS) -> Tensor:
        """Token ids long [n, length], padded with the end token."""
        return torch.nn.functional.pad(ids.long(), (0, length - ids.shape[-1]), value=self.end)

    def without(self, names: tuple[str, ...], often: tuple[str, ...] = ()) -> Stock:
        """The same with every picture and caption of some concepts and styles left out; ``often`` come three times."""
        lost = [THINGS.index(n) for n in names if n in THINGS]
        styles = [STYLES.index(n) for n in names if n in STYLES]
        device, rows, keep = self.device, [], [i for i in range(len(STYLES)) if i not in styles]
        for row, n in zip(self.members.tolist(), self.counts.tolist(), strict=True):
            rows.append([m for m in row[:n] if m not in lost])
        fine = torch.ones(len(self.code), dtype=torch.bool, device=device)
        for i in lost:
            fine &= self.code != i
        for s in styles:
            fine &= self.style != s
        counts = torch.tensor([len(r) for r in rows], device=device)
        fine &= counts[self.code] > 0
        choices = fine.nonzero()[:, 0]
        code, style = self.code[choices], self.style[choices]
        extra = torch.zeros(len(choices), dtype=torch.bool, device=device)
        for n in often:
            extra |= code == THINGS.index(n) if n in THINGS else style == STYLES.index(n)
        choices = torch.cat([choices, choices[extra], choices[extra]])
        return replace(
            self, members=_padded(rows, device), counts=counts, choices=choices,
            styles=torch.tensor(keep, device=device),
        )  # fmt: skip


def _padded(rows: list[list[int]], device: torch.device) -> Tensor:
    most = max(map(len, rows))
    return torch.tensor([(r or [0]) + [(r or [0])[-1]] * (most - max(1, len(r))) for r in rows], device=device)


def load(out: Path, data: Path, device: torch.device) -> Stock:
    """Read artwork and tables; the end token is the tokenizer's."""
    art, tables = artwork.load(data), texts.load(out)
    blank = torch.zeros(1, len(STYLES), 4, artwork.SPRITE, artwork.SPRITE, dtype=torch.uint8)
    rows = texts.members(art.labels)
    move = {k: v.to(device) for k, v in tables.items()}
    return Stock(
        sprites=torch.cat([art.world[:, : len(STYLES)], art.other, blank]).to(device),
        colours=artwork.colours().to(device), captions=move["captions"], glosses=move["glosses"],
        code=move["code"].long(), style=move["style"].long(), place=move["place"].long(),
        members=_padded(rows, device), counts=torch.tensor([len(r) for r in rows], device=device),
        choices=torch.arange(len(tables["code"]), device=device), styles=torch.arange(len(STYLES), device=device),
        names=move["names"], labels=move["styles"], end=texts.tokenizer(out).eos_token_id,
    )  # fmt: skip
