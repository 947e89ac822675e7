"""Ask a judge about the images of a set, each image once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from erasebench.protocols import Judge
from erasebench.store.images import ImageSet
from erasebench.types import Prompt, Status, Verdict

Judged = tuple[Prompt, Verdict | None, Status]

MEMO_SIZE = 500_000  # verdicts remembered before the memory starts afresh
_memo: dict[tuple[Judge, str, str, str], Verdict] = {}


def check_files(network: Any) -> None:
    """Ask a network of a judge or an evaluator whether its files can be read; one without such a check is taken."""
    if hasattr(network, "check_files"):
        network.check_files()


def judge_images(judge: Judge, images: ImageSet, batch_size: int = 64) -> list[Judged]:
    """Verdict on every image whose prompt names a concept, in the order of the prompts.

    A verdict is remembered by (judge, key of the image set, prompt digest, concept), which decide it completely, so
    two evaluators that need the same verdicts pay for them once.

    Args:
        judge: says whether ``prompt.concept`` is in the image; hashable, as frozen dataclasses are.
        images: the set; prompts with concept ``""`` are left out.
        batch_size: images read and judged at a time.

    Returns:
        One (prompt, verdict, status) per prompt; the verdict is None exactly if the status is not ``ok``.

    Raises:
        ValueError: the judge returns another number of verdicts than it was given images.
    """
    if len(_memo) > MEMO_SIZE:
        _memo.clear()
    rows: list[Judged] = []
    named = replace(images, prompts=tuple(p for p in images.prompts if p.concept))
    for batch in named.batches(batch_size):
        places = [(judge, images.key, prompt.digest(), prompt.concept) for prompt, _, _ in batch]
        unseen = {place: image for place, (_, image, _) in zip(places, batch, strict=True) if image is not None}
        unseen = {place: image for place, image in unseen.items() if place not in _memo}
        if unseen:
            verdicts = judge(list(unseen.values()), [place[-1] for place in unseen])
            if len(verdicts) != len(unseen):
                raise ValueError(
                    f"judge {judge.name} must return one verdict per image; got {len(verdicts)} for {len(unseen)}"
                )
            _memo.update(zip(unseen, verdicts, strict=True))
        rows += [
            (prompt, _memo[place] if status == "ok" else None, status)
            for place, (prompt, _, status) in zip(places, batch, strict=True)
        ]
    return rows
