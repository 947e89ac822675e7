"""Are the pictures still as good? Kernel distance of the kept prompts' images, which has no bias at any N."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from erasebench import fields
from erasebench.judges.mmd import MMD, polynomial, squared_mmd
from erasebench.protocols import FeatureNetwork
from erasebench.types import Score
from evaluators.set_distance import SetDistance

SCALE = 1000  # tables print KID times 1000


@dataclass(frozen=True, kw_only=True)
class KID(SetDistance):
    """Kernel Inception distance times 1000 (Binkowski et al., arXiv 1801.01401), pooled over what should survive.

    The unbiased squared maximum mean discrepancy with ``k(x, y) = (gamma <x, y> + coef)^degree``, gamma 1 / d, of a
    network's features; with Inception it is KID:

    - ``kid_x1000.<network>.vs_<folder>``: to real images, the estimator over all images (MMD_u^2). It is what the mean
      over random subsets, as packages compute it, tends to; nothing is drawn, so nothing varies;
    - ``kid_x1000.<network>.vs_original``: to the original model's images of the same prompts and noise, over pairs;
    - ``kid_x1000.<network>.<subsets>x<size>.vs_<folder>`` and ``kid_std_x1000...``: mean and standard deviation
      (divisor ``subsets``) over random subsets without replacement, as torch-fidelity and torchmetrics print them; only
      where both sides have as many images as a subset. Subsets are drawn by NumPy from ``seed``, not by the packages'
      generators.

    Unlike FID its expectation does not depend on N, so values of different N may be compared; it may be negative.
    Intervals are by cluster from each image's influence (:func:`erasebench.judges.mmd.squared_mmd`) as FID's are. Where
    two models hardly differ, the first order that they rest on vanishes and they are too narrow.

    Args:
        features: the network, hashable.
        groups: prompt groups pooled.
        real: folder of real images, or None.
        degree, coef: of the kernel.
        gamma: of the kernel; None is 1 / d.
        subsets: random subsets; 0 for none.
        subset_size: images of each.
        seed: of the subsets.
        version: of this definition.
    """

    evaluator: ClassVar[str] = "kid"
    head: ClassVar[str] = "KID"
    place: ClassVar[int] = 82

    features: FeatureNetwork
    groups: tuple[str, ...] = ("neighbour", "unrelated", "coco")
    real: str | None = None
    degree: int = 3
    gamma: float | None = None
    coef: float = 1.0
    subsets: int = 100
    subset_size: int = 1000
    seed: int = 0
    version: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("degree", 1), ("subsets", 0), ("subset_size", 2), ("seed", 0)):
            fields.integer(f"evaluator.kid.{name}", getattr(self, name), least=least)
        fields.number("evaluator.kid.coef", self.coef)
        if self.gamma is not None:
            fields.number("evaluator.kid.gamma", self.gamma, above=0)

    @property
    def network(self) -> FeatureNetwork:
        return self.features

    @property
    def metric(self) -> str:
        usual = (self.degree, self.gamma, self.coef) == (3, None, 1.0)
        kernel = "" if usual else f".poly{self.degree}-{'1_d' if self.gamma is None else self.gamma}-{self.coef:g}"
        return f"kid_x1000.{self.features.name}{kernel}"

    def distance(self, ours: np.ndarray, theirs: np.ndarray, paired: bool) -> MMD:
        """Times 1000, of all rows."""
        found = squared_mmd(ours, theirs, self._kernel(ours), "paired" if paired else "unbiased")
        return MMD(SCALE * found.value, SCALE * found.moved)

    def more(self, ours: np.ndarray, real: np.ndarray, whole: Score) -> list[Score]:
        """Mean and standard deviation over random subsets, where there are images enough."""
        size = self.subset_size
        if not self.subsets or min(len(ours), len(real)) < size:
            return []
        draw = np.random.default_rng(self.seed)
        values = []
        for _ in range(self.subsets):
            x, y = (side[np.sort(draw.choice(len(side), size, replace=False))] for side in (ours, real))
            values.append(SCALE * squared_mmd(x, y, self._kernel(x), "unbiased").value)
        name = whole.metric.replace(self.metric, f"{self.metric}.{self.subsets}x{size}", 1)
        mean = replace(whole, metric=name, value=float(np.mean(values)))
        return [mean, replace(mean, metric=name.replace("kid_", "kid_std_", 1), value=float(np.std(values)))]

    def _kernel(self, rows: np.ndarray):  # type: ignore[no-untyped-def]
        return polynomial(self.degree, 1 / rows.shape[1] if self.gamma is None else self.gamma, self.coef)
