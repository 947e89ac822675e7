"""One pass over the images of a model for everything that looks at them one by one.

An evaluator says in ``looks`` what its numbers come from: a judge's verdicts, a network's features, a detector's boxes.
Before the evaluators score, each image is read and decoded once and shown to all of these, equal ones once; what they
find is remembered where the evaluators look first. Without it each evaluator reads the images for itself, with the same
results.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from erasebench.judges import activations, judging
from erasebench.protocols import FeatureNetwork, Judge, Look, Watcher
from erasebench.store.images import ImageSet


@dataclass(frozen=True)
class JudgeLook:
    """A judge's verdicts on images of some groups, about ``concept`` or, if that is None, what each prompt names."""

    judge: Judge
    groups: tuple[str, ...]
    concept: str | None = None

    def watch(self, images: ImageSet) -> Watcher:
        """Remember verdicts as :func:`erasebench.judges.judging.judge_images` does."""
        watcher = judging.watching(self.judge, images)
        next(watcher)
        while (batch := (yield)) is not None:
            named = [(self._asked(prompt), image, status) for prompt, image, status in batch]
            watcher.send([row for row in named if row[0].concept])

    def _asked(self, prompt):  # type: ignore[no-untyped-def]
        return prompt if self.concept is None else prompt.with_(concept=self.concept)


@dataclass(frozen=True)
class FeatureLook:
    """A network's features of images of some groups."""

    network: FeatureNetwork
    groups: tuple[str, ...]

    def watch(self, images: ImageSet) -> Watcher:
        """Keep them as :func:`erasebench.judges.activations.features_of` does."""
        return activations.watching(self.network, images)


def one_pass(looks: Iterable[Look], images: ImageSet) -> int:
    """Show every image once to all looks; returns how many looks there were, 0 if a pass would save nothing.

    Raises:
        Whatever a judge or a network raises: nothing of that look is remembered beyond the batches before.
    """
    chosen = list(dict.fromkeys(looks))
    groups = {group for look in chosen for group in look.groups}
    if len(chosen) < 2 or not images.only(sorted(groups)).prompts:
        return 0
    watchers = [(look, look.watch(images.only(look.groups))) for look in chosen]
    for _, watcher in watchers:
        next(watcher)
    for batch in replace(images, prompts=tuple(p for p in images.prompts if p.group in groups)).batches():
        for look, watcher in watchers:
            if rows := [row for row in batch if row[0].group in look.groups]:
                watcher.send(rows)
    for _, watcher in watchers:
        try:
            watcher.send(None)
        except StopIteration:
            continue
    return len(chosen)
