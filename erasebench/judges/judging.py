"""Ask a judge about the images of a set, each image once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from erasebench.protocols import Judge, Watcher
from erasebench.store.images import ImageSet
from erasebench.types import Prompt, Status, Verdict

Judged = tuple[Prompt, Verdict | None, Status]

MEMO_SIZE = 500_000  # verdicts remembered before the memory starts afresh
_Place = tuple[Judge, str, Path, str, str]
_memo: dict[_Place, Verdict | Status] = {}  # a status where there is no image


def check_files(network: Any) -> None:
    """Ask a network of a judge or an evaluator whether its files can be read; one without such a check is taken."""
    if hasattr(network, "check_files"):
        network.check_files()


def judge_images(judge: Judge, images: ImageSet, batch_size: int = 64) -> list[Judged]:
    """Verdict on every image whose prompt names a concept, in the order of the prompts.

    A verdict is remembered by (judge, key and folder of the image set, prompt digest, concept), so two evaluators that
    need the same verdicts pay for them once. The folder counts because an image may be missing in one of two.

    Args:
        judge: says whether ``prompt.concept`` is in the image; hashable, as frozen dataclasses are.
        images: the set; prompts with concept ``""`` are left out.
        batch_size: images read and judged at a time.

    Returns:
        One (prompt, verdict, status) per prompt; the verdict is None exactly if the status is not ``ok``.

    Raises:
        ValueError: the judge returns another number of verdicts than it was given images, or one that is no number.
    """
    if len(_memo) > MEMO_SIZE:
        _memo.clear()
    named = replace(images, prompts=tuple(p for p in images.prompts if p.concept))
    watcher = watching(judge, images)
    next(watcher)
    if not all(_place(judge, images, prompt) in _memo for prompt in named.prompts):
        for batch in named.batches(batch_size):
            watcher.send(batch)
    found = [(prompt, _memo[_place(judge, images, prompt)]) for prompt in named.prompts]
    return [(p, v, "ok") if isinstance(v, Verdict) else (p, None, v) for p, v in found]


def watching(judge: Judge, images: ImageSet) -> Watcher:
    """Remember the judge's verdicts on batches of an image set, which it is sent; None ends it."""
    while (batch := (yield)) is not None:
        unseen = {_place(judge, images, prompt): image for prompt, image, _ in batch if image is not None}
        unseen = {place: image for place, image in unseen.items() if place not in _memo}
        _memo.update((_place(judge, images, prompt), status) for prompt, image, status in batch if image is None)
        if unseen:
            verdicts = judge(list(unseen.values()), [place[-1] for place in unseen])
            if len(verdicts) != len(unseen):
                raise ValueError(
                    f"judge {judge.name} must return one verdict per image; got {len(verdicts)} for {len(unseen)}"
                )
            if odd := next((v.score for v in verdicts if not math.isfinite(v.score)), None):
                raise ValueError(f"judge {judge.name} must give finite scores; got {odd}; check its weights")
            _memo.update(zip(unseen, verdicts, strict=True))


def _place(judge: Judge, images: ImageSet, prompt: Prompt) -> _Place:
    return judge, images.key, images.folder, prompt.digest(), prompt.concept
