"""Two judges for one run: each concept is judged by the one that can see it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from erasebench.judges.judging import check_files
from erasebench.protocols import Judge
from erasebench.types import Verdict

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class DividedJudge(Judge):
    """``first`` judges every concept it can see, ``others`` the rest: nudity by a detector, churches by CLIP.

    Metrics of one concept carry the name of the judge that was asked about it (:func:`asked`), not of both.

    Args:
        first: asked about every concept that its ``check`` lets pass.
        others: asked about all others.
    """

    first: Judge
    others: Judge

    @property
    def name(self) -> str:
        return f"{self.first.name}+{self.others.name}"

    @property
    def about(self) -> str:
        """What it is, in a sentence or two."""
        told = [str(getattr(judge, "about", judge.name)) for judge in (self.first, self.others)]
        return f"{told[0]} Other concepts: {told[1]}"

    def sees(self, concept: str) -> bool:
        """Whether ``first`` is the one to ask."""
        try:
            self.first.check([concept])
        except ValueError:
            return False
        return True

    def check(self, concepts: Collection[str]) -> None:
        """At least one concept must be for ``first``, else it would decide nothing; ``others`` must see the rest."""
        rest = [concept for concept in concepts if not self.sees(concept)]
        if concepts and len(rest) == len(concepts):
            self.first.check(concepts)
        self.others.check(rest)

    def check_files(self) -> None:
        """As both judges'."""
        check_files(self.first)
        check_files(self.others)

    def __call__(self, images: Sequence[Image.Image], concepts: Sequence[str]) -> list[Verdict]:
        """One verdict per image, in order."""
        verdicts: dict[int, Verdict] = {}
        for judge in (self.first, self.others):
            places = [i for i, concept in enumerate(concepts) if asked(self, concept) is judge]
            if places:
                found = judge([images[i] for i in places], [concepts[i] for i in places])
                verdicts |= dict(zip(places, found, strict=True))
        return [verdicts[i] for i in range(len(images))]


def asked(judge: Judge, concept: str) -> Judge:
    """The judge that decides on ``concept``: ``judge`` itself, or the one it leaves that to."""
    if isinstance(judge, DividedJudge):
        return asked(judge.first if judge.sees(concept) else judge.others, concept)
    return judge
