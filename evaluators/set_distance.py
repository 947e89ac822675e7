"""Distances between sets of images by maximum mean discrepancy: what KID and CMMD share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from erasebench import fields
from erasebench.judges.activations import features_of, features_of_folder, image_files
from erasebench.judges.judging import check_files
from erasebench.judges.looking import FeatureLook
from erasebench.judges.mmd import MMD
from erasebench.protocols import Evaluator, FeatureNetwork
from erasebench.report import influence
from erasebench.store.images import ImageSet
from erasebench.types import GROUPS, Headline, Score


@dataclass(frozen=True, kw_only=True)
class SetDistance(Evaluator, Protocol):
    """A distance of the images that should survive to real ones and to the original model's, with its influences.

    ``<metric>.vs_<folder>``: to the real images of a folder; ``<metric>.vs_original``: to the original model's images
    of the same prompts and noise, pair by pair. Fewer than two images are a status.

    Args:
        groups: prompt groups pooled.
        real: folder of real images, or None; its name is part of the metric's.
        version: of the definition.
    """

    evaluator: ClassVar[str]
    head: ClassVar[str]
    place: ClassVar[int]
    floor: ClassVar[float] = -math.inf  # the smallest value there can be

    groups: tuple[str, ...]
    real: str | None = None

    def __post_init__(self) -> None:
        name = f"evaluator.{self.evaluator}"
        object.__setattr__(self, "groups", fields.chosen(f"{name}.groups", self.groups, GROUPS, least=1))
        if self.real is not None:
            object.__setattr__(self, "real", str(fields.path(f"{name}.real", self.real)))

    @property
    def network(self) -> FeatureNetwork: ...

    @property
    def metric(self) -> str:
        """Name of the distance, without what it is to."""
        ...

    def distance(self, ours: np.ndarray, theirs: np.ndarray, paired: bool) -> MMD:
        """Of features [n, d] and [m, d] float32, and how much each row of ours moves it."""
        ...

    def more(self, ours: np.ndarray, real: np.ndarray, whole: Score) -> list[Score]:
        """Further scores against real images; none by default."""
        return []

    def check(self) -> None:
        """The network's files can be read, and the folder holds images."""
        check_files(self.network)
        if self.real is not None:
            image_files(self.real)

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """Against real images and against the original's; the metric's name is the label."""
        found = []
        for against, head, place in ((self._against, self.head, 0), ("vs_original", f"{self.head} to original", 1)):
            metric = f"{self.metric}.{against}"
            found.append(
                Headline(
                    metric=metric, group="kept", label="{metric}", head=head, place=self.place + place, role="distance"
                )
            )
            for group in self.groups:
                found.append(Headline(metric=f"influence.{metric}", group=group, label="", place=999, role="influence"))
        return tuple(found)

    @property
    def _against(self) -> str:
        return f"vs_{self.real.rstrip('/').rpartition('/')[2] if self.real else 'real'}"

    @property
    def looks(self) -> tuple[FeatureLook, ...]:
        """The network's features."""
        return (FeatureLook(self.network, self.groups),)

    def score(self, images: ImageSet, original: ImageSet) -> list[Score]:
        """One or two scores of group ``kept``, and a row for each image's influence on each."""
        chosen = images.only(self.groups)
        if not chosen.prompts:
            return []
        drawn, base = features_of(self.network, chosen), features_of(self.network, original.only(self.groups))
        scores = []
        if self.real is not None:
            real = features_of_folder(self.network, self.real).values
            scores += self._scores(self._against, chosen, list(drawn.row), drawn.values, real, False)
        shared = [i for i in drawn.row if i in base.row]
        return scores + self._scores("vs_original", chosen, shared, drawn.of(shared), base.of(shared), True)

    def _scores(
        self, against: str, images: ImageSet, ids: Sequence[str], ours: np.ndarray, theirs: np.ndarray, paired: bool
    ) -> list[Score]:
        failed = len(ids) < 2
        found = MMD(math.nan, np.zeros(0)) if failed else self.distance(ours, theirs, paired)
        whole = Score(
            evaluator=self.evaluator, metric=f"{self.metric}.{against}", value=found.value, group="kept",
            higher_is_better=False, n=len(ids), status="error" if failed else "ok",
        )  # fmt: skip
        if failed:
            return [whole]
        scores = influence.rows(whole, images.prompts, ids, found.moved, self.floor)
        return scores if paired else scores + self.more(ours, theirs, whole)
