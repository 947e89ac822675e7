"""Two models' images of the same prompts and the same noise, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from erasebench.store.images import ImageSet
from erasebench.types import Prompt, Status

if TYPE_CHECKING:
    from PIL import Image

Distance = Callable[[Sequence["Image.Image"], Sequence["Image.Image"]], Sequence[float]]


def worse(ours: Status, theirs: Status) -> Status:
    """The status of a pair: that of whichever image could not be made."""
    return theirs if ours == "ok" else ours


def distances(ours: ImageSet, theirs: ImageSet, distance: Distance) -> Iterator[tuple[Prompt, float, Status]]:
    """Prompt, distance of its two images and status, in order.

    A pair of which one image could not be made has no value and that image's status; a distance that is not finite is
    an error.

    Args:
        ours, theirs: the same prompts in the same order.
        distance: of images to images, one number a pair.
    """
    for batch, beside in zip(ours.batches(), theirs.batches(), strict=True):
        made = [i for i, ((_, a, _), (_, b, _)) in enumerate(zip(batch, beside, strict=True)) if a and b]
        found = distance([batch[i][1] for i in made], [beside[i][1] for i in made]) if made else []  # type: ignore[misc]
        values = dict(zip(made, map(float, found), strict=True))
        for i, (prompt, _, status) in enumerate(batch):
            value = values.get(i, math.nan)
            status = worse(status, beside[i][2])
            yield prompt, value, "error" if status == "ok" and not math.isfinite(value) else status
